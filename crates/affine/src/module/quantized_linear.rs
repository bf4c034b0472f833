//! A linear layer with static quantisation.

use super::Linear;
use super::packed_weight::PackedWeight;
use crate::print::python_float;
use crate::{
    AffineError, Observer, ObserverConfig, QParams, QuantizedDtype, QuantizedTensor, Result,
    TensorRef,
};
use std::fmt;

/// `torch.ao.nn.quantized.Linear`: quint8 in, quint8 out, integer sums.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedLinear {
    weight: PackedWeight,
    bias: Option<Vec<f32>>,
    /// Scale and zero point of the output.
    scale: f64,
    zero_point: i32,
}

impl QuantizedLinear {
    /// Quantises the weight with a new observer of this configuration. `output` holds scale and
    /// zero point of the output.
    ///
    /// # Errors
    /// Those of the observer; [`AffineError::Unsupported`] if the weight is neither per tensor nor
    /// per output qint8, or the output is not per tensor; [`AffineError::WrongQParams`] if `output`
    /// cannot quantise to quint8.
    pub fn from_float(linear: &Linear, weight: &ObserverConfig, output: &QParams) -> Result<Self> {
        let &QParams::PerTensor { scale, zero_point } = output else {
            return Err(AffineError::Unsupported {
                what: "the output",
                expected: "per tensor",
                found: output.scheme().to_string(),
            });
        };
        output.check(QuantizedDtype::Quint8)?;

        Ok(Self {
            weight: packed(linear, weight)?,
            bias: linear.bias.clone(),
            scale,
            zero_point,
        })
    }

    /// The quantised weight (`weight()` in torch).
    pub fn weight(&self) -> &QuantizedTensor {
        &self.weight.tensor
    }

    /// The bias, which stays f32.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// Scale and zero point of the output.
    pub fn output_qparams(&self) -> QParams {
        QParams::PerTensor {
            scale: self.scale,
            zero_point: self.zero_point,
        }
    }

    /// `[..., in_features]` quint8 → `[..., out_features]` quint8 (`torch.ops.quantized.linear`).
    ///
    /// `round((sum + bias / (scale_x · scale_w)) · (scale_x · scale_w / scale_y)) + zero_point_y`,
    /// in f32, rounding half to even, as in fbgemm's requantisation. Sums are exact, like fbgemm's
    /// on a machine with VNNI.
    ///
    /// # Errors
    /// [`AffineError::WrongDimension`], [`AffineError::Unsupported`].
    pub fn forward(&self, x: &QuantizedTensor) -> Result<QuantizedTensor> {
        Ok(self.requantized(x, &self.weight.matmul(x)?))
    }

    /// [`forward`](Self::forward) with the sums of fbgemm on a machine without VNNI: pairs of
    /// products are added in 16 bits, and may saturate if activations use all 256 codes. That is
    /// why `reduce_range` exists.
    ///
    /// # Errors
    /// [`AffineError::WrongDimension`], [`AffineError::Unsupported`].
    pub fn forward_saturating(&self, x: &QuantizedTensor) -> Result<QuantizedTensor> {
        let mut sums = self.weight.matmul(x)?;
        sums.iter_mut()
            .zip(self.weight.saturation(x))
            .for_each(|(sum, lost)| *sum += lost);
        Ok(self.requantized(x, &sums))
    }

    /// The output of a layer whose integer sums for `x` are `sums`.
    fn requantized(&self, x: &QuantizedTensor, sums: &[i32]) -> QuantizedTensor {
        let scale_x = x
            .qparams()
            .channels()
            .next()
            .map_or(1.0, |(scale, _)| scale as f32);
        let scale_y = self.scale as f32;
        let scales: Vec<f32> = self
            .weight
            .channels()
            .map(|(scale_w, _)| scale_x * scale_w)
            .collect();
        let per_tensor = matches!(self.weight.tensor.qparams(), QParams::PerTensor { .. });
        let offset = |n: usize| {
            let bias = self.bias.as_ref().map_or(0.0, |bias| bias[n]);

            // fbgemm multiplies by a reciprocal if all outputs share one scale.
            if per_tensor {
                bias * scales[n].recip()
            } else {
                bias / scales[n]
            }
        };

        let offsets: Vec<f32> = (0..scales.len()).map(offset).collect();
        let code = |(n, &sum): (usize, &i32)| {
            let y = (sum as f32 + offsets[n]) * (scales[n] / scale_y);

            // The zero point is added as a float, which cannot overflow if `y` is far out of range.
            (y.round_ties_even() + self.zero_point as f32).clamp(0.0, 255.0) as i32
        };

        let codes = sums
            .chunks(scales.len())
            .flat_map(|row| row.iter().enumerate().map(code))
            .collect();

        let mut shape = x.shape().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = self.weight.out_features;
        }

        QuantizedTensor::from_codes(codes, shape, QuantizedDtype::Quint8, self.output_qparams())
    }
}

/// Observes and quantises the weight of a layer.
pub(super) fn packed(linear: &Linear, config: &ObserverConfig) -> Result<PackedWeight> {
    let shape = [linear.out_features, linear.in_features];
    let weight = TensorRef::new(&linear.weight, &shape)?;
    let mut observer = config.build()?;
    observer.observe(weight)?;
    PackedWeight::new(weight, observer.dtype(), &observer.qparams()?)
}

impl fmt::Display for QuantizedLinear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PackedWeight {
            in_features,
            out_features,
            tensor,
            ..
        } = &self.weight;

        write!(
            f,
            "QuantizedLinear(in_features={in_features}, out_features={out_features}, scale={}, zero_point={}, \
             qscheme={})",
            python_float(self.scale),
            self.zero_point,
            tensor.qparams().scheme()
        )
    }
}
