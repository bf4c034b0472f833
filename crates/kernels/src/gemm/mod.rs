//! The int8 product and what follows it.
//!
//! Ladder.
//! - Idea: `y = (codes_a · codes_wᵀ) · (absmax_a · absmax_w) / 127²`, the sum exact in i32.
//! - Weights stay int8, row after row, as checkpoints hold them: memory sees one byte a weight, and
//!   one layout serves every instruction set. What has to be rearranged are activations, which are
//!   few.
//! - Few rows (`rows`): each weight is read once, in the order of memory, fetched ahead. One row is
//!   bound by memory.
//! - Many rows (`panels`): sixteen rows side by side in a register, weights broadcast to them, or
//!   both in tiles (AMX). Tasks own rows, whose panels stay in L2 while all weights pass by.
//! - Epilogue: in one place for every instruction set, in a fixed order and without fused
//!   multiply-adds: scale and bias, outliers, activation function. So a row gives the same bits
//!   alone, in any batch, on any number of threads and any instruction set.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "aarch64")]
mod neon;
mod panels;
mod rows;
mod thin;
#[cfg(target_arch = "x86_64")]
mod vnni;

use crate::activation::Activation;
use crate::matrix::expect;
use crate::outlier::QuantizedActivations;
use crate::reference::PRODUCT_STEP;
use crate::simd::for_every_width;
use crate::tasks::{self, Patch};
use crate::{Isa, KernelError, MatMut, MatRef, activation, team};
use panels::Panels;
use rows::Rows;
use std::ops::Range;
use thin::ThinProduct;

/// Weights of a block, which stay in L2, and the most output features of one.
const BLOCK_BYTES: usize = 160 * 1024;
const MAX_BLOCK: usize = 64;
/// `columns · 128²` must stay below 2³¹.
const MAX_COLUMNS: usize = (i32::MAX as usize) / (128 * 128);
/// Weights of a task while there is one row: some microseconds of reading.
const TASK_BYTES: usize = 64 * 1024;

/// Whether the CPU has AMX and the system lets this process use it.
#[cfg(target_arch = "x86_64")]
pub(crate) fn amx_available() -> bool {
    amx::available()
}

#[cfg(target_arch = "x86_64")]
pub(crate) use amx::multiply_adds as amx_multiply_adds;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::multiply_adds as neon_multiply_adds;

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

/// A layer: what a product takes beside activations.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// Codes and absmax, `[N, K]`.
    pub weight: Int8WeightRef<'a>,
    /// Where the float weights of outlier columns come from.
    pub outlier_weights: OutlierWeights<'a>,
    /// Added before the outliers, `[N]`.
    pub bias: Option<&'a [f32]>,
    /// Applied at the end.
    pub activation: Option<Activation>,
}

impl<'a> Layer<'a> {
    /// Weights alone, with bitsandbytes' outliers.
    ///
    /// ```
    /// use llm_int8_kernels::{Int8WeightRef, Layer, MatRef};
    /// let layer = Layer::new(Int8WeightRef::new(MatRef::new(&[1i8, 2], 1, 2)?, &[1.0])?);
    /// assert!(layer.bias.is_none() && layer.activation.is_none());
    /// # Ok::<(), llm_int8_kernels::KernelError>(())
    /// ```
    pub fn new(weight: Int8WeightRef<'a>) -> Self {
        Self {
            weight,
            outlier_weights: OutlierWeights::Dequantized,
            bias: None,
            activation: None,
        }
    }

    fn outputs(&self) -> usize {
        self.weight.codes.rows()
    }

    fn check(&self, a: &QuantizedActivations, out: &MatMut<'_, f32>) -> Result<(), KernelError> {
        expect("columns of the weight", a.cols(), self.weight.codes.cols())?;
        out.expect(
            a.rows(),
            self.outputs(),
            ["rows of the result", "columns of the result"],
        )?;
        if let Some(bias) = self.bias {
            expect("length of the bias", self.outputs(), bias.len())?;
        }
        check_columns(a.cols())
    }
}

fn check_columns(columns: usize) -> Result<(), KernelError> {
    if columns > MAX_COLUMNS {
        return Err(KernelError::TooManyColumns {
            columns,
            limit: MAX_COLUMNS,
        });
    }

    Ok(())
}

/// `out = activation(a · wᵀ + bias)`, LLM.int8()'s mixed product: f32 `[M, N]`.
///
/// `acc · (absmax_a · absmax_w) / 127² + bias`, then `+ value · weight` for each of the row's
/// outliers in ascending order of their columns, then the activation function.
///
/// ```
/// use llm_int8_kernels::*;
/// let isa = Isa::detect();
/// let a = quantize_activations(isa, MatRef::new(&[1.0f32, -1.0], 1, 2)?, 6.0, OutlierScope::Batch);
/// let w = Int8WeightRef::new(MatRef::new(&[127i8, 0, 0, 127], 2, 2)?, &[3.0, 5.0])?;
/// let mut y = [0f32; 2];
/// let layer = Layer { bias: Some(&[10.0, 10.0]), ..Layer::new(w) };
/// linear(isa, &a, &layer, MatMut::new(&mut y, 1, 2)?)?;
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
    layer: &Layer<'_>,
    out: MatMut<'_, f32>,
) -> Result<(), KernelError> {
    if a.rows() == 1 {
        return linears(isa, a, vec![(*layer, out)]);
    }
    layer.check(a, &out)?;
    let epilogue = Epilogue::new(isa, a, layer)?;
    product(
        isa,
        a.codes(),
        layer.weight.codes,
        out,
        |mut patch, sums, weights: &mut Vec<f32>| {
            let outputs = patch.outputs.clone();
            epilogue
                .thin
                .gather(isa, &layer.weight, outputs.clone(), weights);
            for (i, (m, sums)) in patch
                .rows
                .clone()
                .zip(sums.chunks(outputs.len()))
                .enumerate()
            {
                epilogue.run(m, outputs.clone(), sums, weights, patch.row_mut(i));
            }
        },
    );

    Ok(())
}

/// [`linear`] for several layers with the same activations: queries, keys and values, or gate and
/// up. With one row they are computed as if they were one layer, so that threads meet once.
///
/// ```
/// use llm_int8_kernels::*;
/// let isa = Isa::detect();
/// let a = quantize_activations(isa, MatRef::new(&[1.0f32, -1.0], 1, 2)?, 6.0, OutlierScope::Batch);
/// let w = Int8WeightRef::new(MatRef::new(&[127i8, 0], 1, 2)?, &[3.0])?;
/// let (mut x, mut y) = ([0f32], [0f32]);
/// let layer = Layer::new(w);
/// linears(isa, &a, vec![(layer, MatMut::new(&mut x, 1, 1)?), (layer, MatMut::new(&mut y, 1, 1)?)])?;
/// assert!(x == y && (x[0] - 3.0).abs() < 1e-5);
/// # Ok::<(), KernelError>(())
/// ```
///
/// # Errors
/// As [`linear`].
pub fn linears(
    isa: Isa,
    a: &QuantizedActivations,
    layers: Vec<(Layer<'_>, MatMut<'_, f32>)>,
) -> Result<(), KernelError> {
    if a.rows() != 1 {
        return layers
            .into_iter()
            .try_for_each(|(layer, out)| linear(isa, a, &layer, out));
    }

    let input = Rows::new(isa, a.codes());
    let block = (TASK_BYTES / a.cols().max(1)).clamp(4, MAX_BLOCK);

    let mut epilogues = Vec::new();
    let mut pieces = Vec::new();
    for (i, (layer, out)) in layers.into_iter().enumerate() {
        layer.check(a, &out)?;
        epilogues.push((layer.weight, Epilogue::new(isa, a, &layer)?));
        pieces.extend(
            out.into_data()
                .chunks_mut(block)
                .enumerate()
                .map(|(j, y)| (i, j * block, y)),
        );
    }

    let task = |(sums, weights): &mut (Vec<i32>, Vec<f32>),
                (i, first, y): (usize, usize, &mut [f32])| {
        let outputs = first..first + y.len();
        let (weight, epilogue) = &epilogues[i];
        sums.resize(y.len(), 0);
        input.multiply(isa, weight.codes, [&(0..1), &outputs], sums);
        epilogue.thin.gather(isa, weight, outputs.clone(), weights);
        epilogue.run(0, outputs, sums, weights, y);
    };

    team::for_each(pieces, task);

    Ok(())
}

/// What turns sums into results.
struct Epilogue<'a> {
    isa: Isa,
    absmax_a: &'a [f32],
    absmax_w: &'a [f32],
    bias: Option<&'a [f32]>,
    thin: ThinProduct<'a>,
    activation: Option<Activation>,
}

impl<'a> Epilogue<'a> {
    fn new(isa: Isa, a: &'a QuantizedActivations, layer: &Layer<'a>) -> Result<Self, KernelError> {
        Ok(Self {
            isa,
            absmax_a: a.absmax(),
            absmax_w: layer.weight.absmax,
            bias: layer.bias,
            thin: ThinProduct::new(a.outliers(), layer.outlier_weights, layer.outputs())?,
            activation: layer.activation,
        })
    }

    /// Some outputs of row `m`; `weights` are those of the outlier columns.
    fn run(&self, m: usize, outputs: Range<usize>, sums: &[i32], weights: &[f32], y: &mut [f32]) {
        // As with a bias of zeros, which turns -0 into 0.
        const ZEROS: [f32; MAX_BLOCK] = [0.0; MAX_BLOCK];
        let bias = self
            .bias
            .map_or(&ZEROS[..outputs.len()], |bias| &bias[outputs.clone()]);
        scale(
            self.isa,
            sums,
            self.absmax_a[m],
            &self.absmax_w[outputs],
            bias,
            y,
        );

        self.thin.add(self.isa, m, weights, y);

        if let Some(function) = self.activation {
            activation::apply(self.isa, function, y);
        }
    }
}

for_every_width! {
    /// `y = sum · (absmax_a · absmax_w) / 127² + bias` for outputs of one row.
    fn scale(sums: &[i32], absmax_a: f32, absmax_w: &[f32], bias: &[f32], y: &mut [f32]) = scale_row
}

#[inline(always)]
fn scale_row(sums: &[i32], absmax_a: f32, absmax_w: &[f32], bias: &[f32], y: &mut [f32]) {
    for (((y, &sum), absmax_w), bias) in y.iter_mut().zip(sums).zip(absmax_w).zip(bias) {
        *y = sum as f32 * (absmax_a * absmax_w) * PRODUCT_STEP + bias;
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
    out.expect(
        a.rows(),
        w.rows(),
        ["rows of the result", "columns of the result"],
    )?;
    check_columns(w.cols())?;
    product(isa, a, w, out, |mut patch, sums, _: &mut ()| {
        for (i, sums) in sums.chunks(patch.outputs.len()).enumerate() {
            patch.row_mut(i).copy_from_slice(sums);
        }
    });

    Ok(())
}

/// Memory a task reuses.
#[derive(Default)]
struct Scratch {
    /// Weights in the form the instruction set wants.
    weights: Vec<u8>,
}

/// Output features computed together.
fn block(columns: usize) -> usize {
    let block = (BLOCK_BYTES / columns.max(1)).clamp(4, MAX_BLOCK);

    // Whole tiles where there are some.
    if block >= panels::TILE {
        block / panels::TILE * panels::TILE
    } else {
        block / 4 * 4
    }
}

/// Computes the codes' product and hands each task's sums to `finish`, row-major like its patch.
fn product<T, S>(
    isa: Isa,
    a: MatRef<'_, i8>,
    w: MatRef<'_, i8>,
    out: MatMut<'_, T>,
    finish: impl Fn(Patch<'_, T>, &[i32], &mut S) + Sync,
) where
    T: Copy + Default + Send + Sync,
    S: Default + Send,
{
    if a.rows() <= rows::MAX_ROWS {
        let input = Rows::new(isa, a);
        accumulate(
            w,
            out,
            |places, sums, _| input.multiply(isa, w, places, sums),
            finish,
        );
    } else {
        let input = Panels::new(isa, a);
        accumulate(
            w,
            out,
            |places, sums, scratch| input.multiply(isa, w, places, sums, scratch),
            finish,
        );
    }
}

fn accumulate<T, S>(
    w: MatRef<'_, i8>,
    out: MatMut<'_, T>,
    multiply: impl Fn([&Range<usize>; 2], &mut [i32], &mut Scratch) + Sync,
    finish: impl Fn(Patch<'_, T>, &[i32], &mut S) + Sync,
) where
    T: Copy + Default + Send + Sync,
    S: Default + Send,
{
    tasks::run(
        out,
        w.cols(),
        block(w.cols()),
        |patch, scratch: &mut (Vec<i32>, Scratch, S)| {
            let (sums, kernel, rest) = scratch;
            sums.resize(patch.rows.len() * patch.outputs.len(), 0);
            multiply([&patch.rows, &patch.outputs], sums, kernel);
            finish(patch, sums, rest);
        },
    );
}
