//! Devices to test models on, and helpers to load, run and compare models there.

use super::{Tensors, relative_error, write_tensors};
use candle_core::{Device as Host, Tensor};
use llm_int8_cuda::testing;
use llm_int8_decoder::cuda::Device;
use llm_int8_decoder::{Decoder, DecoderSpec, LoadOptions, Placement, WeightDtype};
use llm_int8_nn::linear::{Int8Config, OutlierRule};

/// Memory of an emulated device in bytes.
pub(crate) const MEMORY: u64 = 1 << 30;

/// Emulated devices that run threads in order and shuffled, and the GPU without and with
/// overlapping kernels.
pub(crate) fn devices() -> Vec<Device> {
    testing::devices(&[0, 7])
}

/// As [`devices`], but with one emulated device.
pub(crate) fn few_devices() -> Vec<Device> {
    testing::devices(&[0])
}

/// Two different emulated devices, if those are tested.
pub(crate) fn two_emulated_devices() -> Option<(Device, Device)> {
    Some((
        testing::emulated(0, MEMORY, 0)?,
        testing::emulated(1, MEMORY, 3)?,
    ))
}

/// Everything on the device. Loading a model sets whether its kernels overlap, so this keeps the
/// device's setting.
pub(crate) fn on_device(device: &Device) -> Placement {
    Placement {
        overlaps_kernels: device.overlaps_kernels(),
        ..Placement::on(device.clone())
    }
}

pub(crate) fn options(
    int8: Option<OutlierRule>,
    dtype: WeightDtype,
    placement: Placement,
) -> LoadOptions {
    let int8 = int8.map(|outliers| Int8Config {
        outliers,
        ..Int8Config::default()
    });
    LoadOptions {
        int8,
        dtype,
        placement,
        ..LoadOptions::default()
    }
}

/// ‖a − b‖ / ‖b‖.
pub(crate) fn distance(a: &[f32], b: &[f32]) -> f64 {
    let tensor = |x: &[f32]| Tensor::new(x, &Host::Cpu).unwrap();
    relative_error(&tensor(a), &tensor(b))
}

/// The logits after the first `prompt` tokens, then after each later token, decoded one by one.
pub(crate) fn step_by_step(model: &Decoder, ids: &[u32], prompt: usize) -> Vec<Vec<f32>> {
    let mut cache = model.new_cache();
    let mut all = vec![model.next_logits(&ids[..prompt], &mut cache).unwrap()];
    all.extend(
        ids[prompt..]
            .iter()
            .map(|id| model.next_logits(&[*id], &mut cache).unwrap()),
    );

    all
}

/// Writes a checkpoint of random f32 weights for a decoder.
pub(crate) fn write_random(spec: &DecoderSpec, path: &std::path::Path) {
    use llm_int8_nn::module::Module;

    let model = Decoder::declared(
        spec.clone(),
        llm_int8_nn::FloatDtype::F32,
        llm_int8_nn::Isa::detect(),
    )
    .unwrap();
    let mut tensors = Tensors::new();
    let mut state = 1u64;
    for parameter in model.describe().named_parameters() {
        let count: usize = parameter.shape.iter().product();
        let is_norm = parameter.shape.len() == 1;
        let values: Vec<f32> = (0..count)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let noise = (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
                if is_norm {
                    1.0 + 0.1 * noise
                } else {
                    0.3 * noise
                }
            })
            .collect();
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        tensors.insert(
            parameter.name.clone(),
            (safetensors::Dtype::F32, parameter.shape.clone(), bytes),
        );
    }

    write_tensors(path, &tensors);
}
