//! The textbook formulae that notebooks write by hand, to compare with torch's observers.
//!
//! They differ from [`observer`](crate::observer) in two ways, which matter only for some tensors:
//! the range is not widened to include zero, and values are divided by the scale instead of
//! multiplied by its reciprocal.

use crate::{QParams, QuantizedDtype, Result, TensorRef};

/// Asymmetric: `scale = (max - min) / 255`, `zero_point = clamp(round(-128 - min / scale))`.
///
/// ```
/// use llm_int8_affine::{QParams, TensorRef, custom};
/// let x = TensorRef::new(&[3.0, -5.5, 0.0, 4.0, -6.0, 2.5], &[6])?;
/// let QParams::PerTensor { scale, zero_point } = custom::asymmetric(x)? else { unreachable!() };
/// assert_eq!((scale as f32, zero_point), (10.0 / 255.0, 25));
/// # Ok::<(), llm_int8_affine::AffineError>(())
/// ```
///
/// # Errors
/// [`AffineError::Empty`](crate::AffineError::Empty).
pub fn asymmetric(x: TensorRef<'_>) -> Result<QParams> {
    let (min, max) = x.min_max()?;
    let scale = positive((max - min) / 255.0);
    let zero_point = (-128.0 - min / scale)
        .round_ties_even()
        .clamp(-128.0, 127.0) as i32;
    Ok(QParams::PerTensor {
        scale: f64::from(scale),
        zero_point,
    })
}

/// Symmetric: `scale = absmax / 127.5`, `zero_point = 0`.
///
/// ```
/// use llm_int8_affine::{QParams, TensorRef, custom};
/// let x = TensorRef::new(&[3.0, -5.5, 0.0, 4.0, -6.0, 2.5], &[6])?;
/// let QParams::PerTensor { scale, zero_point } = custom::symmetric(x)? else { unreachable!() };
/// assert_eq!((scale as f32, zero_point), (6.0 / 127.5, 0));
/// # Ok::<(), llm_int8_affine::AffineError>(())
/// ```
///
/// # Errors
/// [`AffineError::Empty`](crate::AffineError::Empty).
pub fn symmetric(x: TensorRef<'_>) -> Result<QParams> {
    let (min, max) = x.min_max()?;
    let scale = positive((-min).max(max) / 127.5);
    Ok(QParams::PerTensor {
        scale: f64::from(scale),
        zero_point: 0,
    })
}

/// Replaces a scale of 0, that of a constant tensor, by torch's smallest scale.
fn positive(scale: f32) -> f32 {
    scale.max(f32::EPSILON)
}

/// Quantises to qint8: `clamp(round(x / scale) + zero_point, -128, 127)`, rounding half to even.
///
/// ```
/// use llm_int8_affine::custom;
/// assert_eq!(custom::codes(&[1.0, -2.0, 100.0], 0.5, 3), [5, -1, 127]);
/// ```
pub fn codes(values: &[f32], scale: f32, zero_point: i32) -> Vec<i32> {
    let (min, max) = QuantizedDtype::Qint8.range();
    let code = |x: &f32| (x / scale).round_ties_even() + zero_point as f32;
    values
        .iter()
        .map(|x| code(x).clamp(min as f32, max as f32) as i32)
        .collect()
}

/// Dequantises: `(code - zero_point) · scale`.
///
/// ```
/// use llm_int8_affine::custom;
/// assert_eq!(custom::recovered(&[5, -1], 0.5, 3), [1.0, -2.0]);
/// ```
pub fn recovered(codes: &[i32], scale: f32, zero_point: i32) -> Vec<f32> {
    codes
        .iter()
        .map(|code| (code - zero_point) as f32 * scale)
        .collect()
}
