//! Models on devices: every family against transformers' values and against the CPU, by graphs and
//! by launches, spread over several devices. Which devices is said by `LLM_INT8_TEST_DEVICE` (see
//! [`llm_int8_cuda::testing`]).

use crate::support::golden_models::{
    at_most, expected, in_every_folder, input_ids, load, try_load,
};
use crate::support::{golden, golden_text, relative_error};
use candle_core::{Device as Host, Tensor};
use llm_int8_cuda::testing;
use llm_int8_decoder::DecoderError;
use llm_int8_decoder::cuda::{CudaError, Device};
use llm_int8_decoder::{
    Choice, Decoder, DecoderSpec, DeviceBudget, KvCache, LoadOptions, LogitPositions, Logits,
    ModelConfig, Placement, SequenceInput, WeightDtype,
};
use llm_int8_nn::checkpoint::Checkpoint;
use llm_int8_nn::linear::{Int8Config, OutlierScope, OutlierWeights};
use std::sync::Arc;

const MEMORY: u64 = 1 << 30;

/// Emulated devices, threads in order and shuffled, and the GPU without and with early starts.
fn devices() -> Vec<Device> {
    testing::devices(&[0, 7])
}

/// The same with one emulated device.
pub(crate) fn few_devices() -> Vec<Device> {
    testing::devices(&[0])
}

/// Two emulated devices beside each other.
fn two_emulated() -> Option<(Device, Device)> {
    Some((
        testing::emulated(0, MEMORY, 0)?,
        testing::emulated(1, MEMORY, 3)?,
    ))
}

/// Early starts as they are set for the device: loading a model sets them anew.
pub(crate) fn on_device(device: &Device) -> Placement {
    Placement {
        overlaps_kernels: device.overlaps_kernels(),
        ..Placement::on(device.clone())
    }
}

pub(crate) fn options(
    int8: Option<OutlierScope>,
    dtype: WeightDtype,
    placement: Placement,
) -> LoadOptions {
    let int8 = int8.map(|outlier_scope| Int8Config {
        outlier_scope,
        ..Int8Config::default()
    });
    LoadOptions {
        int8,
        dtype,
        placement,
        ..LoadOptions::default()
    }
}

pub(crate) fn distance(a: &[f32], b: &[f32]) -> f64 {
    let tensor = |x: &[f32]| Tensor::new(x, &Host::Cpu).unwrap();
    relative_error(&tensor(a), &tensor(b))
}

fn last<'a>(ids: &'a [u32], cache: &'a mut KvCache) -> SequenceInput<'a> {
    SequenceInput {
        ids,
        cache,
        logits: LogitPositions::Last,
    }
}

/// Logits after each of some tokens, one by one after a prompt.
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

#[test]
fn unquantised_logits_are_those_of_transformers() {
    for device in devices() {
        in_every_folder(|name| {
            let options = options(None, WeightDtype::Float32, on_device(&device));
            let ours = load(name, &options).logits(&input_ids(name)).unwrap();
            at_most(
                "distance",
                relative_error(&ours, &expected(name, "logits_f32")),
                1e-4,
            )
        });
    }
}

#[test]
fn int8_logits_are_as_near_to_the_unquantised_ones_as_those_of_bitsandbytes() {
    for device in devices() {
        in_every_folder(|name| {
            let exact = expected(name, "logits_f32");
            let theirs = relative_error(&expected(name, "logits_int8_f32"), &exact);
            let placement = on_device(&device);
            let model = load(
                name,
                &options(Some(OutlierScope::Batch), WeightDtype::Float32, placement),
            );
            let ours = relative_error(&model.logits(&input_ids(name)).unwrap(), &exact);
            at_most("distance", ours, 1.15 * theirs)
        });
    }
}

#[test]
fn tokens_one_by_one_are_those_of_the_cpu_with_and_without_graphs() {
    for device in few_devices() {
        in_every_folder(|name| {
            // Every family in one of both.
            let dtype = [WeightDtype::Float16, WeightDtype::BFloat16][name.len() % 2];
            let ids: Vec<u32> = input_ids(name).get(0).unwrap().to_vec1().unwrap();
            let on = |placement| load(name, &options(Some(OutlierScope::Batch), dtype, placement));
            let host = step_by_step(&on(Placement::cpu()), &ids, 20);
            let mut there = on(on_device(&device));
            let by_graphs = step_by_step(&there, &ids, 20);
            if there.graph_count() == 0 {
                return Err("no graph was recorded".into());
            }
            there.set_graphs(false);
            let by_launches = step_by_step(&there, &ids, 20);
            drop(there);
            let overlaps = device.overlaps_kernels();
            let early = Placement {
                overlaps_kernels: !overlaps,
                ..on_device(&device)
            };
            let overlapping = step_by_step(&on(early), &ids, 20);
            device.set_overlap(overlaps);
            if by_graphs != by_launches || by_graphs != overlapping {
                return Err(format!(
                    "graphs or early starts change numbers in {dtype:?}"
                ));
            }
            // A code beside the other, where a norm's last bit differs.
            for (step, (ours, theirs)) in by_graphs.iter().zip(&host).enumerate() {
                at_most(
                    &format!("distance at step {step} in {dtype:?}"),
                    distance(ours, theirs),
                    2e-2,
                )?;
            }
            Ok(())
        });
    }
}

#[test]
fn a_text_is_the_same_alone_and_beside_others() {
    let names = [
        "gpt2",
        "llama",
        "falcon_multi_query",
        "phi3_longrope",
        "mpt",
    ];
    for (device, name) in testing::devices(&[7])
        .iter()
        .flat_map(|device| names.map(|name| (device, name)))
    {
        let placement = on_device(device);
        let model = load(
            name,
            &options(Some(OutlierScope::Row), WeightDtype::Float16, placement),
        );
        let ids: Vec<u32> = input_ids(name).get(0).unwrap().to_vec1().unwrap();
        let texts = [&ids[..3], &ids[2..16], &ids[5..10]];
        let mut together: Vec<KvCache> = texts.iter().map(|_| model.new_cache()).collect();
        let mut alone: Vec<KvCache> = texts.iter().map(|_| model.new_cache()).collect();
        for step in 0..4 {
            let ids: Vec<&[u32]> = texts
                .iter()
                .map(|text| {
                    if step == 0 {
                        text
                    } else {
                        &text[step - 1..step]
                    }
                })
                .collect();
            let mut batch: Vec<SequenceInput<'_>> = ids
                .iter()
                .zip(&mut together)
                .map(|(ids, cache)| last(ids, cache))
                .collect();
            let logits = model.forward(&mut batch).unwrap();
            for ((ids, cache), row) in ids
                .iter()
                .zip(&mut alone)
                .zip(logits.chunks(model.spec().vocab_size()))
            {
                let own = model.next_logits(ids, cache).unwrap();
                assert!(
                    distance(row, &own) < 2e-2,
                    "{name}, step {step}: {}",
                    distance(row, &own)
                );
            }
        }
        assert_eq!(together[1].len(), 17);
        assert!(together[1].bytes() > 0);
    }
}

#[test]
fn a_pass_gives_the_last_logits_of_one_sequence_and_all_of_another() {
    for device in devices() {
        for name in ["gpt2", "llama"] {
            let options = options(
                Some(OutlierScope::Row),
                WeightDtype::Float16,
                on_device(&device),
            );
            let model = load(name, &options);
            let ids: Vec<u32> = input_ids(name).get(0).unwrap().to_vec1().unwrap();
            let (prompt, first, drafts) = (&ids[..9], &ids[3..8], &ids[8..11]);
            let [mut new, mut old] = [0; 2].map(|_| model.new_cache());
            model.next_logits(first, &mut old).unwrap();
            let draft = SequenceInput {
                ids: drafts,
                cache: &mut old,
                logits: LogitPositions::All,
            };
            let logits = model.forward(&mut [last(prompt, &mut new), draft]).unwrap();

            let mut cache = model.new_cache();
            let mut alone = vec![model.next_logits(prompt, &mut model.new_cache()).unwrap()];
            model.next_logits(first, &mut cache).unwrap();
            alone.extend(
                drafts
                    .iter()
                    .map(|id| model.next_logits(&[*id], &mut cache).unwrap()),
            );
            assert_eq!(logits.len(), 4 * model.spec().vocab_size());
            for (row, own) in logits.chunks(model.spec().vocab_size()).zip(&alone) {
                assert!(distance(row, own) < 2e-2, "{name}: {}", distance(row, own));
            }
        }
    }
}

#[test]
fn a_batch_of_eight_is_the_same_by_graphs_and_by_launches() {
    for device in few_devices() {
        for name in ["gpt2", "llama"] {
            let mut model = load(
                name,
                &options(
                    Some(OutlierScope::Batch),
                    WeightDtype::Float16,
                    on_device(&device),
                ),
            );
            let ids: Vec<u32> = input_ids(name).get(0).unwrap().to_vec1().unwrap();
            let mut decode = |uses_graphs: bool| {
                model.set_graphs(uses_graphs);
                let mut caches: Vec<KvCache> = (0..8).map(|_| model.new_cache()).collect();
                let mut all = Vec::new();
                for step in 0..5 {
                    // Sequences of different lengths, then one token of each.
                    let ids = (0..8).map(|i| {
                        if step == 0 {
                            &ids[i..2 * i + 3]
                        } else {
                            &ids[step + i..][..1]
                        }
                    });
                    let mut batch: Vec<SequenceInput<'_>> = ids
                        .zip(&mut caches)
                        .map(|(ids, cache)| last(ids, cache))
                        .collect();
                    all.push(model.forward(&mut batch).unwrap());
                }
                all
            };
            let by_graphs = decode(true);
            assert!(by_graphs == decode(false), "{name} on {device:?}");
            assert!(
                model.graph_count() > 0,
                "no graph was recorded for {name} on {device:?}"
            );
        }
    }
}

#[test]
fn threads_may_share_a_model() {
    for device in few_devices() {
        let load = || {
            let placement = on_device(&device);
            load(
                "llama",
                &options(Some(OutlierScope::Batch), WeightDtype::Float16, placement),
            )
        };
        let ids: Vec<u32> = input_ids("llama").get(0).unwrap().to_vec1().unwrap();
        let alone = step_by_step(&load(), &ids, 12);
        let model = &load();
        // While one records a graph, others allocate, compute and give back.
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| step_by_step(model, &ids, 12)))
                .collect();
            for thread in threads {
                assert_eq!(thread.join().unwrap(), alone);
            }
        });
    }
}

#[test]
fn a_cache_grows_and_is_cut_without_changing_the_text() {
    for device in few_devices() {
        let placement = on_device(&device);
        // A model whose cache outgrows the room it begins with.
        let config =
            br#"{"model_type": "llama", "vocab_size": 256, "hidden_size": 32, "intermediate_size": 40,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 1024, "tie_word_embeddings": false, "hidden_act": "silu"}"#;
        let config = ModelConfig::parse(config).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        write_random(&DecoderSpec::from_config(&config).unwrap(), &path);
        let checkpoint = Arc::new(Checkpoint::open_safetensors(&[path], None).unwrap());
        let on = |placement| {
            let options = options(Some(OutlierScope::Row), WeightDtype::Float16, placement);
            Decoder::load(&config, &checkpoint, &options, &mut |_| ())
                .unwrap()
                .0
        };
        let (host, there) = (on(Placement::cpu()), on(placement));
        let ids: Vec<u32> = (0..300).map(|i| i * 37 % 256).collect();
        let (mut a, mut b) = (host.new_cache(), there.new_cache());
        for range in [0..250, 250..255, 255..256, 256..257, 257..258, 258..300] {
            let theirs = host.next_logits(&ids[range.clone()], &mut a).unwrap();
            let ours = there.next_logits(&ids[range.clone()], &mut b).unwrap();
            assert!(
                distance(&ours, &theirs) < 2e-2,
                "{range:?}: {}",
                distance(&ours, &theirs)
            );
        }
        assert_eq!(b.len(), 300);
        b.truncate(100);
        let again = there.next_logits(&ids[100..101], &mut b).unwrap();
        let fresh = there
            .next_logits(&ids[..101], &mut there.new_cache())
            .unwrap();
        assert!(distance(&again, &fresh) < 2e-2);
    }
}

/// A checkpoint of noise for a description.
pub(crate) fn write_random(spec: &DecoderSpec, path: &std::path::Path) {
    use llm_int8_nn::module::Module;
    let model = Decoder::declared(
        spec.clone(),
        llm_int8_nn::FloatDtype::F32,
        llm_int8_nn::Isa::detect(),
    )
    .unwrap();
    let mut tensors = crate::support::Tensors::new();
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
    crate::support::write_tensors(path, &tensors);
}

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
            .contains("is there twice")
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
fn tokens_are_chosen_on_the_device_as_on_the_cpu() {
    for device in devices() {
        let model = |placement| {
            load(
                "llama",
                &options(Some(OutlierScope::Batch), WeightDtype::Float32, placement),
            )
        };
        let there = model(Placement::on(device));
        let ids: Vec<u32> = input_ids("llama").get(0).unwrap().to_vec1().unwrap();
        let vocabulary = there.spec().vocab_size();
        for count in [1, 5, 50, vocabulary, usize::MAX] {
            for penalty in [1.0, 1.3] {
                let choice = Choice {
                    count,
                    penalty,
                    seen: &ids,
                };
                let mut cache = there.new_cache();
                let all = there.next_logits(&ids, &mut cache).unwrap();
                let host = llm_int8_decoder::Logits::from_vec(all, vocabulary)
                    .choose(0, &choice)
                    .unwrap();
                let mut cache = there.new_cache();
                let mut logits = there.logits_of(&mut [last(&ids, &mut cache)]).unwrap();
                assert_eq!(
                    logits.choose(0, &choice).unwrap(),
                    host,
                    "{count}, {penalty}"
                );
            }
        }
    }
}

#[test]
fn the_most_likely_tokens_of_a_batch_are_those_of_each_row() {
    for device in devices() {
        let options = options(
            Some(OutlierScope::Row),
            WeightDtype::Float32,
            on_device(&device),
        );
        let model = load("llama", &options);
        let ids: Vec<u32> = input_ids("llama").get(0).unwrap().to_vec1().unwrap();
        let mut caches: Vec<KvCache> = (0..20).map(|_| model.new_cache()).collect();
        let mut batch: Vec<SequenceInput<'_>> = caches
            .iter_mut()
            .enumerate()
            .map(|(i, cache)| last(&ids[i % 8..][..9], cache))
            .collect();
        let mut logits = model.logits_of(&mut batch).unwrap();
        let greedy = Choice {
            count: 1,
            penalty: 1.0,
            seen: &[],
        };
        let expected = |logits: &Logits<'_>, row| {
            let own = logits.row(row).unwrap();
            llm_int8_decoder::largest(&own, 1)
        };
        for row in [19, 0, 7] {
            assert_eq!(logits.choose(row, &greedy).unwrap(), expected(&logits, row));
        }
        // A penalty changes its row, and the most likely token of that row with it.
        let [(likely, _)] = logits.choose(3, &greedy).unwrap()[..] else {
            panic!("one token")
        };
        let punished = Choice {
            count: 1,
            penalty: 1e3,
            seen: &[likely],
        };
        let [(other, _)] = logits.choose(3, &punished).unwrap()[..] else {
            panic!("one token")
        };
        assert_ne!(other, likely);
        assert_eq!(logits.choose(3, &greedy).unwrap(), expected(&logits, 3));
        assert_eq!(logits.choose(4, &greedy).unwrap(), expected(&logits, 4));
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
