//! A linear layer with dynamic quantisation: weights ahead of time, each input by its own range.

use super::packed_weight::PackedWeight;
use super::quantized_linear::packed;
use super::{Linear, QConfig};
use crate::{QParams, QuantizedDtype, QuantizedTensor, Result, TensorRef};
use std::fmt;

/// Smaller scales than this are raised to it (`SMALL_SCALE_THRESHOLD` of torch's `QuantUtils.h`).
const SMALLEST_SCALE: f32 = 6.1e-5;

/// `torch.ao.nn.quantized.dynamic.Linear`: f32 in, f32 out; each input is quantised by its own
/// range.
#[derive(Debug, Clone, PartialEq)]
pub struct DynamicQuantizedLinear {
    weight: PackedWeight,
    bias: Option<Vec<f32>>,
}

impl DynamicQuantizedLinear {
    /// `quantize_dynamic` of a linear layer: weights qint8, symmetric, per tensor
    /// (`default_dynamic_qconfig`).
    ///
    /// ```
    /// use llm_int8_affine::{TensorRef, module::{DynamicQuantizedLinear, Linear}};
    /// let linear = Linear::new(vec![1.0, -1.0], 2, 1, Some(vec![0.5]))?;
    /// let quantized = DynamicQuantizedLinear::from_float(&linear)?;
    /// let y = quantized.forward(TensorRef::new(&[3.0, 1.0], &[1, 2])?)?;
    /// assert!((y[0] - 2.5).abs() < 0.05);
    /// # Ok::<(), llm_int8_affine::AffineError>(())
    /// ```
    ///
    /// # Errors
    /// [`AffineError::WrongQParams`](crate::AffineError::WrongQParams) if no f32 scale fits the
    /// weight.
    pub fn from_float(linear: &Linear) -> Result<Self> {
        Ok(Self {
            weight: packed(linear, &QConfig::symmetric().weight)?,
            bias: linear.bias.clone(),
        })
    }

    /// The quantised weight.
    pub fn weight(&self) -> &QuantizedTensor {
        &self.weight.tensor
    }

    /// `[..., in_features]` → `[..., out_features]` (`quantized::linear_dynamic` with
    /// `reduce_range`).
    ///
    /// # Errors
    /// [`AffineError::WrongDimension`](crate::AffineError::WrongDimension).
    pub fn forward(&self, x: TensorRef<'_>) -> Result<Vec<f32>> {
        let (min, max) = x.min_max().unwrap_or((0.0, 0.0));
        let (scale, zero_point) = range_qparams(min, max);
        let qparams = QParams::PerTensor {
            scale: f64::from(scale),
            zero_point,
        };

        let sums = self.weight.matmul(&QuantizedTensor::quantize(
            x,
            QuantizedDtype::Quint8,
            &qparams,
        )?)?;
        let scales: Vec<f32> = self
            .weight
            .channels()
            .map(|(scale_w, _)| scale * scale_w)
            .collect();
        let output = |(n, &sum): (usize, &i32)| {
            // fbgemm adds the bias with a fused multiply-add.
            (sum as f32).mul_add(scales[n], self.bias.as_ref().map_or(0.0, |bias| bias[n]))
        };

        Ok(sums
            .chunks(scales.len())
            .flat_map(|row| row.iter().enumerate().map(output))
            .collect())
    }
}

/// Scale and zero point of a range in the codes 0..=127 (fbgemm's `ChooseQuantizationParams`).
/// Computed in f64; the zero point follows from the end of the range that gives it the smaller
/// error.
fn range_qparams(min: f32, max: f32) -> (f32, i32) {
    let (quant_min, quant_max) = (0f64, 127f64);
    let (mut min, mut max) = (min.min(0.0), max.max(0.0));
    let mut scale = (f64::from(max) - f64::from(min)) / (quant_max - quant_min);

    if scale as f32 == 0.0 || (scale as f32).recip().is_infinite() {
        scale = 0.1;
    }
    if scale < f64::from(SMALLEST_SCALE) {
        let original = scale as f32;
        scale = f64::from(SMALLEST_SCALE);
        if min == 0.0 {
            max = SMALLEST_SCALE * (quant_max - quant_min) as f32;
        } else if max == 0.0 {
            min = -SMALLEST_SCALE * (quant_max - quant_min) as f32;
        } else {
            let grown = SMALLEST_SCALE / original;
            (min, max) = (min * grown, max * grown);
        }
    }

    let (min, max) = (f64::from(min), f64::from(max));
    let from_min = quant_min - min / scale;
    let from_max = quant_max - max / scale;
    let error_from_min = quant_min.abs() - (min / scale).abs();
    let error_from_max = quant_max.abs() - (max / scale).abs();
    let zero_point = if error_from_min < error_from_max {
        from_min
    } else {
        from_max
    };
    (
        scale as f32,
        zero_point.clamp(quant_min, quant_max).round_ties_even() as i32,
    )
}

impl fmt::Display for DynamicQuantizedLinear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PackedWeight {
            in_features,
            out_features,
            tensor,
            ..
        } = &self.weight;

        write!(
            f,
            "DynamicQuantizedLinear(in_features={in_features}, out_features={out_features}, \
             dtype=torch.qint8, qscheme={})",
            tensor.qparams().scheme()
        )
    }
}
