//! Loading models onto devices: which part goes where, how much memory it takes, what is rejected.

use crate::support::devices::{
    MEMORY, distance, few_devices, on_device, options, step_by_step, two_emulated_devices,
};
use crate::support::golden_models::{at_most, in_every_folder, input_ids, load, try_load};
use crate::support::{golden, golden_text};
use llm_int8_cuda::testing;
use llm_int8_decoder::DecoderError;
use llm_int8_decoder::cuda::{CudaError, Device};
use llm_int8_decoder::{
    Decoder, DeviceBudget, LoadOptions, ModelConfig, PlacedPart, Placement, WeightDtype,
};
use llm_int8_nn::checkpoint::Checkpoint;
use llm_int8_nn::linear::{Int8Config, OutlierRule, OutlierWeights};
use std::sync::Arc;

/// A limit of `most` bytes for a device.
fn budget(device: &Device, most: u64) -> DeviceBudget {
    DeviceBudget {
        device: device.clone(),
        most: Some(most),
    }
}

/// Checks that the parts of a model are where they were planned, each in use, and that its logits
/// are those of the CPU.
fn check_placed(
    model: &Decoder,
    planned: &[PlacedPart],
    ids: &[u32],
    theirs: &[Vec<f32>],
) -> Result<(), String> {
    assert_eq!(model.placed(), planned);

    let blocks: usize = planned.iter().map(|part| part.blocks.len()).sum();
    let heads = planned.iter().filter(|part| part.has_head).count();
    assert_eq!(blocks, model.spec().layers.len(), "{planned:?}");
    assert_eq!(heads, 1, "{planned:?}");

    let ours = step_by_step(model, ids, 21);

    // At least one graph for each device that has blocks.
    let devices = planned
        .iter()
        .filter(|part| part.device != "cpu" && !part.blocks.is_empty())
        .count();
    if model.graph_count() < devices {
        return Err(format!("{} graphs with {planned:?}", model.graph_count()));
    }

    for (step, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        at_most(
            &format!("distance at step {step} with {planned:?}"),
            distance(ours, theirs),
            2e-2,
        )?;
    }
    Ok(())
}

#[test]
fn a_model_spread_over_two_devices_and_the_cpu_matches_the_cpu() {
    let Some((first, second)) = two_emulated_devices() else {
        return;
    };

    in_every_folder(|name| {
        let options = |placement| {
            options(
                Some(OutlierRule::batch(6.0)),
                WeightDtype::Float16,
                placement,
            )
        };
        let host = load(name, &options(Placement::cpu()));
        let ids: Vec<u32> = input_ids(name).get(0).unwrap().to_vec1().unwrap();
        let theirs = step_by_step(&host, &ids, 21);
        let mut seen = Vec::new();

        // From everything on the CPU to everything on devices, in steps smaller than a block.
        for (on_first, on_second) in (0..80)
            .map(|i| (i * 20_000, 0))
            .chain((0..80).map(|i| (i * 12_000, i * 12_000)))
        {
            let placement = Placement {
                reserved_positions: 32,
                ..Placement::auto(vec![budget(&first, on_first), budget(&second, on_second)])
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
            check_placed(&model, &planned, &ids, &theirs)?;
            seen.push(shape);
        }

        // At least everything on the CPU, everything on a device, and two placements between.
        if seen.len() < 4 {
            Err(format!("only {} maps were tried: {seen:?}", seen.len()))
        } else {
            Ok(())
        }
    });
}

#[test]
fn a_model_that_does_not_fit_is_rejected() {
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
            &options(
                Some(OutlierRule::batch(6.0)),
                WeightDtype::Float16,
                placement,
            ),
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
        "what was allocated before the failure is freed"
    );
}

#[test]
fn loading_takes_little_more_memory_than_the_model() {
    for device in few_devices() {
        let before = device.memory().unwrap();
        let model = load(
            "gpt2",
            &options(
                Some(OutlierRule::batch(6.0)),
                WeightDtype::Float16,
                on_device(&device),
            ),
        );
        let after = device.memory().unwrap();
        let held = after.allocated - before.allocated;
        let footprint = model.placed()[0].bytes;

        // Norms and biases are f32 on devices. The plan counts norms as f32, and biases not at all.
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
            "all memory is freed"
        );
    }
}

#[test]
fn weights_that_are_not_finite_give_the_same_error_as_on_the_cpu() {
    let Some(device) = testing::emulated(0, MEMORY, 0) else {
        return;
    };

    let mut tensors = crate::support::read_tensors("models/llama/model.safetensors");
    let (dtype, shape, bytes) = tensors
        .get_mut("model.layers.1.mlp.up_proj.weight")
        .unwrap();
    assert_eq!(*dtype, safetensors::Dtype::F16);

    let offset = 2 * (5 * shape[1] + 3);
    bytes[offset..offset + 2].copy_from_slice(&half::f16::NEG_INFINITY.to_le_bytes());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    crate::support::write_tensors(&path, &tensors);
    let config = ModelConfig::parse(golden_text("models/llama/config.json").as_bytes()).unwrap();
    let error = |placement| {
        let checkpoint =
            Arc::new(Checkpoint::open_safetensors(std::slice::from_ref(&path), None).unwrap());
        let options = options(
            Some(OutlierRule::batch(6.0)),
            WeightDtype::Float16,
            placement,
        );
        Decoder::load(&config, &checkpoint, &options, &mut |_| ())
            .unwrap_err()
            .to_string()
    };

    let on_device = error(Placement::on(device));
    let on_cpu = error(Placement::cpu());
    assert_eq!(on_device, on_cpu);
    assert!(
        on_cpu.contains("up_proj") && on_cpu.contains("output 5, input 3"),
        "{on_cpu}"
    );
}

#[test]
fn original_outlier_weights_need_the_cpu() {
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
    assert!(error.contains("on the CPU only"), "{error}");
}

#[test]
fn saved_int8_checkpoints_load_onto_a_device() {
    for device in few_devices() {
        let read =
            |name: &str| std::fs::read(golden(&format!("bnb_checkpoints/gpt2/{name}"))).unwrap();
        let config = ModelConfig::parse(&read("config.json")).unwrap();
        let files = [golden("bnb_checkpoints/gpt2/model.safetensors")];
        let checkpoint = Arc::new(Checkpoint::open_safetensors(&files, None).unwrap());
        let on = |placement| {
            let options = options(
                Some(OutlierRule::batch(6.0)),
                WeightDtype::Float16,
                placement,
            );
            Decoder::load(&config, &checkpoint, &options, &mut |_| ())
                .unwrap()
                .0
        };

        let host = on(Placement::cpu());
        let model = on(on_device(&device));
        let ids: Vec<u32> = (0..20).map(|i| i * 11 % 128).collect();
        for (ours, theirs) in step_by_step(&model, &ids, 10)
            .iter()
            .zip(&step_by_step(&host, &ids, 10))
        {
            assert!(distance(ours, theirs) < 2e-2);
        }
    }
}

#[test]
fn int8_embeddings_and_head_work_on_a_device() {
    for device in few_devices() {
        for name in ["gpt2", "llama", "gemma2", "opt"] {
            let on = |placement| {
                let options = options(
                    Some(OutlierRule::batch(6.0)),
                    WeightDtype::Float16,
                    placement,
                );
                load(
                    name,
                    &LoadOptions {
                        quantize_head: true,
                        ..options
                    },
                )
            };

            let host = on(Placement::cpu());
            let model = on(on_device(&device));
            assert!(host.has_int8_head() && model.has_int8_head());

            let ids: Vec<u32> = input_ids(name).get(0).unwrap().to_vec1().unwrap();
            for (ours, theirs) in step_by_step(&model, &ids, 14)
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
fn a_device_map_fills_devices_in_order() {
    let Some((first, second)) = two_emulated_devices() else {
        return;
    };

    let placement = Placement::auto(vec![budget(&first, u64::MAX), budget(&second, u64::MAX)]);
    let model = load(
        "gpt2",
        &options(
            Some(OutlierRule::batch(6.0)),
            WeightDtype::Float16,
            placement,
        ),
    );
    let placed = model.placed();
    assert_eq!(placed.len(), 1);
    assert_eq!(
        (placed[0].device.as_str(), placed[0].has_head),
        ("emulated:0", true)
    );
    assert_eq!(second.memory().unwrap().allocated, 0);
}
