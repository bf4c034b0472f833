//! The rules of the LLM.int8() paper's Table 1 (Dettmers et al. 2022) that have no outliers, computed
//! with float matmuls on values rounded as their codes would be.

use llm_int8_decoder::{DecoderError, LinearHook};
use llm_int8_kernels::{MatMut, MatRef, dense};
use llm_int8_nn::NnError;
use llm_int8_nn::linear::Linear;
use llm_int8_nn::module::ModulePath;
use rayon::prelude::*;
use std::collections::HashSet;

/// How values become codes of 8 bits (the paper, section 2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantizer {
    /// Multiples of `max |x| / 127`.
    Absmax,
    /// 256 levels from the smallest to the largest value, of which 0 is one.
    Zeropoint,
}

/// Which values share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scales {
    /// All of a tensor.
    Tensor,
    /// Those of a row of activations; all of a weight.
    Row,
    /// Those of a row of activations, and those of an output of a weight.
    Vector,
}

/// A rule of Table 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PaperRule {
    /// How values become codes.
    pub quantizer: Quantizer,
    /// Which values share a scale.
    pub scales: Scales,
}

impl PaperRule {
    /// Absmax with a scale for every row and every output: LLM.int8() without outliers.
    pub const VECTOR_WISE: Self = Self {
        quantizer: Quantizer::Absmax,
        scales: Scales::Vector,
    };

    /// The rules that int8 layers do not compute.
    pub(super) const SIMULATED: [Self; 4] = [
        Self {
            quantizer: Quantizer::Absmax,
            scales: Scales::Row,
        },
        Self {
            quantizer: Quantizer::Absmax,
            scales: Scales::Tensor,
        },
        Self {
            quantizer: Quantizer::Zeropoint,
            scales: Scales::Vector,
        },
        Self {
            quantizer: Quantizer::Zeropoint,
            scales: Scales::Tensor,
        },
    ];

    /// The name in Table 1.
    pub fn name(self) -> &'static str {
        match (self.quantizer, self.scales) {
            (Quantizer::Absmax, Scales::Tensor) => "absmax",
            (Quantizer::Absmax, Scales::Row) => "absmax row-wise",
            (Quantizer::Absmax, Scales::Vector) => "absmax vector-wise",
            (Quantizer::Zeropoint, Scales::Tensor) => "zeropoint",
            (Quantizer::Zeropoint, Scales::Row) => "zeropoint row-wise",
            (Quantizer::Zeropoint, Scales::Vector) => "zeropoint vector-wise",
        }
    }

    /// Bytes of the scales of a model whose rows need `rows` bytes of absmax, with `layers` layers.
    pub(super) fn scale_bytes(self, rows: u64, layers: u64) -> u64 {
        let scales = match self.scales {
            Scales::Vector => rows,
            Scales::Tensor | Scales::Row => 4 * layers,
        };
        match self.quantizer {
            Quantizer::Absmax => scales,
            Quantizer::Zeropoint => 2 * scales,
        }
    }

    /// Rounds activations `[rows, width]`.
    fn round_activations(self, x: &mut [f32], width: usize) {
        match self.scales {
            Scales::Tensor => self.round(x),
            Scales::Row | Scales::Vector => self.round_rows(x, width),
        }
    }

    /// Rounds a weight `[out, width]`.
    fn round_weight(self, weight: &mut [f32], width: usize) {
        match self.scales {
            Scales::Vector => self.round_rows(weight, width),
            Scales::Tensor | Scales::Row => self.round(weight),
        }
    }

    fn round_rows(self, values: &mut [f32], width: usize) {
        values
            .par_chunks_mut(width.max(1))
            .for_each(|row| self.round(row));
    }

    /// Rounds values that share a scale.
    fn round(self, values: &mut [f32]) {
        let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let smallest = values.iter().copied().fold(f32::INFINITY, f32::min);
        let step = match self.quantizer {
            Quantizer::Absmax => largest.max(-smallest) / 127.0,
            // 0 is a level, as in PyTorch.
            Quantizer::Zeropoint => (largest.max(0.0) - smallest.min(0.0)) / 255.0,
        };
        if step > 0.0 && step.is_finite() {
            for x in values {
                *x = (*x / step).round_ties_even() * step;
            }
        }
    }
}

/// Computes the layers of an unquantised model by a rule.
pub(super) struct Simulation<'a> {
    pub(super) rule: PaperRule,
    /// The layers that are quantised.
    pub(super) layers: &'a HashSet<ModulePath>,
}

impl LinearHook for Simulation<'_> {
    fn compute(
        &mut self,
        layer: &Linear,
        values: &[f32],
        rows: usize,
        out: &mut [f32],
    ) -> Result<bool, DecoderError> {
        if !self.layers.contains(layer.path()) {
            return Ok(false);
        }

        let mut weight = float_weight(layer)?;
        let mut x = values.to_vec();
        self.rule.round_weight(&mut weight, layer.in_features());
        self.rule.round_activations(&mut x, layer.in_features());
        multiply(layer, &x, &weight, rows, out)?;
        Ok(true)
    }
}

/// Computes int8 layers with their weights as floats and with float activations.
pub(super) struct Dequantized;

impl LinearHook for Dequantized {
    fn compute(
        &mut self,
        layer: &Linear,
        values: &[f32],
        rows: usize,
        out: &mut [f32],
    ) -> Result<bool, DecoderError> {
        if !layer.is_int8() {
            return Ok(false);
        }
        multiply(layer, values, &float_weight(layer)?, rows, out)?;
        Ok(true)
    }
}

/// The weight of a layer in f32, `[out, in]`.
fn float_weight(layer: &Linear) -> Result<Vec<f32>, NnError> {
    match layer {
        Linear::Float(layer) => {
            let weight = layer.weight().tensor()?.to_dtype(candle_core::DType::F32)?;
            Ok(weight.flatten_all()?.to_vec1()?)
        }
        Linear::Int8(layer) => {
            let mut weight = vec![0f32; layer.out_features() * layer.in_features()];
            let codes = layer.weight()?;
            weight
                .par_chunks_mut(layer.in_features().max(1))
                .enumerate()
                .try_for_each(|(row, out)| codes.row(layer.isa(), row, out))?;
            Ok(weight)
        }
    }
}

/// `out = x · weightᵀ + bias` with the bias of `layer`.
fn multiply(
    layer: &Linear,
    x: &[f32],
    weight: &[f32],
    rows: usize,
    out: &mut [f32],
) -> Result<(), NnError> {
    let (outputs, inputs) = (layer.out_features(), layer.in_features());
    let x = MatRef::new(x, rows, inputs)?;
    let weight = MatRef::new(weight, outputs, inputs)?;
    let out = MatMut::new(out, rows, outputs)?;
    Ok(dense::linear(
        layer.isa(),
        x,
        weight,
        layer.bias_values()?,
        out,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_rounded_to_the_levels_of_their_scale() {
        let rule = |quantizer, scales| PaperRule { quantizer, scales };
        let mut x = [1.27f32, 0.004, 0.006, -0.5];
        rule(Quantizer::Absmax, Scales::Tensor).round_activations(&mut x, 2);
        let close = |x: &[f32], y: &[f32]| x.iter().zip(y).all(|(x, y)| (x - y).abs() < 1e-6);
        assert!(close(&x, &[1.27, 0.0, 0.01, -0.5]), "{x:?}");

        // With a scale for each row, small rows lose nothing.
        let mut x = [1.27f32, 0.004, 0.00127, -0.0005];
        rule(Quantizer::Absmax, Scales::Row).round_activations(&mut x, 2);
        assert!(close(&x, &[1.27, 0.0, 0.00127, -0.0005]), "{x:?}");

        // All levels serve values of one sign.
        let mut x = [2.55f32, 0.014, 0.0, 1.0];
        rule(Quantizer::Zeropoint, Scales::Tensor).round_activations(&mut x, 4);
        assert!(close(&x, &[2.55, 0.01, 0.0, 1.0]), "{x:?}");
    }

    #[test]
    fn scales_of_rows_are_those_of_absmax() {
        let bytes = |rule: PaperRule| rule.scale_bytes(400, 3);
        assert_eq!(bytes(PaperRule::VECTOR_WISE), 400);
        assert_eq!(PaperRule::SIMULATED.map(bytes), [12, 12, 800, 24]);
    }
}
