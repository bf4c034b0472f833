//! Linear layers with float weights.

use super::{Check, FloatMatrix, Output, Source, Through, kernels, span};
use crate::args::DenseArgs;
use crate::error::Result;

/// Up to this many rows `dense_thin` is used.
const DENSE_THIN_MAX_ROWS: usize = 16;
/// Outputs of a block of `dense_mma32` and `dense_mma64`.
const MMA_OUTPUTS: usize = 128;
/// Outputs of a block of `dense_one`.
const ONE_OUTPUTS: usize = 32;
/// Outputs and rows of a block of `dense_thin`.
const THIN_OUTPUTS: usize = 16;
const THIN_ROWS: usize = 8;
/// The side of a tile of `dense_tile`.
const TILE: usize = 64;

/// A family of kernels, by the number of rows and what tensor cores can do.
#[derive(Clone, Copy)]
enum Kernel {
    /// One row.
    One,
    /// A few rows.
    Thin,
    /// Tensor cores, 32 rows of a block.
    Mma32,
    /// Tensor cores, 64 rows of a block.
    Mma64,
    /// Many rows, f32 multiply-adds.
    Tile,
}

impl Kernel {
    fn choose(source: &Source<'_, f32>, matrix: &FloatMatrix) -> Self {
        match source.rows {
            0..=1 => Self::One,
            2..=DENSE_THIN_MAX_ROWS => Self::Thin,
            _ if !suits_mma(source, matrix) => Self::Tile,
            rows if rows <= 32 => Self::Mma32,
            _ => Self::Mma64,
        }
    }

    fn names(self) -> [&'static str; 3] {
        match self {
            Self::One => kernels!("dense_one"),
            Self::Thin => kernels!("dense_thin"),
            Self::Mma32 => kernels!("dense_mma32"),
            Self::Mma64 => kernels!("dense_mma64"),
            Self::Tile => kernels!("dense_tile"),
        }
    }

    fn grid(self, rows: usize, out_features: usize) -> [usize; 3] {
        let [outputs_of_block, rows_of_block] = match self {
            Self::One => [ONE_OUTPUTS, 1],
            Self::Thin => [THIN_OUTPUTS, THIN_ROWS],
            Self::Mma32 => [MMA_OUTPUTS, 32],
            Self::Mma64 => [MMA_OUTPUTS, 64],
            Self::Tile => [TILE, TILE],
        };
        [
            out_features.div_ceil(outputs_of_block),
            rows.div_ceil(rows_of_block),
            1,
        ]
    }
}

/// `y = x · Wᵀ + b` in f32; the weights keep their stored dtype.
///
/// # Errors
/// [`CudaError::Shape`](crate::CudaError::Shape) if the source is not plain or has another width;
/// [`CudaError::TooShort`](crate::CudaError::TooShort),
/// [`CudaError::WrongDevice`](crate::CudaError::WrongDevice).
pub fn dense(
    source: &Source<'_, f32>,
    matrix: &FloatMatrix,
    output: &Output<'_, f32>,
) -> Result<()> {
    let kernel = Kernel::choose(source, matrix);
    let check = Check {
        kernel: matrix.dtype().pick(kernel.names()),
        device: matrix.device(),
    };
    if !matches!(source.through, Through::Plain) {
        return Err(check.shape("it takes rows without a norm or gate".into()));
    }
    if source.cols != matrix.cols() {
        return Err(check.shape(format!(
            "rows have {} values; the layer takes {}",
            source.cols,
            matrix.cols()
        )));
    }

    let rows = source.rows;
    let out_features = matrix.rows();
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
    check.launch(&args, kernel.grid(rows, out_features), 256, 0)
}

/// Whether tensor cores can be used: `dense_mma` loads 16 bytes of activations at a time, takes
/// weights of 16 bits, and needs an instruction of capability 8.0.
fn suits_mma(source: &Source<'_, f32>, matrix: &FloatMatrix) -> bool {
    let is_aligned = source.x.address().is_multiple_of(16) && source.stride.is_multiple_of(4);
    let has_16_bits = matrix.dtype().bytes() == 2;

    has_16_bits && is_aligned && source.cols.is_multiple_of(8) && matrix.device().capability() >= 80
}
