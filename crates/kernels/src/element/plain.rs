//! Where there are no vector kernels, every conversion is left to the code for single values.

use half::f16;

/// What can be converted to f32.
pub trait Load: Copy {}

impl<T: Copy> Load for T {}

/// Converts no value, and returns that number.
pub(super) fn to_f32<T>(_source: &[T], _out: &mut [f32]) -> usize {
    0
}

/// Converts no value, and returns that number.
pub(super) fn to_f16<T>(_source: &[T], _out: &mut [f16]) -> usize {
    0
}
