//! Int8 weights: codes and `absmax`.

use super::codes::CodeMemory;
use crate::error::{NnError, Result};
use bytes::Bytes;
use llm_int8_kernels::{Element, Int8WeightRef, Isa, MatMut, MatRef};
use rayon::prelude::*;
use std::sync::Arc;

/// Codes copied by one task.
const COPIED: usize = 1 << 18;

/// Rows of int8 codes with the largest magnitude of each row. Clones share the memory.
///
/// `weight[o][i] ≈ codes[o][i] · absmax[o] / 127`, codes in -127..=127.
#[derive(Debug, Clone)]
pub struct Int8Weight {
    codes: Bytes,
    absmax: Arc<[f32]>,
    out_features: usize,
    in_features: usize,
}

impl Int8Weight {
    /// Codes `[out, in]` and `absmax` `[out]` as a checkpoint holds them.
    ///
    /// # Errors
    /// [`NnError::QuantisationState`] where lengths do not fit, a code is -128 or an `absmax` is
    /// negative or not finite.
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
                "SCB[{row}] is {}; a row's largest magnitude was expected",
                absmax[row]
            ));
        }
        let mut copy = memory.take(codes.len());
        let target: &mut [i8] = bytemuck::cast_slice_mut(&mut copy);
        let parts = target.par_chunks_mut(COPIED).zip(codes.par_chunks(COPIED));
        let checked = parts.map(|(target, codes)| {
            target.copy_from_slice(codes);
            // While it is in the cache.
            target.contains(&i8::MIN)
        });
        if checked.reduce(|| false, |a, b| a | b)
            && let Err(cause) = llm_int8_kernels::check_codes(codes)
        {
            return error(cause.to_string());
        }
        Ok(Self {
            codes: copy.freeze(),
            absmax: absmax.into(),
            out_features,
            in_features,
        })
    }

    /// Quantises rows `[out, in]`, as bitsandbytes does: through f16, rounding half to even.
    ///
    /// # Errors
    /// [`NnError::Kernel`] where a weight is NaN, infinite or beyond f16's range (65,504).
    pub fn quantize<T: Element>(isa: Isa, weight: MatRef<'_, T>) -> Result<Self> {
        Self::quantize_in(&mut CodeMemory::default(), isa, weight, false)
    }

    /// Quantises a weight stored `[in, out]` (GPT-2's `Conv1D`) into rows `[out, in]`.
    ///
    /// # Errors
    /// As [`Int8Weight::quantize`].
    pub fn quantize_transposed<T: Element>(isa: Isa, weight: MatRef<'_, T>) -> Result<Self> {
        Self::quantize_in(&mut CodeMemory::default(), isa, weight, true)
    }

    /// Quantises a weight, stored `[in, out]` where `transposed`, into `memory`.
    ///
    /// # Errors
    /// As [`Int8Weight::quantize`].
    pub fn quantize_in<T: Element>(
        memory: &mut CodeMemory,
        isa: Isa,
        weight: MatRef<'_, T>,
        transposed: bool,
    ) -> Result<Self> {
        let (rows, columns) = (weight.rows(), weight.cols());
        let (out_features, in_features) = if transposed {
            (columns, rows)
        } else {
            (rows, columns)
        };
        let mut codes = memory.take(rows * columns);
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
        })
    }

    /// The form the kernels take.
    pub(super) fn kernel_form(&self) -> Result<Int8WeightRef<'_>> {
        Ok(Int8WeightRef::new(
            MatRef::new(self.codes(), self.out_features, self.in_features)?,
            &self.absmax,
        )?)
    }

    /// The codes, row after row.
    pub fn codes(&self) -> &[i8] {
        bytemuck::cast_slice(&self.codes)
    }

    /// `[out_features, in_features]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.out_features, self.in_features]
    }

    /// One row as floats: `codes · absmax / 127`, with what the head computes with.
    ///
    /// # Errors
    /// [`NnError::Kernel`] where `out` is not of a row's length.
    pub fn row(&self, isa: Isa, row: usize, out: &mut [f32]) -> Result<()> {
        let codes = &self.codes()[row * self.in_features..][..self.in_features];
        let (codes, out) = (
            MatRef::new(codes, 1, self.in_features)?,
            MatMut::new(out, 1, self.in_features)?,
        );
        Ok(llm_int8_kernels::dequantize(
            isa,
            codes,
            &self.absmax[row..=row],
            out,
        )?)
    }

    /// The largest magnitude of each row (bitsandbytes' `SCB`).
    pub fn absmax(&self) -> &[f32] {
        &self.absmax
    }

    /// `codes · absmax / 127`: f32 `[out, in]`.
    ///
    /// # Errors
    /// [`NnError::Kernel`] never for a weight built by this type.
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
