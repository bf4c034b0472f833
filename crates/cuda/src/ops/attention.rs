//! Attention over a cache on the device.

use super::{Check, FloatType, kernels, span};
use crate::args::{AttendArgs, AttendedRow, Heads, PrepareArgs, Rule};
use crate::buffer::View;
use crate::error::Result;
use crate::plan;

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
    /// Values of a head as they lie in a cache.
    pub fn padded(&self) -> usize {
        self.size.next_multiple_of(8)
    }

    /// Bytes of a cache of `capacity` positions in `layers` layers.
    pub fn cache_bytes(&self, layers: usize, capacity: usize) -> usize {
        2 * layers * self.kv_heads * capacity * self.padded() * self.dtype.bytes()
    }

    fn args(&self, check: &Check<'_>, layer: usize) -> Result<Heads> {
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return Err(check.shape(format!("{} heads cannot share {}", self.heads, self.kv_heads)));
        }
        Ok(Heads {
            heads: check.size("the heads", self.heads)?,
            kv_heads: check.size("the heads", self.kv_heads)?,
            size: check.size("a head", self.size)?,
            padded: check.size("a head", self.padded())?,
            layer: check.size("the layers", layer)?,
            reserved: 0,
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

/// Clamps and rotates the products `qkv` `[M, stride]`, puts keys and values into the caches and queries,
/// multiplied with `factor`, into their memory. `is_grouped`: each head of keys follows its queries.
///
/// # Errors
/// [`CudaError::Shape`](crate::CudaError::Shape), [`CudaError::TooShort`](crate::CudaError::TooShort),
/// [`CudaError::WrongDevice`](crate::CudaError::WrongDevice).
pub fn prepare(
    attention: &Attention<'_>,
    (qkv, stride): (View<'_, f32>, usize),
    is_grouped: bool,
    rotation: Option<&Rotation<'_>>,
    clamp: Option<f32>,
    factor: f32,
) -> Result<()> {
    let layout = &attention.layout;
    let check = Check { kernel: layout.dtype.of(kernels!("prepare")), device: qkv.device() };
    let (rows, all) = (attention.count, layout.heads + 2 * layout.kv_heads);
    let (cos, sin, dims, neighbours) = match rotation {
        Some(turn) if turn.dims > layout.size || turn.dims % 2 == 1 => {
            return Err(check.shape(format!("{} of {} values cannot be rotated", turn.dims, layout.size)));
        }
        Some(turn) => {
            let needed = rows * turn.dims / 2;
            let cos = check.view("the cosines", turn.cos, needed)?;
            (cos, check.view("the sines", turn.sin, needed)?, turn.dims, turn.neighbours)
        }
        None => (0, 0, 0, false),
    };
    let args = PrepareArgs {
        qkv: check.view("the products", qkv, span(rows, stride, all * layout.size))?,
        rows: check.view("the rows", attention.rows, rows)?,
        cos,
        sin,
        queries: check.view("the queries", attention.queries, rows * layout.heads * layout.size)?,
        heads: layout.args(&check, attention.layer)?,
        stride: check.size("the stride", stride)?,
        is_grouped: is_grouped.into(),
        dims: check.size("a head", dims)?,
        neighbours: neighbours.into(),
        clamp: clamp.unwrap_or(0.0),
        factor,
    };
    let threads = layout.padded().next_multiple_of(32).min(128) as u32;
    check.launch(&args, [rows, all, 1], threads, 0)
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

/// `softmax(q · kᵀ) · v` into `out` `[M, heads · size]`, for queries that [`prepare`] made.
///
/// With `tiles` (see [`plan::query_tiles`]) texts of many new positions are computed tile by tile; without, each
/// row by itself, `splits` blocks sharing its positions. `partial` holds f32 `[M, heads, splits, padded + 2]`,
/// `counters` zeros `[M, kv_heads]`, which stay zeros.
///
/// # Errors
/// As [`prepare`].
pub fn attend(
    attention: &Attention<'_>,
    rule: &AttentionRule<'_>,
    tiles: Option<View<'_, u32>>,
    (splits, partial, counters): (usize, View<'_, f32>, View<'_, u32>),
    out: View<'_, f32>,
) -> Result<()> {
    let layout = &attention.layout;
    let names = if tiles.is_some() { kernels!("attend_many") } else { kernels!("attend_one") };
    let check = Check { kernel: layout.dtype.of(names), device: out.device() };
    let (rows, padded) = (attention.count, layout.padded());
    if padded / 8 > plan::CHUNK || (tiles.is_some() && padded > plan::MOST_DIMS) {
        return Err(check.shape(format!("heads of {} values are too wide", layout.size)));
    }
    let parts = if splits > 1 { rows * layout.heads * splits * (padded + 2) } else { 0 };
    let args = AttendArgs {
        queries: check.view("the queries", attention.queries, rows * layout.heads * layout.size)?,
        rows: check.view("the rows", attention.rows, rows)?,
        out: check.view("the output", out, rows * layout.heads * layout.size)?,
        partial: check.view("the parts", partial, parts)?,
        counters: check.view("the counters", counters, rows * layout.kv_heads)?,
        tiles: tiles.map_or(0, |tiles| tiles.address()),
        heads: layout.args(&check, attention.layer)?,
        rule: Rule {
            slopes: rule.slopes.map_or(Ok(0), |slopes| check.view("the slopes", slopes, layout.heads))?,
            window: check.size("the window", rule.window.unwrap_or(0))?,
            softcap: rule.softcap.unwrap_or(0.0),
            bias_factor: rule.bias_factor.unwrap_or(0.0),
            padding: 0,
        },
        splits: check.size("the splits", splits)?,
        padding: 0,
    };
    match tiles {
        Some(tiles) => {
            let grid = [tiles.len() / 2, layout.heads, 1];
            check.launch(&args, grid, 256, plan::attend_many_shared_bytes(padded))
        }
        None => {
            let grid = [splits, layout.kv_heads, rows];
            check.launch(&args, grid, 128, plan::attend_one_shared_bytes(padded))
        }
    }
}
