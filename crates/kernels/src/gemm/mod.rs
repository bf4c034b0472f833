//! The int8 matmul and its epilogue.
//!
//! - Idea: `y = (codes_a · codes_wᵀ) · (absmax_a · absmax_w) / 127²`, with the sum exact in i32.
//! - Weights stay int8 and row-major, as checkpoints hold them: one byte of memory traffic per
//!   weight, and one layout for every instruction set. Only activations are repacked, and they are
//!   few.
//! - Few rows (`rows`): each weight is read once, in memory order, with prefetching. One row, as in
//!   decoding, is bound by memory bandwidth; its layers with the same input share a parallel section
//!   (`one_row`).
//! - Many rows (`panels`): sixteen rows side by side in a register with weights broadcast to them,
//!   or both in tiles (AMX). Panels of up to a megabyte stay in L2 while weights stream past. They
//!   are packed once for all layers with the same input.
//! - Epilogue (`epilogue`): scale and bias, outliers, activation function, with the same roundings
//!   on every instruction set. So a row gives the same bits alone and in any batch, on any number of
//!   threads and any instruction set.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod epilogue;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
mod one_row;
mod outliers;
mod panels;
mod rows;
#[cfg(target_arch = "x86_64")]
mod vnni;
mod weight;

use crate::activation::Activation;
use crate::matrix::expect;
use crate::outlier::QuantizedActivations;
use crate::tasks::{self, Patch};
use crate::{AlignedVec, Isa, KernelError, MatMut, MatRef};
use epilogue::Epilogue;
use half::f16;
use outliers::Gathered;
use panels::Panels;
use rows::Rows;
use std::ops::Range;

pub(crate) use panels::Packed;
pub use weight::{Int8WeightRef, row_sums, uses_row_sums};

/// Weights of a block in bytes: they stay in L2.
const BLOCK_BYTES: usize = 160 * 1024;
/// Most output features of a block.
const MAX_BLOCK: usize = 64;
/// Most columns K for which the sum fits in an i32: `K · 128²` must stay below 2³¹.
const MAX_COLUMNS: usize = (i32::MAX as usize) / (128 * 128);

/// Whether the CPU has AMX and the kernel lets this process use it.
#[cfg(target_arch = "x86_64")]
pub(crate) fn amx_available() -> bool {
    amx::available()
}

#[cfg(target_arch = "x86_64")]
pub(crate) use amx::multiply_adds as amx_multiply_adds;

/// Where the float weights of outlier columns come from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum OutlierWeights<'a> {
    /// Dequantised from the codes: `code · absmax / 127` (bitsandbytes).
    Dequantized,
    /// Kept in floating point beside the codes (the paper).
    Original {
        /// The input features kept, ascending.
        columns: &'a [u32],
        /// Their weights `[columns.len(), N]`.
        values: MatRef<'a, f32>,
    },
    /// Kept in f16 for some columns, dequantised for all others.
    Kept {
        /// The input features kept, ascending.
        columns: &'a [u32],
        /// Their weights `[columns.len(), N]`.
        values: MatRef<'a, f16>,
    },
}

/// A linear layer: everything a matmul takes besides the activations.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// Codes and absmax, `[N, K]`.
    pub weight: Int8WeightRef<'a>,
    /// Where the float weights of outlier columns come from.
    pub outlier_weights: OutlierWeights<'a>,
    /// Added before the outliers, `[N]`.
    pub bias: Option<&'a [f32]>,
    /// Applied last.
    pub activation: Option<Activation>,
}

impl<'a> Layer<'a> {
    /// A layer without bias or activation function, whose outlier weights are dequantised as
    /// bitsandbytes does.
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

/// LLM.int8()'s mixed-precision linear layer: `out = activation(a · wᵀ + bias)`, f32 `[M, N]`.
///
/// Each output is `acc · (absmax_a · absmax_w) / 127² + bias`, then `+ value · weight` for each of
/// the row's outliers in ascending order of columns, then the activation function.
///
/// ```
/// use llm_int8_kernels::*;
/// let isa = Isa::detect();
/// let a = quantize_activations(isa, MatRef::new(&[1.0f32, -1.0], 1, 2)?, OutlierRule::batch(6.0));
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
    let weight = WeightCodes {
        codes: layer.weight.codes,
        row_sums: layer.weight.row_sums,
    };
    let input = ActivationCodes {
        codes: a.codes(),
        packed: Some(a.packed()),
    };
    matmul(
        isa,
        input,
        weight,
        out,
        |patch, sums, gathered: &mut Gathered| {
            let outputs = patch.outputs.clone();
            epilogue.outliers.gather(&layer.weight, outputs, gathered);
            epilogue.run(patch, sums, gathered);
        },
    );

    Ok(())
}

/// [`linear`] for several layers with the same input: Q, K and V, or gate and up. With one row they
/// run as one parallel section, so that threads synchronise once.
///
/// ```
/// use llm_int8_kernels::*;
/// let isa = Isa::detect();
/// let a = quantize_activations(isa, MatRef::new(&[1.0f32, -1.0], 1, 2)?, OutlierRule::batch(6.0));
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

    one_row::linears(isa, a, layers)
}

/// `out = a · wᵀ` over codes: i32 `[M, N]`, exact for every i8.
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
    let input = ActivationCodes {
        codes: a,
        packed: None,
    };
    let weight = WeightCodes {
        codes: w,
        row_sums: None,
    };
    matmul(isa, input, weight, out, |mut patch, sums, _: &mut ()| {
        for (i, sums) in sums.chunks(patch.outputs.len()).enumerate() {
            patch.row_mut(i).copy_from_slice(sums);
        }
    });

    Ok(())
}

/// The rows and output features of the sums that a kernel computes.
#[derive(Clone, Copy)]
struct Part<'a> {
    rows: &'a Range<usize>,
    outputs: &'a Range<usize>,
}

/// The codes of activations, and where they may be packed already.
#[derive(Clone, Copy)]
struct ActivationCodes<'a> {
    codes: MatRef<'a, i8>,
    packed: Option<&'a Packed>,
}

/// The codes of weights, and the sums of their rows if they are known.
#[derive(Clone, Copy)]
struct WeightCodes<'a> {
    codes: MatRef<'a, i8>,
    row_sums: Option<&'a [i32]>,
}

/// Memory that a thread reuses from task to task.
#[derive(Default)]
struct Scratch {
    /// Weights repacked for the instruction set.
    weights: Vec<u8>,
}

/// Output features of a block, for K `columns`.
fn block(columns: usize) -> usize {
    let block = (BLOCK_BYTES / columns.max(1)).clamp(4, MAX_BLOCK);

    // Whole tiles, if at least one fits.
    if block >= panels::TILE {
        block / panels::TILE * panels::TILE
    } else {
        block / 4 * 4
    }
}

/// Multiplies codes, `a · wᵀ`, and hands the sums of each patch to `finish`, row-major.
fn matmul<T, S>(
    isa: Isa,
    a: ActivationCodes<'_>,
    w: WeightCodes<'_>,
    out: MatMut<'_, T>,
    finish: impl Fn(Patch<'_, T>, &[i32], &mut S) + Sync,
) where
    T: Send,
    S: Default,
{
    let columns = w.codes.cols();

    if a.codes.rows() <= rows::MAX_ROWS {
        let input = Rows::new(isa, a.codes);
        let multiply =
            |part: Part<'_>, sums: &mut [i32], _: &mut _| input.multiply(isa, w.codes, part, sums);
        return for_each_patch(columns, out, multiply, finish);
    }

    let own;
    let input = match a.packed.and_then(|packed| packed.panels(isa, a.codes)) {
        Some(shared) => shared,
        None => {
            own = Panels::new(isa, a.codes, AlignedVec::default());
            &own
        }
    };
    let multiply = |part: Part<'_>, sums: &mut [i32], scratch: &mut _| {
        input.multiply(w, part, sums, scratch);
    };
    for_each_patch(columns, out, multiply, finish);
}

/// Cuts `out` into patches, has `multiply` compute the sums of each, and hands them to `finish`.
fn for_each_patch<T, S>(
    columns: usize,
    out: MatMut<'_, T>,
    multiply: impl Fn(Part<'_>, &mut [i32], &mut Scratch) + Sync,
    finish: impl Fn(Patch<'_, T>, &[i32], &mut S) + Sync,
) where
    T: Send,
    S: Default,
{
    tasks::run(
        out,
        columns,
        block(columns),
        |patch, scratch: &mut (Vec<i32>, Scratch, S)| {
            let (sums, kernel, rest) = scratch;
            sums.resize(patch.rows.len() * patch.outputs.len(), 0);
            let part = Part {
                rows: &patch.rows,
                outputs: &patch.outputs,
            };
            multiply(part, sums, kernel);
            finish(patch, sums, rest);
        },
    );
}
