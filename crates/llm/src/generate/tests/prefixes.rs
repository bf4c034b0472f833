//! Which prefixes are kept, which are reused, and which are dropped first.

use super::{drawn, model};
use crate::generate::{Engine, EngineConfig, Generated, Request, Update};
use crate::model::AutoModelForCausalLM;

/// Ids that begin with `first` and fill less than one allocation of a cache.
fn prompt(first: u32, count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (first + i * 11) % 500).collect()
}

fn request(prompt: Vec<u32>) -> Request {
    Request::new(prompt).config(drawn(4, 1.0, 1)).ids_only()
}

/// An engine that keeps `kept` caches of up to 256 positions, of `units` in all.
fn engine(model: &AutoModelForCausalLM, kept: u64, units: Option<u64>) -> Engine<'_> {
    let unit = model.decoder().cache_bytes(1);
    let config = EngineConfig {
        at_once: 2,
        cache_bytes: units.map(|units| units * unit),
        prefix_cache_bytes: kept * unit,
        ..EngineConfig::default()
    };
    Engine::with_config(model, config).unwrap()
}

/// Runs a request alone; its tokens that were reused, and the result.
fn run(engine: &mut Engine<'_>, request: Request) -> (usize, Generated) {
    engine.add(request).unwrap();
    let mut outcome = (usize::MAX, None);
    while !engine.is_idle() {
        for event in engine.step() {
            match event.update {
                Update::Started {
                    prompt_tokens,
                    reused_tokens,
                } => {
                    assert!(reused_tokens < prompt_tokens);
                    outcome.0 = reused_tokens;
                }
                Update::Finished(generated) => outcome.1 = Some(generated),
                Update::Piece(_) => {}
                Update::Failed(error) => panic!("{error}"),
            }
        }
    }

    let (reused, generated) = (outcome.0, outcome.1.unwrap());
    assert_eq!(generated.timing.reused_tokens, reused);
    (reused, generated)
}

#[test]
fn the_least_recently_used_prefix_is_dropped_first() {
    let model = model();
    let mut engine = engine(&model, 2, None);
    let mut reused = |first| run(&mut engine, request(prompt(first, 50))).0;
    assert_eq!([reused(1), reused(2)], [0, 0]);
    assert_eq!(
        reused(1),
        49,
        "all but the last, which is computed for its logits"
    );
    assert_eq!(reused(3), 0, "drops 2");
    assert_eq!([reused(1), reused(3)], [49, 49]);
    assert_eq!(reused(2), 0);
    assert_eq!([reused(3), reused(2), reused(1)], [49, 49, 0]);
    assert_eq!(engine.state().kept_prefixes, 2);
}

#[test]
fn nothing_is_kept_without_a_budget_or_beyond_it() {
    let model = model();
    let mut none = engine(&model, 0, None);
    let mut small = engine(&model, 1, None);
    for engine in [&mut none, &mut small] {
        // 257 tokens take two units.
        for _ in 0..2 {
            assert_eq!(run(engine, request(prompt(1, 257))).0, 0);
        }
        assert_eq!(
            (engine.state().kept_prefixes, engine.state().kept_bytes),
            (0, 0)
        );
    }
    assert_eq!(none.state().prefix_queries, 0);
    assert_eq!(small.state().prefix_queries, 514);
}

#[test]
fn a_conversation_moves_its_prefix_and_a_common_beginning_is_copied() {
    let model = model();
    let mut engine = engine(&model, 8, None);
    let (_, generated) = run(&mut engine, request(prompt(1, 50)));
    // The next turn begins with the prompt and the reply; the reply's last token was not computed.
    let mut ids = [prompt(1, 50), generated.ids].concat();
    ids.extend([7, 8, 9]);
    assert_eq!(run(&mut engine, request(ids)).0, 53);
    assert_eq!(
        engine.state().kept_prefixes,
        1,
        "moved, and kept with the new turn"
    );

    let mut forked = prompt(1, 40);
    forked.extend([3, 3]);
    assert_eq!(run(&mut engine, request(forked)).0, 40);
    assert_eq!(engine.state().kept_prefixes, 2);
    assert_eq!(run(&mut engine, request(prompt(1, 50))).0, 49);
    assert_eq!(
        engine.state().kept_prefixes,
        2,
        "it adds nothing to what is kept"
    );
    let state = engine.state();
    assert_eq!(
        (state.prefix_queries, state.prefix_hits),
        (50 + 57 + 42 + 50, 53 + 40 + 49)
    );
}

#[test]
fn a_prefix_that_waiting_prompts_begin_with_too_is_copied() {
    let model = model();
    let mut engine = engine(&model, 8, None);
    let (_, generated) = run(&mut engine, request(prompt(1, 50)));
    let begun = [&prompt(1, 50)[..], &generated.ids[..3]].concat();
    for last in 0..4 {
        let ids = [&begun[..], &[last]].concat();
        engine.add(request(ids)).unwrap();
    }
    while !engine.is_idle() {
        drop(engine.step());
    }
    assert_eq!(engine.state().prefix_hits, 4 * 53);
}

#[test]
fn prefixes_are_shared_only_by_equal_salts() {
    let model = model();
    let mut engine = engine(&model, 8, None);
    let mut reused = |salt: Option<&str>| {
        let request = request(prompt(1, 50));
        let request = match salt {
            Some(salt) => request.cache_salt(salt),
            None => request,
        };
        run(&mut engine, request).0
    };
    assert_eq!([reused(None), reused(None)], [0, 49]);
    assert_eq!([reused(Some("a")), reused(Some("a"))], [0, 49]);
    assert_eq!([reused(Some("b")), reused(Some(""))], [0, 0]);
    assert_eq!([reused(None), reused(Some("b"))], [49, 49]);
}

#[test]
fn prefixes_make_room_for_sequences_before_those_need_memory() {
    let model = model();
    let unit = model.decoder().cache_bytes(1);
    let mut engine = engine(&model, 2, Some(2));
    for first in [1, 2] {
        run(&mut engine, request(prompt(first, 50)));
    }
    assert_eq!(engine.state().cache_bytes, 2 * unit);

    // There is room for one more cache only if the least recently used is dropped.
    assert_eq!(run(&mut engine, request(prompt(3, 50))).0, 0);
    assert_eq!(
        run(&mut engine, request(prompt(2, 50))).0,
        49,
        "drops 3 for the copy"
    );
    assert_eq!(run(&mut engine, request(prompt(3, 50))).0, 0);

    // Without room for a copy, the prefix is moved.
    let mut small = self::engine(&model, 1, Some(1));
    for reused in [0, 49, 49] {
        assert_eq!(run(&mut small, request(prompt(1, 50))).0, reused);
    }

    // Two at once leave no room for any.
    for first in [7, 8] {
        engine.add(request(prompt(first, 50))).unwrap();
    }
    drop(engine.step());
    let state = engine.state();
    assert_eq!(
        (state.running, state.kept_prefixes, state.cache_bytes),
        (2, 0, 2 * unit)
    );
}

#[test]
fn a_cancelled_sequence_leaves_what_it_has_computed() {
    let model = model();
    let config = EngineConfig {
        prefill_tokens: 20,
        prefix_cache_bytes: 1 << 30,
        ..EngineConfig::default()
    };
    let mut engine = Engine::with_config(&model, config).unwrap();
    let id = engine.add(request(prompt(1, 50))).unwrap();
    drop(engine.step());
    drop(engine.step());
    let generated = engine.cancel(id).unwrap();
    assert!(generated.ids.is_empty() && generated.cache_bytes > 0);
    assert_eq!(run(&mut engine, request(prompt(1, 50))).0, 40);
}

/// An engine that computes 20 tokens of prompts in a pass.
fn in_chunks(model: &AutoModelForCausalLM, at_once: usize) -> Engine<'_> {
    let config = EngineConfig {
        at_once,
        prefill_tokens: 20,
        prefix_cache_bytes: 1 << 30,
        ..EngineConfig::default()
    };
    Engine::with_config(model, config).unwrap()
}

fn with_seed(prompt: Vec<u32>, seed: u64) -> Request {
    Request::new(prompt).config(drawn(6, 1.0, seed)).ids_only()
}

#[test]
fn prompts_that_come_together_are_computed_once() {
    let model = model();
    let alone: Vec<Vec<u32>> = (0..4)
        .map(|seed| {
            run(&mut in_chunks(&model, 1), with_seed(prompt(1, 90), seed))
                .1
                .ids
        })
        .collect();
    assert!(alone.iter().any(|ids| *ids != alone[0]));

    let mut engine = in_chunks(&model, 8);
    let ids: Vec<_> = (0..4)
        .map(|seed| engine.add(with_seed(prompt(1, 90), seed)).unwrap())
        .collect();
    let mut running = Vec::new();
    let mut found = vec![Vec::new(); 4];
    while !engine.is_idle() {
        let events: Vec<_> = engine.step().collect();
        running.push(engine.running());
        for event in events {
            let place = ids.iter().position(|id| *id == event.id).unwrap();
            match event.update {
                Update::Started { reused_tokens, .. } => {
                    assert_eq!(reused_tokens, if place == 0 { 0 } else { 89 });
                }
                Update::Finished(generated) => found[place] = generated.ids,
                Update::Piece(_) => {}
                Update::Failed(error) => panic!("{error}"),
            }
        }
    }
    assert_eq!(found, alone);
    assert_eq!(
        running[..6],
        [1, 1, 1, 1, 1, 4],
        "five passes of the prompt"
    );
    assert_eq!(engine.state().prefix_hits, 3 * 89);
}

#[test]
fn what_a_running_sequence_has_computed_is_copied() {
    let model = model();
    let mut engine = in_chunks(&model, 2);
    let long = Request::new(prompt(1, 50)).config(drawn(100, 1.0, 1));
    let long = engine.add(long.ids_only()).unwrap();
    while engine.state().generated_tokens == 0 {
        drop(engine.step());
    }

    let mut forked = prompt(1, 40);
    forked.extend([3, 3]);
    let mut other = in_chunks(&model, 1);
    let (_, expected) = run(&mut other, request(forked.clone()));
    let second = engine.add(request(forked)).unwrap();
    let mut result = None;
    while result.is_none() {
        for event in engine.step() {
            match event.update {
                Update::Started { reused_tokens, .. } => assert_eq!(reused_tokens, 40),
                Update::Finished(generated) if event.id == second => result = Some(generated),
                _ => {}
            }
        }
    }
    assert!(engine.contains(long), "it still runs");
    assert_eq!(result.unwrap().ids, expected.ids);
}

#[test]
fn a_sequence_waits_only_for_much_of_its_prompt_and_with_its_salt() {
    let model = model();
    let running_after_a_step = |second: Request| {
        let mut engine = in_chunks(&model, 8);
        engine.add(request(prompt(1, 90))).unwrap();
        engine.add(second).unwrap();
        drop(engine.step());
        engine.running()
    };
    let with_tail = |same: usize, tail: usize| request([prompt(1, same), prompt(7, tail)].concat());
    assert_eq!(running_after_a_step(request(prompt(1, 90))), 1);
    assert_eq!(running_after_a_step(with_tail(40, 40)), 1);
    assert_eq!(running_after_a_step(with_tail(40, 41)), 2);
    assert_eq!(running_after_a_step(with_tail(31, 3)), 2);
    assert_eq!(running_after_a_step(with_tail(32, 3)), 1);
    let salted = request(prompt(1, 90)).cache_salt("a");
    assert_eq!(running_after_a_step(salted), 2);
    let read = request(prompt(1, 90)).prompt_logprobs(0);
    assert_eq!(running_after_a_step(read), 2);
}

#[test]
fn a_sequence_that_waits_for_a_prompt_holds_its_slot() {
    let model = model();
    let mut engine = in_chunks(&model, 2);
    let first = engine.add(request(prompt(1, 90))).unwrap();
    let second = engine.add(request(prompt(1, 90))).unwrap();
    engine.add(request(prompt(7, 90))).unwrap();
    drop(engine.step());
    drop(engine.step());
    assert_eq!((engine.running(), engine.waiting()), (1, 2));

    // What the cancelled one has computed is moved.
    engine.cancel(first).unwrap();
    let reused: Vec<_> = engine
        .step()
        .filter_map(|event| match event.update {
            Update::Started { reused_tokens, .. } => Some((event.id, reused_tokens)),
            _ => None,
        })
        .collect();
    assert_eq!(reused[0], (second, 40));
    assert_eq!((reused.len(), engine.running()), (2, 2));
}
