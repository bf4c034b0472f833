//! On the CPU with outliers per row, a sequence's result is the bits that it has alone: at any
//! load, with any chunks of its prompt, with and without kept prefixes, whatever its neighbours do.

use super::{REPETITIVE, alone, drawn, fixed, model};
use crate::generate::{
    Engine, EngineConfig, Generated, GenerationConfig, Logprob, Piece, Prompt, Request, SequenceId,
    Update,
};
use crate::model::AutoModelForCausalLM;
use llm_int8_nn::CacheDtype;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

/// What a sequence gave: everything but times.
#[derive(Debug, Clone, PartialEq)]
struct Result {
    pieces: Vec<Piece>,
    prompt_logprobs: Vec<Option<Logprob>>,
    generated: Option<Generated>,
}

/// Prompts with common beginnings of all lengths, some equal, some longer than a cache's first
/// allocation, and settings with seeds, drafts and processors.
fn cases() -> Vec<(Prompt, GenerationConfig)> {
    let long: Vec<u32> = (0..290).map(|i| i * 7919 % 500).collect();
    let forked = |at: usize, with: u32| {
        let mut ids = long[..at].to_vec();
        ids.extend([with; 5]);
        Prompt::Ids(ids)
    };
    let speculating = |max_new_tokens| GenerationConfig {
        max_new_tokens: Some(max_new_tokens),
        speculate: 4,
        ..GenerationConfig::default()
    };
    let penalised = GenerationConfig {
        frequency_penalty: 0.7,
        presence_penalty: 0.2,
        repetition_penalty: 1.2,
        logit_bias: [(13, -4.0), (262, 2.5)].into(),
        ..drawn(14, 0.9, 77)
    };

    vec![
        (Prompt::from(REPETITIVE), speculating(30)),
        (Prompt::from(format!("{REPETITIVE} all")), drawn(12, 1.0, 5)),
        (Prompt::from("ROMEO:"), drawn(16, 1.1, 6)),
        (Prompt::from("ROMEO:"), drawn(16, 1.1, 7)),
        (Prompt::from("ROMEO: And"), penalised),
        (Prompt::Ids(long.clone()), drawn(9, 1.0, 1)),
        (forked(250, 3), drawn(9, 1.0, 2)),
        (forked(250, 4), speculating(20)),
        (forked(31, 4), drawn(1, 1.0, 3)),
        (Prompt::from("nothing"), drawn(0, 1.0, 3)),
    ]
}

fn request(case: &(Prompt, GenerationConfig)) -> Request {
    Request::new(case.0.clone())
        .config(case.1.clone())
        .logprobs(2)
}

/// What each case gives alone, with its prompt in one pass.
fn expected(model: &AutoModelForCausalLM) -> Vec<Result> {
    let expected = cases().into_iter().map(|case| {
        let config = EngineConfig {
            prefill_tokens: 100_000,
            ..EngineConfig::default()
        };
        let mut engine = Engine::with_config(model, config).unwrap();
        let id = engine.add(request(&case)).unwrap();
        let mut results = BTreeMap::new();
        while !engine.is_idle() {
            step(&mut engine, &mut results);
        }

        let result: Result = results.remove(&id).unwrap();
        let generated = result.generated.as_ref().unwrap();
        let run = alone(model, &request(&case));
        assert_eq!(fixed(generated), fixed(&run));
        assert_eq!(result.pieces.len(), run.ids.len());
        result
    });
    expected.collect()
}

fn step(engine: &mut Engine<'_>, results: &mut BTreeMap<SequenceId, Result>) {
    for event in engine.step() {
        let result = results.entry(event.id).or_insert(Result {
            pieces: Vec::new(),
            prompt_logprobs: Vec::new(),
            generated: None,
        });
        match event.update {
            Update::Started { .. } => assert!(result.pieces.is_empty()),
            Update::Piece(piece) => result.pieces.push(piece),
            Update::Finished(mut generated) => {
                generated.timing = Default::default();
                generated.cache_bytes = 0;
                result.generated = Some(generated);
            }
            Update::Failed(error) => panic!("{error}"),
        }
    }
}

/// Random arrivals and cancellations on one engine; how many tokens were reused.
fn random_load(
    model: &AutoModelForCausalLM,
    expected: &[Result],
    config: EngineConfig,
    seed: u64,
) -> u64 {
    let name = format!("{config:?}, seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let cases = cases();
    let mut order: Vec<usize> = (0..2 * cases.len()).map(|i| i % cases.len()).collect();
    order.shuffle(&mut random);

    let mut engine = Engine::with_config(model, config).unwrap();
    let mut results = BTreeMap::new();
    let mut added: Vec<(SequenceId, usize)> = Vec::new();
    let mut cancelled = BTreeMap::new();
    while !order.is_empty() || !engine.is_idle() {
        if let Some(case) = order.pop_if(|_| random.random_bool(0.4)) {
            let salt = [None, Some("a"), Some("b")][random.random_range(0..3)];
            let request = request(&cases[case]);
            let request = match salt {
                Some(salt) => request.cache_salt(salt),
                None => request,
            };
            added.push((engine.add(request).unwrap(), case));
        }
        // About a third is cancelled: while it waits, in its prompt, or after it.
        if random.random_bool(0.1) && !added.is_empty() {
            let (id, _) = added[random.random_range(0..added.len())];
            if let Some(generated) = engine.cancel(id) {
                cancelled.insert(id, generated);
            }
        }
        step(&mut engine, &mut results);
        let state = engine.state();
        assert!(
            state.cache_bytes <= state.cache_budget.unwrap_or(u64::MAX),
            "{name}"
        );
    }

    for (id, case) in added {
        let whole = &expected[case];
        match cancelled.get(&id) {
            None => assert_eq!(
                results.remove(&id).as_ref(),
                Some(whole),
                "{name}, case {case}"
            ),
            Some(generated) => {
                let pieces = results
                    .remove(&id)
                    .map_or(Vec::new(), |result| result.pieces);
                let ids: Vec<u32> = pieces.iter().map(|piece| piece.id).collect();
                assert_eq!(generated.ids, ids, "{name}, case {case}");
                assert_eq!(whole.pieces[..ids.len()], pieces, "{name}, case {case}");
            }
        }
    }
    assert_eq!(engine.state().running + engine.state().waiting, 0);
    engine.state().prefix_hits
}

#[test]
fn random_loads_chunks_and_caches_give_the_bits_of_a_sequence_alone() {
    check_loads(&model(), &[1, 3, 8], &[1, 3, 512]);
}

#[test]
fn with_an_int8_cache_too() {
    let mut model = model();
    model
        .decoder_mut()
        .set_cache_dtype(CacheDtype::Int8)
        .unwrap();
    check_loads(&model, &[8], &[3, 512]);
}

fn check_loads(model: &AutoModelForCausalLM, at_once: &[usize], prefill_tokens: &[usize]) {
    assert!(model.decoder().is_batch_invariant());
    let expected = expected(model);
    let mut seed = 0;
    let mut reused = 0;
    for &at_once in at_once {
        for &prefill_tokens in prefill_tokens {
            for (prefix_cache_bytes, cache_bytes) in
                [(0, None), (1 << 30, None), (6 << 20, Some(12 << 20))]
            {
                let config = EngineConfig {
                    at_once,
                    cache_bytes,
                    prefill_tokens,
                    prefix_cache_bytes,
                };
                seed += 1;
                let tokens = random_load(model, &expected, config, seed);
                assert!(tokens == 0 || prefix_cache_bytes > 0);
                reused += tokens;
            }
        }
    }
    assert!(reused > 0);
}

#[test]
fn log_probabilities_of_a_prompt_are_those_of_its_logits() {
    let model = model();
    let ids = model.tokenizer().unwrap().encode(REPETITIVE).unwrap();
    let logits = model.logits(&ids).unwrap().squeeze(0).unwrap();
    let logits = logits.to_vec2::<f32>().unwrap();
    let log_softmax = |at: usize, id: u32| {
        let total: f64 = logits[at].iter().map(|x| f64::from(*x).exp()).sum();
        f64::from(logits[at][id as usize]) - total.ln()
    };

    let run = |prefill_tokens, max_new_tokens| {
        let config = EngineConfig {
            prefill_tokens,
            prefix_cache_bytes: 1 << 30,
            ..EngineConfig::default()
        };
        let mut engine = Engine::with_config(&model, config).unwrap();
        let mut results = BTreeMap::new();
        // The second time, the prompt is kept, but it is computed again.
        let id = [0, 1].map(|_| {
            let request = Request::new(&ids).config(drawn(max_new_tokens, 1.0, 1));
            let id = engine.add(request.prompt_logprobs(3)).unwrap();
            while !engine.is_idle() {
                step(&mut engine, &mut results);
            }
            id
        });
        assert_eq!(
            (engine.state().prefix_hits, engine.state().kept_prefixes),
            (0, 1)
        );
        assert_eq!(results[&id[0]], results[&id[1]]);
        results.remove(&id[0]).unwrap().generated.unwrap()
    };

    let whole = run(512, 0);
    assert_eq!(
        (whole.ids.len(), whole.prompt_logprobs.len()),
        (0, ids.len())
    );
    assert_eq!(whole.finish_reason, super::FinishReason::Length);
    assert!(whole.prompt_logprobs[0].is_none());
    for (at, found) in whole.prompt_logprobs.iter().enumerate().skip(1) {
        let found = found.as_ref().unwrap();
        assert_eq!((found.id, found.top.len()), (ids[at], 3));
        assert!((f64::from(found.logprob) - log_softmax(at - 1, ids[at])).abs() < 1e-4);
        for (id, logprob) in &found.top {
            assert!((f64::from(*logprob) - log_softmax(at - 1, *id)).abs() < 1e-4);
        }
    }

    for prefill_tokens in [1, 3] {
        for max_new_tokens in [0, 2] {
            let chunked = run(prefill_tokens, max_new_tokens);
            assert_eq!(chunked.prompt_logprobs, whole.prompt_logprobs);
            assert_eq!(chunked.ids.len(), max_new_tokens);
        }
    }
}

/// With outliers per batch, results depend on what is computed together, but everything ends and
/// has the length it should.
#[test]
fn outliers_per_batch_run_in_chunks_and_with_kept_prefixes_too() {
    let model = crate::AutoModelForCausalLM::from_pretrained("tiny-gpt2", &Default::default());
    let model = model.unwrap();
    assert!(!model.decoder().is_batch_invariant());
    let config = EngineConfig {
        at_once: 3,
        prefill_tokens: 16,
        prefix_cache_bytes: 1 << 30,
        ..EngineConfig::default()
    };
    let mut engine = Engine::with_config(&model, config).unwrap();
    let mut results = BTreeMap::new();
    for _ in 0..2 {
        for case in cases()
            .into_iter()
            .filter(|(_, config)| config.speculate == 0)
        {
            engine.add(request(&case)).unwrap();
        }
        while !engine.is_idle() {
            step(&mut engine, &mut results);
        }
    }
    assert!(engine.state().prefix_hits > 500, "{:?}", engine.state());
    let ended = results.values().filter(|result| result.generated.is_some());
    assert_eq!(ended.count(), 16);
}
