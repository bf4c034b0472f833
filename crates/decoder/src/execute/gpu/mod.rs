//! Decoders on devices: whole blocks on GPUs, in int8, and the rest on the CPU, in int8 too.
//!
//! A device follows the same plan as the CPU (`execute/cpu.rs`). Values between layers are rows of
//! f32 on both.
//!
//! | file | holds |
//! |---|---|
//! | `parts.rs` | a block's weights on a device |
//! | `fill.rs` | from the checkpoint onto the device |
//! | `cache.rs` | keys and values |
//! | `memory.rs` | what a pass works in |
//! | `pass.rs` | one pass through the blocks of a device, by a graph where it can be |
//! | `steps.rs` | the steps of a plan, launch by launch |

mod cache;
mod fill;
mod memory;
mod parts;
mod pass;
mod steps;

pub(crate) use cache::DeviceCache;
pub(crate) use fill::{Scratch, Target};
pub(crate) use memory::{HeadMemory, Widths};
pub(crate) use pass::{PassRows, StagePass, Work};

use crate::decoder::Decoder;
use crate::error::Result;
use crate::slot::{BlockSlot, Slot};
use llm_int8_cuda::ops::{FloatType, HeadLayout};
use llm_int8_cuda::{Buffer, Device};
use llm_int8_nn::dtype::FloatDtype;
use memory::Workspace;
use parts::{DeviceHead, DeviceParts};
use pass::{GraphKey, GraphState};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

/// What lies on one device, and what is needed to compute with it. Clones share everything.
#[derive(Clone)]
pub(crate) struct Stage {
    device: Device,
    layout: HeadLayout,
    widths: Arc<Widths>,
    /// Blocks in their order, the first of which is the model's `first`.
    blocks: Arc<Vec<DeviceParts<BlockSlot>>>,
    first: usize,
    model: Option<Arc<DeviceHead>>,
    /// Slopes of position biases.
    slopes: Option<Arc<Buffer<f32>>>,
    uses_graphs: bool,
    workspace: Arc<Mutex<Option<Workspace>>>,
    graphs: Arc<Mutex<BTreeMap<GraphKey, GraphState>>>,
    /// Graphs ever recorded.
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
    /// Memory for the blocks `range`, and for what stands outside of blocks where `has_head`; no
    /// values yet.
    pub(crate) fn declare(
        device: &Device,
        decoder: &Decoder,
        range: Range<usize>,
        has_head: bool,
        uses_graphs: bool,
    ) -> Result<Self> {
        let attention = &decoder.spec().attention;
        let first = range.start;
        let plan = decoder.execution_plan();
        let blocks = range
            .map(|number| {
                DeviceParts::declare(device, &decoder.blocks[number], plan.blocks[number].iter())
            })
            .collect::<Result<_>>()?;
        let model = has_head
            .then(|| DeviceHead::declare(device, decoder))
            .transpose()?;
        let slopes = attention
            .alibi
            .as_ref()
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

    /// The device.
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// The blocks it has.
    pub(crate) fn range(&self) -> Range<usize> {
        self.first..self.first + self.blocks.len()
    }

    /// Whether tables, norms outside of blocks and the head are here.
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

    /// Whether decoding is by graphs.
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

/// The dtype as kernels name it.
pub(crate) fn float_type(dtype: FloatDtype) -> FloatType {
    match dtype {
        FloatDtype::F16 => FloatType::F16,
        FloatDtype::BF16 => FloatType::BF16,
        FloatDtype::F32 => FloatType::F32,
    }
}
