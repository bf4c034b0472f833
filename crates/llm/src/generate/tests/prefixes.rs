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
