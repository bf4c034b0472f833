//! Executes plans on GPUs. A device holds a [`Stage`]: whole blocks, and maybe the embeddings and
//! the head. What fits on no device stays on the CPU, in int8 too.
//!
//! A device follows the same plan as the CPU (`execute/cpu.rs`), and activations between layers
//! are f32 on both.
//!
//! | file | holds |
//! |---|---|
//! | `parts.rs` | weights, norms and tables in device memory |
//! | `fill.rs` | copying and quantising weights from the checkpoint to the device |
//! | `cache.rs` | the KV cache of a sequence |
//! | `memory.rs` | activations and scratch memory, kept from pass to pass |
//! | `inputs.rs` | what a pass uploads |
//! | `pass.rs` | one pass through the blocks of a device |
//! | `graph.rs` | recording a decode pass as a CUDA graph, and replaying it |
//! | `steps.rs` | the steps of a plan, launch by launch |

mod cache;
mod fill;
mod graph;
mod inputs;
mod memory;
mod parts;
mod pass;
mod steps;

pub(crate) use cache::DeviceCache;
pub(crate) use fill::{Scratch, Target};
pub(crate) use inputs::HostInputs;
pub(crate) use memory::{HeadMemory, Widths};
pub(crate) use pass::{StagePass, Work};

use crate::decoder::Decoder;
use crate::error::Result;
use crate::slot::{BlockSlot, Slot};
use graph::Graphs;
use llm_int8_cuda::ops::{FloatType, HeadLayout};
use llm_int8_cuda::{Buffer, Device};
use llm_int8_nn::dtype::FloatDtype;
use memory::Workspace;
use parts::{DeviceHead, DeviceParts};
use std::fmt;
use std::ops::Range;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

/// The part of a decoder that lies on one device, with the memory to compute it. Clones share
/// everything.
#[derive(Clone)]
pub(crate) struct Stage {
    device: Device,
    layout: HeadLayout,
    widths: Arc<Widths>,
    /// Consecutive blocks of the model.
    blocks: Arc<Vec<DeviceParts<BlockSlot>>>,
    /// The model's number of the first of them.
    first: usize,
    model: Option<Arc<DeviceHead>>,
    /// ALiBi's slopes, one per head.
    slopes: Option<Arc<Buffer<f32>>>,
    uses_graphs: bool,
    /// Allocated by the first pass, grown by larger ones.
    workspace: Arc<Mutex<Option<Workspace>>>,
    graphs: Arc<Mutex<Graphs>>,
    /// Graphs ever recorded, for tests and statistics.
    recorded: Arc<AtomicUsize>,
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage")
            .field("device", &self.device)
            .field("blocks", &self.range())
            .finish()
    }
}

impl Stage {
    /// Allocates the weights of the blocks `range`, and of the embeddings and head if `has_head`.
    /// Values are written later, by [`Target`].
    pub(crate) fn declare(
        device: &Device,
        decoder: &Decoder,
        range: Range<usize>,
        has_head: bool,
        uses_graphs: bool,
    ) -> Result<Self> {
        let plan = decoder.execution_plan();
        let first = range.start;

        let blocks = range
            .map(|number| {
                DeviceParts::declare(device, &decoder.blocks[number], plan.blocks[number].iter())
            })
            .collect::<Result<_>>()?;
        let model = has_head
            .then(|| DeviceHead::declare(device, decoder))
            .transpose()?;

        let alibi = decoder.spec().attention.alibi.as_ref();
        let slopes = alibi
            .map(|alibi| device.upload(alibi.slopes()))
            .transpose()?;

        Ok(Self {
            device: device.clone(),
            layout: head_layout(decoder),
            widths: Arc::new(Widths::of(decoder)),
            blocks: Arc::new(blocks),
            first,
            model: model.map(Arc::new),
            slopes: slopes.map(Arc::new),
            uses_graphs,
            workspace: Arc::default(),
            graphs: Arc::default(),
            recorded: Arc::default(),
        })
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// The blocks that lie here.
    pub(crate) fn range(&self) -> Range<usize> {
        self.first..self.first + self.blocks.len()
    }

    /// Whether the embeddings and the head lie here.
    pub(crate) fn has_head(&self) -> bool {
        self.model.is_some()
    }

    /// Whether a part lies here.
    pub(crate) fn has(&self, slot: Slot) -> bool {
        match slot {
            Slot::Model(_) => self.has_head(),
            Slot::Block(layer, _) => self.range().contains(&layer),
        }
    }

    /// Turns CUDA graphs on or off.
    pub(crate) fn set_graphs(&mut self, uses_graphs: bool) {
        self.uses_graphs = uses_graphs;
    }

    fn layout(&self) -> HeadLayout {
        self.layout
    }
}

/// How the heads of a model lie in a cache on a device.
fn head_layout(decoder: &Decoder) -> HeadLayout {
    let attention = &decoder.spec().attention;
    HeadLayout {
        heads: attention.heads,
        kv_heads: attention.kv_heads,
        size: attention.head_size,
        dtype: float_type(decoder.dtype()),
    }
}

/// The dtype, as the kernels name it.
pub(crate) fn float_type(dtype: FloatDtype) -> FloatType {
    match dtype {
        FloatDtype::F16 => FloatType::F16,
        FloatDtype::BF16 => FloatType::BF16,
        FloatDtype::F32 => FloatType::F32,
    }
}
