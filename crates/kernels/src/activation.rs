//! Activation functions of an MLP: element-wise, vectorised, bit-identical on every instruction
//! set. Errors are below 2e-7 times the argument's magnitude.

use crate::simd::{for_every_width, total};

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`.
    GeluTanh,
    /// `x·Φ(x)`.
    Gelu,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)²`.
    ReluSquared,
    /// `x·σ(x)`.
    Silu,
    /// `x·σ(1.702·x)`.
    QuickGelu,
    /// `tanh(x)`.
    Tanh,
    /// `x·Φ(x)`, clamped to -10..=10.
    GeluClipped,
    /// `½·(1 + erf((x − 0.707107) / (0.282095·√2)))`.
    Laplace,
    /// `x` if `x ≥ 0`, otherwise `0.01·x`.
    LeakyRelu,
    /// `x`.
    Linear,
    /// `x·tanh(ln(1 + eˣ))`.
    Mish,
    /// `min(max(x, 0), 6)`.
    Relu6,
    /// `σ(x)`.
    Sigmoid,
}

for_every_width! {
    /// `x = f(x)` for every value.
    ///
    /// ```
    /// use llm_int8_kernels::{Activation, Isa, activation};
    /// let mut x = [-1.0f32, 0.0, 1.0];
    /// activation::apply(Isa::detect(), Activation::Silu, &mut x);
    /// assert!((x[0] + 0.268_941).abs() < 1e-6 && x[1] == 0.0 && (x[2] - 0.731_059).abs() < 1e-6);
    /// ```
    pub fn apply(function: Activation, x: &mut [f32]) = apply_all
}

for_every_width! {
    /// `x = exp(x - largest)` for every value; returns the sum.
    pub(crate) fn exp_all(x: &mut [f32], largest: f32) -> f32 = exp_each
}

#[inline(always)]
fn apply_all(function: Activation, x: &mut [f32]) {
    // The match is outside the loops, so that each of them vectorises.
    match function {
        Activation::GeluTanh => each(x, |x| {
            x * sigmoid(2.0 * 0.797_884_6 * (x + 0.044_715 * x * x * x))
        }),
        Activation::Gelu => each(x, |x| x * normal(x)),
        Activation::Relu => each(x, relu),
        Activation::ReluSquared => each(x, |x| relu(x) * relu(x)),
        Activation::Silu => each(x, |x| x * sigmoid(x)),
        Activation::QuickGelu => each(x, |x| x * sigmoid(1.702 * x)),
        Activation::Tanh => each(x, |x| 2.0 * sigmoid(2.0 * x) - 1.0),
        Activation::GeluClipped => each(x, |x| between(x * normal(x), -10.0, 10.0)),
        Activation::Laplace => each(x, |x| normal((x - LAPLACE_MEAN) / 0.282_095)),
        Activation::LeakyRelu => each(x, |x| if x < 0.0 { 0.01 * x } else { x }),
        Activation::Linear => {}
        Activation::Mish => each(x, mish),
        Activation::Relu6 => each(x, |x| between(x, 0.0, 6.0)),
        Activation::Sigmoid => each(x, sigmoid),
    }
}

#[inline(always)]
fn each(x: &mut [f32], f: impl Fn(f32) -> f32) {
    x.iter_mut().for_each(|x| *x = f(*x));
}

#[inline(always)]
fn exp_each(x: &mut [f32], largest: f32) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0f32; LANES];
    let (whole, rest) = x.as_chunks_mut::<LANES>();

    for x in whole {
        x.iter_mut().for_each(|x| *x = exp(*x - largest));
        sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += *x);
    }

    rest.iter_mut().for_each(|x| *x = exp(*x - largest));
    total(sums) + rest.iter().sum::<f32>()
}

/// `√½` to six digits, as in MEGA.
const LAPLACE_MEAN: f32 = 707_107.0 / 1e6;

/// `max(x, 0)`; NaN stays NaN.
#[inline(always)]
fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

/// `x` clamped to `low..=high`; NaN stays NaN.
#[inline(always)]
fn between(x: f32, low: f32, high: f32) -> f32 {
    let x = if x < low { low } else { x };
    if x > high { high } else { x }
}

/// `x · tanh(ln(1 + e))` for `e = eˣ`. The tanh is `n / (n + 2)` for `n = e² + 2e`, and 1 in f32
/// from `x = 20` on.
#[inline(always)]
fn mish(x: f32) -> f32 {
    let e = exp(if x > 20.0 { 20.0 } else { x });
    let n = e * (e + 2.0);
    let y = x * (n / (n + 2.0));

    if x > 20.0 { x } else { y }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `e^x`: `2^n · e^r` with the polynomial of Cephes' `expf`; 0 below -87.3, `e^88.7` above 88.7.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const LARGEST: f32 = 88.7;
    const SMALLEST: f32 = -87.3;

    /// Adding 1.5 · 2²³ rounds to an integer, which ends up in the lowest bits.
    const ROUND: f32 = 12_582_912.0;

    // Comparisons instead of `clamp`, so that NaN propagates.
    let y = if x > LARGEST { LARGEST } else { x };
    let y = if y < SMALLEST { SMALLEST } else { y };
    let shifted = y * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;

    // ln 2 in two parts, the first with few bits, so that `n` times it is exact.
    let r = (y - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let p = ((((1.987_569_1e-4 * r + 1.398_199_9e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r
        + 1.666_666_5e-1)
        * r
        + 0.5;
    let two_to_n = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    let value = (p * r * r + r + 1.0) * two_to_n;

    if x < SMALLEST { 0.0 } else { value }
}

/// Φ, the normal distribution function, by Abramowitz and Stegun's 7.1.26.
#[inline(always)]
fn normal(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let p = ((((1.061_405_4 * t - 1.453_152) * t + 1.421_413_8) * t - 0.284_496_74) * t
        + 0.254_829_6)
        * t;
    let tail = 0.5 * p * exp(-z * z);

    if x < 0.0 { tail } else { 1.0 - tail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    fn f64_of(function: Activation, x: f64) -> f64 {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
        match function {
            Activation::GeluTanh => 0.5 * x * (1.0 + u.tanh()),
            Activation::Gelu => x * phi(x),
            Activation::Relu => x.max(0.0),
            Activation::ReluSquared => x.max(0.0).powi(2),
            Activation::Silu => x * sigmoid(x),
            Activation::QuickGelu => x * sigmoid(1.702 * x),
            Activation::Tanh => x.tanh(),
            Activation::GeluClipped => (x * phi(x)).clamp(-10.0, 10.0),
            Activation::Laplace => phi((x - f64::from(LAPLACE_MEAN)) / 0.282_095),
            Activation::LeakyRelu => x.max(0.01 * x),
            Activation::Linear => x,
            Activation::Mish => x * x.exp().ln_1p().tanh(),
            Activation::Relu6 => x.clamp(0.0, 6.0),
            Activation::Sigmoid => sigmoid(x),
        }
    }

    /// Φ by Simpson's rule.
    fn phi(x: f64) -> f64 {
        let steps = 4000;
        let start = -12.0;
        let h = (x - start) / f64::from(steps);
        let density = |x: f64| (-x * x / 2.0).exp();
        let inner: f64 = (1..steps)
            .map(|i| density(start + f64::from(i) * h) * if i % 2 == 1 { 4.0 } else { 2.0 })
            .sum();
        (density(start) + inner + density(x)) * h / 3.0 / (2.0 * std::f64::consts::PI).sqrt()
    }

    const ALL: [Activation; 14] = [
        Activation::GeluTanh,
        Activation::Gelu,
        Activation::Relu,
        Activation::ReluSquared,
        Activation::Silu,
        Activation::QuickGelu,
        Activation::Tanh,
        Activation::GeluClipped,
        Activation::Laplace,
        Activation::LeakyRelu,
        Activation::Linear,
        Activation::Mish,
        Activation::Relu6,
        Activation::Sigmoid,
    ];

    #[test]
    fn values_match_f64_and_are_bit_identical_on_every_isa() {
        let x: Vec<f32> = (-230..230).map(|i| i as f32 * 0.05).collect();
        for function in ALL {
            let mut first: Option<Vec<u32>> = None;
            for isa in Isa::available() {
                let mut y = x.clone();
                apply(isa, function, &mut y);
                for (x, y) in x.iter().zip(&y) {
                    let expected = f64_of(function, f64::from(*x));
                    let bound = 3e-7 * f64::from(x.abs()).max(expected.abs()).max(1.0);
                    assert!(
                        (f64::from(*y) - expected).abs() < bound,
                        "{function:?}({x}) = {y}, not {expected}"
                    );
                }

                let bits: Vec<u32> = y.iter().map(|y| y.to_bits()).collect();
                assert_eq!(
                    first.get_or_insert(bits.clone()),
                    &bits,
                    "{isa:?} {function:?}"
                );
            }
        }
    }

    #[test]
    fn non_finite_values_propagate() {
        for isa in Isa::available() {
            for function in ALL {
                let mut y = [f32::NAN, 0.0, f32::INFINITY, 1e30];
                apply(isa, function, &mut y);
                let zero = f64_of(function, 0.0) as f32;
                let large = match function {
                    Activation::Tanh | Activation::Laplace | Activation::Sigmoid => 1.0,
                    Activation::Relu6 => 6.0,
                    Activation::GeluClipped => 10.0,
                    _ => f32::INFINITY,
                };

                assert!(
                    y[0].is_nan() && y[2] == large && y[3] >= 1.0,
                    "{function:?} {y:?}"
                );
                let bound = if zero == 0.0 { 0.0 } else { 3e-7 };
                assert!((y[1] - zero).abs() <= bound, "{function:?} {y:?}");
            }

            let mut y = [0.0, -1.0, -200.0, f32::NEG_INFINITY];
            let sum = exp_all(isa, &mut y, 0.0);
            assert!((y[1] - (-1f32).exp()).abs() < 1e-7 && y[2..] == [0.0, 0.0]);
            assert_eq!(sum, 1.0 + y[1]);
        }
    }
}
