//! Choosing the next token. The order is transformers': repetition penalty, temperature, top-k, top-p,
//! min-p, each on the distribution the one before left.

use super::GenerationConfig;
use crate::error::{LlmError, Result};
use llm_int8_nn::NnError;
use llm_int8_nn::models::{Choice, Logits};
use rand::SeedableRng;
use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;
use rand::rngs::StdRng;

/// Draws tokens.
pub(super) struct Sampler<'a> {
    config: &'a GenerationConfig,
    /// Tokens of the prompt and those drawn, for the penalty.
    seen: Vec<u32>,
    rng: StdRng,
}

impl<'a> Sampler<'a> {
    pub(super) fn new(config: &'a GenerationConfig, prompt: &[u32]) -> Self {
        Self { config, seen: prompt.to_vec(), rng: StdRng::seed_from_u64(config.seed) }
    }

    /// Tokens of the prompt and those drawn.
    pub(super) fn seen(&self) -> &[u32] {
        &self.seen
    }

    /// The next token after a row of logits, which the penalty changes.
    pub(super) fn next(&mut self, logits: &mut Logits<'_>, row: usize) -> Result<u32> {
        let count = match (self.config.do_sample, self.config.top_k) {
            (false, _) => 1,
            (true, 0) => usize::MAX,
            (true, count) => count,
        };
        let penalty = self.config.repetition_penalty as f32;
        let chosen = logits.choose(row, &Choice { count, penalty, seen: &self.seen });
        let chosen = chosen.map_err(|error| match error {
            NnError::NonFiniteLogits => LlmError::BadLogits,
            error => error.into(),
        })?;
        let id =
            if self.config.do_sample { self.draw(&chosen)? } else { chosen.first().map_or(0, |(id, _)| *id) };
        self.seen.push(id);
        Ok(id)
    }

    fn draw(&mut self, chosen: &[(u32, f32)]) -> Result<u32> {
        let kept = kept(chosen, self.config);
        let weights = WeightedIndex::new(kept.iter().map(|(_, p)| *p)).map_err(|_| LlmError::BadLogits)?;
        Ok(kept[weights.sample(&mut self.rng)].0)
    }
}

/// The tokens that may be drawn with their probabilities (up to a factor), the most likely first: of those that
/// top-k left, in that order.
fn kept(tokens: &[(u32, f32)], config: &GenerationConfig) -> Vec<(u32, f64)> {
    let largest = tokens.first().map_or(0.0, |(_, logit)| f64::from(*logit));
    let probability = |logit: f32| ((f64::from(logit) - largest) / config.temperature).exp();
    let mut tokens: Vec<(u32, f64)> = tokens.iter().map(|(id, logit)| (*id, probability(*logit))).collect();
    let total: f64 = tokens.iter().map(|(_, p)| p).sum();
    let mut sum = 0.0;
    let within_p = tokens.iter().take_while(|(_, p)| {
        let before = sum;
        sum += p / total;
        before < config.top_p
    });
    // The most likely token has probability 1 before normalising.
    let count = within_p.count().max(1);
    tokens.truncate(count);
    tokens.retain(|(_, p)| *p >= config.min_p);
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> GenerationConfig {
        GenerationConfig { do_sample: true, top_k: 0, ..GenerationConfig::default() }
    }

    /// Logits of probabilities 0.5, 0.25, 0.125, 0.125 (ids 1, 0, 2, 3).
    fn logits() -> Logits<'static> {
        Logits::from_vec([0.25f32, 0.5, 0.125, 0.125].map(f32::ln).to_vec(), 4)
    }

    fn ids(config: &GenerationConfig) -> Vec<u32> {
        let count = if config.top_k == 0 { 4 } else { config.top_k };
        let chosen = logits().choose(0, &Choice { count, penalty: 1.0, seen: &[] }).unwrap();
        kept(&chosen, config).into_iter().map(|(id, _)| id).collect()
    }

    #[test]
    fn each_filter_keeps_what_transformers_keeps() {
        assert_eq!(ids(&config()), [1, 0, 2, 3]);
        assert_eq!(ids(&GenerationConfig { top_k: 2, ..config() }), [1, 0]);
        assert_eq!(ids(&GenerationConfig { top_p: 0.5, ..config() }), [1]);
        assert_eq!(ids(&GenerationConfig { top_p: 0.6, ..config() }), [1, 0]);
        assert_eq!(ids(&GenerationConfig { min_p: 0.3, ..config() }), [1, 0]);
        // Among the two left by top-k the first has 2/3: enough for 0.6 alone.
        assert_eq!(ids(&GenerationConfig { top_k: 2, top_p: 0.6, ..config() }), [1]);
    }

    #[test]
    fn drawing_follows_the_probabilities_and_the_seed() {
        let config = config();
        let mut sampler = Sampler::new(&config, &[]);
        let mut counts = [0; 4];
        for _ in 0..4000 {
            counts[sampler.next(&mut logits(), 0).unwrap() as usize] += 1;
        }
        for (count, expected) in counts.iter().zip([1000, 2000, 500, 500]) {
            assert!((i64::from(*count) - expected).abs() < 200, "{counts:?}");
        }
        let draw = |seed| {
            let config = GenerationConfig { seed, ..config.clone() };
            let mut sampler = Sampler::new(&config, &[]);
            (0..20).map(|_| sampler.next(&mut logits(), 0).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn what_was_there_is_penalised_and_nan_is_an_error() {
        let config = GenerationConfig { repetition_penalty: 2.0, ..GenerationConfig::default() };
        let logits = || Logits::from_vec(vec![4.0, 3.0, 2.5], 3);
        let mut sampler = Sampler::new(&config, &[0]);
        assert_eq!([0; 3].map(|row| sampler.next(&mut logits(), row).unwrap()), [1, 2, 0]);
        let config = GenerationConfig::default();
        let mut bad = Logits::from_vec(vec![f32::NAN], 1);
        assert!(matches!(Sampler::new(&config, &[]).next(&mut bad, 0), Err(LlmError::BadLogits)));
    }
}
