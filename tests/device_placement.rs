//! Loading models onto devices: what lies where, what it takes there, and what is refused.

use crate::support::devices::{
    MEMORY, distance, few_devices, on_device, options, step_by_step, two_emulated,
};
use crate::support::golden_models::{at_most, in_every_folder, input_ids, load, try_load};
use crate::support::{golden, golden_text};
use llm_int8_cuda::testing;
use llm_int8_decoder::DecoderError;
use llm_int8_decoder::cuda::{CudaError, Device};
use llm_int8_decoder::{Decoder, DeviceBudget, LoadOptions, ModelConfig, Placement, WeightDtype};
use llm_int8_nn::checkpoint::Checkpoint;
use llm_int8_nn::linear::{Int8Config, OutlierScope, OutlierWeights};
use std::sync::Arc;

fn budget(device: &Device, most: u64) -> DeviceBudget {
    DeviceBudget {
        device: device.clone(),
        most: Some(most),
    }
}

#[test]
fn a_model_over_two_devices_and_the_cpu_gives_what_the_cpu_gives() {
    let Some((first, second)) = two_emulated() else {
        return;
    };
    in_every_folder(|name| {
        let options =
            |placement| options(Some(OutlierScope::Batch), WeightDtype::Float16, placement);
        let host = load(name, &options(Placement::cpu()));
        let ids: Vec<u32> = input_ids(name).get(0).unwrap().to_vec1().unwrap();
        let theirs = step_by_step(&host, &ids, 21);
        let layers = host.spec().layers.len();
        let mut seen = Vec::new();
        // From nothing on devices to everything, in steps smaller than a block.
        for (most, other) in (0..80)
            .map(|i| (i * 20_000, 0))
            .chain((0..80).map(|i| (i * 12_000, i * 12_000)))
        {
            let placement = Placement {
                reserved_positions: 32,
                ..Placement::auto(vec![budget(&first, most), budget(&second, other)])
            };
            let planned = host.planned(&placement).unwrap();
            let shape: Vec<_> = planned
                .iter()
                .map(|part| (part.device.clone(), part.has_head, part.blocks.clone()))
                .collect();
            if seen.contains(&shape) || seen.len() >= 6 {
                continue;
            }
            let model = load(name, &options(placement));
            assert_eq!(model.placed(), planned);
            let covered: usize = planned.iter().map(|part| part.blocks.len()).sum();
            assert_eq!(
                (covered, planned.iter().filter(|part| part.has_head).count()),
                (layers, 1),
                "{shape:?}"
            );
            let all = step_by_step(&model, &ids, 21);
            // One for each device that has blocks.
            let devices = planned
                .iter()
                .filter(|part| part.device != "cpu" && !part.blocks.is_empty())
                .count();
            if model.graph_count() < devices {
                return Err(format!("{} graphs with {shape:?}", model.graph_count()));
            }
            for (step, (ours, theirs)) in all.iter().zip(&theirs).enumerate() {
                at_most(
                    &format!("distance at step {step} with {shape:?}"),
                    distance(ours, theirs),
                    2e-2,
                )?;
            }
            seen.push(shape);
        }
        // Everything on the CPU, everything on a device, and shapes between.
        if seen.len() < 4 {
            Err(format!("only {} maps were tried: {seen:?}", seen.len()))
        } else {
            Ok(())
        }
    });
}

#[test]
fn what_the_devices_and_the_cpu_cannot_hold_is_refused() {
    let Some(device) = testing::emulated(0, MEMORY, 0) else {
        return;
    };
    let placement = |most_on_cpu| Placement {
        most_on_cpu,
        ..Placement::auto(vec![budget(&device, 0)])
    };
    let load = |placement| {
        try_load(
            "gpt2",
            &options(Some(OutlierScope::Batch), WeightDtype::Float16, placement),
        )
    };
    assert!(load(placement(None)).is_ok());
    let error = load(placement(Some(1000))).unwrap_err().to_string();
    assert!(error.contains("the CPU may take 1000"), "{error}");
    let twice = Placement::auto(vec![budget(&device, 0), budget(&device, 0)]);
    assert!(
        load(twice)
            .unwrap_err()
            .to_string()
            .contains("is named twice")
    );
    let small = Device::emulated(0, 5000, 0).unwrap();
    let error = load(Placement::on(small.clone())).unwrap_err();
    assert!(
        matches!(error, DecoderError::Cuda(CudaError::OutOfMemory { .. })),
        "{error:?}"
    );
    assert_eq!(
        small.memory().unwrap().allocated,
        0,
        "what was allocated before is given back"
    );
}

#[test]
fn loading_takes_little_more_than_the_model() {
    for device in few_devices() {
        let before = device.memory().unwrap();
        let model = load(
            "gpt2",
            &options(
                Some(OutlierScope::Batch),
                WeightDtype::Float16,
                on_device(&device),
            ),
        );
        let after = device.memory().unwrap();
        let (held, footprint) = (after.allocated - before.allocated, model.placed()[0].bytes);
        // Norms and biases are f32 there; the plan counts norms so, and biases not at all.
        assert!(
            held >= footprint && held <= footprint + footprint / 10,
            "{held} of {footprint}"
        );
        let ids: Vec<u32> = input_ids("gpt2").get(0).unwrap().to_vec1().unwrap();
        model.next_logits(&ids, &mut model.new_cache()).unwrap();
        drop(model);
        assert_eq!(
            device.memory().unwrap().allocated,
            before.allocated,
            "all is given back"
        );
    }
}

#[test]
fn weights_that_are_not_finite_are_named_as_on_the_cpu() {
    let Some(device) = testing::emulated(0, MEMORY, 0) else {
        return;
    };
    let mut tensors = crate::support::read_tensors("models/llama/model.safetensors");
    let (dtype, shape, bytes) = tensors
        .get_mut("model.layers.1.mlp.up_proj.weight")
        .unwrap();
    assert_eq!(*dtype, safetensors::Dtype::F16);
    let place = 2 * (5 * shape[1] + 3);
    bytes[place..place + 2].copy_from_slice(&half::f16::NEG_INFINITY.to_le_bytes());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    crate::support::write_tensors(&path, &tensors);
    let config = ModelConfig::parse(golden_text("models/llama/config.json").as_bytes()).unwrap();
    let error = |placement| {
        let checkpoint =
            Arc::new(Checkpoint::open_safetensors(std::slice::from_ref(&path), None).unwrap());
        let options = options(Some(OutlierScope::Batch), WeightDtype::Float16, placement);
        Decoder::load(&config, &checkpoint, &options, &mut |_| ())
            .unwrap_err()
            .to_string()
    };
    let (there, host) = (error(Placement::on(device)), error(Placement::cpu()));
    assert_eq!(there, host);
    assert!(
        host.contains("up_proj") && host.contains("output 5, input 3"),
        "{host}"
    );
}

#[test]
fn original_outlier_weights_are_the_cpus() {
    let Some(device) = testing::emulated(0, MEMORY, 0) else {
        return;
    };
    let int8 = Some(Int8Config {
        outlier_weights: OutlierWeights::Original,
        ..Int8Config::default()
    });
    let options = LoadOptions {
        int8,
        placement: Placement::on(device),
        ..LoadOptions::default()
    };
    let error = try_load("gpt2", &options).unwrap_err().to_string();
    assert!(error.contains("only the CPU does"), "{error}");
}

#[test]
fn saved_int8_checkpoints_go_straight_onto_a_device() {
    for device in few_devices() {
        let read =
            |name: &str| std::fs::read(golden(&format!("bnb_checkpoints/gpt2/{name}"))).unwrap();
        let config = ModelConfig::parse(&read("config.json")).unwrap();
        let files = [golden("bnb_checkpoints/gpt2/model.safetensors")];
        let checkpoint = Arc::new(Checkpoint::open_safetensors(&files, None).unwrap());
        let on = |placement| {
            let options = options(Some(OutlierScope::Batch), WeightDtype::Float16, placement);
            Decoder::load(&config, &checkpoint, &options, &mut |_| ())
                .unwrap()
                .0
        };
        let (host, there) = (on(Placement::cpu()), on(on_device(&device)));
        let ids: Vec<u32> = (0..20).map(|i| i * 11 % 128).collect();
        for (ours, theirs) in step_by_step(&there, &ids, 10)
            .iter()
            .zip(&step_by_step(&host, &ids, 10))
        {
            assert!(distance(ours, theirs) < 2e-2);
        }
    }
}

#[test]
fn an_int8_head_and_table_work_on_a_device_too() {
    for device in few_devices() {
        for name in ["gpt2", "llama", "gemma2", "opt"] {
            let on = |placement| {
                let options = options(Some(OutlierScope::Batch), WeightDtype::Float16, placement);
                load(
                    name,
                    &LoadOptions {
                        quantize_head: true,
                        ..options
                    },
                )
            };
            let (host, there) = (on(Placement::cpu()), on(on_device(&device)));
            assert!(host.has_int8_head() && there.has_int8_head());
            let ids: Vec<u32> = input_ids(name).get(0).unwrap().to_vec1().unwrap();
            for (ours, theirs) in step_by_step(&there, &ids, 14)
                .iter()
                .zip(&step_by_step(&host, &ids, 14))
            {
                assert!(
                    distance(ours, theirs) < 3e-2,
                    "{name}: {}",
                    distance(ours, theirs)
                );
            }
        }
    }
}

#[test]
fn a_device_map_fills_devices_in_their_order() {
    let Some((first, second)) = two_emulated() else {
        return;
    };
    let placement = Placement::auto(vec![budget(&first, u64::MAX), budget(&second, u64::MAX)]);
    let model = load(
        "gpt2",
        &options(Some(OutlierScope::Batch), WeightDtype::Float16, placement),
    );
    let placed = model.placed();
    assert_eq!(placed.len(), 1);
    assert_eq!(
        (placed[0].device.as_str(), placed[0].has_head),
        ("emulated:0", true)
    );
    assert_eq!(second.memory().unwrap().allocated, 0);
}
