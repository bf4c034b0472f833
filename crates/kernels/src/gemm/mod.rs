//! The int8 product and what follows it.
//!
//! Ladder.
//! - Idea: `y = (codes_a · codes_wᵀ) · absmax_a · absmax_w / 127²`, the sum exact in i32.
//! - Layout: activations are widened to i16 once (M × K, small); weights stay int8 and are widened in
//!   registers, so that memory sees one byte a weight. `i16 × i16 → i32` pairs (`madd`) are exact for
//!   every pair of codes, -128 included, which `maddubs` is not (see CONTRIBUTING).
//! - Blocks: a task owns 32 output features; their codes stay in cache while the rows of activations
//!   pass in fours. One row (decode) reads each weight once, in order.
//! - Epilogue: scalar, in one place for every instruction set, in a fixed order and without fused
//!   multiply-adds. So a row gives the same bits alone, in any batch, on any number of threads.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod scalar;

use crate::isa::Kind;
use crate::matrix::expect;
use crate::outlier::{Outliers, QuantizedActivations};
use crate::reference::PRODUCT_STEP;
use crate::rowwise::weight_step;
use crate::{Isa, KernelError, MatMut, MatRef};
use rayon::prelude::*;

/// Output features of a task.
const BLOCK: usize = 32;
/// Rows of activations and of weights that are multiplied together.
const TILE_M: usize = 4;
const TILE_N: usize = 2;
/// Bytes of weights below which splitting further costs more than it gives.
const TASK_BYTES: usize = 96 * 1024;
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
    let thin = ThinProduct::new(a.outliers(), a.rows(), outlier_weights, outputs)?;
    let codes = MatRef::new(a.codes(), a.rows(), a.cols())?;
    blocks(isa, codes, w.codes, out.into_data(), |n, acc: &[i32], y: &mut [f32], columns: &mut Vec<f32>| {
        thin.gather(w, n, columns);
        for (m, (acc, y)) in acc.iter().zip(y).enumerate() {
            let absmax = a.absmax()[m] * w.absmax[n];
            *y = *acc as f32 * absmax * PRODUCT_STEP + bias.map_or(0.0, |bias| bias[n]);
            *y = thin.add(m, columns, *y);
        }
    })
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
    blocks(isa, a, w, out.into_data(), |_, acc: &[i32], y: &mut [i32], _: &mut ()| y.copy_from_slice(acc))
}

/// The outlier part: few columns, float.
struct ThinProduct<'a> {
    outliers: &'a Outliers,
    weights: OutlierWeights<'a>,
    /// The distinct columns; with original weights, the rows of `values` that hold them.
    columns: Vec<u32>,
    sources: Vec<usize>,
    /// For each row the places of its columns among the distinct ones.
    places: Vec<Vec<usize>>,
}

impl<'a> ThinProduct<'a> {
    fn new(
        outliers: &'a Outliers,
        rows: usize,
        weights: OutlierWeights<'a>,
        outputs: usize,
    ) -> Result<Self, KernelError> {
        let columns = outliers.distinct_columns();
        let mut sources = Vec::new();
        if let OutlierWeights::Original { columns: given, values } = weights {
            expect("rows of the original outlier weights", given.len(), values.rows())?;
            expect("columns of the original outlier weights", outputs, values.cols())?;
            for &column in &columns {
                let missing = |_| KernelError::MissingOutlierColumn { column, given: given.len() };
                sources.push(given.binary_search(&column).map_err(missing)?);
            }
        }
        let place = |column: &u32| columns.binary_search(column).unwrap_or_default();
        let places = match columns.is_empty() {
            true => Vec::new(),
            false => (0..rows).map(|row| outliers.row(row).0.iter().map(place).collect()).collect(),
        };
        Ok(Self { outliers, weights, columns, sources, places })
    }

    /// The weights of the distinct columns for output `n`.
    fn gather(&self, w: &Int8WeightRef<'_>, n: usize, into: &mut Vec<f32>) {
        into.clear();
        match self.weights {
            OutlierWeights::Dequantized => {
                let (row, step) = (w.codes.row(n), weight_step(w.absmax[n]));
                into.extend(self.columns.iter().map(|&column| f32::from(row[column as usize]) * step));
            }
            OutlierWeights::Original { values, .. } => {
                into.extend(self.sources.iter().map(|&source| values.row(source)[n]));
            }
        }
    }

    /// `y` and what the outliers of row `m` add to it.
    fn add(&self, m: usize, weights: &[f32], y: f32) -> f32 {
        if self.columns.is_empty() {
            return y;
        }
        let values = self.outliers.row(m).1;
        values.iter().zip(&self.places[m]).fold(y, |y, (value, &place)| y + value * weights[place])
    }
}

/// Computes `a · wᵀ` block by block; `finish(n, accumulators of all rows, results, scratch)` turns the
/// sums of one output feature into results.
fn blocks<T, S>(
    isa: Isa,
    a: MatRef<'_, i8>,
    w: MatRef<'_, i8>,
    out: &mut [T],
    finish: impl Fn(usize, &[i32], &mut [T], &mut S) + Sync,
) -> Result<(), KernelError>
where
    T: Copy + Default + Send + Sync,
    S: Default + Send,
{
    let (rows, outputs, columns) = (a.rows(), w.rows(), w.cols());
    if columns > MAX_COLUMNS {
        return Err(KernelError::TooManyColumns { columns, limit: MAX_COLUMNS });
    }
    if rows == 0 || outputs == 0 {
        return Ok(());
    }
    let wide: Vec<i16> = a.data().iter().map(|&code| i16::from(code)).collect();
    let wide = MatRef::new(&wide, rows, columns)?;
    let task = |first: usize, block: &mut [T], acc: &mut Vec<i32>, scratch: &mut S| {
        let width = block.len() / rows;
        acc.clear();
        acc.resize(width * rows, 0);
        accumulate(isa, wide, w, first, acc);
        for (i, (acc, y)) in acc.chunks(rows).zip(block.chunks_mut(rows)).enumerate() {
            finish(first + i, acc, y, scratch);
        }
    };
    let min_len = (TASK_BYTES / (BLOCK * columns.max(1))).max(1);
    let run = |target: &mut [T]| {
        target.par_chunks_mut(BLOCK * rows).with_min_len(min_len).enumerate().for_each_init(
            || (Vec::new(), S::default()),
            |(acc, scratch), (block, y)| task(block * BLOCK, y, acc, scratch),
        );
    };
    if rows == 1 {
        run(out);
    } else {
        // Tasks own output features, so their results lie feature by feature and are turned at the end.
        let mut turned = vec![T::default(); out.len()];
        run(&mut turned);
        out.par_chunks_mut(outputs).enumerate().for_each(|(m, y)| {
            y.iter_mut().zip(turned[m..].iter().step_by(rows)).for_each(|(y, x)| *y = *x);
        });
    }
    Ok(())
}

/// Sums of output features `first..first + acc.len() / M`, feature by feature.
fn accumulate(isa: Isa, a: MatRef<'_, i16>, w: MatRef<'_, i8>, first: usize, acc: &mut [i32]) {
    let rows = a.rows();
    let mut n = 0;
    let width = acc.len() / rows;
    while n < width {
        // Four weight rows at once when there is one row of activations: four streams for the prefetcher.
        let step = if rows == 1 { 4.min(width - n) } else { TILE_N.min(width - n) };
        match (rows, step) {
            (1, 4) => tile::<1, 4>(isa, a, w, [0, first + n], &mut acc[n..n + 4], 1),
            (_, TILE_N) => rows_of::<TILE_N>(isa, a, w, first + n, &mut acc[n * rows..(n + TILE_N) * rows]),
            _ => {
                for i in n..n + step {
                    rows_of::<1>(isa, a, w, first + i, &mut acc[i * rows..(i + 1) * rows]);
                }
            }
        }
        n += step;
    }
}

/// All rows of activations against `N` weight rows.
fn rows_of<const N: usize>(isa: Isa, a: MatRef<'_, i16>, w: MatRef<'_, i8>, n: usize, acc: &mut [i32]) {
    let rows = a.rows();
    let whole = rows / TILE_M * TILE_M;
    for m in (0..whole).step_by(TILE_M) {
        tile::<TILE_M, N>(isa, a, w, [m, n], &mut acc[m..], rows);
    }
    for m in whole..rows {
        tile::<1, N>(isa, a, w, [m, n], &mut acc[m..], rows);
    }
}

/// `M` rows of activations against `N` weight rows; the sum of (m, n) goes to `acc[n · stride + m]`.
fn tile<const M: usize, const N: usize>(
    isa: Isa,
    a: MatRef<'_, i16>,
    w: MatRef<'_, i8>,
    [m, n]: [usize; 2],
    acc: &mut [i32],
    stride: usize,
) {
    let a: [&[i16]; M] = std::array::from_fn(|i| a.row(m + i));
    let w: [&[i8]; N] = std::array::from_fn(|i| w.row(n + i));
    let sums = match isa.kind() {
        Kind::Scalar => scalar::dot(a, w),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => avx2::dot(isa, a, w),
    };
    for (j, sums) in sums.iter().enumerate() {
        acc[j * stride..][..M].copy_from_slice(sums);
    }
}
