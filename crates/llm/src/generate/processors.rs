//! Logits processors, which change a whole row of logits before a token is chosen. They are
//! transformers', in the order of `_get_logits_processor` and with the arithmetic of
//! `generation/logits_process.py`, in f32.

use super::GenerationConfig;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The processors of one sequence. `seen` below is all ids so far, beginning with the prompt.
#[derive(Debug)]
pub(super) struct Processors {
    config: Arc<GenerationConfig>,
    /// Number of prompt tokens.
    prompt: usize,
    /// Maximum number of tokens, including the prompt.
    max_length: usize,
    biases: Vec<(Vec<u32>, f32)>,
    bad_words: Vec<(Vec<u32>, f32)>,
}

impl Processors {
    pub(super) fn new(config: Arc<GenerationConfig>, prompt: usize, new_tokens: usize) -> Self {
        let eos = &config.eos_token_ids;
        let is_eos = |ids: &[u32]| matches!(ids, [id] if eos.contains(id));
        let bad_words = config
            .bad_words_ids
            .iter()
            .map(Vec::as_slice)
            .filter(|ids| !is_eos(ids));
        let bad_words = distinct_sequences(bad_words.map(|ids| (ids, f32::NEG_INFINITY)));

        let biases = config
            .sequence_bias
            .iter()
            .map(|(ids, bias)| (ids.as_slice(), *bias as f32));
        let biases = distinct_sequences(biases);

        Self {
            config,
            prompt,
            max_length: prompt.saturating_add(new_tokens),
            biases,
            bad_words,
        }
    }

    /// Whether a processor changes the next row. The repetition penalty does not count: it can be
    /// applied where the logits are.
    pub(super) fn act_on(&self, seen: &[u32]) -> bool {
        let config = &self.config;
        !self.biases.is_empty()
            || !config.logit_bias.is_empty()
            || config.presence_penalty != 0.0
            || config.frequency_penalty != 0.0
            || config.encoder_repetition_penalty != 1.0
            || config.no_repeat_ngram_size > 0
            || config.encoder_no_repeat_ngram_size > 0
            || !self.bad_words.is_empty()
            || config.remove_invalid_values
            || !config.suppress_tokens.is_empty()
            || self.forbids_end(seen.len())
            || self.forced(seen.len()).is_some()
            || self.decay(seen.len()).is_some()
            || (seen.len() == self.begin() && !config.begin_suppress_tokens.is_empty())
    }

    /// Applies the processors to a row of logits `[vocabulary]`.
    pub(super) fn apply(&self, seen: &[u32], scores: &mut [f32]) {
        let config = &self.config;
        let prompt = &seen[..self.prompt.min(seen.len())];
        let length = seen.len();

        for (id, bias) in &config.logit_bias {
            if let Some(score) = scores.get_mut(*id as usize) {
                *score += bias;
            }
        }

        add_biases(&self.biases, seen, scores);
        // transformers passes the reciprocal, which makes tokens of the prompt more likely.
        penalise(
            prompt,
            (1.0 / config.encoder_repetition_penalty) as f32,
            scores,
        );
        penalise(seen, config.repetition_penalty as f32, scores);
        self.penalise_generated(&seen[prompt.len()..], scores);
        forbid(&repeated(seen, seen, config.no_repeat_ngram_size), scores);
        forbid(
            &repeated(prompt, seen, config.encoder_no_repeat_ngram_size),
            scores,
        );
        add_biases(&self.bad_words, seen, scores);

        if self.forbids_end(length) {
            forbid(&config.eos_token_ids, scores);
        }

        if let Some(forced) = self.forced(length) {
            scores.fill(f32::NEG_INFINITY);
            set(forced, 0.0, scores);
        }

        if config.remove_invalid_values {
            scores.iter_mut().for_each(|score| *score = valid(*score));
        }

        if let Some(growth) = self.decay(length) {
            for id in distinct(&config.eos_token_ids, scores.len()) {
                let score = &mut scores[id as usize];
                *score += score.abs() * growth;
            }
        }

        forbid(&config.suppress_tokens, scores);
        if length == self.begin() {
            forbid(&config.begin_suppress_tokens, scores);
        }
    }

    /// Applies OpenAI's penalties, which count new tokens only.
    fn penalise_generated(&self, generated: &[u32], scores: &mut [f32]) {
        let presence = self.config.presence_penalty;
        let frequency = self.config.frequency_penalty;
        if presence == 0.0 && frequency == 0.0 {
            return;
        }

        let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
        generated
            .iter()
            .for_each(|id| *counts.entry(*id).or_default() += 1);
        for (id, count) in counts {
            if let Some(score) = scores.get_mut(id as usize) {
                *score -= frequency * count as f32;
                *score -= presence;
            }
        }
    }

    /// Whether the sequence is still too short for an end token.
    fn forbids_end(&self, length: usize) -> bool {
        let least = match self.config.min_new_tokens {
            Some(new) => self.prompt.saturating_add(new),
            None => self.config.min_length,
        };
        length < least && !self.config.eos_token_ids.is_empty()
    }

    /// The only tokens that are possible now, if they are forced.
    fn forced(&self, length: usize) -> Option<&[u32]> {
        let bos = &self.config.forced_bos_token_id;
        let eos = &self.config.forced_eos_token_ids;
        // If both are forced, the end token wins, because its processor comes later.
        if !eos.is_empty() && length.saturating_add(1) == self.max_length {
            return Some(eos);
        }

        bos.as_ref()
            .filter(|_| length == 1)
            .map(std::slice::from_ref)
    }

    /// The factor `g` of `x + |x| · g` for the logit `x` of an end token; `None` before the decay
    /// starts.
    fn decay(&self, length: usize) -> Option<f32> {
        let (start, factor) = self.config.exponential_decay_length_penalty?;
        let after = i64::try_from(length - self.prompt.min(length))
            .ok()?
            .saturating_sub(start);
        (after > 0).then(|| (factor.powf(after as f64) - 1.0) as f32)
    }

    /// The number of tokens before the first one that `begin_suppress_tokens` applies to.
    fn begin(&self) -> usize {
        let is_forced = self.prompt <= 1 && self.config.forced_bos_token_id.is_some();
        self.prompt + usize::from(is_forced)
    }
}

/// Each sequence once, in order, with the bias it was last given: a Python dict.
fn distinct_sequences<'a>(
    sequences: impl Iterator<Item = (&'a [u32], f32)>,
) -> Vec<(Vec<u32>, f32)> {
    let mut found: Vec<(Vec<u32>, f32)> = Vec::new();
    let mut places: BTreeMap<&[u32], usize> = BTreeMap::new();
    for (ids, bias) in sequences {
        match places.get(ids) {
            Some(place) => found[*place].1 = bias,
            None => {
                places.insert(ids, found.len());
                found.push((ids.to_vec(), bias));
            }
        }
    }

    found
}

/// Adds the biases of single tokens, and of longer sequences that the next token would complete.
fn add_biases(biases: &[(Vec<u32>, f32)], seen: &[u32], scores: &mut [f32]) {
    let mut sums: BTreeMap<u32, f32> = BTreeMap::new();
    let is_due = |ids: &[u32]| match ids {
        [] | [_] => true,
        // A sequence of `seen.len() + 1` tokens could be completed here too, but transformers does
        // not check it.
        [before @ .., _] => ids.len() <= seen.len() && seen.ends_with(before),
    };

    // Single tokens are summed first, because f32 sums depend on the order.
    let (single, longer): (Vec<_>, Vec<_>) = biases.iter().partition(|(ids, _)| ids.len() == 1);
    for (ids, bias) in single.into_iter().chain(longer) {
        if let (true, Some(last)) = (is_due(ids), ids.last()) {
            *sums.entry(*last).or_insert(0.0) += bias;
        }
    }

    for (id, bias) in sums {
        if let Some(score) = scores.get_mut(id as usize) {
            *score += bias;
        }
    }
}

/// Divides the positive logits of these tokens by the penalty and multiplies the negative ones,
/// once per token.
fn penalise(ids: &[u32], penalty: f32, scores: &mut [f32]) {
    if penalty == 1.0 {
        return;
    }

    for id in distinct(ids, scores.len()) {
        let score = &mut scores[id as usize];
        *score = if *score < 0.0 {
            *score * penalty
        } else {
            *score / penalty
        };
    }
}

/// The tokens that would repeat an n-gram of `text` of length `size`: each one that follows there
/// the last `size - 1` tokens of `seen`.
fn repeated(text: &[u32], seen: &[u32], size: usize) -> Vec<u32> {
    let Some(start) = (seen.len() + 1).checked_sub(size).filter(|_| size > 0) else {
        return Vec::new();
    };

    let end = &seen[start..];
    text.windows(size)
        .filter(|window| window.starts_with(end))
        .map(|window| window[size - 1])
        .collect()
}

/// Sets the logits of these tokens to -inf.
fn forbid(ids: &[u32], scores: &mut [f32]) {
    set(ids, f32::NEG_INFINITY, scores);
}

fn set(ids: &[u32], value: f32, scores: &mut [f32]) {
    for id in ids {
        if let Some(score) = scores.get_mut(*id as usize) {
            *score = value;
        }
    }
}

/// Clamps infinities to the largest finite numbers; 0 for NaN.
pub(super) fn valid(score: f32) -> f32 {
    if score.is_nan() {
        0.0
    } else {
        score.clamp(f32::MIN, f32::MAX)
    }
}

/// The distinct ids that are in the vocabulary, sorted.
fn distinct(ids: &[u32], vocabulary: usize) -> Vec<u32> {
    let mut ids: Vec<u32> = ids
        .iter()
        .copied()
        .filter(|id| (*id as usize) < vocabulary)
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}
