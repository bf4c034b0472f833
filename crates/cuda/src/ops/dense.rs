//! Products with float weights.

use super::{Check, FloatMatrix, Output, Source, Through, kernels, span};
use crate::args::DenseArgs;
use crate::error::Result;

/// Rows up to which `dense_thin` computes.
const THIN_MOST: usize = 16;
/// Outputs of a block of `dense_mma`, and rows of each of its two kernels.
const MMA_OUTPUTS: usize = 128;
const MMA_ROWS: [usize; 2] = [32, 64];
/// Outputs of a block of eight warps in `dense_one` and `dense_thin`, and rows that the latter
/// takes.
const ONE_OUTPUTS: usize = 32;
const THIN_OUTPUTS: usize = 16;
const THIN_ROWS: usize = 8;
/// The side of a tile of `dense_tile`.
const TILE: usize = 64;

/// `y = x · Wᵀ + b` in f32, with weights as they are stored.
///
/// # Errors
/// [`CudaError::Shape`](crate::CudaError::Shape) for sources that are not plain or of another
/// width; [`CudaError::TooShort`](crate::CudaError::TooShort),
/// [`CudaError::WrongDevice`](crate::CudaError::WrongDevice).
pub fn dense(
    source: &Source<'_, f32>,
    matrix: &FloatMatrix,
    output: &Output<'_, f32>,
) -> Result<()> {
    let uses_mma = source.rows > THIN_MOST && suits_mma(source, matrix);
    let mma_rows = if source.rows <= MMA_ROWS[0] {
        MMA_ROWS[0]
    } else {
        MMA_ROWS[1]
    };
    let names = match source.rows {
        0..=1 => kernels!("dense_one"),
        2..=THIN_MOST => kernels!("dense_thin"),
        _ if uses_mma && mma_rows == MMA_ROWS[0] => kernels!("dense_mma32"),
        _ if uses_mma => kernels!("dense_mma64"),
        _ => kernels!("dense_tile"),
    };
    let check = Check {
        kernel: matrix.dtype().of(names),
        device: matrix.device(),
    };
    if !matches!(source.through, Through::Plain) || source.cols != matrix.cols() {
        let reason = format!(
            "plain rows of {} values are needed, not {}",
            matrix.cols(),
            source.cols
        );
        return Err(check.shape(reason));
    }
    let (rows, out_features) = (source.rows, matrix.rows());
    let args = DenseArgs {
        x: check.view(
            "the activations",
            source.x,
            span(rows, source.stride, source.cols),
        )?,
        weight: matrix.address(),
        epilogue: output.args(&check, rows, out_features)?,
        rows: check.size("the rows", rows)?,
        out_features: check.size("the outputs", out_features)?,
        in_features: check.size("the inputs", source.cols)?,
        x_stride: check.size("the stride", source.stride)?,
        pitch: check.size("the inputs", matrix.pitch())?,
        padding: 0,
    };
    let grid = match rows {
        0..=1 => [out_features.div_ceil(ONE_OUTPUTS), rows, 1],
        2..=THIN_MOST => [
            out_features.div_ceil(THIN_OUTPUTS),
            rows.div_ceil(THIN_ROWS),
            1,
        ],
        _ if uses_mma => [
            out_features.div_ceil(MMA_OUTPUTS),
            rows.div_ceil(mma_rows),
            1,
        ],
        _ => [out_features.div_ceil(TILE), rows.div_ceil(TILE), 1],
    };
    check.launch(&args, grid, 256, 0)
}

/// Whether tensor cores can do it: `dense_mma` reads 16 bytes of activations at a time and weights
/// of 16 bits, and needs the instruction of capability 8.0.
fn suits_mma(source: &Source<'_, f32>, matrix: &FloatMatrix) -> bool {
    let is_aligned = source.x.address().is_multiple_of(16) && source.stride.is_multiple_of(4);
    let has_16_bits = matrix.dtype().bytes() == 2;
    has_16_bits && is_aligned && source.cols.is_multiple_of(8) && matrix.device().capability() >= 80
}
