//! Choosing the next token. The order is transformers': repetition penalty, temperature, top-k, top-p,
//! min-p, each on the distribution the one before left.

use super::GenerationConfig;
use crate::error::{LlmError, Result};
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

    /// The next token after these logits (one per token of the vocabulary), which may be changed.
    pub(super) fn next(&mut self, logits: &mut [f32]) -> Result<u32> {
        // No early end: a loop over all is vectorised.
        if logits.iter().fold(false, |bad, logit| bad | !logit.is_finite()) {
            return Err(LlmError::BadLogits);
        }
        self.penalise(logits);
        let id = if self.config.do_sample { self.draw(logits)? } else { most_likely(logits) };
        self.seen.push(id);
        Ok(id)
    }

    fn penalise(&self, logits: &mut [f32]) {
        let penalty = self.config.repetition_penalty as f32;
        if penalty == 1.0 {
            return;
        }
        let mut seen = self.seen.clone();
        seen.sort_unstable();
        seen.dedup();
        for id in seen {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
    }

    fn draw(&mut self, logits: &[f32]) -> Result<u32> {
        let kept = kept(logits, self.config);
        let weights = WeightedIndex::new(kept.iter().map(|(_, p)| *p)).map_err(|_| LlmError::BadLogits)?;
        Ok(kept[weights.sample(&mut self.rng)].0)
    }
}

/// The tokens that may be drawn with their probabilities (up to a factor), the most likely first.
fn kept(logits: &[f32], config: &GenerationConfig) -> Vec<(u32, f64)> {
    let mut tokens: Vec<(u32, f32)> = (0u32..).zip(logits.iter().copied()).collect();
    // Equal logits go by id, so that the same seed gives the same text everywhere.
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if config.top_k > 0 && config.top_k < tokens.len() {
        tokens.select_nth_unstable_by(config.top_k - 1, order);
        tokens.truncate(config.top_k);
    }
    tokens.sort_unstable_by(order);
    let largest = tokens.first().map_or(0.0, |(_, logit)| f64::from(*logit));
    let probability = |logit: f32| ((f64::from(logit) - largest) / config.temperature).exp();
    let mut tokens: Vec<(u32, f64)> =
        tokens.into_iter().map(|(id, logit)| (id, probability(logit))).collect();
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

/// The token of the largest logit, the first of equal ones (as `torch.argmax` on a CPU).
fn most_likely(logits: &[f32]) -> u32 {
    // Sixteen maxima side by side are vectorised, a search for the first is not.
    const LANES: usize = 16;
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (whole, rest) = logits.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in whole {
        lanes.iter_mut().zip(chunk).for_each(|(lane, x)| *lane = larger(*lane, *x));
    }
    let largest = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger);
    logits.iter().position(|logit| *logit == largest).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> GenerationConfig {
        GenerationConfig { do_sample: true, top_k: 0, ..GenerationConfig::default() }
    }

    /// Logits of probabilities 0.5, 0.25, 0.125, 0.125 (ids 1, 0, 2, 3).
    fn logits() -> Vec<f32> {
        [0.25f32, 0.5, 0.125, 0.125].map(f32::ln).to_vec()
    }

    fn ids(config: &GenerationConfig) -> Vec<u32> {
        kept(&logits(), config).into_iter().map(|(id, _)| id).collect()
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
            counts[sampler.next(&mut logits()).unwrap() as usize] += 1;
        }
        for (count, expected) in counts.iter().zip([1000, 2000, 500, 500]) {
            assert!((i64::from(*count) - expected).abs() < 200, "{counts:?}");
        }
        let draw = |seed| {
            let config = GenerationConfig { seed, ..config.clone() };
            let mut sampler = Sampler::new(&config, &[]);
            (0..20).map(|_| sampler.next(&mut logits()).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn the_penalty_divides_positive_and_multiplies_negative_logits_once() {
        let config = GenerationConfig { repetition_penalty: 2.0, ..GenerationConfig::default() };
        let sampler = Sampler::new(&config, &[0, 0, 1]);
        let mut logits = [4.0, -1.0, 3.0];
        sampler.penalise(&mut logits);
        assert_eq!(logits, [2.0, -2.0, 3.0]);
    }

    #[test]
    fn greedy_takes_the_first_of_equals_and_nan_is_an_error() {
        assert_eq!(most_likely(&[1.0, 3.0, 3.0]), 1);
        let config = GenerationConfig::default();
        assert!(matches!(Sampler::new(&config, &[]).next(&mut [f32::NAN]), Err(LlmError::BadLogits)));
    }
}
