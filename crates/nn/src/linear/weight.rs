//! Int8 weights: codes, and the absmax of each row.

use super::codes::CodeMemory;
use crate::error::{NnError, Result};
use bytes::Bytes;
use llm_int8_kernels::{Element, Int8WeightRef, Isa, MatMut, MatRef, row_sums, uses_row_sums};
use rayon::prelude::*;
use std::sync::{Arc, OnceLock};

/// Codes copied by one parallel task.
const CODES_PER_TASK: usize = 1 << 18;

/// Rows of int8 codes with an absmax each. Clones share the memory.
///
/// `weight[o][i] ≈ codes[o][i] · absmax[o] / 127`, codes in -127..=127.
#[derive(Debug, Clone)]
pub struct Int8Weight {
    codes: Bytes,
    absmax: Arc<[f32]>,
    out_features: usize,
    in_features: usize,
    /// Computed when a matmul first uses them.
    row_sums: Arc<OnceLock<Vec<i32>>>,
}

impl Int8Weight {
    /// A weight of `shape` `[out, in]` from the codes and the `absmax` `[out]` of a checkpoint.
    ///
    /// # Errors
    /// [`NnError::QuantisationState`] if a length does not match the shape, a code is -128, or an
    /// `absmax` is negative or not finite.
    pub fn from_codes(codes: &[i8], absmax: &[f32], shape: [usize; 2]) -> Result<Self> {
        Self::from_codes_in(&mut CodeMemory::default(), codes, absmax, shape)
    }

    /// [`Int8Weight::from_codes`] with the codes copied into `memory`.
    ///
    /// # Errors
    /// As there.
    pub fn from_codes_in(
        memory: &mut CodeMemory,
        codes: &[i8],
        absmax: &[f32],
        [out_features, in_features]: [usize; 2],
    ) -> Result<Self> {
        let error = |reason: String| {
            Err(NnError::QuantisationState {
                layer: "weight".into(),
                reason,
            })
        };
        if Some(codes.len()) != out_features.checked_mul(in_features) {
            return error(format!(
                "{} codes for shape [{out_features}, {in_features}]",
                codes.len()
            ));
        }
        if absmax.len() != out_features {
            return error(format!(
                "SCB holds {} values for {out_features} rows",
                absmax.len()
            ));
        }
        if let Some(row) = absmax
            .iter()
            .position(|value| !value.is_finite() || *value < 0.0)
        {
            return error(format!(
                "SCB[{row}] is {}; it must be a row's absmax, finite and not negative",
                absmax[row]
            ));
        }

        let mut copy = memory.take(codes.len());
        if copy_codes(codes, bytemuck::cast_slice_mut(&mut copy))
            && let Err(cause) = llm_int8_kernels::check_codes(codes)
        {
            return error(cause.to_string());
        }

        Ok(Self {
            codes: copy.freeze(),
            absmax: absmax.into(),
            out_features,
            in_features,
            row_sums: Arc::default(),
        })
    }

    /// Quantises a weight `[out, in]` as bitsandbytes does: through f16, rounding half to even.
    ///
    /// # Errors
    /// [`NnError::Kernel`] if a value is NaN, infinite or beyond f16's range (65,504).
    pub fn quantize<T: Element>(isa: Isa, weight: MatRef<'_, T>) -> Result<Self> {
        Self::quantize_in(&mut CodeMemory::default(), isa, weight, false)
    }

    /// Quantises a weight stored as `[in, out]` (GPT-2's `Conv1D`) to `[out, in]`.
    ///
    /// # Errors
    /// As [`Int8Weight::quantize`].
    pub fn quantize_transposed<T: Element>(isa: Isa, weight: MatRef<'_, T>) -> Result<Self> {
        Self::quantize_in(&mut CodeMemory::default(), isa, weight, true)
    }

    /// Quantises a weight into `memory`. With `transposed`, it is stored as `[in, out]`.
    ///
    /// # Errors
    /// As [`Int8Weight::quantize`].
    pub fn quantize_in<T: Element>(
        memory: &mut CodeMemory,
        isa: Isa,
        weight: MatRef<'_, T>,
        transposed: bool,
    ) -> Result<Self> {
        let (out_features, in_features) = if transposed {
            (weight.cols(), weight.rows())
        } else {
            (weight.rows(), weight.cols())
        };

        let mut codes = memory.take(out_features * in_features);
        let mut absmax = vec![0f32; out_features];
        let target = MatMut::new(
            bytemuck::cast_slice_mut(&mut codes),
            out_features,
            in_features,
        )?;

        if transposed {
            llm_int8_kernels::quantize_weight_transposed(isa, weight, target, &mut absmax)?;
        } else {
            llm_int8_kernels::quantize_weight(isa, weight, target, &mut absmax)?;
        }

        Ok(Self {
            codes: codes.freeze(),
            absmax: absmax.into(),
            out_features,
            in_features,
            row_sums: Arc::default(),
        })
    }

    /// The weight as the kernels take it, for a matmul of this many rows.
    pub(super) fn kernel_form(&self, isa: Isa, rows: usize) -> Result<Int8WeightRef<'_>> {
        let codes = MatRef::new(self.codes(), self.out_features, self.in_features)?;
        let weight = Int8WeightRef::new(codes, &self.absmax)?;
        if !uses_row_sums(isa, rows) {
            return Ok(weight);
        }

        let sums = self.row_sums.get_or_init(|| row_sums(isa, codes));
        Ok(weight.with_row_sums(sums)?)
    }

    /// The codes, row-major `[out, in]`.
    pub fn codes(&self) -> &[i8] {
        bytemuck::cast_slice(&self.codes)
    }

    /// `[out_features, in_features]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.out_features, self.in_features]
    }

    /// Dequantises one row into `out`, f32 `[in]`: `codes · absmax / 127`. For an embedding tied to
    /// the head, these are the values that the head computes with.
    ///
    /// # Errors
    /// [`NnError::Kernel`] if `out` is not `in_features` long.
    ///
    /// # Panics
    /// If the weight has no such row.
    pub fn row(&self, isa: Isa, row: usize, out: &mut [f32]) -> Result<()> {
        let codes = &self.codes()[row * self.in_features..][..self.in_features];
        let codes = MatRef::new(codes, 1, self.in_features)?;
        let out = MatMut::new(out, 1, self.in_features)?;
        let absmax = &self.absmax[row..=row];
        Ok(llm_int8_kernels::dequantize(isa, codes, absmax, out)?)
    }

    /// The absmax of each row (bitsandbytes' `SCB`).
    pub fn absmax(&self) -> &[f32] {
        &self.absmax
    }

    /// Dequantises the whole weight: `codes · absmax / 127`, f32 `[out, in]`.
    ///
    /// # Errors
    /// None in practice: the constructors have checked what the kernel checks.
    pub fn dequantize(&self, isa: Isa) -> Result<Vec<f32>> {
        let mut out = vec![0f32; self.codes.len()];
        llm_int8_kernels::dequantize(
            isa,
            MatRef::new(self.codes(), self.out_features, self.in_features)?,
            &self.absmax,
            MatMut::new(&mut out, self.out_features, self.in_features)?,
        )?;
        Ok(out)
    }
}

/// Copies codes in parallel. Returns whether one of them is -128, which is checked while the copy
/// is still in the CPU cache.
fn copy_codes(codes: &[i8], target: &mut [i8]) -> bool {
    target
        .par_chunks_mut(CODES_PER_TASK)
        .zip(codes.par_chunks(CODES_PER_TASK))
        .map(|(target, codes)| {
            target.copy_from_slice(codes);
            target.contains(&i8::MIN)
        })
        .reduce(|| false, |a, b| a | b)
}
