//! Limits of memory, the order in which sequences start, and passes that fail.

use super::failures::panic_in;
use super::{Seen, alone, drawn, fixed, model, requests};
use crate::error::LlmError;
use crate::generate::{Engine, EngineConfig, Event, GenerationConfig, Request, SequenceId, Update};
use crate::model::AutoModelForCausalLM;
use llm_int8_nn::CacheDtype;

fn ids_request(prompt: usize, new: usize) -> Request {
    let prompt: Vec<u32> = (0..prompt as u32).map(|i| i * 37 % 500).collect();
    Request::new(prompt).config(drawn(new, 1.0, 1)).ids_only()
}

/// Bytes of a cache of up to 256 positions; larger ones are multiples.
fn unit(model: &AutoModelForCausalLM) -> u64 {
    model.decoder().cache_bytes(1)
}

fn limited(model: &AutoModelForCausalLM, units: u64, kept: u64) -> Engine<'_> {
    let config = EngineConfig {
        cache_bytes: Some(units * unit(model)),
        prefix_cache_bytes: kept * unit(model),
        ..EngineConfig::default()
    };
    Engine::with_config(model, config).unwrap()
}

fn started(events: Vec<Event>) -> Vec<SequenceId> {
    let started = events
        .into_iter()
        .filter(|event| matches!(event.update, Update::Started { .. }));
    started.map(|event| event.id).collect()
}

#[test]
fn limits_of_zero_are_refused() {
    let model = model();
    let refused = |config| Engine::with_config(&model, config).unwrap_err().to_string();
    let none_at_once = EngineConfig {
        at_once: 0,
        ..EngineConfig::default()
    };
    assert!(refused(none_at_once).contains("sequences that run at once is 0"));
    let no_prompt = EngineConfig {
        prefill_tokens: 0,
        ..EngineConfig::default()
    };
    assert!(refused(no_prompt).contains("prompt tokens per pass is 0"));
}

#[test]
fn a_request_that_can_never_fit_is_refused_at_once() {
    let model = model();
    let mut engine = limited(&model, 1, 0);
    assert!(engine.add(ids_request(250, 6)).is_ok());
    let error = engine.add(ids_request(250, 7)).unwrap_err();
    let LlmError::CacheExceeded {
        tokens,
        needed,
        available,
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!((tokens, needed), (257, 2 * available));
    let mut none = limited(&model, 0, 0);
    assert!(none.add("ROMEO:").is_err());
}

/// A budget that holds two caches in f16 holds three in int8.
#[test]
fn more_sequences_run_in_the_same_memory_with_an_int8_cache() {
    let float = model();
    let budget = 2 * unit(&float);
    let mut int8 = model();
    int8.decoder_mut()
        .set_cache_dtype(CacheDtype::Int8)
        .unwrap();
    for (model, expected) in [(&float, 2), (&int8, 3)] {
        let config = EngineConfig {
            cache_bytes: Some(budget),
            ..EngineConfig::default()
        };
        let mut engine = Engine::with_config(model, config).unwrap();
        for _ in 0..8 {
            engine.add(ids_request(20, 5)).unwrap();
        }
        let started = started(engine.step().collect());
        assert_eq!(started.len(), expected);
        assert!(engine.state().cache_bytes <= budget);
    }
}

/// A big request at the head of the queue is not passed by small ones that would fit.
#[test]
fn sequences_start_in_order_as_far_as_their_caches_fit() {
    let model = model();
    let mut engine = limited(&model, 3, 0);
    let sizes = [(20, 12), (20, 4), (300, 3), (20, 3), (20, 3), (300, 9)];
    let added = sizes.map(|(prompt, new)| engine.add(ids_request(prompt, new)).unwrap());

    let mut order = Vec::new();
    let mut together = Vec::new();
    while !engine.is_idle() {
        order.extend(started(engine.step().collect()));
        let state = engine.state();
        assert!(state.cache_bytes <= 3 * unit(&model));
        together.push((state.running, state.waiting));
    }
    assert_eq!(order, added);
    assert_eq!(
        together[0],
        (2, 4),
        "the big one waits, and those behind it"
    );
    assert!(together.contains(&(3, 1)), "{together:?}");
    assert_eq!(engine.state().cache_bytes, 0);
}

#[test]
fn caches_stay_within_what_was_reserved_for_them() {
    let model = model();
    let decoder = model.decoder();
    for (prompt, new) in [(255, 1), (255, 2), (250, 30), (10, 260), (500, 12)] {
        let request = ids_request(prompt, new);
        let config = GenerationConfig {
            speculate: 8,
            do_sample: false,
            ..request.config.clone().unwrap()
        };
        let mut engine = model.engine(1).unwrap();
        engine.add(request.config(config)).unwrap();
        let mut seen = Seen::default();
        seen.run(&mut engine);
        for generated in seen.finished.values() {
            assert!(generated.cache_bytes <= decoder.cache_bytes(prompt + new));
        }
    }
}

#[test]
fn a_panic_in_a_pass_ends_only_the_sequences_that_took_part() {
    let model = model();
    let config = EngineConfig {
        at_once: 3,
        prefill_tokens: 8,
        prefix_cache_bytes: 1 << 30,
        ..EngineConfig::default()
    };
    let mut engine = Engine::with_config(&model, config).unwrap();
    let mut seen = Seen::default();
    let kept = engine.add("And it came to pass").unwrap();
    seen.run(&mut engine);

    let first = engine.add(ids_request(40, 5)).unwrap();
    let second = engine.add(ids_request(41, 5)).unwrap();
    let waiting = ["ROMEO:", "And it came to pass"].map(|prompt| {
        let config = drawn(5, 1.0, 3);
        engine.add(Request::new(prompt).config(config)).unwrap()
    });
    // The first two prompts share no pass of 8 tokens: the shorter one comes first.
    seen.step(&mut engine);
    panic_in(1);
    seen.step(&mut engine);
    assert_eq!(engine.state().failed_passes, 1);
    let failed: Vec<&SequenceId> = seen.failed.keys().collect();
    assert!(failed.contains(&&first) && failed.len() < 3, "{failed:?}");
    for error in seen.failed.values() {
        let text = error.to_string();
        assert!(text.contains("panicked: a panic on purpose"), "{text}");
        assert!(matches!(error, LlmError::PassFailed { .. }));
    }

    seen.run(&mut engine);
    let rest = [second, waiting[0], waiting[1]];
    let rest = rest.iter().filter(|id| !seen.failed.contains_key(id));
    assert!(rest.clone().count() >= 2);
    for id in rest {
        let request = match *id == second {
            true => ids_request(41, 5),
            false => {
                let place = waiting.iter().position(|waiting| waiting == id).unwrap();
                let prompt = ["ROMEO:", "And it came to pass"][place];
                Request::new(prompt).config(drawn(5, 1.0, 3))
            }
        };
        assert_eq!(fixed(&seen.finished[id]), fixed(&alone(&model, &request)));
    }
    assert!(seen.finished.contains_key(&kept));
    assert!(
        engine.state().prefix_hits > 0,
        "what was kept is still used"
    );
}

/// Nothing is left of a failed pass: the same requests give the same afterwards.
#[test]
fn an_engine_works_on_after_every_pass_has_failed_once() {
    let model = model();
    let config = EngineConfig {
        at_once: 4,
        prefill_tokens: 8,
        prefix_cache_bytes: 1 << 30,
        ..EngineConfig::default()
    };
    let mut engine = Engine::with_config(&model, config).unwrap();
    for failing in 1..12 {
        panic_in(failing);
        let ids = requests().map_ids(&mut engine);
        let mut seen = Seen::default();
        seen.run(&mut engine);
        assert!(!seen.failed.is_empty());
        for (id, request) in ids.iter().zip(requests()) {
            if let Some(generated) = seen.finished.get(id) {
                assert_eq!(fixed(generated), fixed(&alone(&model, &request)));
            }
        }
        assert_eq!(seen.finished.len() + seen.failed.len(), ids.len());
    }
    assert_eq!(engine.state().failed_passes, 11);
}

/// Adds all requests to an engine.
trait MapIds {
    fn map_ids(self, engine: &mut Engine<'_>) -> Vec<SequenceId>;
}

impl MapIds for Vec<Request> {
    fn map_ids(self, engine: &mut Engine<'_>) -> Vec<SequenceId> {
        self.into_iter()
            .map(|request| engine.add(request).unwrap())
            .collect()
    }
}
