//! Scales and zero points, and how they follow from a range of values.

use crate::{AffineError, QScheme, QuantizedDtype, Result};

/// The parameters of an affine quantisation: `value ≈ (code - zero_point) · scale`.
///
/// Scales are f64, as in torch; the scales that observers choose are f32 numbers.
#[derive(Debug, Clone, PartialEq)]
pub enum QParams {
    /// One scale and zero point for the whole tensor.
    PerTensor {
        /// The step between two codes.
        scale: f64,
        /// The code that stands for zero.
        zero_point: i32,
    },
    /// A scale and zero point for each slice along `axis`.
    PerChannel {
        /// The step between two codes, for each slice.
        scales: Vec<f64>,
        /// The code that stands for zero, for each slice.
        zero_points: Vec<i32>,
        /// The dimension along which the slices are taken.
        axis: usize,
    },
}

impl QParams {
    /// Scale and zero point of each channel. Per-tensor parameters count as one channel.
    pub fn channels(&self) -> impl Iterator<Item = (f64, i32)> + '_ {
        let (scales, zero_points) = match self {
            Self::PerTensor { scale, zero_point } => (
                std::slice::from_ref(scale),
                std::slice::from_ref(zero_point),
            ),
            Self::PerChannel {
                scales,
                zero_points,
                ..
            } => (&scales[..], &zero_points[..]),
        };

        scales.iter().copied().zip(zero_points.iter().copied())
    }

    /// `qscheme()` of a tensor with these parameters. torch calls symmetric tensors affine too.
    ///
    /// ```
    /// use llm_int8_affine::{QParams, QScheme};
    /// assert_eq!(QParams::PerTensor { scale: 0.5, zero_point: 0 }.scheme(), QScheme::PerTensorAffine);
    /// ```
    pub fn scheme(&self) -> QScheme {
        match self {
            Self::PerTensor { .. } => QScheme::PerTensorAffine,
            Self::PerChannel { .. } => QScheme::PerChannelAffine,
        }
    }

    /// Refuses scales and zero points that cannot quantise to `dtype`.
    pub(crate) fn check(&self, dtype: QuantizedDtype) -> Result<()> {
        let (min, max) = dtype.range();
        for (scale, zero_point) in self.channels() {
            let wrong = |reason| AffineError::WrongQParams {
                scale,
                zero_point,
                dtype,
                reason,
            };

            let step = scale as f32;

            if !(step > 0.0 && step.is_finite() && step.recip().is_finite()) {
                return Err(wrong(
                    "the scale must be a positive number that f32 and its reciprocal can hold",
                ));
            }

            if !(min..=max).contains(&zero_point) {
                return Err(wrong("the zero point must be one of the codes"));
            }
        }

        Ok(())
    }
}

/// The codes an observer maps its range to, and the rules for it (torch's
/// `UniformQuantizationObserverBase`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Grid {
    pub(crate) dtype: QuantizedDtype,
    pub(crate) symmetric: bool,
    pub(crate) quant_min: i32,
    pub(crate) quant_max: i32,
    /// Whether the caller chose the codes, which changes the zero point of symmetric quint8.
    pub(crate) customized: bool,
    /// The smallest scale.
    pub(crate) eps: f32,
}

impl Grid {
    /// Scale and zero point of the range `min..max` (`_calculate_qparams`), which is widened to
    /// include zero. Without data (`min > max`), scale 1 and zero point 0.
    ///
    /// affine: `scale = max((max - min) / (quant_max - quant_min), eps)`, `zero_point =
    /// clamp(quant_min - round(min / scale))`; symmetric: `scale = max(absmax / ((quant_max -
    /// quant_min) / 2), eps)`. All in f32, rounding half to even.
    pub(crate) fn qparams(&self, min: f32, max: f32) -> (f32, i32) {
        if min > max {
            return (1.0, 0);
        }

        let (min, max) = (min.min(0.0), max.max(0.0));
        let steps = (self.quant_max - self.quant_min) as f32;

        if self.symmetric {
            let scale = ((-min).max(max) / (steps / 2.0)).max(self.eps);
            let zero_point = match (self.dtype, self.customized) {
                (QuantizedDtype::Qint8, _) => 0,
                (QuantizedDtype::Quint8, false) => 128,
                (QuantizedDtype::Quint8, true) => (self.quant_min + self.quant_max).div_euclid(2),
            };

            return (scale, zero_point);
        }

        let scale = ((max - min) / steps).max(self.eps);
        let zero_point = self.quant_min - (min / scale).round_ties_even() as i32;
        (scale, zero_point.clamp(self.quant_min, self.quant_max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(dtype: QuantizedDtype, symmetric: bool) -> Grid {
        let (quant_min, quant_max) = dtype.range();
        Grid {
            dtype,
            symmetric,
            quant_min,
            quant_max,
            customized: false,
            eps: f32::EPSILON,
        }
    }

    #[test]
    fn the_range_always_includes_zero() {
        assert_eq!(
            grid(QuantizedDtype::Quint8, false).qparams(3.0, 5.0),
            (5.0 / 255.0, 0)
        );
        assert_eq!(
            grid(QuantizedDtype::Quint8, false).qparams(-5.0, -3.0),
            (5.0 / 255.0, 255)
        );
    }

    #[test]
    fn without_data_the_scale_is_one() {
        assert_eq!(
            grid(QuantizedDtype::Qint8, false).qparams(f32::INFINITY, f32::NEG_INFINITY),
            (1.0, 0)
        );
    }

    #[test]
    fn zeros_get_the_smallest_scale() {
        assert_eq!(
            grid(QuantizedDtype::Qint8, false).qparams(0.0, 0.0),
            (f32::EPSILON, -128)
        );
        assert_eq!(
            grid(QuantizedDtype::Qint8, true).qparams(0.0, 0.0),
            (f32::EPSILON, 0)
        );
    }

    #[test]
    fn symmetric_steps_are_127_and_a_half() {
        assert_eq!(
            grid(QuantizedDtype::Qint8, true).qparams(-6.0, 2.0),
            (6.0 / 127.5, 0)
        );
        assert_eq!(
            grid(QuantizedDtype::Quint8, true).qparams(-6.0, 2.0),
            (6.0 / 127.5, 128)
        );
    }

    #[test]
    fn unusable_parameters_are_refused() {
        let check = |scale, zero_point| {
            QParams::PerTensor { scale, zero_point }.check(QuantizedDtype::Qint8)
        };
        assert!(check(0.5, -128).is_ok());

        for (scale, zero_point) in [
            (0.0, 0),
            (-1.0, 0),
            (f64::NAN, 0),
            (1e-45, 0),
            (1e300, 0),
            (1.0, 128),
        ] {
            assert!(check(scale, zero_point).is_err(), "{scale} {zero_point}");
        }
    }
}
