//! Norms and gates before int8 matmuls, and what follows them.

use crate::linear_oracle::{Case, activations, outliers};
use crate::{assert_near, devices, noise};
use llm_int8_cuda::Device;
use llm_int8_cuda::ops::{
    Activation, NormParts, Output, QuantizedMemory, Residual, Source, Through, gemv, matmul,
    quantize,
};
use llm_int8_kernels::OutlierRule;

/// Rows and what a kernel applies to them before it quantises them.
struct Prologue {
    /// `[rows, cols]`.
    x: Vec<f32>,
    up: Vec<f32>,
    /// `[cols]`.
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Prologue {
    fn new(rows: usize, cols: usize) -> Self {
        Self {
            x: activations(rows, cols, 1),
            up: activations(rows, cols, 2),
            weight: noise(cols, 3),
            bias: noise(cols, 4),
        }
    }

    /// The rows after the prologue `name`, computed in f64.
    fn expected(&self, name: &str) -> Vec<f32> {
        let cols = self.weight.len();
        self.x
            .chunks(cols)
            .zip(self.up.chunks(cols))
            .flat_map(|(x, up)| self.expected_row(name, x, up))
            .collect()
    }

    fn expected_row(&self, name: &str, x: &[f32], up: &[f32]) -> Vec<f32> {
        let n = x.len() as f64;
        let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        let mean = if name == "layer norm" {
            x.iter().sum::<f64>() / n
        } else {
            0.0
        };
        let inverse = 1.0 / (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n + 1e-5).sqrt();

        let value = |k: usize| {
            let weight = f64::from(self.weight[k]);
            match name {
                "gate" => x[k] * f64::from(up[k]),
                "layer norm" => (x[k] - mean) * inverse * weight + f64::from(self.bias[k]),
                _ => x[k] * inverse * weight,
            }
        };
        (0..x.len()).map(|k| value(k) as f32).collect()
    }
}

/// Runs a layer of `n` outputs with each prologue, with ReLU on the first ten outputs and with a
/// residual.
fn check_prologues(device: &Device, rule: OutlierRule, [rows, cols, n]: [usize; 3]) {
    let prologue = Prologue::new(rows, cols);
    let stream = noise(rows * n, 5);
    let upload = |values: &[f32]| device.upload(values).unwrap();
    let x = upload(&prologue.x);
    let up = upload(&prologue.up);
    let weight = upload(&prologue.weight);
    let bias = upload(&prologue.bias);
    let device_stream = upload(&stream);

    let layer_norm = NormParts {
        weight: weight.all(),
        bias: Some(bias.all()),
        eps: 1e-5,
    };
    let rms_norm = NormParts {
        bias: None,
        ..layer_norm
    };
    for (name, through) in [
        ("layer norm", Through::LayerNorm(layer_norm)),
        ("RMS norm", Through::RmsNorm(rms_norm)),
        ("gate", Through::Gated(up.all())),
    ] {
        let mut case = Case::<f32>::new([rows, n, cols], 9);
        case.x = prologue.expected(name);
        let mut expected = case.expected(rule);
        for (i, y) in expected.iter_mut().enumerate() {
            if i % n < 10 {
                *y = y.max(0.0);
            }
            *y = stream[i] + 0.5 * *y;
        }

        let matrix = case.matrix(device);
        let layer_bias = upload(&case.bias);
        let out = device.allocate::<f32>(rows * n).unwrap();
        let output = Output {
            bias: Some(layer_bias.all()),
            activation: Some((Activation::Relu, 10)),
            residual: Some(Residual {
                stream: device_stream.all(),
                stride: n,
                scale: 0.5,
            }),
            ..Output::plain(out.all(), n)
        };
        let source = Source {
            through,
            ..Source::plain(x.all(), rows, cols)
        };
        let memory = QuantizedMemory::new(device, rows, cols).unwrap();
        let quantized = quantize(&source, outliers(rule), &memory).unwrap();
        matmul(&quantized, &matrix, &output).unwrap();

        // A value computed in f32 may round to the adjacent f16, which may change its code by one.
        let what = format!("{name}, {rows} rows, {device:?}");
        let by_matmul = out.to_vec().unwrap();
        assert_near(&by_matmul, &expected, 5e-3, &what);
        if rows == 1 {
            assert!(gemv(&source, outliers(rule), &matrix, &output).unwrap());
            assert_near(&out.to_vec().unwrap(), &by_matmul, 2e-6, &what);
        }
    }
}

#[test]
fn norms_and_gates_precede_matmuls_and_epilogues_follow() {
    for device in devices() {
        for shape in [[1, 100, 37], [3, 100, 37], [20, 64, 70]] {
            check_prologues(&device, OutlierRule::row(1.5), shape);
            check_prologues(&device, OutlierRule::row_rms(1.5), shape);
        }
    }
}
