//! A test case of an int8 layer, computed by each kernel and by `llm_int8_kernels::reference`.

use crate::noise;
use llm_int8_cuda::Device;
use llm_int8_cuda::ops::{
    Activation, Float, Int8Matrix, Outliers, Output, QuantizedMemory, Residual, Source, gemv,
    matmul, matmul_by, quantize,
};
use llm_int8_cuda::plan::Gemm;
use llm_int8_kernels::reference::{self, ReferenceActivations};
use llm_int8_kernels::{
    Activation as Host, Element, Isa, MatRef, OutlierRule, OutlierScope, activation,
};

/// Rows with a few outliers for a threshold of 6, one of them exactly 6.
pub(crate) fn activations(rows: usize, cols: usize, seed: u64) -> Vec<f32> {
    let mut x: Vec<f32> = noise(rows * cols, seed).iter().map(|x| x * 3.0).collect();
    for (i, value) in [
        (0, 6.0f32),
        (7, -40.5),
        (cols + 3, 6.004),
        (2 * cols + 7, 5.99),
    ] {
        if cols > 7 && i < x.len() {
            x[i] = value;
        }
    }
    x
}

/// An int8 layer and its input.
pub(crate) struct Case<T> {
    pub(crate) x: Vec<T>,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) codes: Vec<i8>,
    pub(crate) absmax: Vec<f32>,
    pub(crate) bias: Vec<f32>,
}

impl<T: Float + Element> Case<T> {
    pub(crate) fn new([rows, out_features, cols]: [usize; 3], seed: u64) -> Self {
        let x = activations(rows, cols, seed)
            .into_iter()
            .map(T::of)
            .collect();
        let codes = noise(out_features * cols, seed + 1)
            .iter()
            .map(|x| (x * 127.0).round() as i8)
            .collect();
        let absmax = noise(out_features, seed + 2)
            .iter()
            .map(|x| x.abs() + 0.1)
            .collect();
        Self {
            x,
            rows,
            cols,
            codes,
            absmax,
            bias: noise(out_features, seed + 3),
        }
    }

    pub(crate) fn reference(&self, rule: OutlierRule) -> ReferenceActivations {
        reference::quantize_activations(MatRef::new(&self.x, self.rows, self.cols).unwrap(), rule)
    }

    pub(crate) fn expected(&self, rule: OutlierRule) -> Vec<f32> {
        let codes = MatRef::new(&self.codes, self.absmax.len(), self.cols).unwrap();
        let weight_of = |n: usize, column: u32| {
            f32::from(self.codes[n * self.cols + column as usize]) * self.absmax[n] / 127.0
        };
        reference::linear(
            &self.reference(rule),
            codes,
            &self.absmax,
            Some(&self.bias),
            weight_of,
        )
    }

    pub(crate) fn matrix(&self, device: &Device) -> Int8Matrix {
        let matrix = Int8Matrix::new(device, self.absmax.len(), self.cols).unwrap();
        matrix.write_rows(0, &self.codes, &self.absmax).unwrap();
        matrix
    }

    /// The outputs of `quantize` and `matmul`.
    pub(crate) fn by_matmul(&self, device: &Device, rule: OutlierRule) -> Vec<f32> {
        let n = self.absmax.len();
        let matrix = self.matrix(device);
        let x = device.upload(&self.x).unwrap();
        let bias = device.upload(&self.bias).unwrap();
        let out = device.allocate::<T>(self.rows * n).unwrap();
        let memory = QuantizedMemory::new(device, self.rows, self.cols).unwrap();
        let source = Source::plain(x.all(), self.rows, self.cols);
        let quantized = quantize(&source, outliers(rule), &memory).unwrap();
        let output = Output {
            bias: Some(bias.all()),
            ..Output::plain(out.all(), n)
        };
        matmul(&quantized, &matrix, &output).unwrap();
        device.synchronize().unwrap();
        out.to_vec()
            .unwrap()
            .into_iter()
            .map(Element::to_f32)
            .collect()
    }

    /// The outputs of `quantize` and `matmul_by`, which runs twice with the same memory and must
    /// give the same bits. A `function` is applied to all but the last two outputs of a row, and
    /// comes with a residual.
    pub(crate) fn by_gemm(
        &self,
        device: &Device,
        rule: OutlierRule,
        gemm: Gemm,
        function: Option<(Activation, Host)>,
    ) -> Vec<f32> {
        let n = self.absmax.len();
        let matrix = self.matrix(device);
        let x = device.upload(&self.x).unwrap();
        let bias = device.upload(&self.bias).unwrap();
        let stream = device.upload(&noise(self.rows * n, 31)).unwrap();
        let memory = QuantizedMemory::new(device, self.rows, self.cols).unwrap();
        let source = Source::plain(x.all(), self.rows, self.cols);
        let quantized = quantize(&source, outliers(rule), &memory).unwrap();

        let results = [0, 1].map(|_| {
            let out = device.allocate::<T>(self.rows * n).unwrap();
            let mut output = Output {
                bias: Some(bias.all()),
                ..Output::plain(out.all(), n)
            };
            if let Some((function, _)) = function {
                output.activation = Some((function, n - 2));
                output.residual = Some(Residual {
                    stream: stream.all(),
                    stride: n,
                    scale: 0.5,
                });
            }
            matmul_by(Some(gemm), &quantized, &matrix, &output).unwrap();
            device.synchronize().unwrap();
            out.to_vec()
                .unwrap()
                .into_iter()
                .map(Element::to_f32)
                .collect::<Vec<f32>>()
        });

        assert_eq!(results[0], results[1]);
        results.into_iter().next().unwrap()
    }

    /// Applies to outputs of `by_gemm` without a function what it does with one.
    pub(crate) fn with_epilogue(&self, plain: &[f32], (_, host): (Activation, Host)) -> Vec<f32> {
        let n = self.absmax.len();
        let mut all = plain.to_vec();
        for row in all.chunks_mut(n) {
            activation::apply(Isa::scalar(), host, &mut row[..n - 2]);
        }
        all.iter()
            .zip(noise(self.rows * n, 31))
            .map(|(y, stream)| stream + 0.5 * y)
            .collect()
    }

    /// The outputs of `gemv`.
    pub(crate) fn by_gemv(&self, device: &Device, rule: OutlierRule) -> Vec<f32> {
        let n = self.absmax.len();
        let matrix = self.matrix(device);
        let x = device.upload(&self.x).unwrap();
        let bias = device.upload(&self.bias).unwrap();
        let out = device.allocate::<T>(n).unwrap();
        let output = Output {
            bias: Some(bias.all()),
            ..Output::plain(out.all(), n)
        };
        assert!(
            gemv(
                &Source::plain(x.all(), 1, self.cols),
                outliers(rule),
                &matrix,
                &output
            )
            .unwrap()
        );
        device.synchronize().unwrap();
        out.to_vec()
            .unwrap()
            .into_iter()
            .map(Element::to_f32)
            .collect()
    }
}

pub(crate) const FUNCTIONS: [(Activation, Host); 13] = [
    (Activation::Gelu, Host::Gelu),
    (Activation::GeluTanh, Host::GeluTanh),
    (Activation::QuickGelu, Host::QuickGelu),
    (Activation::Relu, Host::Relu),
    (Activation::ReluSquared, Host::ReluSquared),
    (Activation::Silu, Host::Silu),
    (Activation::Tanh, Host::Tanh),
    (Activation::GeluClipped, Host::GeluClipped),
    (Activation::Laplace, Host::Laplace),
    (Activation::LeakyRelu, Host::LeakyRelu),
    (Activation::Mish, Host::Mish),
    (Activation::Relu6, Host::Relu6),
    (Activation::Sigmoid, Host::Sigmoid),
];

/// The rule as the kernels on devices take it.
pub(crate) fn outliers(rule: OutlierRule) -> Outliers {
    match rule {
        OutlierRule::Absolute { threshold, scope } => Outliers::Absolute {
            threshold,
            by_row: scope == OutlierScope::Row,
        },
        OutlierRule::RowRms { factor } => Outliers::RowRms { factor },
    }
}

/// For outputs rounded once to the dtype, and outliers added in another order.
pub(crate) fn tolerance<T: Float>() -> f32 {
    if size_of::<T>() == 4 { 2e-6 } else { 5e-3 }
}
