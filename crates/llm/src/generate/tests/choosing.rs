//! Constraints, biases and penalties of sequences.

use super::{Seen, alone, drawn, fixed, model};
use crate::error::LlmError;
use crate::generate::{FinishReason, GenerationConfig, Request, TokenConstraint, TokenMask};
use crate::model::AutoModelForCausalLM;
use std::collections::VecDeque;

/// Allows one token after the other; the last completes the text.
struct Script(VecDeque<u32>);

impl TokenConstraint for Script {
    fn allowed(&mut self) -> Result<Option<TokenMask>, String> {
        let id = *self.0.front().ok_or("asked after the end")?;
        let mut words = vec![0; id as usize / 32 + 1];
        words[id as usize / 32] = 1 << (id % 32);
        Ok(Some(TokenMask::from_words(words)))
    }

    fn accept(&mut self, id: u32) -> Result<bool, String> {
        assert_eq!(self.0.pop_front(), Some(id));
        Ok(self.0.is_empty())
    }
}

/// Fails or panics at a token.
struct Failing {
    tokens: usize,
    panics: bool,
}

impl TokenConstraint for Failing {
    fn allowed(&mut self) -> Result<Option<TokenMask>, String> {
        Ok(None)
    }

    fn accept(&mut self, _: u32) -> Result<bool, String> {
        self.tokens -= 1;
        match self.tokens {
            0 if self.panics => panic!("the grammar panics"),
            0 => Err("the grammar fails".into()),
            _ => Ok(false),
        }
    }
}

fn run(model: &AutoModelForCausalLM, request: Request) -> Result<super::Generated, LlmError> {
    model
        .generate_batch([request])
        .run()
        .map(|mut all| all.remove(0))
}

#[test]
fn a_constraint_decides_every_token_and_the_end() {
    let model = model();
    let ids = model
        .tokenizer()
        .unwrap()
        .encode("the king of kings")
        .unwrap();
    for config in [
        drawn(60, 1.0, 3),
        GenerationConfig {
            do_sample: false,
            ..drawn(60, 1.0, 3)
        },
    ] {
        for speculate in [0, 4] {
            let config = GenerationConfig {
                speculate,
                ..config.clone()
            };
            let script = Script(ids.iter().copied().collect());
            let request = Request::new("ROMEO:")
                .config(config)
                .constraint(Box::new(script));
            let generated = run(&model, request).unwrap();
            assert_eq!(generated.ids, ids);
            assert_eq!(generated.text, "the king of kings");
            assert_eq!(generated.finish_reason, FinishReason::EndOfText);
        }
    }
}

#[test]
fn a_constraint_without_a_possible_token_is_an_error() {
    struct Nothing;
    impl TokenConstraint for Nothing {
        fn allowed(&mut self) -> Result<Option<TokenMask>, String> {
            Ok(Some(TokenMask::from_words(vec![0; 3])))
        }
        fn accept(&mut self, _: u32) -> Result<bool, String> {
            Ok(false)
        }
    }

    let model = model();
    let error = run(&model, Request::new("a").constraint(Box::new(Nothing))).unwrap_err();
    assert!(error.to_string().contains("allows no token"), "{error}");

    // Or none that the other settings leave.
    let config = GenerationConfig {
        suppress_tokens: vec![5],
        ..drawn(4, 1.0, 1)
    };
    let script = Box::new(Script([5, 6].into()));
    let request = Request::new("a").config(config).constraint(script);
    assert!(run(&model, request).is_err());
}

#[test]
fn a_constraint_that_fails_or_panics_ends_its_own_sequence_only() {
    let model = model();
    let config = || drawn(12, 1.0, 4);
    let mut engine = model.engine(4).unwrap();
    let mut add = |constraint: Option<Failing>| {
        let request = Request::new("ROMEO:").config(config());
        let request = match constraint {
            Some(constraint) => request.constraint(Box::new(constraint)),
            None => request,
        };
        engine.add(request).unwrap()
    };
    let good = add(None);
    let failing = add(Some(Failing {
        tokens: 3,
        panics: false,
    }));
    let panicking = add(Some(Failing {
        tokens: 5,
        panics: true,
    }));
    let last = add(None);

    let mut seen = Seen::default();
    seen.run(&mut engine);
    for (id, tokens, reason) in [
        (failing, 2, "the grammar fails"),
        (panicking, 4, "panicked: the grammar panics"),
    ] {
        let error = &seen.failed[&id];
        assert!(matches!(error, LlmError::Constraint { .. }));
        assert!(error.to_string().contains(reason), "{error}");
        assert_eq!(seen.pieces[&id].len(), tokens);
    }
    let expected = alone(&model, &Request::new("ROMEO:").config(config()));
    for id in [good, last] {
        assert_eq!(fixed(&seen.finished[&id]), fixed(&expected));
    }
    assert_eq!(engine.state().failed_passes, 0);
}

#[test]
fn biases_and_penalties_are_those_of_vllm() {
    let model = model();
    let greedy = |config: GenerationConfig| {
        let config = GenerationConfig {
            max_new_tokens: Some(12),
            ..config
        };
        model.generation("ROMEO:").config(config).run().unwrap().ids
    };
    let plain = greedy(GenerationConfig::default());

    let only = |id, bias| GenerationConfig {
        logit_bias: [(id, bias)].into(),
        ..GenerationConfig::default()
    };
    assert_eq!(greedy(only(42, 100.0)), [42; 12]);
    assert!(!greedy(only(plain[0], -100.0)).contains(&plain[0]));
    // Large penalties make every token occur once, whatever the prompt's tokens are.
    for config in [
        GenerationConfig {
            presence_penalty: 1e4,
            ..GenerationConfig::default()
        },
        GenerationConfig {
            frequency_penalty: 1e4,
            ..GenerationConfig::default()
        },
    ] {
        let mut ids = greedy(config);
        assert_eq!(ids[0], plain[0], "the prompt's tokens are not penalised");
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 12);
    }

    let refused = |config: GenerationConfig| {
        let error = model.generation("a").config(config).run().unwrap_err();
        error.to_string()
    };
    let nan = GenerationConfig {
        presence_penalty: f32::NAN,
        ..GenerationConfig::default()
    };
    assert!(refused(nan).contains("presence_penalty is NaN"));
    assert!(refused(only(1, f32::INFINITY)).contains("logit_bias is inf"));
    assert!(refused(only(1 << 20, 1.0)).contains("logit_bias is for token 1048576"));
}

/// Choice 0 of several is what one request gives, and the others have their own seeds.
#[test]
fn choices_with_consecutive_seeds_are_requests_with_those_seeds() {
    let model = model();
    let request = |seed| Request::new("ROMEO:").config(drawn(8, 1.3, seed));
    let choices = model.generate_batch((7..11).map(request)).run().unwrap();
    for (choice, seed) in choices.iter().zip(7..) {
        assert_eq!(fixed(choice), fixed(&alone(&model, &request(seed))));
    }
    assert!(
        choices[1..]
            .iter()
            .any(|choice| choice.ids != choices[0].ids)
    );
}
