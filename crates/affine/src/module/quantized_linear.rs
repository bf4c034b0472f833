//! The converted Linear.

use super::Linear;
use super::packed_weight::PackedWeight;
use crate::print::python_float;
use crate::{
    AffineError, Observer, ObserverConfig, QParams, QuantizedDtype, QuantizedTensor, Result,
    TensorRef,
};
use std::fmt;

/// `torch.ao.nn.quantized.Linear`: quint8 in, quint8 out, all sums in integers.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedLinear {
    weight: PackedWeight,
    bias: Option<Vec<f32>>,
    /// Scale and zero point of the output.
    scale: f64,
    zero_point: i32,
}

impl QuantizedLinear {
    /// Quantises the weight by an observer of its own; `output` are scale and zero point of the
    /// results.
    ///
    /// # Errors
    /// What the observer says; a weight that is not qint8 or not per tensor or per output; an
    /// output that is not per tensor quint8.
    pub fn from_float(linear: &Linear, weight: &ObserverConfig, output: &QParams) -> Result<Self> {
        let &QParams::PerTensor { scale, zero_point } = output else {
            let found = output.scheme().to_string();
            return Err(AffineError::Unsupported {
                what: "the output",
                expected: "per tensor",
                found,
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

    /// The weight (`weight()`), as torch stores it.
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
    /// in f32 as fbgemm's requantisation, halves to even. Sums are exact, as fbgemm's are on a
    /// machine with VNNI.
    ///
    /// # Errors
    /// [`AffineError::WrongDimension`], [`AffineError::Unsupported`].
    pub fn forward(&self, x: &QuantizedTensor) -> Result<QuantizedTensor> {
        Ok(self.requantized(x, &self.weight.product(x)?))
    }

    /// As [`forward`](Self::forward), with what fbgemm computes on a machine without VNNI: products
    /// of two neighbours are added in 16 bits, and saturate when activations use all 256 codes. It
    /// is why `reduce_range` exists.
    ///
    /// # Errors
    /// [`AffineError::WrongDimension`], [`AffineError::Unsupported`].
    pub fn forward_saturating(&self, x: &QuantizedTensor) -> Result<QuantizedTensor> {
        let mut sums = self.weight.product(x)?;
        sums.iter_mut()
            .zip(self.weight.saturation(x))
            .for_each(|(sum, lost)| *sum += lost);
        Ok(self.requantized(x, &sums))
    }

    fn requantized(&self, x: &QuantizedTensor, sums: &[i32]) -> QuantizedTensor {
        let scale_x = x
            .qparams()
            .channels()
            .next()
            .map_or(1.0, |(scale, _)| scale as f32);
        let scale_y = self.scale as f32;
        let products: Vec<f32> = self
            .weight
            .channels()
            .map(|(scale_w, _)| scale_x * scale_w)
            .collect();
        let per_tensor = matches!(self.weight.tensor.qparams(), QParams::PerTensor { .. });
        let offset = |n: usize| {
            let bias = self.bias.as_ref().map_or(0.0, |bias| bias[n]);

            // fbgemm multiplies with a reciprocal where there is one scale for all outputs.
            if per_tensor {
                bias * products[n].recip()
            } else {
                bias / products[n]
            }
        };

        let offsets: Vec<f32> = (0..products.len()).map(offset).collect();
        let code = |(n, &sum): (usize, &i32)| {
            let y = (sum as f32 + offsets[n]) * (products[n] / scale_y);

            // Far out of range a float rounds and adds as well as an integer, without overflow.
            (y.round_ties_even() + self.zero_point as f32).clamp(0.0, 255.0) as i32
        };

        let codes = sums
            .chunks(products.len())
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
