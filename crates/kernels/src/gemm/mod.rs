//! The int8 product and what follows it.
//!
//! Ladder.
//! - Idea: `y = (codes_a · codes_wᵀ) · (absmax_a · absmax_w) / 127²`, the sum exact in i32.
//! - Layout: activations are widened to i16 once (M × K, small); weights stay int8 and are widened in
//!   registers, so that memory sees one byte a weight. `i16 × i16 → i32` pairs (`madd`) are exact for
//!   every pair of codes, -128 included, which `maddubs` is not.
//! - One row (decode): each weight is read once, row after row in the order of memory, fetched ahead.
//! - Many rows: tiles of 4 activations × 2 outputs in registers, over at most 2,048 columns at a time
//!   so that the activations of a tile stay in the first cache and the weights of a task in the second.
//! - Epilogue: in one place for every instruction set, in a fixed order and without fused
//!   multiply-adds. So a row gives the same bits alone, in any batch, on any number of threads.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod scalar;
mod thin;

use crate::isa::Kind;
use crate::matrix::expect;
use crate::outlier::QuantizedActivations;
use crate::reference::PRODUCT_STEP;
use crate::tasks::{self, Patch};
use crate::{Isa, KernelError, MatMut, MatRef};
use std::ops::Range;
use thin::ThinProduct;

/// Weights of a block, which stay in the second cache, and the most output features of one.
const BLOCK_BYTES: usize = 128 * 1024;
const MAX_BLOCK: usize = 64;
/// Rows of activations and of weights that are multiplied together, and over how many columns at once.
const TILE_M: usize = 4;
const TILE_N: usize = 2;
const MAX_DEPTH: usize = 2048;
/// `columns · 128²` must stay below 2³¹.
const MAX_COLUMNS: usize = (i32::MAX as usize) / (128 * 128);

/// Int8 weights `[N, K]` with the absmax of each row. The codes must be in -127..=127 (see
/// [`check_codes`](crate::check_codes)) to stand for what quantisation wrote; -128 is computed with
/// exactly all the same.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Int8WeightRef<'a> {
    codes: MatRef<'a, i8>,
    absmax: &'a [f32],
}

impl<'a> Int8WeightRef<'a> {
    /// Codes `[N, K]` and absmax `[N]`.
    ///
    /// ```
    /// use llm_int8_kernels::{Int8WeightRef, MatRef};
    /// assert!(Int8WeightRef::new(MatRef::new(&[1i8, 2], 1, 2)?, &[1.0]).is_ok());
    /// assert!(Int8WeightRef::new(MatRef::new(&[1i8, 2], 1, 2)?, &[]).is_err());
    /// # Ok::<(), llm_int8_kernels::KernelError>(())
    /// ```
    ///
    /// # Errors
    /// [`KernelError::WrongDimension`].
    pub fn new(codes: MatRef<'a, i8>, absmax: &'a [f32]) -> Result<Self, KernelError> {
        expect("length of the weight's absmax", codes.rows(), absmax.len())?;
        Ok(Self { codes, absmax })
    }
}

/// Where the float weights of outlier columns come from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum OutlierWeights<'a> {
    /// From the codes: `code · absmax / 127` (bitsandbytes).
    Dequantized,
    /// Given: `values` `[columns.len(), N]`, `columns` ascending (the paper).
    Original {
        /// Input features, ascending.
        columns: &'a [u32],
        /// Their weights for every output.
        values: MatRef<'a, f32>,
    },
}

/// `out = a · wᵀ + bias`, LLM.int8()'s mixed product: f32 `[M, N]`.
///
/// `acc · (absmax_a · absmax_w) / 127² + bias`, then `+ value · weight` for each of the row's outliers
/// in ascending order of their columns.
///
/// ```
/// use llm_int8_kernels::*;
/// let isa = Isa::detect();
/// let a = quantize_activations(isa, MatRef::new(&[1.0f32, -1.0], 1, 2)?, 6.0, OutlierScope::Batch);
/// let w = Int8WeightRef::new(MatRef::new(&[127i8, 0, 0, 127], 2, 2)?, &[3.0, 5.0])?;
/// let mut y = [0f32; 2];
/// linear(isa, &a, &w, OutlierWeights::Dequantized, Some(&[10.0, 10.0]), MatMut::new(&mut y, 1, 2)?)?;
/// assert!((y[0] - 13.0).abs() < 1e-5 && (y[1] - 5.0).abs() < 1e-5);
/// # Ok::<(), KernelError>(())
/// ```
///
/// # Errors
/// [`KernelError::WrongDimension`], [`KernelError::TooManyColumns`],
/// [`KernelError::MissingOutlierColumn`].
pub fn linear(
    isa: Isa,
    a: &QuantizedActivations,
    w: &Int8WeightRef<'_>,
    outlier_weights: OutlierWeights<'_>,
    bias: Option<&[f32]>,
    out: MatMut<'_, f32>,
) -> Result<(), KernelError> {
    let outputs = w.codes.rows();
    expect("columns of the weight", a.cols(), w.codes.cols())?;
    out.expect(a.rows(), outputs, ["rows of the result", "columns of the result"])?;
    if let Some(bias) = bias {
        expect("length of the bias", outputs, bias.len())?;
    }
    let thin = ThinProduct::new(a.outliers(), outlier_weights, outputs)?;
    product(isa, a.codes(), w.codes, out, |mut patch, sums, weights: &mut Vec<f32>| {
        let outputs = patch.outputs.clone();
        let bias = bias.map(|bias| &bias[outputs.clone()]);
        let absmax = &w.absmax[outputs.clone()];
        thin.gather(w, outputs.clone(), weights);
        for (i, (m, sums)) in patch.rows.clone().zip(sums.chunks(outputs.len())).enumerate() {
            let y = patch.row_mut(i);
            scale(sums, a.absmax()[m], absmax, bias, y);
            thin.add(isa, m, weights, y);
        }
    })
}

/// `y = sum · (absmax_a · absmax_w) / 127² + bias` for outputs of one row.
fn scale(sums: &[i32], absmax_a: f32, absmax_w: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    let scaled = |sum: i32, absmax_w: f32| sum as f32 * (absmax_a * absmax_w) * PRODUCT_STEP;
    let terms = y.iter_mut().zip(sums).zip(absmax_w);
    match bias {
        Some(bias) => terms.zip(bias).for_each(|(((y, &sum), &w), bias)| *y = scaled(sum, w) + bias),
        // As with a bias of zeros, which turns -0 into 0.
        None => terms.for_each(|((y, &sum), &w)| *y = scaled(sum, w) + 0.0),
    }
}

/// `a · wᵀ` over codes: i32 `[M, N]`, exact for every i8.
///
/// ```
/// use llm_int8_kernels::{Isa, MatMut, MatRef, matmul_i32};
/// let mut out = [0i32; 1];
/// let (a, w) = ([-128i8, 2], [-128i8, 3]);
/// matmul_i32(Isa::detect(), MatRef::new(&a, 1, 2)?, MatRef::new(&w, 1, 2)?, MatMut::new(&mut out, 1, 1)?)?;
/// assert_eq!(out, [16384 + 6]);
/// # Ok::<(), llm_int8_kernels::KernelError>(())
/// ```
///
/// # Errors
/// [`KernelError::WrongDimension`], [`KernelError::TooManyColumns`].
pub fn matmul_i32(
    isa: Isa,
    a: MatRef<'_, i8>,
    w: MatRef<'_, i8>,
    out: MatMut<'_, i32>,
) -> Result<(), KernelError> {
    expect("columns of the weight", a.cols(), w.cols())?;
    out.expect(a.rows(), w.rows(), ["rows of the result", "columns of the result"])?;
    product(isa, a, w, out, |mut patch, sums, _: &mut ()| {
        for (i, sums) in sums.chunks(patch.outputs.len()).enumerate() {
            patch.row_mut(i).copy_from_slice(sums);
        }
    })
}

/// Computes the codes' product and hands each task's sums to `finish`, row-major like its patch.
fn product<T, S>(
    isa: Isa,
    a: MatRef<'_, i8>,
    w: MatRef<'_, i8>,
    out: MatMut<'_, T>,
    finish: impl Fn(Patch<'_, T>, &[i32], &mut S) + Sync,
) -> Result<(), KernelError>
where
    T: Copy + Default + Send + Sync,
    S: Default + Send,
{
    let columns = w.cols();
    if columns > MAX_COLUMNS {
        return Err(KernelError::TooManyColumns { columns, limit: MAX_COLUMNS });
    }
    let wide: Vec<i16> = a.data().iter().map(|&code| i16::from(code)).collect();
    let wide = MatRef::new(&wide, a.rows(), columns)?;
    let block = (BLOCK_BYTES / columns.max(1) / 4 * 4).clamp(4, MAX_BLOCK);
    tasks::run(out, columns, block, |patch, (sums, scratch): &mut (Vec<i32>, S)| {
        sums.clear();
        sums.resize(patch.rows.len() * patch.outputs.len(), 0);
        accumulate(isa, wide, w, [&patch.rows, &patch.outputs], sums);
        finish(patch, sums, scratch);
    });
    Ok(())
}

/// `sums[m][n]` of some rows and outputs.
fn accumulate(isa: Isa, a: MatRef<'_, i16>, w: MatRef<'_, i8>, [m, n]: [&Range<usize>; 2], sums: &mut [i32]) {
    let (columns, width) = (a.cols(), n.len());
    if m.len() == 1 {
        let weights = &w.data()[n.start * columns..n.end * columns];
        return match isa.kind() {
            Kind::Scalar => scalar::dot_rows(a.row(m.start), weights, sums),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => avx2::dot_rows(isa, a.row(m.start), weights, sums),
        };
    }
    for first in (0..columns).step_by(MAX_DEPTH) {
        let depth = first..columns.min(first + MAX_DEPTH);
        // Rows outside, so that the activations of a tile stay in the first cache.
        let tiles = sums.chunks_mut(TILE_M * width).zip(m.clone().step_by(TILE_M));
        for (sums, row) in tiles {
            if sums.len() == TILE_M * width {
                strip::<TILE_M>(isa, a, w, [row, n.start], depth.clone(), sums);
            } else {
                for (sums, row) in sums.chunks_mut(width).zip(row..) {
                    strip::<1>(isa, a, w, [row, n.start], depth.clone(), sums);
                }
            }
        }
    }
}

/// `M` rows of activations from `m` on against the outputs from `n` on, over some columns; adds to
/// `sums` `[M, outputs]`.
fn strip<const M: usize>(
    isa: Isa,
    a: MatRef<'_, i16>,
    w: MatRef<'_, i8>,
    [m, n]: [usize; 2],
    depth: Range<usize>,
    sums: &mut [i32],
) {
    let width = sums.len() / M;
    let a: [&[i16]; M] = std::array::from_fn(|i| &a.row(m + i)[depth.clone()]);
    let weight = |j: usize| &w.row(n + j)[depth.clone()];
    let mut add = |j: usize, dots: &[i32; M]| {
        dots.iter().enumerate().for_each(|(i, dot)| sums[i * width + j] += dot);
    };
    let whole = width / TILE_N * TILE_N;
    for j in (0..whole).step_by(TILE_N) {
        let dots: [_; TILE_N] = dot(isa, a, std::array::from_fn(|i| weight(j + i)));
        dots.iter().enumerate().for_each(|(i, dots)| add(j + i, dots));
    }
    for j in whole..width {
        dot(isa, a, [weight(j)]).iter().for_each(|dots| add(j, dots));
    }
}

fn dot<const M: usize, const N: usize>(isa: Isa, a: [&[i16]; M], w: [&[i8]; N]) -> [[i32; M]; N] {
    match isa.kind() {
        Kind::Scalar => scalar::dot(a, w),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => avx2::dot(isa, a, w),
    }
}
