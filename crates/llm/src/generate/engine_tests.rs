//! Sequences that run together give what each gives alone, and pieces add up to the result.

use super::{
    Engine, Event, FinishReason, Generated, GenerationConfig, Piece, Pieces, Request, SequenceId,
    Update,
};
use crate::error::LlmError;
use crate::load::LoadConfig;
use crate::model::AutoModelForCausalLM;
use llm_int8_nn::linear::OutlierRule;
use std::collections::BTreeMap;

const REPETITIVE: &str = "the king said unto him, the king said unto them, the king said unto";

/// With outliers per row, so that a token does not depend on its batch.
fn model() -> AutoModelForCausalLM {
    let mut config = LoadConfig::default();
    config.options.int8.as_mut().unwrap().outliers = OutlierRule::row(6.0);
    AutoModelForCausalLM::from_pretrained("tiny-gpt2", &config).unwrap()
}

fn drawn(max_new_tokens: usize, temperature: f64, seed: u64) -> GenerationConfig {
    let max_new_tokens = Some(max_new_tokens);
    GenerationConfig {
        max_new_tokens,
        do_sample: true,
        temperature,
        seed,
        ..GenerationConfig::default()
    }
}

/// Requests that all have different settings.
fn requests() -> Vec<Request> {
    let greedy = |max_new_tokens, speculate, stop: &[&str]| GenerationConfig {
        max_new_tokens: Some(max_new_tokens),
        speculate,
        stop: stop.iter().map(|text| (*text).to_owned()).collect(),
        ..GenerationConfig::default()
    };

    let biased = GenerationConfig {
        no_repeat_ngram_size: 2,
        repetition_penalty: 1.3,
        ..drawn(11, 0.9, 4)
    };

    vec![
        Request::new("And it came to pass").config(greedy(7, 0, &[])),
        Request::new("ROMEO:").config(drawn(15, 1.2, 3)),
        Request::new("ROMEO:").config(drawn(15, 0.5, 3)),
        Request::new(REPETITIVE).config(greedy(
            40,
            4,
            &["king of Assyria, and the king of Assyria"],
        )),
        Request::new("").config(greedy(24, 0, &["the", "\n"])),
        Request::new([5, 6, 7]).config(biased).ids_only(),
        Request::new("nothing").config(greedy(0, 0, &[])),
        Request::new("In the beginning God").config(drawn(1, 1.0, 9)),
    ]
}

/// What a request gives when it runs alone.
fn alone(model: &AutoModelForCausalLM, request: &Request) -> Generated {
    let config = request.config.clone().unwrap();
    let generation = model.generation(request.prompt.clone()).config(config);
    if request.has_text {
        generation.run().unwrap()
    } else {
        generation.ids_only().run().unwrap()
    }
}

/// The part of a result that does not depend on time.
fn fixed(generated: &Generated) -> (&str, &[u32], FinishReason) {
    (&generated.text, &generated.ids, generated.finish_reason)
}

/// All events of an engine, by sequence.
#[derive(Default)]
struct Seen {
    pieces: BTreeMap<SequenceId, Vec<Piece>>,
    finished: BTreeMap<SequenceId, Generated>,
    failed: BTreeMap<SequenceId, LlmError>,
}

impl Seen {
    fn step(&mut self, engine: &mut Engine<'_>) {
        for event in engine.step() {
            let has_ended =
                self.finished.contains_key(&event.id) || self.failed.contains_key(&event.id);
            assert!(!has_ended, "no event after the last one");
            match event.update {
                Update::Started { .. } => assert!(!self.pieces.contains_key(&event.id)),
                Update::Piece(piece) => self.pieces.entry(event.id).or_default().push(piece),
                Update::Finished(generated) => drop(self.finished.insert(event.id, generated)),
                Update::Failed(error) => drop(self.failed.insert(event.id, error)),
            }
        }
    }

    fn run(&mut self, engine: &mut Engine<'_>) {
        while !engine.is_idle() {
            self.step(engine);
        }

        assert_eq!(engine.step().count(), 0, "an idle engine does nothing");
    }

    /// Checks that the pieces of a sequence add up to its result.
    fn check(&self, id: SequenceId) {
        let pieces = self.pieces.get(&id);
        let generated = &self.finished[&id];
        let ids: Vec<u32> = pieces.into_iter().flatten().map(|piece| piece.id).collect();
        let text: String = pieces
            .into_iter()
            .flatten()
            .map(|piece| piece.text.as_str())
            .collect();
        assert_eq!((&ids, &text), (&generated.ids, &generated.text));
    }
}

#[test]
fn sequences_with_different_settings_give_what_each_gives_alone() {
    let model = model();
    let expected: Vec<Generated> = requests()
        .iter()
        .map(|request| alone(&model, request))
        .collect();
    assert!(
        expected[1].ids != expected[2].ids,
        "another temperature gives other tokens"
    );
    assert_eq!(expected[3].finish_reason, FinishReason::StopString);
    for at_once in [1, 2, 3, 8, 100] {
        let mut engine = model.engine(at_once).unwrap();
        let mut seen = Seen::default();
        let ids: Vec<SequenceId> = requests()
            .into_iter()
            .map(|one| engine.add(one).unwrap())
            .collect();
        seen.run(&mut engine);
        for (id, expected) in ids.iter().zip(&expected) {
            assert_eq!(
                fixed(&seen.finished[id]),
                fixed(expected),
                "{at_once} at once"
            );

            seen.check(*id);
        }
    }
}

/// A server runs its engine on a thread of its own.
#[test]
fn an_engine_and_its_events_are_send() {
    fn is_send<T: Send>() {}
    is_send::<Engine<'_>>();
    is_send::<Event>();
    is_send::<Pieces<'_>>();
}

#[test]
fn sequences_can_be_added_while_others_run() {
    let model = model();
    let requests = requests();
    let mut engine = model.engine(3).unwrap();
    let mut seen = Seen::default();
    let mut ids = Vec::new();
    for request in self::requests() {
        ids.push(engine.add(request).unwrap());
        seen.step(&mut engine);
        seen.step(&mut engine);
        assert!(engine.running() <= 3);
    }

    seen.run(&mut engine);
    for (id, request) in ids.into_iter().zip(&requests) {
        assert_eq!(fixed(&seen.finished[&id]), fixed(&alone(&model, request)));
    }
}

#[test]
fn a_prompt_and_a_running_sequence_share_a_pass() {
    let model = model();
    let mut engine = model.engine(2).unwrap();
    let mut seen = Seen::default();
    let first = engine
        .add(Request::new("ROMEO:").config(drawn(5, 1.0, 1)))
        .unwrap();
    seen.step(&mut engine);
    let second = engine
        .add(Request::new("JULIET:").config(drawn(5, 1.0, 2)))
        .unwrap();
    seen.step(&mut engine);
    assert_eq!(
        (seen.pieces[&first].len(), seen.pieces[&second].len()),
        (2, 1)
    );

    // Prompts that are too long for one pass are computed in chunks, one after the other, while the
    // running sequences go on.
    let mut engine = model.engine(8).unwrap();
    for _ in 0..3 {
        engine
            .add(
                Request::new(vec![7; 300])
                    .config(drawn(4, 1.0, 1))
                    .ids_only(),
            )
            .unwrap();
    }

    let tokens = [0; 3].map(|_| {
        seen = Seen::default();
        seen.step(&mut engine);
        (engine.waiting(), seen.pieces.len())
    });
    assert_eq!(tokens, [(0, 1), (0, 3), (0, 3)]);
}

#[test]
fn a_cancelled_sequence_returns_its_tokens_and_the_others_go_on() {
    let model = model();
    let requests = requests();
    let mut engine = model.engine(2).unwrap();
    let mut seen = Seen::default();
    let ids: Vec<SequenceId> = self::requests()
        .into_iter()
        .take(4)
        .map(|request| engine.add(request).unwrap())
        .collect();
    for _ in 0..3 {
        seen.step(&mut engine);
    }

    let running = engine.cancel(ids[1]).unwrap();
    assert_eq!(fixed(&running).2, FinishReason::Interrupted);
    assert_eq!((running.ids.len(), running.timing.decoded_tokens), (3, 2));
    assert!(alone(&model, &requests[1]).text.starts_with(&running.text));
    let waiting = engine.cancel(ids[3]).unwrap();
    assert_eq!(fixed(&waiting), ("", &[][..], FinishReason::Interrupted));
    assert!(engine.cancel(ids[1]).is_none() && engine.cancel(ids[3]).is_none());
    assert!(engine.contains(ids[0]) && engine.contains(ids[2]) && !engine.contains(ids[3]));

    seen.run(&mut engine);
    assert_eq!(seen.finished.len(), 2);
    for place in [0, 2] {
        assert_eq!(
            fixed(&seen.finished[&ids[place]]),
            fixed(&alone(&model, &requests[place]))
        );
    }
}

#[test]
fn a_failed_sequence_does_not_stop_the_others() {
    let model = model();
    let vocabulary = model.decoder().spec().vocab_size() as u32;
    let nothing_left = GenerationConfig {
        suppress_tokens: (0..vocabulary).collect(),
        ..drawn(9, 1.0, 1)
    };
    let failing = || Request::new("ROMEO:").config(nothing_left.clone());
    let good = &requests()[..2];

    let mut engine = model.engine(8).unwrap();
    let mut seen = Seen::default();
    let [a, b] = [0, 1].map(|place| requests().remove(place));
    let first = engine.add(a).unwrap();
    let bad = engine.add(failing()).unwrap();
    let last = engine.add(b).unwrap();
    assert!(
        engine.add(Request::new([vocabulary])).is_err(),
        "refused at once"
    );
    seen.run(&mut engine);
    assert!(matches!(seen.failed[&bad], LlmError::BadLogits));
    assert_eq!(
        fixed(&seen.finished[&first]),
        fixed(&alone(&model, &good[0]))
    );
    assert_eq!(
        fixed(&seen.finished[&last]),
        fixed(&alone(&model, &good[1]))
    );

    let batch = || {
        let [a, b] = [0, 1].map(|place| requests().remove(place));
        model.generate_batch([a, failing(), b])
    };
    let results: Vec<_> = batch().into_iter().collect();
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 2);
    let error = results.into_iter().find_map(Result::err).unwrap();
    assert!(
        matches!(error, LlmError::Prompt { number: 2, .. }),
        "{error}"
    );
    assert!(batch().run().is_err());

    let mut pieces = model
        .generation("ROMEO:")
        .config(nothing_left)
        .pieces()
        .unwrap();
    assert!(matches!(pieces.next(), Some(Err(LlmError::BadLogits))));
    assert!(pieces.next().is_none() && matches!(pieces.finish(), Err(LlmError::Interrupted)));
}

#[test]
fn generation_stops_when_no_more_pieces_are_taken() {
    let model = model();
    // With drafts a pass gives several tokens, and the caller may not take the last ones.
    for speculate in [0, 6] {
        let config = GenerationConfig {
            max_new_tokens: Some(30),
            speculate,
            ..GenerationConfig::default()
        };

        let whole = model
            .generation(REPETITIVE)
            .config(config.clone())
            .run()
            .unwrap();
        for taken in 0..=whole.ids.len() {
            let mut pieces = model
                .generation(REPETITIVE)
                .config(config.clone())
                .pieces()
                .unwrap();
            let text: String = pieces
                .by_ref()
                .take(taken)
                .map(|piece| piece.unwrap().text)
                .collect();
            let generated = pieces.finish().unwrap();
            let expected = if taken == 30 {
                FinishReason::Length
            } else {
                FinishReason::Interrupted
            };

            assert_eq!(
                fixed(&generated),
                (text.as_str(), &whole.ids[..taken], expected)
            );
            assert_eq!(generated.timing.decoded_tokens, taken.saturating_sub(1));
        }
    }

    drop(model.generation(REPETITIVE).into_iter().next());
}

#[test]
fn an_error_at_the_start_is_the_only_item() {
    let model = model();
    let cold = || model.generation("ROMEO:").temperature(-1.0);
    assert!(matches!(
        cold().run(),
        Err(LlmError::Setting {
            name: "temperature",
            ..
        })
    ));
    assert!(cold().pieces().is_err());
    let items: Vec<_> = cold().into_iter().collect();
    assert!(matches!(items[..], [Err(LlmError::Setting { .. })]));
    assert!(matches!(
        cold().into_iter().finish(),
        Err(LlmError::Setting { .. })
    ));
    assert!(matches!(
        model.generation(Vec::new()).run(),
        Err(LlmError::EmptyPrompt)
    ));
}

#[test]
fn builder_methods_change_the_settings_of_the_model() {
    let model = model();
    let generation = model
        .generation("a")
        .max_new_tokens(3)
        .temperature(0.5)
        .seed(2)
        .stop("x")
        .stop("y");
    let expected = GenerationConfig {
        max_new_tokens: Some(3),
        do_sample: true,
        temperature: 0.5,
        seed: 2,
        stop: vec!["x".into(), "y".into()],
        ..model.generation_config()
    };

    let request = |generation| Request::from(generation).config.unwrap();
    assert_eq!(request(generation.clone()), expected);
    assert_eq!(
        request(generation.temperature(0.0)),
        GenerationConfig {
            do_sample: false,
            ..expected
        }
    );
}

#[test]
fn pieces_include_the_end_token_and_text_that_was_held_back() {
    let model = model();
    let plain = model
        .generation("And it came")
        .max_new_tokens(12)
        .run()
        .unwrap();
    let end = plain.ids[5];
    let config = GenerationConfig {
        eos_token_ids: vec![end],
        ..GenerationConfig::default()
    };
    let first = plain.ids.iter().position(|id| *id == end).unwrap();
    let pieces: Vec<Piece> = model
        .generation("And it came")
        .config(config)
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(
        pieces.iter().map(|piece| piece.id).collect::<Vec<_>>(),
        plain.ids[..=first]
    );
    assert_eq!(pieces.last().unwrap().text, "");

    // Until the length is reached, the whole text may be the beginning of the stop string.
    let stop = format!("{} and more", plain.text);
    let texts: Vec<String> = model
        .generation("And it came")
        .max_new_tokens(12)
        .stop(stop)
        .into_iter()
        .map(|piece| piece.unwrap().text)
        .collect();
    assert!(texts[..11].iter().all(String::is_empty), "{texts:?}");
    assert_eq!(texts[11], plain.text);
}
