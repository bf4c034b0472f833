//! Speculative decoding, batches and the int8 head, with the built-in model and the golden ones.

use crate::support::golden;
use llm_int8::decoder::DecoderError;
use llm_int8::decoder::{LogitPositions, Placement, SavedLayers, SequenceInput};
use llm_int8::generate::Update;
use llm_int8::nn::linear::OutlierRule;
use llm_int8::{
    AutoModelForCausalLM, Generated, GenerationConfig, LlmError, LoadConfig, Request, SaveOptions,
};
use llm_int8_cuda::testing;
use std::ops::ControlFlow;

fn load(name: &str, rule: OutlierRule, quantize_head: bool) -> AutoModelForCausalLM {
    let mut config = LoadConfig::default();
    config.options.quantize_head = quantize_head;
    if let Some(int8) = &mut config.options.int8 {
        int8.outliers = rule;
    }

    AutoModelForCausalLM::from_pretrained(name, &config).unwrap()
}

fn with_per_row_outliers() -> AutoModelForCausalLM {
    load("tiny-gpt2", OutlierRule::row(6.0), false)
}

fn generate(model: &AutoModelForCausalLM, prompt: &[u32], config: &GenerationConfig) -> Generated {
    model
        .generation(prompt)
        .config(config.clone())
        .ids_only()
        .run()
        .unwrap()
}

const REPETITIVE: &str = "the king said unto him, the king said unto them, the king said unto";

#[test]
fn drafts_do_not_change_the_tokens() {
    let model = with_per_row_outliers();
    let prompt = model.tokenizer().unwrap().encode(REPETITIVE).unwrap();
    for do_sample in [false, true] {
        for max_new_tokens in [1, 2, 40] {
            let config = GenerationConfig {
                max_new_tokens: Some(max_new_tokens),
                do_sample,
                seed: 5,
                ..GenerationConfig::default()
            };
            let plain = generate(&model, &prompt, &config);
            assert_eq!(
                (plain.timing.drafted_tokens, plain.timing.acceptance_rate()),
                (0, None)
            );

            for speculate in [1, 3, 8, 20] {
                let drafted = generate(
                    &model,
                    &prompt,
                    &GenerationConfig {
                        speculate,
                        ..config.clone()
                    },
                );
                assert_eq!(
                    drafted.ids, plain.ids,
                    "{speculate} drafts, sampled: {do_sample}"
                );
                assert_eq!(drafted.finish_reason, plain.finish_reason);

                if max_new_tokens == 40 && !do_sample {
                    assert!(drafted.timing.accepted_tokens > 3, "{:?}", drafted.timing);
                    assert!(drafted.timing.acceptance_rate().unwrap() <= 1.0);
                }
            }
        }
    }
}

#[test]
fn drafts_do_not_change_where_the_text_stops() {
    let model = with_per_row_outliers();
    let stop = vec!["unto".into()];
    let plain = GenerationConfig {
        max_new_tokens: Some(48),
        stop,
        ..GenerationConfig::default()
    };
    let drafted = GenerationConfig {
        speculate: 6,
        ..plain.clone()
    };
    let [a, b] =
        [plain, drafted].map(|config| model.generation(REPETITIVE).config(config).run().unwrap());
    assert_eq!(
        (a.text, a.ids, a.finish_reason),
        (b.text, b.ids, b.finish_reason)
    );
}

#[test]
fn drafts_are_rejected_where_they_could_change_the_tokens() {
    let config = GenerationConfig {
        speculate: 4,
        ..GenerationConfig::default()
    };
    let pooled = load("tiny-gpt2", OutlierRule::batch(6.0), false);
    let error = pooled
        .generation([1, 2])
        .config(config.clone())
        .run()
        .unwrap_err();
    assert!(
        matches!(
            error,
            LlmError::Setting {
                name: "speculate",
                ..
            }
        ),
        "{error}"
    );

    let folder = golden("models/llama_dynamic_rope").display().to_string();
    let dynamic = load(&folder, OutlierRule::row(6.0), false);
    let error = dynamic
        .generation([1, 2])
        .config(config.clone())
        .run()
        .unwrap_err();
    assert!(error.to_string().contains("rotary embeddings"), "{error}");
}

#[test]
fn every_prompt_gives_the_same_text_in_a_batch_as_alone() {
    let model = with_per_row_outliers();
    let prompts = [
        "And it came to pass",
        "ROMEO:",
        "",
        REPETITIVE,
        "In the beginning God",
        "a",
    ];

    for do_sample in [false, true] {
        let config = GenerationConfig {
            max_new_tokens: Some(12),
            do_sample,
            seed: 9,
            ..model.generation_config()
        };
        let alone = prompts.map(|prompt| {
            model
                .generation(prompt)
                .config(config.clone())
                .run()
                .unwrap()
        });

        for at_once in [1, 2, 4, 16] {
            let batch = || {
                let batch = model.generate_batch(prompts);
                batch.config(config.clone()).at_once(at_once)
            };
            let together = batch().run().unwrap();
            for (a, b) in alone.iter().zip(&together) {
                assert_eq!(
                    (&a.text, &a.ids, a.finish_reason),
                    (&b.text, &b.ids, b.finish_reason),
                    "{at_once}"
                );
            }

            let mut ended: Vec<_> = batch()
                .into_iter()
                .map(|result| result.map(|(number, all)| (number, all.ids)).unwrap())
                .collect();
            ended.sort();
            assert_eq!(
                ended,
                (0..6)
                    .map(|i| (i, alone[i].ids.clone()))
                    .collect::<Vec<_>>()
            );
        }
    }
}

#[test]
fn a_batch_names_the_prompt_that_does_not_fit() {
    let model = with_per_row_outliers();
    let config = GenerationConfig {
        max_new_tokens: Some(4),
        ..GenerationConfig::default()
    };
    let run = |prompts: &[Vec<u32>], config: &GenerationConfig, at_once| {
        model
            .generate_batch(prompts)
            .config(config.clone())
            .at_once(at_once)
            .run()
    };

    let error = run(&[vec![1], vec![7; 600]], &config, 2)
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("prompt 2: the prompt has 600 tokens"),
        "{error}"
    );

    let error = run(&[vec![1], vec![999_999]], &config, 2)
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("prompt 2: ") && error.contains("999999 is beyond the vocabulary"),
        "{error}"
    );
    assert!(run(&[], &config, 2).unwrap().is_empty());
    assert!(matches!(
        run(&[vec![1]], &config, 0),
        Err(LlmError::Setting { .. })
    ));
    assert!(matches!(
        model.generate_batch([[1]]).at_once(0).into_iter().next(),
        Some(Err(_))
    ));

    let none = GenerationConfig {
        max_new_tokens: Some(0),
        ..config.clone()
    };
    assert!(
        run(&[vec![1], vec![2]], &none, 2)
            .unwrap()
            .iter()
            .all(|all| all.ids.is_empty())
    );
}

/// Each sequence has a cache in device memory, and 60 of them do not fit.
#[test]
fn a_failed_pass_ends_the_running_sequences_but_not_the_waiting_ones() {
    let Some(device) = testing::emulated(0, 40 << 20, 0) else {
        return;
    };

    let mut config = LoadConfig::default();
    config.options.placement = Placement::on(device);
    let model = AutoModelForCausalLM::from_pretrained("tiny-gpt2", &config).unwrap();
    let settings = GenerationConfig {
        max_new_tokens: Some(2),
        ..GenerationConfig::default()
    };
    let mut engine = model.engine(60).unwrap();
    let mut add = || {
        engine
            .add(Request::new([5]).config(settings.clone()).ids_only())
            .unwrap()
    };

    let first = [0; 60].map(|_| add());
    let last = add();

    let error = engine.step().map(Iterator::count).unwrap_err();
    assert!(
        matches!(error, LlmError::Decoder(DecoderError::Cuda(_))),
        "{error}"
    );
    assert!(first.iter().all(|id| !engine.contains(*id)) && engine.contains(last));

    let mut finished = Vec::new();
    while !engine.is_idle() {
        finished.extend(
            engine
                .step()
                .unwrap()
                .filter(|event| matches!(event.update, Update::Finished(_))),
        );
    }

    assert_eq!(
        finished.iter().map(|event| event.id).collect::<Vec<_>>(),
        [last]
    );
}

#[test]
fn ragged_sequences_give_the_same_logits_in_a_batch_as_alone() {
    let sequences: [&[u32]; 3] = [&[5, 6, 7, 8, 9], &[3], &[11, 4, 11, 4, 11, 4, 11, 4, 2, 1]];
    for name in [
        "gpt2",
        "llama",
        "bloom",
        "falcon",
        "gemma2",
        "phi3_longrope",
        "opt",
    ] {
        let model = load(
            &golden(&format!("models/{name}")).display().to_string(),
            OutlierRule::row(6.0),
            false,
        );
        let decoder = model.decoder();
        let vocab = decoder.spec().vocab_size();
        let mut caches = [0; 3].map(|_| decoder.new_cache());
        let mut alone = [0; 3].map(|_| decoder.new_cache());
        for step in 0..2 {
            let next = sequences.map(|ids| if step == 0 { ids } else { &[12] });
            let logits = LogitPositions::Last;
            let mut together: Vec<SequenceInput<'_>> = next
                .into_iter()
                .zip(&mut caches)
                .map(|(ids, cache)| SequenceInput { ids, cache, logits })
                .collect();
            let logits = decoder.forward(&mut together).unwrap();
            for ((ids, cache), logits) in next.into_iter().zip(&mut alone).zip(logits.chunks(vocab))
            {
                assert_eq!(logits, decoder.next_logits(ids, cache).unwrap(), "{name}");
            }
        }
    }
}

#[test]
fn an_int8_head_is_accurate_and_smaller_but_cannot_be_saved() {
    for name in [
        "tiny-gpt2".to_owned(),
        golden("models/gptj").display().to_string(),
    ] {
        let plain = load(&name, OutlierRule::batch(6.0), false);
        let head = load(&name, OutlierRule::batch(6.0), true);
        let input: Vec<u32> = (1..20).collect();
        let [a, b] = [&plain, &head].map(|model| model.logits(&input).unwrap());
        let distance = crate::support::relative_error(&b, &a);
        assert!(distance > 0.0 && distance < 0.05, "{name}: {distance}");

        let tree = head.to_string();
        assert!(tree.contains("Embedding8bit("), "{tree}");
        assert!(
            tree.lines()
                .any(|line| line.contains("(lm_head): Linear8bitLt(")),
            "{tree}"
        );

        let report = &head.load_report().layers;
        let before = &plain.load_report().layers;
        assert_eq!(
            (report.kept.len(), report.replaced.len()),
            (0, before.replaced.len() + 2)
        );

        let small = head.memory_footprint();
        let large = plain.memory_footprint();
        assert!(small.actual() < large.actual(), "{small:?} {large:?}");

        let folder = tempfile::TempDir::new().unwrap();
        let options = SaveOptions {
            max_shard_size: 1 << 30,
            layers: SavedLayers::Int8,
        };
        let target = folder.path().join("saved");
        let error = head
            .save_pretrained(&target, &options, &mut |_| ControlFlow::Continue(()))
            .unwrap_err();
        assert!(
            matches!(error, LlmError::Decoder(DecoderError::Config { .. })),
            "{error}"
        );
        assert!(!target.exists());
    }
}

#[test]
fn prefill_time_ends_when_the_first_token_is_known() {
    // Devices work asynchronously: a pass returns once it is queued, and only reading the token
    // waits for it. The emulated device does all of the queued work at that point.
    for device in testing::devices(&[0])
        .into_iter()
        .filter(|device| device.name().starts_with("emulated"))
    {
        let mut config = LoadConfig::default();
        config.options.placement = Placement::on(device);
        let model = AutoModelForCausalLM::from_pretrained("tiny-gpt2", &config).unwrap();
        let prompt: Vec<u32> = (0..200).collect();
        let config = GenerationConfig {
            max_new_tokens: Some(2),
            ..GenerationConfig::default()
        };
        let timing = generate(&model, &prompt, &config).timing;
        assert_eq!((timing.prompt_tokens, timing.decoded_tokens), (200, 1));
        assert!(
            timing.prefill > timing.decode,
            "200 rows take longer than one: {timing:?}"
        );
    }
}
