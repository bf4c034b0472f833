//! Models on devices: every family against transformers and against the CPU, by graphs and by
//! launches, alone and in batches. `LLM_INT8_TEST_DEVICE` chooses the devices (see
//! [`llm_int8_cuda::testing`]).

use crate::support::devices::{
    devices, distance, few_devices, on_device, options, step_by_step, write_random,
};
use crate::support::golden_models::{at_most, expected, in_every_folder, input_ids, load};
use crate::support::relative_error;
use llm_int8_cuda::testing;
use llm_int8_decoder::{
    Choice, Decoder, DecoderSpec, KvCache, LogitPositions, Logits, ModelConfig, Placement,
    SequenceInput, WeightDtype,
};
use llm_int8_nn::checkpoint::Checkpoint;
use llm_int8_nn::linear::OutlierRule;
use std::sync::Arc;

/// A sequence whose last token's logits are requested.
fn last<'a>(ids: &'a [u32], cache: &'a mut KvCache) -> SequenceInput<'a> {
    SequenceInput {
        ids,
        cache,
        logits: LogitPositions::Last,
    }
}

#[test]
fn unquantised_logits_match_transformers() {
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
fn int8_logits_are_as_accurate_as_those_of_bitsandbytes() {
    for device in devices() {
        in_every_folder(|name| {
            let exact = expected(name, "logits_f32");
            let theirs = relative_error(&expected(name, "logits_int8_f32"), &exact);
            let placement = on_device(&device);
            let model = load(
                name,
                &options(
                    Some(OutlierRule::batch(6.0)),
                    WeightDtype::Float32,
                    placement,
                ),
            );
            let ours = relative_error(&model.logits(&input_ids(name)).unwrap(), &exact);
            at_most("distance", ours, 1.15 * theirs)
        });
    }
}

#[test]
fn decoding_matches_the_cpu_with_and_without_graphs() {
    for device in few_devices() {
        in_every_folder(|name| {
            // Each family runs in one of the two dtypes and with one of the two rules.
            let dtype = [WeightDtype::Float16, WeightDtype::BFloat16][name.len() % 2];
            let rule = [OutlierRule::batch(6.0), OutlierRule::row_rms(4.0)][name.len() / 2 % 2];
            let ids: Vec<u32> = input_ids(name).get(0).unwrap().to_vec1().unwrap();
            let on = |placement| load(name, &options(Some(rule), dtype, placement));
            let host = step_by_step(&on(Placement::cpu()), &ids, 20);
            let mut model = on(on_device(&device));
            let by_graphs = step_by_step(&model, &ids, 20);
            if model.graph_count() == 0 {
                return Err("no graph was recorded".into());
            }
            model.set_graphs(false);
            let by_launches = step_by_step(&model, &ids, 20);
            drop(model);
            let overlaps = device.overlaps_kernels();
            let other_overlap = Placement {
                overlaps_kernels: !overlaps,
                ..on_device(&device)
            };
            let by_other_overlap = step_by_step(&on(other_overlap), &ids, 20);
            device.set_overlap(overlaps);
            if by_graphs != by_launches || by_graphs != by_other_overlap {
                return Err(format!(
                    "graphs or overlapping kernels change numbers in {dtype:?}"
                ));
            }

            // Where the last bit of a norm differs, an int8 code may differ by one.
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
fn a_sequence_gives_nearly_the_same_logits_alone_and_in_a_batch() {
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
            &options(Some(OutlierRule::row(6.0)), WeightDtype::Float16, placement),
        );
        let ids: Vec<u32> = input_ids(name).get(0).unwrap().to_vec1().unwrap();
        let sequences = [&ids[..3], &ids[2..16], &ids[5..10]];
        let mut together: Vec<KvCache> = sequences.iter().map(|_| model.new_cache()).collect();
        let mut alone: Vec<KvCache> = sequences.iter().map(|_| model.new_cache()).collect();
        for step in 0..4 {
            let ids: Vec<&[u32]> = sequences
                .iter()
                .map(|sequence| {
                    if step == 0 {
                        sequence
                    } else {
                        &sequence[step - 1..step]
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
fn a_pass_can_return_the_last_logits_of_one_sequence_and_all_of_another() {
    for device in devices() {
        for name in ["gpt2", "llama"] {
            let options = options(
                Some(OutlierRule::row(6.0)),
                WeightDtype::Float16,
                on_device(&device),
            );
            let model = load(name, &options);
            let ids: Vec<u32> = input_ids(name).get(0).unwrap().to_vec1().unwrap();
            let prompt = &ids[..9];
            let first = &ids[3..8];
            let drafts = &ids[8..11];
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
fn chunks_of_a_prompt_and_a_copied_prefix_give_the_logits_of_one_pass() {
    for device in devices() {
        for name in ["gpt2", "llama", "phi3_longrope"] {
            let options = options(
                Some(OutlierRule::row(6.0)),
                WeightDtype::Float16,
                on_device(&device),
            );
            let model = load(name, &options);
            let ids: Vec<u32> = input_ids(name).get(0).unwrap().to_vec1().unwrap();
            let whole = model.next_logits(&ids, &mut model.new_cache()).unwrap();

            let mut cache = model.new_cache();
            for chunk in ids[..22].chunks(6) {
                let chunk = SequenceInput {
                    ids: chunk,
                    cache: &mut cache,
                    logits: LogitPositions::None,
                };
                assert!(model.forward(&mut [chunk]).unwrap().is_empty());
            }

            let mut copy = cache.prefix(19).unwrap();
            let mut empty = cache.prefix(0).unwrap();
            // The original goes on with other tokens, in a pass where only another one has logits.
            let original = SequenceInput {
                ids: &ids[..2],
                cache: &mut cache,
                logits: LogitPositions::None,
            };
            let both = model
                .forward(&mut [original, last(&ids, &mut empty)])
                .unwrap();
            assert_eq!(copy.bytes(), model.cache_bytes(copy.len()));
            let copied = model.next_logits(&ids[19..], &mut copy).unwrap();
            for logits in [both, copied] {
                let error = distance(&logits, &whole);
                assert!(error < 2e-2, "{name}: {error}");
            }
        }
    }
}

#[test]
fn a_batch_of_eight_gives_the_same_logits_by_graphs_and_by_launches() {
    for device in few_devices() {
        for name in ["gpt2", "llama"] {
            let mut model = load(
                name,
                &options(
                    Some(OutlierRule::batch(6.0)),
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
                    // Prompts of different lengths, then one token for each sequence.
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
fn threads_can_share_a_model() {
    for device in few_devices() {
        let load = || {
            let placement = on_device(&device);
            load(
                "llama",
                &options(
                    Some(OutlierRule::batch(6.0)),
                    WeightDtype::Float16,
                    placement,
                ),
            )
        };

        let ids: Vec<u32> = input_ids("llama").get(0).unwrap().to_vec1().unwrap();
        let alone = step_by_step(&load(), &ids, 12);
        let model = &load();

        // While one thread records a graph, others allocate, compute and free memory.
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
fn a_cache_grows_and_shrinks_without_changing_the_logits() {
    for device in few_devices() {
        let placement = on_device(&device);

        // A model whose cache outgrows its initial capacity.
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
            let options = options(Some(OutlierRule::row(6.0)), WeightDtype::Float16, placement);
            Decoder::load(&config, &checkpoint, &options, &mut |_| ())
                .unwrap()
                .0
        };

        let host = on(Placement::cpu());
        let model = on(placement);
        let ids: Vec<u32> = (0..300).map(|i| i * 37 % 256).collect();
        let mut host_cache = host.new_cache();
        let mut cache = model.new_cache();
        for range in [0..250, 250..255, 255..256, 256..257, 257..258, 258..300] {
            let theirs = host
                .next_logits(&ids[range.clone()], &mut host_cache)
                .unwrap();
            let ours = model.next_logits(&ids[range.clone()], &mut cache).unwrap();
            assert!(
                distance(&ours, &theirs) < 2e-2,
                "{range:?}: {}",
                distance(&ours, &theirs)
            );
        }

        assert_eq!(cache.len(), 300);

        cache.truncate(100);
        let again = model.next_logits(&ids[100..101], &mut cache).unwrap();
        let fresh = model
            .next_logits(&ids[..101], &mut model.new_cache())
            .unwrap();
        assert!(distance(&again, &fresh) < 2e-2);
    }
}

#[test]
fn top_tokens_chosen_on_the_device_match_the_cpu() {
    for device in devices() {
        let on = |placement| {
            load(
                "llama",
                &options(
                    Some(OutlierRule::batch(6.0)),
                    WeightDtype::Float32,
                    placement,
                ),
            )
        };

        let model = on(Placement::on(device));
        let ids: Vec<u32> = input_ids("llama").get(0).unwrap().to_vec1().unwrap();
        let vocabulary = model.spec().vocab_size();
        for count in [1, 5, 50, vocabulary, usize::MAX] {
            for penalty in [1.0, 1.3] {
                let choice = Choice {
                    count,
                    penalty,
                    seen: &ids,
                };
                let mut cache = model.new_cache();
                let all = model.next_logits(&ids, &mut cache).unwrap();
                let host = llm_int8_decoder::Logits::from_vec(all, vocabulary)
                    .choose(0, &choice)
                    .unwrap();
                let mut cache = model.new_cache();
                let mut logits = model.logits_of(&mut [last(&ids, &mut cache)]).unwrap();
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
fn greedy_tokens_of_a_batch_match_each_row_of_logits() {
    for device in devices() {
        let options = options(
            Some(OutlierRule::row(6.0)),
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

        // A penalty changes the logits of its own row, and with them the most likely token.
        let [(likely, _)] = logits.choose(3, &greedy).unwrap()[..] else {
            panic!("one token")
        };

        let penalised = Choice {
            count: 1,
            penalty: 1e3,
            seen: &[likely],
        };
        let [(other, _)] = logits.choose(3, &penalised).unwrap()[..] else {
            panic!("one token")
        };

        assert_ne!(other, likely);
        assert_eq!(logits.choose(3, &greedy).unwrap(), expected(&logits, 3));
        assert_eq!(logits.choose(4, &greedy).unwrap(), expected(&logits, 4));
    }
}
