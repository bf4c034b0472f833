//! Choosing the next token. The choice is made where the logits are (on the device, if there is
//! one); a whole row is copied to the host only if a processor needs it.

use super::GenerationConfig;
use super::constraint::TokenMask;
use super::filters::kept;
use super::processors::Processors;
use crate::error::{LlmError, Result};
use llm_int8_decoder::DecoderError;
use llm_int8_decoder::{Choice, Logits, largest};
use rand::SeedableRng;
use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;
use rand::rngs::StdRng;
use std::sync::Arc;

/// Chooses the tokens of one sequence.
#[derive(Debug)]
pub(super) struct Sampler {
    config: Arc<GenerationConfig>,
    processors: Processors,
    /// The prompt's tokens and those chosen so far.
    seen: Vec<u32>,
    rng: StdRng,
}

impl Sampler {
    /// A sampler for up to `new_tokens` tokens after a prompt.
    pub(super) fn new(config: Arc<GenerationConfig>, prompt: Vec<u32>, new_tokens: usize) -> Self {
        Self {
            processors: Processors::new(Arc::clone(&config), prompt.len(), new_tokens),
            seen: prompt,
            rng: StdRng::seed_from_u64(config.seed),
            config,
        }
    }

    /// The prompt's tokens and those chosen so far.
    pub(super) fn seen(&self) -> &[u32] {
        &self.seen
    }

    /// Chooses the next token from a row of logits, of those that `mask` allows. The repetition
    /// penalty may change the row.
    pub(super) fn next(
        &mut self,
        logits: &mut Logits<'_>,
        row: usize,
        mask: Option<&TokenMask>,
    ) -> Result<u32> {
        let id = if mask.is_some() || self.processors.act_on(&self.seen) {
            let mut scores = self.processed(logits, row)?;
            if let Some(mask) = mask {
                keep_allowed(mask, &mut scores)?;
            }
            self.choose(&mut |count| Ok(largest(&scores, count)))?
        } else {
            let mut penalty = self.config.repetition_penalty as f32;
            let seen = std::mem::take(&mut self.seen);
            let id = self.choose(&mut |count| {
                let chosen = logits.choose(
                    row,
                    &Choice {
                        count,
                        penalty,
                        seen: &seen,
                    },
                );

                // Now the row is changed; the penalty must not be applied twice.
                penalty = 1.0;
                chosen.map_err(|error| match error {
                    DecoderError::NonFiniteLogits => LlmError::BadLogits,
                    error => error.into(),
                })
            });

            self.seen = seen;
            id?
        };

        self.seen.push(id);
        Ok(id)
    }

    /// A copy of a row of logits, after the processors.
    fn processed(&self, logits: &Logits<'_>, row: usize) -> Result<Vec<f32>> {
        let mut scores = logits.row(row)?;
        let is_bad = scores
            .iter()
            .fold(false, |bad, score| bad | !score.is_finite());
        if is_bad && !self.config.remove_invalid_values {
            return Err(LlmError::BadLogits);
        }

        self.processors.apply(&self.seen, &mut scores);

        // A forbidden end token whose logit also grows is -inf + inf. torch.argmax treats NaN as
        // the largest value, and torch.multinomial rejects it.
        match scores.iter().position(|score| score.is_nan()) {
            Some(_) if self.config.do_sample => Err(LlmError::BadLogits),
            Some(place) => {
                scores.fill(f32::NEG_INFINITY);
                scores[place] = 0.0;
                Ok(scores)
            }
            None => Ok(scores),
        }
    }

    /// Chooses the next token: the most likely one, or a random one. `largest(k)` returns the `k`
    /// tokens with the largest logits, largest first.
    fn choose(&mut self, largest: &mut dyn FnMut(usize) -> Result<Vec<(u32, f32)>>) -> Result<u32> {
        if !self.config.do_sample {
            return Ok(largest(1)?.first().map_or(0, |(id, _)| *id));
        }

        let kept = kept(&top_k(largest, self.config.top_k)?, &self.config);
        let weights =
            WeightedIndex::new(kept.iter().map(|(_, p)| *p)).map_err(|_| LlmError::BadLogits)?;
        Ok(kept[weights.sample(&mut self.rng)].0)
    }
}

/// Rules out the tokens that are not allowed.
fn keep_allowed(mask: &TokenMask, scores: &mut [f32]) -> Result<()> {
    let mut is_any_left = false;
    for (id, score) in (0u32..).zip(scores.iter_mut()) {
        if mask.allows(id) {
            is_any_left |= *score > f32::NEG_INFINITY;
        } else {
            *score = f32::NEG_INFINITY;
        }
    }

    match is_any_left {
        true => Ok(()),
        false => Err(LlmError::Constraint {
            reason: "it allows no token that the other settings leave".into(),
        }),
    }
}

/// The `k` most likely tokens, and those that tie with the last of them; all tokens if `k` is 0.
pub(super) fn top_k(
    largest: &mut dyn FnMut(usize) -> Result<Vec<(u32, f32)>>,
    k: usize,
) -> Result<Vec<(u32, f32)>> {
    if k == 0 {
        return largest(usize::MAX);
    }

    let mut tokens = largest(k.saturating_add(1))?;
    match (tokens.get(k - 1).copied(), tokens.get(k).copied()) {
        (Some((_, last)), Some((_, next))) if last == next => {
            tokens = largest(usize::MAX)?;
            tokens.retain(|(_, logit)| *logit >= last);
        }
        _ => tokens.truncate(k),
    }

    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> GenerationConfig {
        GenerationConfig {
            do_sample: true,
            top_k: 0,
            ..GenerationConfig::default()
        }
    }

    fn sampler_of(config: &GenerationConfig, prompt: &[u32], new_tokens: usize) -> Sampler {
        Sampler::new(Arc::new(config.clone()), prompt.to_vec(), new_tokens)
    }

    /// Logits of the probabilities 0.5, 0.25, 0.125, 0.125 (ids 1, 0, 2, 3).
    fn logits() -> Logits<'static> {
        Logits::from_vec([0.25f32, 0.5, 0.125, 0.125].map(f32::ln).to_vec(), 4)
    }

    #[test]
    fn top_k_keeps_ties_with_the_last_token() {
        let row = [0.25f32, 0.5, 0.125, 0.125, 0.0].map(f32::ln);
        let ids = |k| {
            let tokens = top_k(&mut |count| Ok(largest(&row, count)), k).unwrap();
            tokens.into_iter().map(|(id, _)| id).collect::<Vec<_>>()
        };
        assert_eq!(ids(1), [1]);
        assert_eq!(ids(2), [1, 0]);
        assert_eq!(ids(3), [1, 0, 2, 3]);
        assert_eq!(ids(4), [1, 0, 2, 3]);
        assert_eq!((ids(9).len(), ids(0).len()), (5, 5));
    }

    #[test]
    fn sampling_follows_the_probabilities_and_the_seed() {
        let config = config();
        let mut sampler = sampler_of(&config, &[], 4000);
        let mut counts = [0; 4];
        for _ in 0..4000 {
            counts[sampler.next(&mut logits(), 0, None).unwrap() as usize] += 1;
        }

        for (count, expected) in counts.iter().zip([1000, 2000, 500, 500]) {
            assert!((i64::from(*count) - expected).abs() < 200, "{counts:?}");
        }

        let draw = |seed| {
            let config = GenerationConfig {
                seed,
                ..config.clone()
            };
            let mut sampler = sampler_of(&config, &[], 20);
            (0..20)
                .map(|_| sampler.next(&mut logits(), 0, None).unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn seen_tokens_are_penalised_and_nan_is_an_error() {
        let config = GenerationConfig {
            repetition_penalty: 2.0,
            ..GenerationConfig::default()
        };
        let logits = || Logits::from_vec(vec![4.0, 3.0, 2.5], 3);
        let mut sampler = sampler_of(&config, &[0], 3);
        assert_eq!(
            [0; 3].map(|row| sampler.next(&mut logits(), row, None).unwrap()),
            [1, 2, 0]
        );

        let plain = GenerationConfig::default();
        let processed = GenerationConfig {
            suppress_tokens: vec![9],
            ..plain.clone()
        };
        for config in [&plain, &processed] {
            let mut bad = Logits::from_vec(vec![f32::NAN, 1.0], 2);
            assert!(matches!(
                sampler_of(config, &[], 1).next(&mut bad, 0, None),
                Err(LlmError::BadLogits)
            ));
        }

        let removed = GenerationConfig {
            remove_invalid_values: true,
            ..plain
        };
        let mut bad = Logits::from_vec(vec![f32::NAN, -1.0], 2);
        assert_eq!(
            sampler_of(&removed, &[], 1)
                .next(&mut bad, 0, None)
                .unwrap(),
            0,
            "NaN becomes 0"
        );
    }

    #[test]
    fn the_penalty_applies_once_if_the_row_is_read_twice() {
        // The last of the top k ties with the next one, so all tokens are needed.
        let config = GenerationConfig {
            repetition_penalty: 2.0,
            top_k: 1,
            ..config()
        };

        let mut logits = Logits::from_vec(vec![4.0, 2.0, -1e9], 3);
        assert!(
            sampler_of(&config, &[0], 1)
                .next(&mut logits, 0, None)
                .unwrap()
                < 2
        );
        assert_eq!(logits.into_vec().unwrap(), [2.0, 2.0, -1e9]);
    }

    #[test]
    fn sampling_with_every_token_suppressed_is_an_error() {
        let all = GenerationConfig {
            suppress_tokens: vec![0, 1, 2, 3],
            ..config()
        };
        assert!(matches!(
            sampler_of(&all, &[], 1).next(&mut logits(), 0, None),
            Err(LlmError::BadLogits)
        ));
        let greedy = GenerationConfig {
            do_sample: false,
            ..all
        };
        assert_eq!(
            sampler_of(&greedy, &[], 1)
                .next(&mut logits(), 0, None)
                .unwrap(),
            0,
            "as torch.argmax"
        );
    }
}
