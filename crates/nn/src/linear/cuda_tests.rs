//! The gradient rule alone: `Tensor::backward` around it needs kernels of candle's own. On a GPU, or
//! over the emulated driver (`scripts/test_candle_cuda.sh`).

use crate::linear::op::Int8Matmul;
use crate::linear::{FloatLinear, Int8Config, Int8Linear};
use candle_core::{CustomOp1, Device, Tensor};

#[test]
fn the_gradient_is_that_of_the_cpu() {
    let gpu = Device::new_cuda(0).unwrap();
    let wave = |count: usize, step: f32| -> Vec<f32> {
        (0..count).map(|i| (i as f32 * step).sin()).collect()
    };
    let [rows, out_features, in_features] = [3, 37, 21];
    let weight = Tensor::from_vec(
        wave(out_features * in_features, 0.7),
        (out_features, in_features),
        &Device::Cpu,
    );
    let float = FloatLinear::new(weight.unwrap(), None).unwrap();
    let layer = Int8Linear::quantize(&float, Int8Config::default()).unwrap();

    let gradient = |device: &Device| -> Vec<f32> {
        let tensor = |width: usize, step: f32| {
            Tensor::from_vec(wave(rows * width, step), (rows, width), device).unwrap()
        };
        let (x, y) = (tensor(in_features, 1.1), tensor(out_features, 0.3));
        let matmul = Int8Matmul {
            layer: layer.to_device(device).unwrap(),
        };
        let found = matmul.bwd(&x, &y, &y).unwrap().unwrap();
        assert_eq!(found.dims(), x.dims());
        found.flatten_all().unwrap().to_vec1().unwrap()
    };

    let (found, expected) = (gradient(&gpu), gradient(&Device::Cpu));
    let largest = expected.iter().fold(0f32, |a, b| a.max(b.abs()));
    for (a, b) in found.iter().zip(&expected) {
        assert!((a - b).abs() <= 1e-6 * largest, "{a} {b}");
    }
}
