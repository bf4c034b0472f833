//! Attention over a key-value cache on the device.

use super::{Check, FloatType, kernels, span};
use crate::args::{AttendArgs, AttendNewArgs, AttendedRow, Heads, PrepareArgs, Rule};
use crate::buffer::View;
use crate::device::Device;
use crate::error::Result;
use crate::plan;

/// Threads of a block of `attend_one` and `attend_new`.
const ROW_THREADS: u32 = 256;
/// Threads of a block of `prepare`.
const PREPARE_THREADS: u32 = 256;

/// A model's heads, and the layout of a sequence's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLayout {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Values of a head.
    pub size: usize,
    /// The dtype of cached keys and values.
    pub dtype: FloatType,
}

impl HeadLayout {
    /// Values of a key that are adjacent in a cache; heads are padded to a multiple of it.
    pub const GROUP: usize = 8;

    /// Values of a head in a cache, padding included.
    pub fn padded(&self) -> usize {
        self.size.next_multiple_of(Self::GROUP)
    }

    /// Bytes of one sequence's cache of `capacity` positions in `layers` layers.
    pub fn cache_bytes(&self, layers: usize, capacity: usize) -> usize {
        2 * layers * self.kv_heads * capacity * self.padded() * self.dtype.bytes()
    }

    fn args(&self, check: &Check<'_>, layer: usize) -> Result<Heads> {
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return Err(check.shape(format!(
                "{} heads cannot share {} key/value heads evenly",
                self.heads, self.kv_heads
            )));
        }
        Ok(Heads {
            heads: check.size("the heads", self.heads)?,
            kv_heads: check.size("the heads", self.kv_heads)?,
            size: check.size("a head", self.size)?,
            padded: check.size("a head", self.padded())?,
            layer: check.size("the layers", layer)?,
            shift: self.padded().next_power_of_two().trailing_zeros().max(6),
        })
    }
}

/// Rotary position embeddings (RoPE) of the rows of a pass.
#[derive(Debug, Clone, Copy)]
pub struct Rotation<'a> {
    /// Cosines `[M, dims / 2]`.
    pub cos: View<'a, f32>,
    /// Sines `[M, dims / 2]`.
    pub sin: View<'a, f32>,
    /// Values of a head that are rotated, the first ones.
    pub dims: usize,
    /// Whether adjacent values form a pair (GPT-J); else values `dims / 2` apart do (GPT-NeoX).
    pub neighbours: bool,
}

/// One layer's attention in a pass.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// The heads.
    pub layout: HeadLayout,
    /// The layer's number in the caches.
    pub layer: usize,
    /// Each row's cache and position `[M]`. The addresses are not checked: the caller ensures that
    /// they are of caches with the given layout, and that positions are below their capacities.
    pub rows: View<'a, AttendedRow>,
    /// Number of rows, M.
    pub count: usize,
    /// Scratch memory for queries, f32 `[M, heads, size]`.
    pub queries: View<'a, f32>,
}

/// Queries, keys and values as the linear layers left them, and what is applied to them before
/// attention.
#[derive(Debug, Clone, Copy)]
pub struct Qkv<'a> {
    /// Queries, keys and values, f32 `[M, stride]`.
    pub values: View<'a, f32>,
    /// Values from the start of one row to the start of the next.
    pub stride: usize,
    /// Whether a row holds, for each key/value head, its query heads, its key and its value; else
    /// all queries come first, then all keys, then all values.
    pub is_grouped: bool,
    /// Rotation of queries and keys.
    pub rotation: Option<Rotation<'a>>,
    /// Queries, keys and values are clamped to `-clamp..=clamp`.
    pub clamp: Option<f32>,
    /// Queries are multiplied by it.
    pub factor: f32,
}

impl Qkv<'_> {
    fn args(&self, attention: &Attention<'_>, check: &Check<'_>) -> Result<PrepareArgs> {
        let layout = &attention.layout;
        let rows = attention.count;
        let all = (layout.heads + 2 * layout.kv_heads) * layout.size;
        let (cos, sin, dims, neighbours) = match self.rotation {
            Some(rotation) if rotation.dims > layout.size || rotation.dims % 2 == 1 => {
                return Err(check.shape(format!(
                    "{} of a head's {} values cannot be rotated in pairs",
                    rotation.dims, layout.size
                )));
            }
            Some(rotation) => {
                let needed = rows * rotation.dims / 2;
                let cos = check.view("the cosines", rotation.cos, needed)?;
                let sin = check.view("the sines", rotation.sin, needed)?;
                (cos, sin, rotation.dims, rotation.neighbours)
            }
            None => (0, 0, 0, false),
        };

        Ok(PrepareArgs {
            qkv: check.view(
                "queries, keys and values",
                self.values,
                span(rows, self.stride, all),
            )?,
            rows: check.view("the rows", attention.rows, rows)?,
            cos,
            sin,
            queries: check.view(
                "the queries",
                attention.queries,
                rows * layout.heads * layout.size,
            )?,
            heads: layout.args(check, attention.layer)?,
            stride: check.size("the stride", self.stride)?,
            is_grouped: self.is_grouped.into(),
            dims: check.size("a head", dims)?,
            neighbours: neighbours.into(),
            clamp: self.clamp.unwrap_or(0.0),
            factor: self.factor,
        })
    }
}

/// How scores are computed, and which positions a row attends to.
#[derive(Debug, Clone, Copy, Default)]
pub struct AttentionRule<'a> {
    /// Slopes of ALiBi `[heads]`.
    pub slopes: Option<View<'a, f32>>,
    /// ALiBi biases are rounded to bf16 and multiplied by it (Falcon).
    pub bias_factor: Option<f32>,
    /// Sliding window: the number of positions a row attends to, its own included.
    pub window: Option<usize>,
    /// Scores become `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
}

impl AttentionRule<'_> {
    fn args(&self, layout: &HeadLayout, check: &Check<'_>) -> Result<Rule> {
        Ok(Rule {
            slopes: self.slopes.map_or(Ok(0), |slopes| {
                check.view("the slopes", slopes, layout.heads)
            })?,
            window: check.size("the window", self.window.unwrap_or(0))?,
            softcap: self.softcap.unwrap_or(0.0),
            bias_factor: self.bias_factor.unwrap_or(0.0),
            softcap_inverse: self.softcap.map_or(0.0, f32::recip),
        })
    }
}

/// How the rows of a pass are divided among blocks.
#[derive(Debug, Clone, Copy)]
pub enum Partition<'a> {
    /// Decode: each row is the only new one of its sequence, and one launch does everything.
    Decode {
        /// Blocks that share the positions of a row.
        splits: usize,
    },
    /// A few new positions for each sequence, computed row by row.
    Rows {
        /// Blocks that share the positions of a row.
        splits: usize,
    },
    /// Prefill: tiles of queries, as [`plan::query_tiles`] lists them.
    Tiles(View<'a, u32>),
}

/// Scratch memory in which blocks that share the positions of a row combine their results.
#[derive(Debug, Clone, Copy)]
pub struct AttendScratch<'a> {
    /// f32 `[M, heads, splits, padded + 2]`; empty if every row has one block.
    pub sums: View<'a, f32>,
    /// Zeros `[M, heads]`; each launch leaves them zero.
    pub counters: View<'a, u32>,
}

impl AttendScratch<'_> {
    /// The addresses of `sums` and `counters`.
    fn args(
        &self,
        attention: &Attention<'_>,
        splits: usize,
        sets: usize,
        check: &Check<'_>,
    ) -> Result<(u64, u64)> {
        let layout = &attention.layout;
        let rows = attention.count;
        let sums = if splits > 1 {
            rows * layout.heads * splits * (layout.padded() + 2)
        } else {
            0
        };
        let counters = rows * layout.kv_heads * sets;
        Ok((
            check.view("the partial sums", self.sums, sums)?,
            check.view("the counters", self.counters, counters)?,
        ))
    }
}

/// The kernel that computes a partition, and how it divides the work.
struct AttendKernel {
    names: [&'static str; 3],
    /// The widest head it takes, padding included.
    max_padded: usize,
    /// Query heads that share a key/value head.
    group: usize,
    row: plan::RowAttention,
    tile: plan::TileKernel,
}

impl AttendKernel {
    fn new(layout: &HeadLayout, partition: &Partition<'_>, device: &Device) -> Self {
        let padded = layout.padded();
        let group = layout.heads / layout.kv_heads.max(1);
        let row = plan::row_attention(group, padded);
        let tile = plan::TileKernel::choose(padded, layout.dtype.bytes(), device.capability());

        let takes_one_head = row.at_once == 1;
        let names = match partition {
            Partition::Decode { .. } if takes_one_head => kernels!("attend_new1"),
            Partition::Decode { .. } => kernels!("attend_new4"),
            Partition::Rows { .. } if takes_one_head => kernels!("attend_one1"),
            Partition::Rows { .. } => kernels!("attend_one4"),
            Partition::Tiles(_) => match tile {
                plan::TileKernel::Plain => kernels!("attend_many"),
                plan::TileKernel::Tensor64 => kernels!("attend_many64"),
                plan::TileKernel::Tensor128 => kernels!("attend_many128"),
            },
        };
        let max_padded = match partition {
            Partition::Tiles(_) => plan::MAX_TILED_HEAD_SIZE,
            _ => plan::MAX_HEAD_SIZE,
        };

        Self {
            names,
            max_padded,
            group,
            row,
            tile,
        }
    }

    fn launch(
        &self,
        check: &Check<'_>,
        attention: &Attention<'_>,
        partition: &Partition<'_>,
        attend: AttendArgs,
        prepare: PrepareArgs,
    ) -> Result<()> {
        let layout = &attention.layout;
        let row_grid = [
            attend.splits as usize,
            layout.kv_heads * self.row.sets,
            attention.count,
        ];

        match partition {
            Partition::Decode { .. } => {
                let args = AttendNewArgs {
                    attend,
                    prepare,
                    prefetches: u32::from(check.device.overlaps_kernels()),
                    padding: 0,
                };
                check.launch(&args, row_grid, ROW_THREADS, self.row.shared_bytes)
            }
            Partition::Rows { .. } => {
                launch_prepare(attention, &prepare, check.device)?;
                check.launch(&attend, row_grid, ROW_THREADS, self.row.shared_bytes)
            }
            Partition::Tiles(tiles) => {
                launch_prepare(attention, &prepare, check.device)?;
                let blocks = tiles.len() / 2 * self.tile.blocks_per_tile();
                let grid = [blocks, layout.heads, 1];
                let shared_bytes = self.tile.shared_bytes(layout.padded());
                check.launch(&attend, grid, self.tile.threads(), shared_bytes)
            }
        }
    }
}

/// Appends the keys and values of a pass to the caches, then attends: writes
/// `softmax(q · kᵀ) · v` over all cached positions up to each row's own to `out`, f32
/// `[M, heads · size]`.
///
/// # Errors
/// [`CudaError::Shape`](crate::CudaError::Shape),
/// [`CudaError::TooShort`](crate::CudaError::TooShort),
/// [`CudaError::WrongDevice`](crate::CudaError::WrongDevice).
pub fn attend(
    attention: &Attention<'_>,
    qkv: &Qkv<'_>,
    rule: &AttentionRule<'_>,
    partition: &Partition<'_>,
    scratch: &AttendScratch<'_>,
    out: View<'_, f32>,
) -> Result<()> {
    let layout = &attention.layout;
    let kernel = AttendKernel::new(layout, partition, out.device());
    let check = Check {
        kernel: layout.dtype.pick(kernel.names),
        device: out.device(),
    };
    if layout.padded() > kernel.max_padded {
        return Err(check.shape(format!("heads of {} values are too wide", layout.size)));
    }

    let prepare = qkv.args(attention, &check)?;
    let (splits, tiles) = match partition {
        Partition::Decode { splits } | Partition::Rows { splits } => {
            ((*splits).clamp(1, plan::MAX_SPLITS), 0)
        }
        Partition::Tiles(tiles) => (1, tiles.address()),
    };
    let row = &kernel.row;
    let (partial, counters) = scratch.args(attention, splits, row.sets, &check)?;
    let outputs = attention.count * layout.heads * layout.size;
    let attend = AttendArgs {
        queries: prepare.queries,
        rows: prepare.rows,
        out: check.view("the output", out, outputs)?,
        partial,
        counters,
        tiles,
        heads: prepare.heads,
        rule: rule.args(layout, &check)?,
        splits: check.size("the splits", splits)?,
        group: check.size("the heads", kernel.group)?,
        sets: check.size("the heads", row.sets)?,
        inverse: row.inverse,
    };
    kernel.launch(&check, attention, partition, attend, prepare)
}

/// Rotates and scales the rows, appends keys and values to the caches.
fn launch_prepare(attention: &Attention<'_>, args: &PrepareArgs, device: &Device) -> Result<()> {
    let layout = &attention.layout;
    let check = Check {
        kernel: layout.dtype.pick(kernels!("prepare")),
        device,
    };
    let heads_per_block = (PREPARE_THREADS as usize >> args.heads.shift).max(1);
    let blocks = (layout.heads + 2 * layout.kv_heads).div_ceil(heads_per_block);
    check.launch(args, [attention.count, blocks, 1], PREPARE_THREADS, 0)
}
