//! Device memory that passes work in. It is kept from pass to pass, so that decoding a token
//! allocates nothing.

use super::inputs::DeviceInputs;
use super::{Stage, head_layout};
use crate::decoder::Decoder;
use crate::error::Result;
use crate::logits::MOST_CHOSEN;
use crate::plan::Rows;
use llm_int8_cuda::ops::{HeadLayout, QuantizedMemory};
use llm_int8_cuda::{Buffer, Device, plan as kernel_plan};

/// Values of a row in each buffer, the same for every pass of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Widths {
    /// The residual stream, or the token table's rows where those are wider.
    pub(super) stream: usize,
    /// Queries, keys and values side by side.
    pub(super) qkv: usize,
    /// Attention's output before the output projection; also the rotated queries.
    pub(super) heads: usize,
    /// The output of an MLP's first layers.
    pub(super) mlp: usize,
    /// The widest input of a linear layer.
    pub(super) input: usize,
    /// Cosines of a row, for each rotation: half the rotated dimensions.
    pub(super) rotations: Vec<usize>,
    layout: HeadLayout,
}

impl Widths {
    pub(crate) fn of(decoder: &Decoder) -> Self {
        let ropes = &decoder.spec().attention.ropes;
        let plan = decoder.execution_plan();
        let stream = plan.width(Rows::Stream).max(plan.width(Rows::Embedded));

        Self {
            stream,
            qkv: plan.width(Rows::Qkv),
            heads: plan.width(Rows::Heads),
            mlp: plan.width(Rows::Mlp),
            input: plan.widest_input().max(stream),
            rotations: ropes.iter().map(|rope| rope.dims() / 2).collect(),
            layout: head_layout(decoder),
        }
    }

    /// Values of attention's partial sums: as many as [`kernel_plan::splits`] can ask for.
    fn partial_sums(&self, rows: usize, multiprocessors: usize) -> usize {
        let heads = self.layout.heads;
        let kv_heads = self.layout.kv_heads;
        let blocks = 2 * multiprocessors + rows * kv_heads;
        blocks * heads.div_ceil(kv_heads.max(1)) * (self.layout.padded() + 2)
    }

    /// Bytes of a [`Workspace`] for `rows` rows.
    pub(crate) fn bytes(&self, rows: usize, multiprocessors: usize) -> u64 {
        let row = 4 * self.stream + self.input + self.qkv + 2 * self.heads + self.mlp;
        let counters = rows * self.layout.heads;
        let words = rows * row + self.partial_sums(rows, multiprocessors) + counters;

        let inputs = rows * DeviceInputs::row_bytes(self);
        QuantizedMemory::bytes(rows, self.input, multiprocessors) + (4 * words + inputs) as u64
    }
}

/// Memory for passes of up to `rows` rows. Buffers of f32 are `[rows, width]`, with the widths of
/// [`Widths`].
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(super) rows: usize,
    /// All inputs of a pass, uploaded by one copy.
    pub(super) inputs: Buffer<u8>,
    pub(super) stream: Buffer<f32>,
    pub(super) branch: Buffer<f32>,
    pub(super) attended: Buffer<f32>,
    /// A linear layer's input after its norm or gate; only float layers need it in memory.
    pub(super) layer_input: Buffer<f32>,
    pub(super) qkv: Buffer<f32>,
    /// Queries after their rotation.
    pub(super) queries: Buffer<f32>,
    pub(super) heads: Buffer<f32>,
    pub(super) mlp: Buffer<f32>,
    pub(super) quantized: QuantizedMemory,
    /// Attention's partial sums, where several CUDA blocks share the positions of a row.
    pub(super) partial: Buffer<f32>,
    /// Blocks that are done with their part, for each row and head. Zero between launches.
    pub(super) counters: Buffer<u32>,
    pub(super) head: Option<HeadMemory>,
}

/// Memory of the head and of what is chosen from its logits.
#[derive(Debug)]
pub(crate) struct HeadMemory {
    pub(super) rows: usize,
    /// The rows of the stream whose logits are requested.
    pub(super) requested: Buffer<f32>,
    pub(super) projected: Buffer<f32>,
    pub(crate) logits: Buffer<f32>,
    /// Ids of the tokens that are penalised.
    pub(crate) seen: Buffer<u32>,
    /// Chosen ids, their logits, and whether the row has a value that is not finite.
    pub(crate) chosen: Buffer<u8>,
}

impl Workspace {
    pub(super) fn new(device: &Device, widths: &Widths, rows: usize) -> Result<Self> {
        let floats = |width: usize| device.allocate::<f32>(rows * width);
        let partial_sums = widths.partial_sums(rows, device.multiprocessors());

        Ok(Self {
            rows,
            inputs: device.allocate(rows * DeviceInputs::row_bytes(widths))?,
            stream: floats(widths.stream)?,
            branch: floats(widths.stream)?,
            attended: floats(widths.stream)?,
            layer_input: floats(widths.input)?,
            qkv: floats(widths.qkv)?,
            queries: floats(widths.heads)?,
            heads: floats(widths.heads)?,
            mlp: floats(widths.mlp)?,
            quantized: QuantizedMemory::new(device, rows, widths.input)?,
            partial: device.allocate(partial_sums)?,
            counters: device.zeros(rows * widths.layout.heads)?,
            head: None,
        })
    }
}

impl HeadMemory {
    pub(super) fn new(
        device: &Device,
        widths: &Widths,
        vocabulary: usize,
        rows: usize,
    ) -> Result<Self> {
        Ok(Self {
            rows,
            requested: device.allocate(rows * widths.stream)?,
            projected: device.allocate(rows * widths.stream)?,
            logits: device.allocate(rows * vocabulary)?,
            seen: device.allocate(vocabulary)?,
            chosen: device.allocate(8 * MOST_CHOSEN + 4)?,
        })
    }
}

impl Stage {
    /// Bytes of the keys and values of one block for `positions` positions.
    pub(crate) fn cache_bytes(decoder: &Decoder, positions: usize) -> u64 {
        head_layout(decoder).cache_bytes(1, positions) as u64
    }

    /// Bytes of the cache of one sequence with room for `positions` of at most `most` positions.
    pub(crate) fn cache_bytes_for(&self, positions: usize, most: usize) -> u64 {
        self.new_cache(most).bytes_for(positions)
    }

    /// CUDA blocks that share the positions of one row in attention.
    pub(super) fn splits(&self, capacity: usize, rows: usize) -> usize {
        kernel_plan::splits(
            capacity,
            rows,
            self.layout.kv_heads,
            self.device.multiprocessors(),
        )
    }
}
