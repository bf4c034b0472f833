//! What a pass works in, kept from pass to pass: nothing is allocated while a token is computed.

use super::{Stage, head_layout};
use crate::decoder::Decoder;
use crate::error::Result;
use crate::logits::MOST_CHOSEN;
use crate::plan::Rows;
use llm_int8_cuda::args::AttendedRow;
use llm_int8_cuda::ops::{HeadLayout, QuantizedMemory};
use llm_int8_cuda::{Buffer, Device, View, plan};

/// Sizes of rows, the same for every pass of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Widths {
    /// The residual stream and the token table.
    pub(super) stream: usize,
    /// Queries, keys and values of a row.
    pub(super) qkv: usize,
    /// What attention found of a row; also its queries.
    pub(super) mixed: usize,
    /// What the first layers of an MLP give.
    pub(super) raised: usize,
    /// The widest input of layers.
    pub(super) input: usize,
    /// Cosines of a row, for each rotation.
    pub(super) turns: Vec<usize>,
    layout: HeadLayout,
}

impl Widths {
    pub(crate) fn of(decoder: &Decoder) -> Self {
        let (attention, plan) = (&decoder.spec().attention, decoder.execution_plan());
        let stream = plan.width(Rows::Stream).max(plan.width(Rows::Embedded));
        Self {
            stream,
            qkv: plan.width(Rows::Qkv),
            mixed: plan.width(Rows::Mixed),
            raised: plan.width(Rows::Raised),
            input: plan.widest_input().max(stream),
            turns: attention.ropes.iter().map(|rope| rope.dims() / 2).collect(),
            layout: head_layout(decoder),
        }
    }

    /// Values of parts of sums of attention: what [`plan::splits`] can ask for.
    fn parts(&self, rows: usize, multiprocessors: usize) -> usize {
        let (heads, kv_heads) = (self.layout.heads, self.layout.kv_heads);
        let blocks = 2 * multiprocessors + rows * kv_heads;
        blocks * heads.div_ceil(kv_heads.max(1)) * (self.layout.padded() + 2)
    }

    /// Bytes of a row's inputs: where its keys and values go, ids, cosines and sines, a tile.
    fn input_bytes(&self) -> usize {
        size_of::<AttendedRow>() + 4 * (2 + 2 * self.turns.iter().sum::<usize>() + 2)
    }

    /// Bytes of a [`Workspace`] for so many rows.
    pub(crate) fn bytes(&self, rows: usize, multiprocessors: usize) -> u64 {
        let floats = 4 * self.stream + self.input + self.qkv + 2 * self.mixed + self.raised;
        let floats = rows * floats + self.parts(rows, multiprocessors) + rows * self.layout.heads;
        QuantizedMemory::bytes(rows, self.input, multiprocessors)
            + (4 * floats + rows * self.input_bytes()) as u64
    }
}

/// Memory for passes of up to `rows` rows.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(super) rows: usize,
    /// Everything a pass is told, in one piece, so that it comes by one copy.
    pub(super) inputs: Buffer<u8>,
    pub(super) x: Buffer<f32>,
    pub(super) branch: Buffer<f32>,
    pub(super) attended: Buffer<f32>,
    /// Values of norms and gates, where a float layer needs them.
    pub(super) made: Buffer<f32>,
    pub(super) qkv: Buffer<f32>,
    pub(super) queries: Buffer<f32>,
    pub(super) mixed: Buffer<f32>,
    pub(super) raised: Buffer<f32>,
    pub(super) quantized: QuantizedMemory,
    pub(super) partial: Buffer<f32>,
    pub(super) counters: Buffer<u32>,
    pub(super) head: Option<HeadMemory>,
}

/// Memory of logits.
#[derive(Debug)]
pub(crate) struct HeadMemory {
    pub(super) rows: usize,
    /// The rows of the stream whose logits are wanted.
    pub(super) wanted: Buffer<f32>,
    pub(super) projected: Buffer<f32>,
    pub(crate) logits: Buffer<f32>,
    /// Tokens that were there.
    pub(crate) seen: Buffer<u32>,
    /// Ids and logits of tokens chosen, and whether the row was bad.
    pub(crate) chosen: Buffer<u8>,
}

impl Workspace {
    pub(super) fn new(device: &Device, widths: &Widths, rows: usize) -> Result<Self> {
        let floats = |width: usize| device.allocate::<f32>(rows * width);
        Ok(Self {
            rows,
            inputs: device.allocate(rows * widths.input_bytes())?,
            x: floats(widths.stream)?,
            branch: floats(widths.stream)?,
            attended: floats(widths.stream)?,
            made: floats(widths.input)?,
            qkv: floats(widths.qkv)?,
            queries: floats(widths.mixed)?,
            mixed: floats(widths.mixed)?,
            raised: floats(widths.raised)?,
            quantized: QuantizedMemory::new(device, rows, widths.input)?,
            partial: device.allocate(widths.parts(rows, device.multiprocessors()))?,
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
            wanted: device.allocate(rows * widths.stream)?,
            projected: device.allocate(rows * widths.stream)?,
            logits: device.allocate(rows * vocabulary)?,
            seen: device.allocate(vocabulary)?,
            chosen: device.allocate(8 * MOST_CHOSEN + 4)?,
        })
    }
}

/// Where a pass's inputs lie in their piece of memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) rows: View<'a, AttendedRow>,
    pub(super) ids: View<'a, u32>,
    pub(super) position_rows: View<'a, u32>,
    turns: View<'a, u8>,
    count: usize,
    pub(super) tiles: Option<View<'a, u32>>,
}

impl<'a> Inputs<'a> {
    /// The places for so many rows and tiles. They depend on nothing else, so that a graph may keep
    /// them.
    pub(super) fn new(
        memory: &'a Buffer<u8>,
        widths: &Widths,
        count: usize,
        tiles: usize,
    ) -> Result<Self> {
        let mut end = 0;
        let mut take = |bytes: usize| {
            end += bytes;
            memory.part(end - bytes..end)
        };
        let rows = take(count * size_of::<AttendedRow>())?.cast()?;
        let (ids, position_rows) = (take(4 * count)?.cast()?, take(4 * count)?.cast()?);
        let turns = take(8 * count * widths.turns.iter().sum::<usize>())?;
        let tiles = if tiles > 0 {
            Some(take(8 * tiles)?.cast()?)
        } else {
            None
        };
        Ok(Self {
            rows,
            ids,
            position_rows,
            turns,
            count,
            tiles,
        })
    }

    /// Cosines and sines of a rotation.
    pub(super) fn turn(
        &self,
        widths: &Widths,
        number: usize,
    ) -> Result<(View<'a, f32>, View<'a, f32>)> {
        let before: usize = widths.turns[..number].iter().sum();
        let (start, length) = (
            8 * self.count * before,
            4 * self.count * widths.turns[number],
        );
        let cos = self.turns.part(start..start + length)?.cast()?;
        Ok((
            cos,
            self.turns
                .part(start + length..start + 2 * length)?
                .cast()?,
        ))
    }
}

impl Stage {
    /// Bytes of what one block keeps of `positions` positions.
    pub(crate) fn cache_bytes(decoder: &Decoder, positions: usize) -> u64 {
        head_layout(decoder).cache_bytes(1, positions) as u64
    }

    /// Blocks that share the positions of a row in attention.
    pub(super) fn splits(&self, capacity: usize, rows: usize) -> usize {
        plan::splits(
            capacity,
            rows,
            self.layout.kv_heads,
            self.device.multiprocessors(),
        )
    }
}
