//! Tests of sequences that run together.

mod choosing;
mod engine;
mod exactness;
pub(super) mod failures;
mod limits;
mod prefixes;
mod service;

use super::{
    Engine, FinishReason, Generated, GenerationConfig, Piece, Request, SequenceId, Update,
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
