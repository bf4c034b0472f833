//! What a pass uploads: for each row its token id, its place in the KV cache, its row of the
//! position table and its rotation; for prompts the tiles of queries. All of it lies in one buffer,
//! so that a pass costs one copy to the device.

use super::cache::DeviceCache;
use super::memory::Widths;
use crate::error::Result;
use llm_int8_cuda::args::AttendedRow;
use llm_int8_cuda::{Buffer, View};
use llm_int8_nn::layers::RopeTable;

/// Bytes of an id, a position or an f32.
const WORD: usize = 4;
/// Bytes of a tile: its first row and its number of rows, both u32.
const TILE: usize = 2 * WORD;

/// The inputs of a pass as the host collects them, the rows of all sequences one after the other.
#[derive(Debug, Default)]
pub(crate) struct HostInputs {
    ids: Vec<u32>,
    /// Each row's row of the position table.
    position_rows: Vec<u32>,
    rows: Vec<RowPlace>,
    /// New rows of each sequence.
    pub(super) lengths: Vec<usize>,
    /// One for each of the model's rotations.
    rotations: Vec<RotationTable>,
}

/// Which sequence a row belongs to, and its position there.
#[derive(Debug, Clone, Copy)]
struct RowPlace {
    sequence: usize,
    position: usize,
}

/// Cosines and sines of all rows for one rotation, `[rows, dims / 2]` each.
#[derive(Debug, Default)]
struct RotationTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl HostInputs {
    /// Appends a sequence: its new tokens `ids`, the first of which is at position `first`.
    /// `offset` is the row of the position table that position 0 has.
    pub(crate) fn push(&mut self, first: usize, ids: &[u32], offset: usize, ropes: &[RopeTable]) {
        let sequence = self.lengths.len();
        self.lengths.push(ids.len());
        self.ids.extend_from_slice(ids);

        for position in first..first + ids.len() {
            self.position_rows.push((position + offset) as u32);
            self.rows.push(RowPlace { sequence, position });
        }

        self.rotations.resize_with(ropes.len(), Default::default);
        for (table, rope) in self.rotations.iter_mut().zip(ropes) {
            table.cos.extend_from_slice(rope.cos());
            table.sin.extend_from_slice(rope.sin());
        }
    }

    /// Rows of the pass.
    pub(super) fn count(&self) -> usize {
        self.ids.len()
    }

    /// Whether every row is the only new one of its sequence.
    pub(super) fn is_decode(&self) -> bool {
        self.lengths.iter().all(|length| *length == 1)
    }

    /// Makes room in each sequence's cache for its new positions, and keeps those before them.
    pub(super) fn reserve(&self, caches: &mut [&mut DeviceCache]) -> Result<()> {
        for (sequence, cache) in caches.iter_mut().enumerate() {
            let own = self
                .rows
                .iter()
                .filter(|row| row.sequence == sequence)
                .map(|row| row.position);
            let first = own.clone().min().unwrap_or(0);
            let last = own.max().unwrap_or(0);

            cache.reserve(last + 1, first)?;
        }
        Ok(())
    }

    /// The bytes to upload, in the order in which [`DeviceInputs::new`] takes them apart.
    pub(super) fn bytes(&self, caches: &[&mut DeviceCache], tiles: &[[u32; 2]]) -> Vec<u8> {
        let attended = |row: &RowPlace| {
            let cache = &caches[row.sequence];
            AttendedRow {
                cache: cache.address(),
                capacity: cache.capacity() as u32,
                position: row.position as u32,
            }
        };
        let rows: Vec<AttendedRow> = self.rows.iter().map(attended).collect();

        let mut bytes: Vec<u8> = bytemuck::cast_slice(&rows).to_vec();
        bytes.extend_from_slice(bytemuck::cast_slice(&self.ids));
        bytes.extend_from_slice(bytemuck::cast_slice(&self.position_rows));
        for table in &self.rotations {
            bytes.extend_from_slice(bytemuck::cast_slice(&table.cos));
            bytes.extend_from_slice(bytemuck::cast_slice(&table.sin));
        }
        bytes.extend_from_slice(bytemuck::cast_slice(tiles));
        bytes
    }
}

/// The inputs of a pass in device memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct DeviceInputs<'a> {
    pub(super) rows: View<'a, AttendedRow>,
    pub(super) ids: View<'a, u32>,
    pub(super) position_rows: View<'a, u32>,
    /// For each rotation the cosines of all rows, then their sines.
    rotations: View<'a, u8>,
    count: usize,
    pub(super) tiles: Option<View<'a, u32>>,
}

impl<'a> DeviceInputs<'a> {
    /// Upper bound of the bytes that one row adds: there is at most one tile per row.
    pub(super) fn row_bytes(widths: &Widths) -> usize {
        let ids_and_positions = 2 * WORD;
        let cos_and_sin = 2 * WORD * widths.rotations.iter().sum::<usize>();
        size_of::<AttendedRow>() + ids_and_positions + cos_and_sin + TILE
    }

    /// Takes the buffer apart. The views depend only on the numbers of rows and tiles, so a
    /// recorded graph stays valid when the next pass overwrites the values.
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
        let ids = take(WORD * count)?.cast()?;
        let position_rows = take(WORD * count)?.cast()?;
        let rotations = take(2 * WORD * count * widths.rotations.iter().sum::<usize>())?;
        let tiles = if tiles > 0 {
            Some(take(TILE * tiles)?.cast()?)
        } else {
            None
        };

        Ok(Self {
            rows,
            ids,
            position_rows,
            rotations,
            count,
            tiles,
        })
    }

    /// Cosines and sines of rotation `number`, f32 `[rows, dims / 2]` each.
    pub(super) fn rotation(
        &self,
        widths: &Widths,
        number: usize,
    ) -> Result<(View<'a, f32>, View<'a, f32>)> {
        let before: usize = widths.rotations[..number].iter().sum();
        let start = 2 * WORD * self.count * before;
        let length = WORD * self.count * widths.rotations[number];

        let cos = self.rotations.part(start..start + length)?.cast()?;
        let sin = self
            .rotations
            .part(start + length..start + 2 * length)?
            .cast()?;
        Ok((cos, sin))
    }
}
