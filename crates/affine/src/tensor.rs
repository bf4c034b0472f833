//! Borrowed float tensors, and quantised tensors.

use crate::{AffineError, ErrorStatistics, QParams, QuantizedDtype, Result};
use std::ops::Range;

/// A borrowed f32 tensor, row-major; all values are finite.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TensorRef<'a> {
    values: &'a [f32],
    shape: &'a [usize],
}

impl<'a> TensorRef<'a> {
    /// A tensor of this shape over `values`, row-major.
    ///
    /// ```
    /// use llm_int8_affine::TensorRef;
    /// assert!(TensorRef::new(&[1.0, 2.0], &[1, 2]).is_ok());
    /// assert!(TensorRef::new(&[1.0, 2.0], &[3]).is_err());
    /// assert!(TensorRef::new(&[1.0, f32::NAN], &[2]).is_err());
    /// ```
    ///
    /// # Errors
    /// [`AffineError::WrongShape`], [`AffineError::NotFinite`].
    pub fn new(values: &'a [f32], shape: &'a [usize]) -> Result<Self> {
        let count = shape
            .iter()
            .try_fold(1usize, |count, &size| count.checked_mul(size));
        if count != Some(values.len()) {
            return Err(AffineError::WrongShape {
                count: values.len(),
                shape: shape.to_vec(),
            });
        }

        match values.iter().position(|x| !x.is_finite()) {
            Some(index) => Err(AffineError::NotFinite {
                index,
                value: values[index],
            }),
            None => Ok(Self { values, shape }),
        }
    }

    /// The values, row-major.
    pub fn values(&self) -> &'a [f32] {
        self.values
    }

    /// The shape.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// The smallest and the largest value.
    ///
    /// # Errors
    /// [`AffineError::Empty`].
    pub fn min_max(&self) -> Result<(f32, f32)> {
        if self.values.is_empty() {
            return Err(AffineError::Empty);
        }

        Ok(min_max(self.values.iter().copied()))
    }

    /// The slices along an axis.
    ///
    /// # Errors
    /// [`AffineError::AxisOutOfRange`].
    pub fn channels(&self, axis: usize) -> Result<Channels> {
        Channels::new(self.shape, axis)
    }
}

/// The smallest and the largest value; (∞, -∞) if there is none.
pub(crate) fn min_max(values: impl Iterator<Item = f32>) -> (f32, f32) {
    values.fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), x| {
        (min.min(x), max.max(x))
    })
}

/// Which elements of a row-major tensor belong to which slice along an axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Channels {
    count: usize,
    /// Elements between two neighbours along the axis.
    stride: usize,
    /// The product of the dimensions before the axis.
    outer: usize,
}

impl Channels {
    pub(crate) fn new(shape: &[usize], axis: usize) -> Result<Self> {
        let Some(&count) = shape.get(axis) else {
            return Err(AffineError::AxisOutOfRange {
                axis,
                dimensions: shape.len(),
            });
        };

        Ok(Self {
            count,
            stride: shape[axis + 1..].iter().product(),
            outer: shape[..axis].iter().product(),
        })
    }

    /// The number of slices.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The ranges of elements that make up a slice.
    pub fn ranges(&self, channel: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let Self {
            count,
            stride,
            outer,
        } = *self;

        (0..outer).map(move |i| (i * count + channel) * stride..(i * count + channel + 1) * stride)
    }
}

/// A quantised tensor: codes with their parameters (`torch.quantize_per_tensor`,
/// `torch.quantize_per_channel`).
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedTensor {
    codes: Vec<i32>,
    shape: Vec<usize>,
    dtype: QuantizedDtype,
    qparams: QParams,
}

impl QuantizedTensor {
    /// Quantises `x`: `clamp(round(x · (1 / scale)) + zero_point)` in f32, rounding half to even.
    /// torch multiplies by the reciprocal, which decides codes at ties.
    ///
    /// ```
    /// use llm_int8_affine::{QParams, QuantizedDtype, QuantizedTensor, TensorRef};
    /// let x = [0.5, 1.5, -0.5, 300.0, -300.0];
    /// let one = QParams::PerTensor { scale: 1.0, zero_point: 10 };
    /// let q = QuantizedTensor::quantize(TensorRef::new(&x, &[5])?, QuantizedDtype::Quint8, &one)?;
    /// assert_eq!(q.int_repr(), [10, 12, 10, 255, 0]);
    /// # Ok::<(), llm_int8_affine::AffineError>(())
    /// ```
    ///
    /// # Errors
    /// [`AffineError::WrongQParams`], [`AffineError::WrongChannels`],
    /// [`AffineError::AxisOutOfRange`].
    pub fn quantize(x: TensorRef<'_>, dtype: QuantizedDtype, qparams: &QParams) -> Result<Self> {
        qparams.check(dtype)?;
        let (min, max) = dtype.range();

        let mut codes = vec![0; x.values.len()];
        for (ranges, (scale, zero_point)) in parts(x.shape, qparams)?.zip(qparams.channels()) {
            let inverse = (scale as f32).recip();
            let code = |x: f32| (x * inverse).round_ties_even() + zero_point as f32;
            for range in ranges {
                for (c, &x) in codes[range.clone()].iter_mut().zip(&x.values[range]) {
                    *c = code(x).clamp(min as f32, max as f32) as i32;
                }
            }
        }

        Ok(Self {
            codes,
            shape: x.shape.to_vec(),
            dtype,
            qparams: qparams.clone(),
        })
    }

    /// A tensor of given codes. `codes` and `qparams` must match `shape`.
    pub(crate) fn from_codes(
        codes: Vec<i32>,
        shape: Vec<usize>,
        dtype: QuantizedDtype,
        qparams: QParams,
    ) -> Self {
        Self {
            codes,
            shape,
            dtype,
            qparams,
        }
    }

    /// The codes (`int_repr()`).
    pub fn int_repr(&self) -> &[i32] {
        &self.codes
    }

    /// The shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The dtype of the codes.
    pub fn dtype(&self) -> QuantizedDtype {
        self.dtype
    }

    /// Scales and zero points.
    pub fn qparams(&self) -> &QParams {
        &self.qparams
    }

    /// The values: `(code - zero_point) · scale` in f32, row-major.
    ///
    /// ```
    /// use llm_int8_affine::{QParams, QuantizedDtype, QuantizedTensor, TensorRef};
    /// let half = QParams::PerTensor { scale: 0.5, zero_point: 3 };
    /// let q = QuantizedTensor::quantize(TensorRef::new(&[1.0, 0.1], &[2])?, QuantizedDtype::Qint8, &half)?;
    /// assert_eq!(q.dequantize(), [1.0, 0.0]);
    /// # Ok::<(), llm_int8_affine::AffineError>(())
    /// ```
    pub fn dequantize(&self) -> Vec<f32> {
        let mut values = vec![0f32; self.codes.len()];

        // Cannot fail: the parameters matched the shape when the tensor was made.
        let Ok(parts) = parts(&self.shape, &self.qparams) else {
            return values;
        };
        for (ranges, (scale, zero_point)) in parts.zip(self.qparams.channels()) {
            for range in ranges {
                for (x, &code) in values[range.clone()].iter_mut().zip(&self.codes[range]) {
                    *x = (code - zero_point) as f32 * scale as f32;
                }
            }
        }

        values
    }

    /// The quantisation error of this tensor, which was quantised from `x`.
    pub fn errors(&self, x: TensorRef<'_>) -> ErrorStatistics {
        ErrorStatistics::of(x.values, &self.dequantize())
    }
}

/// The element ranges of each channel. Per-tensor parameters count as one channel.
fn parts(
    shape: &[usize],
    qparams: &QParams,
) -> Result<impl Iterator<Item = Vec<Range<usize>>> + use<>> {
    let channels = match qparams {
        QParams::PerTensor { .. } => Channels {
            count: 1,
            stride: shape.iter().product(),
            outer: 1,
        },
        QParams::PerChannel {
            scales,
            zero_points,
            axis,
        } => {
            let channels = Channels::new(shape, *axis)?;
            if scales.len() != channels.count || zero_points.len() != channels.count {
                return Err(AffineError::WrongChannels {
                    count: scales.len(),
                    axis: *axis,
                    shape: shape.to_vec(),
                });
            }

            channels
        }
    };

    Ok((0..channels.count).map(move |channel| channels.ranges(channel).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_of_a_middle_axis_is_scattered() {
        let channels = Channels::new(&[2, 3, 2], 1).unwrap();
        assert_eq!(channels.count(), 3);
        assert_eq!(channels.ranges(1).collect::<Vec<_>>(), [2..4, 8..10]);
    }

    #[test]
    fn parameters_that_do_not_match_the_shape_are_refused() {
        let x = TensorRef::new(&[1.0, 2.0, 3.0, 4.0], &[2, 2]).unwrap();
        let per_channel = |count, axis| QParams::PerChannel {
            scales: vec![1.0; count],
            zero_points: vec![0; count],
            axis,
        };

        let quantize =
            |qparams: &QParams| QuantizedTensor::quantize(x, QuantizedDtype::Qint8, qparams);
        assert!(quantize(&per_channel(2, 1)).is_ok());
        assert!(matches!(
            quantize(&per_channel(3, 0)),
            Err(AffineError::WrongChannels { count: 3, .. })
        ));
        assert!(matches!(
            quantize(&per_channel(2, 2)),
            Err(AffineError::AxisOutOfRange { .. })
        ));
    }

    #[test]
    fn a_non_finite_value_is_named_by_its_index() {
        let error = TensorRef::new(&[1.0, f32::INFINITY], &[2]).unwrap_err();
        assert!(error.to_string().starts_with("value 1 is inf"));
    }
}
