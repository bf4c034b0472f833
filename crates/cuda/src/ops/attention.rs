//! Attention over a cache on the device.

use super::{Check, FloatType, kernels, span};
use crate::args::{AttendArgs, AttendNewArgs, AttendedRow, Heads, PrepareArgs, Rule};
use crate::buffer::View;
use crate::error::Result;
use crate::plan;

/// Threads of `attend_one` and `attend_new`.
const FEW_THREADS: u32 = 256;
/// Threads of `prepare`.
const PREPARE_THREADS: u32 = 256;

/// Heads of a model, and how a text's cache lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLayout {
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Values of a head.
    pub size: usize,
    /// What keys and values are kept in.
    pub dtype: FloatType,
}

impl HeadLayout {
    /// Values of a key that lie side by side in a cache; heads are padded to a multiple of it.
    pub const GROUP: usize = 8;

    /// Values of a head as they lie in a cache.
    pub fn padded(&self) -> usize {
        self.size.next_multiple_of(Self::GROUP)
    }

    /// Bytes of a cache of `capacity` positions in `layers` layers.
    pub fn cache_bytes(&self, layers: usize, capacity: usize) -> usize {
        2 * layers * self.kv_heads * capacity * self.padded() * self.dtype.bytes()
    }

    fn args(&self, check: &Check<'_>, layer: usize) -> Result<Heads> {
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return Err(check.shape(format!(
                "{} heads cannot share {}",
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

/// Rotations of the rows of a pass.
#[derive(Debug, Clone, Copy)]
pub struct Rotation<'a> {
    /// Cosines `[M, dims / 2]`.
    pub cos: View<'a, f32>,
    /// Sines `[M, dims / 2]`.
    pub sin: View<'a, f32>,
    /// Values of a head that are rotated.
    pub dims: usize,
    /// Whether neighbours form a pair, and not values half of `dims` apart.
    pub neighbours: bool,
}

/// One layer's attention of a pass.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Heads.
    pub layout: HeadLayout,
    /// The layer, as caches count them.
    pub layer: usize,
    /// Each row's cache and position `[M]`: the caller answers for the addresses.
    pub rows: View<'a, AttendedRow>,
    /// How many rows, M.
    pub count: usize,
    /// Memory for queries, f32 `[M, heads, size]`.
    pub queries: View<'a, f32>,
}

/// The products of a pass, and what is done with them before attention.
#[derive(Debug, Clone, Copy)]
pub struct Products<'a> {
    /// Queries, keys and values `[M, stride]`.
    pub qkv: View<'a, f32>,
    /// From row to row.
    pub stride: usize,
    /// Whether each head of keys and its values follow their queries; else all queries come first,
    /// then all keys.
    pub is_grouped: bool,
    /// Rotations of queries and keys.
    pub rotation: Option<Rotation<'a>>,
    /// All stay in `-clamp..=clamp`.
    pub clamp: Option<f32>,
    /// What queries are multiplied with.
    pub factor: f32,
}

impl Products<'_> {
    fn args(&self, attention: &Attention<'_>, check: &Check<'_>) -> Result<PrepareArgs> {
        let (layout, rows) = (&attention.layout, attention.count);
        let all = (layout.heads + 2 * layout.kv_heads) * layout.size;
        let (cos, sin, dims, neighbours) = match self.rotation {
            Some(turn) if turn.dims > layout.size || turn.dims % 2 == 1 => {
                return Err(check.shape(format!(
                    "{} of {} values cannot be rotated",
                    turn.dims, layout.size
                )));
            }
            Some(turn) => {
                let needed = rows * turn.dims / 2;
                let cos = check.view("the cosines", turn.cos, needed)?;
                (
                    cos,
                    check.view("the sines", turn.sin, needed)?,
                    turn.dims,
                    turn.neighbours,
                )
            }
            None => (0, 0, 0, false),
        };
        Ok(PrepareArgs {
            qkv: check.view("the products", self.qkv, span(rows, self.stride, all))?,
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

/// How scores are made and which positions are seen.
#[derive(Debug, Clone, Copy, Default)]
pub struct AttentionRule<'a> {
    /// Slopes of position biases `[heads]`.
    pub slopes: Option<View<'a, f32>>,
    /// Biases are rounded to bf16 and multiplied with it (Falcon).
    pub bias_factor: Option<f32>,
    /// A position sees so many positions, itself included.
    pub window: Option<usize>,
    /// `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
}

/// How the rows of a pass are cut into blocks.
#[derive(Debug, Clone, Copy)]
pub enum Cut<'a> {
    /// Each row is the only new one of its text: all in one launch, so many blocks sharing a row's
    /// positions.
    New(usize),
    /// A few new positions a text: row by row, so many blocks sharing a row's positions.
    Rows(usize),
    /// Texts of many new positions: these tiles (see [`plan::query_tiles`]).
    Tiles(View<'a, u32>),
}

/// What blocks that share positions work in.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// f32 `[M, heads, splits, padded + 2]` with more than one block a row.
    pub sums: View<'a, f32>,
    /// Zeros `[M, heads]`; they stay zeros.
    pub counters: View<'a, u32>,
}

/// Puts the keys and values of a pass into the caches, and `softmax(q · kᵀ) · v` over all that is
/// there by then into `out` `[M, heads · size]`.
///
/// # Errors
/// [`CudaError::Shape`](crate::CudaError::Shape),
/// [`CudaError::TooShort`](crate::CudaError::TooShort),
/// [`CudaError::WrongDevice`](crate::CudaError::WrongDevice).
pub fn attend(
    attention: &Attention<'_>,
    products: &Products<'_>,
    rule: &AttentionRule<'_>,
    cut: &Cut<'_>,
    parts: &Parts<'_>,
    out: View<'_, f32>,
) -> Result<()> {
    let layout = &attention.layout;
    let (rows, padded) = (attention.count, layout.padded());
    let group = layout.heads / layout.kv_heads.max(1);
    let few = plan::few(group, padded);
    let many = plan::Many::of(padded, layout.dtype.bytes(), out.device().capability());
    let names = match (cut, few.at_once) {
        (Cut::New(_), 1) => kernels!("attend_new1"),
        (Cut::New(_), _) => kernels!("attend_new4"),
        (Cut::Rows(_), 1) => kernels!("attend_one1"),
        (Cut::Rows(_), _) => kernels!("attend_one4"),
        (Cut::Tiles(_), _) => match many {
            plan::Many::Plain => kernels!("attend_many"),
            plan::Many::Tensor64 => kernels!("attend_many64"),
            plan::Many::Tensor128 => kernels!("attend_many128"),
        },
    };
    let check = Check {
        kernel: layout.dtype.of(names),
        device: out.device(),
    };
    let widest = if let Cut::Tiles(_) = cut {
        plan::MOST_DIMS
    } else {
        plan::WIDEST_HEAD
    };
    if padded > widest {
        return Err(check.shape(format!("heads of {} values are too wide", layout.size)));
    }
    let prepare = products.args(attention, &check)?;
    let (splits, tiles) = match cut {
        Cut::New(splits) | Cut::Rows(splits) => ((*splits).clamp(1, plan::MOST_SPLITS), 0),
        Cut::Tiles(tiles) => (1, tiles.address()),
    };
    let sums = if splits > 1 {
        rows * layout.heads * splits * (padded + 2)
    } else {
        0
    };
    let attend = AttendArgs {
        queries: prepare.queries,
        rows: prepare.rows,
        out: check.view("the output", out, rows * layout.heads * layout.size)?,
        partial: check.view("the parts", parts.sums, sums)?,
        counters: check.view(
            "the counters",
            parts.counters,
            rows * layout.kv_heads * few.sets,
        )?,
        tiles,
        heads: prepare.heads,
        rule: Rule {
            slopes: rule.slopes.map_or(Ok(0), |slopes| {
                check.view("the slopes", slopes, layout.heads)
            })?,
            window: check.size("the window", rule.window.unwrap_or(0))?,
            softcap: rule.softcap.unwrap_or(0.0),
            bias_factor: rule.bias_factor.unwrap_or(0.0),
            softcap_inverse: rule.softcap.map_or(0.0, f32::recip),
        },
        splits: check.size("the splits", splits)?,
        group: check.size("the heads", group)?,
        sets: check.size("the heads", few.sets)?,
        inverse: few.inverse,
    };
    let grid = [splits, layout.kv_heads * few.sets, rows];
    if let Cut::New(_) = cut {
        let prefetches = u32::from(out.device().overlaps_kernels());
        let args = AttendNewArgs {
            attend,
            prepare,
            prefetches,
            padding: 0,
        };
        return check.launch(&args, grid, FEW_THREADS, few.shared_bytes);
    }
    let first = Check {
        kernel: layout.dtype.of(kernels!("prepare")),
        device: out.device(),
    };
    let heads_a_block = (PREPARE_THREADS as usize >> prepare.heads.shift).max(1);
    let blocks = (layout.heads + 2 * layout.kv_heads).div_ceil(heads_a_block);
    first.launch(&prepare, [rows, blocks, 1], PREPARE_THREADS, 0)?;
    match cut {
        Cut::Tiles(tiles) => {
            let grid = [tiles.len() / 2 * many.blocks_a_tile(), layout.heads, 1];
            check.launch(&attend, grid, many.threads(), many.shared_bytes(padded))
        }
        _ => check.launch(&attend, grid, FEW_THREADS, few.shared_bytes),
    }
}
