//! Layer norm and RMS norm of a row, in f32, bit-identical on every instruction set.

use crate::simd::{for_every_width, total};

for_every_width! {
    /// `row = (row - mean) / √(variance + eps) · weight + bias` (Ba et al. 2016). An empty `bias`
    /// means none; all other slices have the length of the row.
    ///
    /// ```
    /// use llm_int8_kernels::{Isa, norm};
    /// let mut row = [1.0f32, 3.0];
    /// norm::layer(Isa::detect(), &mut row, &[1.0, 1.0], &[5.0, 5.0], 0.0);
    /// assert_eq!(row, [4.0, 6.0]);
    /// ```
    pub fn layer(row: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) = layer_row
}

for_every_width! {
    /// `row = row / √(mean of row² + eps) · weight` (Zhang and Sennrich 2019). `weight` has the
    /// length of the row.
    ///
    /// ```
    /// use llm_int8_kernels::{Isa, norm};
    /// let mut row = [1.0f32, 7.0];
    /// norm::rms(Isa::detect(), &mut row, &[5.0, 5.0], 0.0);
    /// assert!((row[0] - 1.0).abs() < 1e-6 && (row[1] - 7.0).abs() < 1e-6);
    /// ```
    pub fn rms(row: &mut [f32], weight: &[f32], eps: f32) = rms_row
}

#[inline(always)]
fn layer_row(row: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let mean = sum(row, |x| x) / row.len() as f32;
    row.iter_mut().for_each(|x| *x -= mean);
    rms_row(row, weight, eps);
    row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
}

#[inline(always)]
fn rms_row(row: &mut [f32], weight: &[f32], eps: f32) {
    let inverse = (sum(row, |x| x * x) / row.len() as f32 + eps)
        .sqrt()
        .recip();
    row.iter_mut()
        .zip(weight)
        .for_each(|(x, w)| *x = *x * inverse * w);
}

/// A sum over sixteen accumulators, which vectorises and keeps rounding errors of long rows small.
#[inline(always)]
fn sum(row: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0f32; 16];
    let (chunks, rest) = row.as_chunks::<16>();
    for chunk in chunks {
        sums.iter_mut()
            .zip(chunk)
            .for_each(|(sum, x)| *sum += of(*x));
    }

    total(sums) + rest.iter().map(|x| of(*x)).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn rows_are_normalised_and_bit_identical_on_every_isa() {
        for length in [1usize, 5, 16, 33, 100] {
            let x: Vec<f32> = (0..length)
                .map(|i| (i as f32 * 1.7).sin() * 3.0 + 0.5)
                .collect();
            let weight = vec![2f32; length];
            let bias = vec![0.25f32; length];
            let run = |isa| {
                let mut a = x.clone();
                let mut b = x.clone();
                layer(isa, &mut a, &weight, &bias, 1e-5);
                rms(isa, &mut b, &weight, 1e-5);
                (a, b)
            };

            let (a, b) = run(Isa::scalar());
            let mean = |of: &dyn Fn(f32) -> f64, x: &[f32]| {
                x.iter().map(|x| of(*x)).sum::<f64>() / x.len() as f64
            };
            assert!((mean(&f64::from, &a) - 0.25).abs() < 1e-5);

            let squares = mean(&|x| f64::from(x) * f64::from(x), &b);
            let expected = mean(&|x| f64::from(x) * f64::from(x), &x);
            assert!((squares - 4.0 * expected / (expected + 1e-5)).abs() < 1e-4);

            for isa in Isa::available() {
                assert_eq!(run(isa), (a.clone(), b.clone()), "{isa:?}");
            }
        }
    }
}
