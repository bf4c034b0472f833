//! The kernels against expected values made with PyTorch and bitsandbytes, against the scalar
//! reference bit for bit, and against the error bounds of the algorithm.

#![allow(
    clippy::unwrap_used,
    reason = "test helpers panic on the first surprise, as tests do"
)]

mod attention;
mod float;
mod golden;
mod matmul;

mod rows;
mod tolerance;

use half::f16;
use llm_int8_kernels::{
    Element, Int8WeightRef, Isa, Layer as Linear, MatMut, MatRef, OutlierRule, OutlierWeights,
    linear, quantize_activations, quantize_weight,
};

/// A reproducible stream of pseudorandom numbers (xorshift).
struct Noise(u32);

impl Noise {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0
    }

    /// Uniform in -1..1.
    fn uniform(&mut self) -> f32 {
        self.next() as i32 as f32 / i32::MAX as f32
    }

    /// Approximately normal: mean 0, standard deviation 1.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() / 2.0
    }

    fn normals(&mut self, count: usize, deviation: f32) -> Vec<f32> {
        (0..count).map(|_| self.normal() * deviation).collect()
    }

    /// Uniform over all 256 codes: foreign checkpoints may hold -128.
    fn codes(&mut self, count: usize) -> Vec<i8> {
        (0..count).map(|_| (self.next() >> 13) as i8).collect()
    }
}

fn halves(values: &[f32]) -> Vec<f16> {
    values.iter().map(|&x| f16::from_f32(x)).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// ‖found − expected‖ / ‖expected‖.
fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());

    let square = |x: f64| x * x;
    let error: f64 = found
        .iter()
        .zip(expected)
        .map(|(x, y)| square(f64::from(x - y)))
        .sum();
    let norm: f64 = expected.iter().map(|&y| square(f64::from(y))).sum();

    if error == 0.0 {
        0.0
    } else {
        (error / norm).sqrt()
    }
}

/// A quantised layer.
struct Layer {
    codes: Vec<i8>,
    absmax: Vec<f32>,
    inputs: usize,
}

impl Layer {
    fn new<T: Element>(weight: &[T], inputs: usize) -> Self {
        let outputs = weight.len() / inputs;
        let mut codes = vec![0; weight.len()];
        let mut absmax = vec![0.0; outputs];
        let source = MatRef::new(weight, outputs, inputs).unwrap();
        let target = MatMut::new(&mut codes, outputs, inputs).unwrap();
        quantize_weight(Isa::detect(), source, target, &mut absmax).unwrap();

        Self {
            codes,
            absmax,
            inputs,
        }
    }

    fn codes(&self) -> MatRef<'_, i8> {
        MatRef::new(&self.codes, self.absmax.len(), self.inputs).unwrap()
    }

    /// The layer's output for `x` `[M, inputs]`, row-major.
    fn forward<T: Element>(
        &self,
        isa: Isa,
        x: &[T],
        rule: OutlierRule,
        weights: OutlierWeights<'_>,
        bias: Option<&[f32]>,
    ) -> Vec<f32> {
        let a = MatRef::new(x, x.len() / self.inputs, self.inputs).unwrap();
        let a = quantize_activations(isa, a, rule);
        let mut out = vec![f32::NAN; a.rows() * self.absmax.len()];
        let w = Int8WeightRef::new(self.codes(), &self.absmax).unwrap();
        let target = MatMut::new(&mut out, a.rows(), self.absmax.len()).unwrap();
        let layer = Linear {
            weight: w,
            outlier_weights: weights,
            bias,
            activation: None,
        };

        linear(isa, &a, &layer, target).unwrap();
        out
    }

    /// The dequantised weight of one output and input feature.
    fn weight(&self, output: usize, column: u32) -> f32 {
        const INV_CODES: f32 = 1.0 / 127.0;
        f32::from(self.codes[output * self.inputs + column as usize])
            * self.absmax[output]
            * INV_CODES
    }
}
