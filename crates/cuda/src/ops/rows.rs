//! Operations on rows between matmuls: embeddings, norms, sums, softcaps, copies.

use super::{Check, FloatMatrix, FloatType, Int8Matrix, Source, Through, kernels, span};
use crate::args::{CombineArgs, CopyRowsArgs, EmbedArgs, NormArgs, SoftcapArgs};
use crate::buffer::View;
use crate::error::Result;
use crate::plan;

/// The parameters of a layer norm or RMS norm.
#[derive(Debug, Clone, Copy)]
pub struct NormParts<'a> {
    /// `[cols]`.
    pub weight: View<'a, f32>,
    /// `[cols]`.
    pub bias: Option<View<'a, f32>>,
    /// Added to the variance.
    pub eps: f32,
}

/// Rows that start `stride` values apart.
#[derive(Debug, Clone, Copy)]
pub struct Strided<'a, T> {
    /// The values.
    pub values: View<'a, T>,
    /// Values from the start of one row to the start of the next.
    pub stride: usize,
}

/// The shape `[rows, width]` of what [`combine`] and [`copy_rows`] work on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowShape {
    /// Number of rows.
    pub rows: usize,
    /// Values of a row.
    pub width: usize,
}

/// An embedding table.
#[derive(Debug, Clone, Copy)]
pub enum Table<'a> {
    /// Floats.
    Float(&'a FloatMatrix),
    /// Int8 codes with an absmax for each row.
    Int8(&'a Int8Matrix),
}

/// The rows to look up in a token table and in a position table.
#[derive(Debug, Clone, Copy)]
pub struct TableRows<'a> {
    /// Row numbers in the token table `[M]`.
    pub ids: View<'a, u32>,
    /// The position table, with the token table's width and dtype, and row numbers in it `[M]`.
    pub positions: Option<(&'a FloatMatrix, View<'a, u32>)>,
    /// Number of rows, M.
    pub rows: usize,
    /// The token table's rows are multiplied by it.
    pub factor: f32,
}

/// Writes `factor · table[ids] + positions[…]` to `out`, f32 `[M, width]`.
///
/// Row numbers are not checked, since they may have been computed on the device: the caller ensures
/// that they are below the lengths of the tables.
///
/// # Errors
/// [`CudaError::Shape`](crate::CudaError::Shape) if widths or dtypes differ;
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
            // With int8 codes, the dtype is only that of the position table.
            let dtype = rows
                .positions
                .map_or(FloatType::F32, |(positions, _)| positions.dtype());
            let codes = matrix.codes().address();
            let absmax = matrix.absmax().address();
            (matrix.in_features(), matrix.pitch(), dtype, codes, absmax)
        }
    };

    let check = Check {
        kernel: dtype.pick(kernels!("embed")),
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

/// Normalises rows into `out`, f32 with `out_stride` values from row to row, which may be the
/// source itself.
///
/// Each row holds `heads` vectors of `source.cols` values, which are normalised separately: with
/// weights `[heads, cols]` if `own_weights`, with the same weights `[cols]` otherwise.
///
/// # Errors
/// [`CudaError::Shape`](crate::CudaError::Shape) for a size above 32 bits;
/// [`CudaError::TooShort`](crate::CudaError::TooShort),
/// [`CudaError::WrongDevice`](crate::CudaError::WrongDevice).
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

    // `Source::args` checks the length of one head only.
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

/// What [`combine`] computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Combined {
    /// `x · y`.
    Product,
    /// `x + factor · y`.
    Sum(f32),
}

/// Multiplies or adds two arrays of the given shape into `out`, contiguous `[rows, width]`, which
/// may be `x` if that is contiguous too.
///
/// # Errors
/// Like [`norm`].
pub fn combine(
    how: Combined,
    x: Strided<'_, f32>,
    y: Strided<'_, f32>,
    out: View<'_, f32>,
    shape: RowShape,
) -> Result<()> {
    let RowShape { rows, width } = shape;
    let check = Check {
        kernel: "combine",
        device: out.device(),
    };
    let args = CombineArgs {
        x: check.view("x", x.values, span(rows, x.stride, width))?,
        up: check.view("y", y.values, span(rows, y.stride, width))?,
        out: check.view("the output", out, rows * width)?,
        width: check.size("the row", width)?,
        x_stride: check.size("the stride", x.stride)?,
        up_stride: check.size("the stride", y.stride)?,
        adds: matches!(how, Combined::Sum(_)).into(),
        factor: match how {
            Combined::Sum(factor) => factor,
            Combined::Product => 0.0,
        },
        padding: 0,
    };
    check.launch(&args, [width.div_ceil(256), rows, 1], 256, 0)
}

/// Scales in place, `x = scale · x`, then soft-caps: `x = cap · tanh(x / cap)` if there is a cap.
///
/// # Errors
/// [`CudaError::Shape`](crate::CudaError::Shape) if there are too many values for a grid.
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

/// Copies rows of bytes from one stride to another, for caches that grow. The width and both
/// strides are multiples of 16 bytes.
///
/// # Errors
/// Like [`norm`]; [`CudaError::Shape`](crate::CudaError::Shape) also for sizes that are not
/// multiples of 16.
pub fn copy_rows(from: Strided<'_, u8>, to: Strided<'_, u8>, shape: RowShape) -> Result<()> {
    let RowShape { rows, width } = shape;
    let check = Check {
        kernel: "copy_rows",
        device: to.values.device(),
    };
    if [from.stride, to.stride, width]
        .iter()
        .any(|bytes| bytes % 16 != 0)
    {
        return Err(check.shape(format!(
            "the width ({width}) and the strides ({} and {}) must be multiples of 16 bytes",
            from.stride, to.stride
        )));
    }

    let args = CopyRowsArgs {
        from: check.view("the source", from.values, span(rows, from.stride, width))?,
        to: check.view("the target", to.values, span(rows, to.stride, width))?,
        words: check.size("the row", width / 16)?,
        from_pitch: check.size("the pitch", from.stride / 16)?,
        to_pitch: check.size("the pitch", to.stride / 16)?,
        padding: 0,
    };
    check.launch(&args, [rows, (width / 16).div_ceil(256), 1], 256, 0)
}
