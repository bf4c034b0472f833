//! Int8 layers on candle's CUDA device against the same layers on the CPU. Runs on a GPU, or without
//! one over the emulated driver, where no kernel of candle's own can run
//! (`scripts/test_candle_cuda.sh`).

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

use candle_core::{DType, Device, Module, Tensor};
use candle_nn::VarBuilder;
use llm_int8_nn::NnError;
use llm_int8_nn::checkpoint::{Checkpoint, write_linear_state};
use llm_int8_nn::drop_in::{linear, linear_no_bias, linear8bit, with_int8};
use llm_int8_nn::linear::{FloatLinear, Int8Config, Int8Linear, OutlierRule, OutlierWeights};
use llm_int8_nn::module::SkipList;
use llm_int8_nn::var_builder::var_builder;
use std::collections::HashMap;
use std::sync::mpsc;

const CPU: Device = Device::Cpu;

fn gpu() -> Device {
    Device::new_cuda(0).unwrap()
}

/// Pseudorandom values between -1 and 1.
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bf0_3635;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn layer([out_features, in_features]: [usize; 2], bias: bool, config: Int8Config) -> Int8Linear {
    let weight = noise(out_features * in_features, 1);
    let weight = Tensor::from_vec(weight, (out_features, in_features), &CPU).unwrap();
    let bias = bias.then(|| Tensor::from_vec(noise(out_features, 2), out_features, &CPU).unwrap());
    Int8Linear::quantize(&FloatLinear::new(weight, bias).unwrap(), config).unwrap()
}

/// Rows with outliers for a threshold of 6, one of them exactly 6.
fn activations(rows: usize, cols: usize, seed: u64) -> Vec<f32> {
    let mut x: Vec<f32> = noise(rows * cols, seed).iter().map(|x| x * 3.0).collect();
    for (i, value) in [
        (0, 6.0),
        (7, -40.5),
        (cols + 3, 6.004),
        (2 * cols + 7, 5.99),
    ] {
        if i < x.len() {
            x[i] = value;
        }
    }
    x
}

/// `values` as rows of a tensor on the CPU and one on the GPU, which begin at this offset of their
/// storage.
fn inputs(values: &[f32], cols: usize, offset: usize, dtype: DType, gpu: &Device) -> [Tensor; 2] {
    let mut all = vec![f32::NAN; offset];
    all.extend_from_slice(values);
    let all = Tensor::new(all, &CPU).unwrap().to_dtype(dtype).unwrap();
    [&CPU, gpu].map(|device| {
        let all = all.to_device(device).unwrap();
        let rows = all.narrow(0, offset, values.len()).unwrap();
        rows.reshape((values.len() / cols, cols)).unwrap()
    })
}

fn values(tensor: &Tensor) -> Vec<f32> {
    let tensor = tensor.to_device(&CPU).unwrap();
    let tensor = tensor.to_dtype(DType::F32).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The bounds of the kernels' own tests: one rounding in 16 bits, another order of additions.
fn assert_near(found: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(
        (found.dims(), found.dtype()),
        (expected.dims(), expected.dtype()),
        "{what}"
    );
    let relative = match found.dtype() {
        DType::F32 => 2e-6,
        _ => 5e-3,
    };
    let (found, expected) = (values(found), values(expected));
    let largest = expected.iter().fold(1e-20f32, |a, b| a.max(b.abs()));
    for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
        assert!(
            (a - b).abs() <= relative * largest,
            "{what}: [{i}] is {a}, expected {b} (largest {largest})"
        );
    }
}

fn row_scope() -> Int8Config {
    Int8Config {
        outliers: OutlierRule::row(6.0),
        ..Int8Config::default()
    }
}

fn row_rms() -> Int8Config {
    Int8Config {
        outliers: OutlierRule::row_rms(2.0),
        ..Int8Config::default()
    }
}

#[test]
fn results_are_those_of_the_cpu() {
    let gpu = gpu();
    for [out_features, in_features] in [[24, 13], [64, 32], [131, 199], [300, 515]] {
        for (bias, config) in [
            (true, Int8Config::default()),
            (false, Int8Config::default()),
            (true, row_scope()),
            (true, row_rms()),
        ] {
            let on_cpu = layer([out_features, in_features], bias, config);
            let on_gpu = on_cpu.to_device(&gpu).unwrap();
            for (rows, offset) in [(1, 0), (1, 5), (3, 0), (3, 1), (40, 0), (40, 3)] {
                let x = activations(rows, in_features, rows as u64);
                for dtype in [DType::F32, DType::F16, DType::BF16] {
                    let [host, device] = inputs(&x, in_features, offset, dtype, &gpu);
                    let found = device.apply(&on_gpu).unwrap();
                    assert!(found.device().same_device(&gpu));
                    let what = format!(
                        "[{rows}, {out_features}, {in_features}] {dtype:?} at {offset}, {config:?}"
                    );
                    assert_near(&found, &on_cpu.forward(&host).unwrap(), &what);
                }
            }
        }
    }
}

#[test]
fn inputs_of_any_rank_keep_it() {
    let gpu = gpu();
    let on_gpu = layer([24, 13], true, Int8Config::default())
        .to_device(&gpu)
        .unwrap();
    for shape in [vec![13], vec![5, 13], vec![2, 3, 13], vec![2, 1, 3, 13]] {
        let x = noise(shape.iter().product(), 3);
        let y = Tensor::from_vec(x, shape.clone(), &gpu)
            .unwrap()
            .apply(&on_gpu)
            .unwrap();
        assert_eq!(y.dims(), [&shape[..shape.len() - 1], &[24]].concat());
        assert!(values(&y).iter().all(|y| y.is_finite()));
    }
}

#[test]
fn layers_come_back_unchanged() {
    let gpu = gpu();
    let first = layer([31, 45], true, Int8Config::default());
    let on_gpu = first.to_device(&gpu).unwrap();
    let back = on_gpu.to_device(&gpu).unwrap().to_device(&CPU).unwrap();
    let [expected, found] = [&first, &back].map(|layer| layer.weight().unwrap());
    assert_eq!(found.codes(), expected.codes());
    assert_eq!(found.absmax(), expected.absmax());

    let x = Tensor::from_vec(activations(3, 45, 9), (3, 45), &CPU).unwrap();
    let [expected, found] = [&first, &back].map(|layer| values(&layer.forward(&x).unwrap()));
    assert_eq!(found, expected);
}

#[test]
fn a_bias_can_be_changed_on_the_gpu() {
    let gpu = gpu();
    let mut layer = layer([31, 45], false, Int8Config::default())
        .to_device(&gpu)
        .unwrap();
    let [host, device] = inputs(&activations(3, 45, 9), 45, 0, DType::F32, &gpu);
    let bias = Tensor::new(noise(31, 4), &CPU).unwrap();
    layer.set_bias(bias).unwrap();
    assert!(layer.bias_mut().is_none());

    let expected = layer.to_device(&CPU).unwrap().forward(&host).unwrap();
    assert_near(&layer.forward(&device).unwrap(), &expected, "another bias");
}

#[test]
fn errors_say_where_layer_and_input_are() {
    let gpu = gpu();
    let mut on_cpu = layer([24, 13], true, Int8Config::default());
    on_cpu.set_path("h.0.fc".into());
    let mut on_gpu = on_cpu.to_device(&gpu).unwrap();
    let [host, device] = inputs(&noise(26, 1), 13, 0, DType::F32, &gpu);

    let error = on_cpu.forward(&device).unwrap_err();
    assert!(matches!(error, NnError::WrongDevice { .. }), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains("h.0.fc") && text.contains("to_device"),
        "{text}"
    );
    let error = on_gpu.forward(&host).unwrap_err();
    assert!(matches!(error, NnError::WrongDevice { .. }), "{error:?}");
    // candle mixes no tensors of two handles, whose streams may differ.
    let other = Device::new_cuda(0).unwrap();
    let error = on_gpu.forward(&device.to_device(&CPU).unwrap().to_device(&other).unwrap());
    assert!(matches!(error, Err(NnError::WrongDevice { .. })));

    let error = on_gpu.weight().unwrap_err();
    assert!(matches!(error, NnError::OnGpu { .. }), "{error:?}");

    on_gpu.set_config(Int8Config {
        outlier_weights: OutlierWeights::Original,
        ..Int8Config::default()
    });
    let error = on_gpu.forward(&device).unwrap_err().to_string();
    assert!(error.contains("original outlier weights"), "{error}");
}

#[test]
fn threads_share_a_layer_but_no_scratch() {
    let gpu = gpu();
    let on_cpu = layer([131, 199], true, Int8Config::default());
    let on_gpu = on_cpu.to_device(&gpu).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (gpu, on_cpu, on_gpu) = (&gpu, &on_cpu, &on_gpu);
            scope.spawn(move || {
                // Nothing waits in between, so the streams hold work of all threads at once.
                let pending: Vec<[Tensor; 2]> = (0..4)
                    .map(|i| {
                        let rows = [1, 3, 20, 40][(thread as usize + i) % 4];
                        let x = activations(rows, 199, 10 * thread + i as u64);
                        let [host, device] = inputs(&x, 199, i, DType::F32, gpu);
                        [host, on_gpu.forward(&device).unwrap()]
                    })
                    .collect();
                for [host, found] in pending {
                    let expected = on_cpu.forward(&host).unwrap();
                    assert_near(&found, &expected, &format!("thread {thread}"));
                }
            });
        }
    });
}

#[test]
fn a_dropped_layer_outlives_what_other_threads_launched() {
    let gpu = gpu();
    let on_cpu = layer([64, 32], true, Int8Config::default());
    let on_gpu = on_cpu.to_device(&gpu).unwrap();
    let [host, device] = inputs(&activations(3, 32, 5), 32, 0, DType::F32, &gpu);
    let device = values(&device);

    let (launched, wait_for_launch) = mpsc::channel();
    let (dropped, wait_for_drop) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let (gpu, host, on_cpu, shared) = (&gpu, &host, &on_cpu, on_gpu.clone());
        scope.spawn(move || {
            let x = Tensor::from_vec(device, (3, 32), gpu).unwrap();
            let found = shared.forward(&x).unwrap();
            drop(shared);
            launched.send(()).unwrap();
            wait_for_drop.recv().unwrap();
            assert_near(&found, &on_cpu.forward(host).unwrap(), "after the drop");
        });
        wait_for_launch.recv().unwrap();
        drop(on_gpu);
        // Whatever the drop left in this thread's stream runs.
        gpu.synchronize().unwrap();
        dropped.send(()).unwrap();
    });
}

#[test]
fn a_device_with_a_stream_of_its_own_works() {
    let gpu = Device::new_cuda_with_stream(0).unwrap();
    let on_cpu = layer([64, 33], true, Int8Config::default());
    for rows in [1, 3, 40] {
        let on_gpu = on_cpu.to_device(&gpu).unwrap();
        let [host, device] = inputs(&activations(rows, 33, 5), 33, 1, DType::F32, &gpu);
        let expected = on_cpu.forward(&host).unwrap();
        assert_near(&on_gpu.forward(&device).unwrap(), &expected, "own stream");
    }
}

#[test]
fn constructors_put_layers_on_the_device_of_the_var_builder() {
    let gpu = gpu();
    let tensor = |shape: (usize, usize), seed| {
        Tensor::from_vec(noise(shape.0 * shape.1, seed), shape, &CPU).unwrap()
    };
    let tensors = HashMap::from([
        ("up.weight".to_owned(), tensor((24, 13), 1)),
        (
            "up.bias".to_owned(),
            Tensor::new(noise(24, 2), &CPU).unwrap(),
        ),
        ("down.weight".to_owned(), tensor((13, 24), 3)),
        ("lm_head.weight".to_owned(), tensor((50, 13), 4)),
    ]);
    let build = |device: &Device| {
        let vb = VarBuilder::from_tensors(tensors.clone(), DType::F32, device);
        with_int8(row_scope(), &SkipList::default(), || {
            Ok([
                linear(13, 24, vb.pp("up"))?,
                linear_no_bias(24, 13, vb.pp("down"))?,
                linear_no_bias(13, 50, vb.pp("lm_head"))?,
            ])
        })
        .unwrap()
    };

    let (on_cpu, on_gpu) = (build(&CPU), build(&gpu));
    assert_eq!(
        on_gpu.each_ref().map(|layer| layer.is_int8()),
        [true, true, false]
    );
    let [host, device] = inputs(&activations(3, 13, 5), 13, 0, DType::F32, &gpu);
    let [expected, found] = [(&on_cpu, &host), (&on_gpu, &device)]
        .map(|(layers, x)| layers[1].forward(&layers[0].forward(x).unwrap()).unwrap());
    // A code of the second layer may differ by one where the first rounds differently.
    let (found, expected) = (values(&found), values(&expected));
    let largest = expected.iter().fold(0f32, |a, b| a.max(b.abs()));
    assert!(
        found
            .iter()
            .zip(&expected)
            .all(|(a, b)| (a - b).abs() <= 1e-2 * largest),
        "{found:?} {expected:?}"
    );
}

#[test]
fn saved_codes_reach_the_gpu_as_they_are() {
    let gpu = gpu();
    let saved = layer([24, 13], true, Int8Config::default());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    write_linear_state(&saved, "fc", &file).unwrap();

    let checkpoint = Checkpoint::open_safetensors(&[file], None).unwrap();
    let vb = var_builder(checkpoint.into(), DType::F32, &gpu);
    let found = linear8bit(13, 24, vb.pp("fc")).unwrap();
    let found = found.to_device(&CPU).unwrap();
    assert_eq!(
        found.weight().unwrap().codes(),
        saved.weight().unwrap().codes()
    );
}
