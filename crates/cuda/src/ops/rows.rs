//! What is done with rows between products.

use super::{Check, FloatMatrix, FloatType, Int8Matrix, Source, Through, kernels, span};
use crate::args::{CombineArgs, CopyRowsArgs, EmbedArgs, NormArgs, SoftcapArgs};
use crate::buffer::View;
use crate::error::Result;
use crate::plan;

/// Weights of a norm.
#[derive(Debug, Clone, Copy)]
pub struct NormParts<'a> {
    /// `[cols]`.
    pub weight: View<'a, f32>,
    /// `[cols]`.
    pub bias: Option<View<'a, f32>>,
    /// Added to the variance.
    pub eps: f32,
}

/// A token or position table.
#[derive(Debug, Clone, Copy)]
pub enum Table<'a> {
    /// In floats.
    Float(&'a FloatMatrix),
    /// In codes, each row with its largest magnitude.
    Int8(&'a Int8Matrix),
}

/// Which rows are taken from a table, and from a position table.
#[derive(Debug, Clone, Copy)]
pub struct TableRows<'a> {
    /// Rows of the table, below its length: `[M]`.
    pub ids: View<'a, u32>,
    /// The position table, of the same width and dtype, and its rows `[M]`.
    pub positions: Option<(&'a FloatMatrix, View<'a, u32>)>,
    /// How many, M.
    pub rows: usize,
    /// What the table's rows are multiplied with.
    pub factor: f32,
}

/// `factor · table[ids] + positions[…]` into `out`, f32 `[M, width]`. That ids lie within the table
/// is for the caller to see: they may have been made on the device.
///
/// # Errors
/// [`CudaError::Shape`](crate::CudaError::Shape) where widths or dtypes differ;
/// [`CudaError::TooShort`](crate::CudaError::TooShort),
/// [`CudaError::WrongDevice`](crate::CudaError::WrongDevice).
pub fn embed(table: Table<'_>, rows: &TableRows<'_>, out: View<'_, f32>) -> Result<()> {
    let (width, pitch, dtype, address, absmax) = match table {
        Table::Float(matrix) => (
            matrix.cols(),
            matrix.pitch(),
            matrix.dtype(),
            matrix.address(),
            0,
        ),
        Table::Int8(matrix) => {
            let dtype = rows
                .positions
                .map_or(FloatType::F32, |(positions, _)| positions.dtype());
            let (codes, absmax) = (matrix.codes().address(), matrix.absmax().address());
            (matrix.in_features(), matrix.pitch(), dtype, codes, absmax)
        }
    };
    let check = Check {
        kernel: dtype.of(kernels!("embed")),
        device: out.device(),
    };
    let (positions, position_rows, position_pitch) = match rows.positions {
        Some((matrix, numbers)) => {
            if (matrix.cols(), matrix.dtype()) != (width, dtype) {
                return Err(check.shape("the position table has another width or dtype".into()));
            }
            (
                matrix.address(),
                check.view("the positions", numbers, rows.rows)?,
                matrix.pitch(),
            )
        }
        None => (0, 0, 0),
    };
    let args = EmbedArgs {
        ids: check.view("the ids", rows.ids, rows.rows)?,
        position_rows,
        table: address,
        table_absmax: absmax,
        positions,
        out: check.view("the output", out, rows.rows * width)?,
        width: check.size("the row", width)?,
        table_pitch: check.size("the row", pitch)?,
        position_pitch: check.size("the row", position_pitch)?,
        factor: rows.factor,
    };
    check.launch(&args, [rows.rows, 1, 1], 256, 0)
}

/// A norm into `out`, f32 `[rows, out_stride]`, which may be where the source lies. With `heads`
/// above 1 each row holds so many parts of `cols` values, normalised by themselves, with the same
/// weights or, where `own_weights`, with weights `[heads, cols]`.
///
/// # Errors
/// As [`embed`].
pub fn norm(
    source: &Source<'_, f32>,
    heads: usize,
    own_weights: bool,
    out: View<'_, f32>,
    out_stride: usize,
) -> Result<()> {
    let check = Check {
        kernel: "norm_rows",
        device: out.device(),
    };
    let width = heads * source.cols;
    check.view(
        "the activations",
        source.x,
        span(source.rows, source.stride, width),
    )?;
    if let (true, Through::LayerNorm(parts) | Through::RmsNorm(parts)) =
        (own_weights, source.through)
    {
        check.view("the norm's weight", parts.weight, width)?;
        parts
            .bias
            .map_or(Ok(0), |bias| check.view("the norm's bias", bias, width))?;
    }
    let args = NormArgs {
        source: source.args(&check)?,
        out: check.view("the output", out, span(source.rows, out_stride, width))?,
        heads: check.size("the heads", heads)?,
        weight_stride: if own_weights {
            check.size("the row", source.cols)?
        } else {
            0
        },
        out_stride: check.size("the stride", out_stride)?,
        padding: 0,
    };
    let threads = if heads > 1 {
        128
    } else {
        plan::row_threads(source.cols)
    };
    check.launch(&args, [source.rows * heads, 1, 1], threads, 0)
}

/// How [`combine`] joins two values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Combined {
    /// `x · up`.
    Product,
    /// `x + factor · up`.
    Sum(f32),
}

/// Joins rows of `width` values, lying with their strides, into `out` `[rows, width]`, which may be
/// `x` where that lies without gaps.
///
/// # Errors
/// As [`embed`].
pub fn combine(
    how: Combined,
    (x, x_stride): (View<'_, f32>, usize),
    (up, up_stride): (View<'_, f32>, usize),
    out: View<'_, f32>,
    [rows, width]: [usize; 2],
) -> Result<()> {
    let check = Check {
        kernel: "combine",
        device: out.device(),
    };
    let args = CombineArgs {
        x: check.view("x", x, span(rows, x_stride, width))?,
        up: check.view("its partner", up, span(rows, up_stride, width))?,
        out: check.view("the output", out, rows * width)?,
        width: check.size("the row", width)?,
        x_stride: check.size("the stride", x_stride)?,
        up_stride: check.size("the stride", up_stride)?,
        adds: matches!(how, Combined::Sum(_)).into(),
        factor: match how {
            Combined::Sum(factor) => factor,
            Combined::Product => 0.0,
        },
        padding: 0,
    };
    check.launch(&args, [width.div_ceil(256), rows, 1], 256, 0)
}

/// `x = scale · x`, then `cap · tanh(x / cap)` where there is a cap.
///
/// # Errors
/// As [`embed`].
pub fn softcap(x: View<'_, f32>, scale: f32, cap: Option<f32>) -> Result<()> {
    let check = Check {
        kernel: "softcap",
        device: x.device(),
    };
    let args = SoftcapArgs {
        x: x.address(),
        count: x.len() as u64,
        scale,
        cap: cap.unwrap_or(0.0),
    };
    check.launch(&args, [x.len().div_ceil(256), 1, 1], 256, 0)
}

/// Copies `rows` rows of `width` bytes from one pitch to another, all multiples of 16 bytes: for
/// caches that grow.
///
/// # Errors
/// As [`embed`]; [`CudaError::Shape`](crate::CudaError::Shape) for numbers that are no multiples of
/// 16.
pub fn copy_rows(
    (from, from_pitch): (View<'_, u8>, usize),
    (to, to_pitch): (View<'_, u8>, usize),
    [rows, width]: [usize; 2],
) -> Result<()> {
    let check = Check {
        kernel: "copy_rows",
        device: to.device(),
    };
    if [from_pitch, to_pitch, width]
        .iter()
        .any(|bytes| bytes % 16 != 0)
    {
        return Err(check.shape(format!(
            "{width} bytes of {from_pitch} to {to_pitch} are no multiples of 16"
        )));
    }
    let args = CopyRowsArgs {
        from: check.view("the source", from, span(rows, from_pitch, width))?,
        to: check.view("the target", to, span(rows, to_pitch, width))?,
        words: check.size("the row", width / 16)?,
        from_pitch: check.size("the pitch", from_pitch / 16)?,
        to_pitch: check.size("the pitch", to_pitch / 16)?,
        padding: 0,
    };
    check.launch(&args, [rows, (width / 16).div_ceil(256), 1], 256, 0)
}
