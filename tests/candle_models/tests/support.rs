//! Golden files, checkpoints and distances.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use llm_int8_nn::checkpoint::Checkpoint;
use llm_int8_nn::var_builder::var_builder;
use std::path::{Path, PathBuf};

/// A path in `tests/golden`.
pub(crate) fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../golden")
        .join(path)
}

/// A JSON file in `tests/golden`.
pub(crate) fn golden_json(path: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(golden(path)).unwrap()).unwrap()
}

/// A tensor of a golden file.
pub(crate) fn golden_tensor(path: &str, name: &str) -> Tensor {
    let tensors = candle_core::safetensors::load(golden(path), &Device::Cpu).unwrap();
    tensors[name].clone()
}

/// A `VarBuilder` over safetensors files; floats become f32.
pub(crate) fn over(files: &[PathBuf]) -> VarBuilder<'static> {
    let checkpoint = Checkpoint::open_safetensors(files, None).unwrap();
    var_builder(checkpoint.into(), DType::F32, &Device::Cpu)
}

/// The elements, whatever the shape.
pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// ‖a − b‖ / ‖b‖ over all elements.
pub(crate) fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let squares = |values: &mut dyn Iterator<Item = f32>| -> f64 {
        values.map(|value| f64::from(value).powi(2)).sum()
    };
    let (a, b) = (values(a), values(b));
    let difference = squares(&mut a.iter().zip(&b).map(|(x, y)| x - y));
    (difference / squares(&mut b.iter().copied())).sqrt()
}
