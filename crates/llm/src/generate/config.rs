//! How the next token is chosen and when generation ends (transformers' `GenerationConfig`).

use crate::error::{LlmError, Result};
use std::collections::BTreeMap;
use std::time::Duration;

/// New tokens if neither the caller nor the model's files set a length.
const DEFAULT_NEW_TOKENS: usize = 64;

/// Generation settings, by transformers' names. The default is greedy decoding of up to 64 tokens.
///
/// The settings are applied in transformers' order: `sequence_bias`, `encoder_repetition_penalty`,
/// `repetition_penalty`, `no_repeat_ngram_size`, `encoder_no_repeat_ngram_size`, `bad_words_ids`,
/// `min_length`, `min_new_tokens`, `forced_bos_token_id`, `forced_eos_token_ids`,
/// `remove_invalid_values`, `exponential_decay_length_penalty`, `suppress_tokens`,
/// `begin_suppress_tokens`, and for sampling `temperature`, `top_k`, `top_p`, `min_p`, `typical_p`,
/// `epsilon_cutoff`, `eta_cutoff`. The "encoder" settings apply to the prompt.
///
/// Three more are OpenAI's: `logit_bias` is applied first, `frequency_penalty` and
/// `presence_penalty` after `repetition_penalty`, as vLLM does.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationConfig {
    /// Maximum number of new tokens. Overrides `max_length`.
    pub max_new_tokens: Option<usize>,
    /// Maximum number of tokens, including the prompt; never more than the model has positions. If
    /// both lengths are `None`, up to 64 new tokens, as far as there are positions.
    pub max_length: Option<usize>,
    /// No end token before this many new tokens. Overrides `min_length`.
    pub min_new_tokens: Option<usize>,
    /// No end token before this many tokens, including the prompt; 0 is off.
    pub min_length: usize,
    /// Time limit: generation ends with the first token that exceeds it.
    pub max_time: Option<Duration>,
    /// Sample; otherwise decode greedily, always taking the most likely token.
    pub do_sample: bool,
    /// Logits are divided by this before sampling; greater than 0. Lower values make likely tokens
    /// more likely.
    pub temperature: f64,
    /// Sample from the `top_k` most likely tokens and those that tie with the last of them; 0 is
    /// off.
    pub top_k: usize,
    /// Sample from the most likely tokens whose probabilities add up to this; 1 is off.
    pub top_p: f64,
    /// Sample from tokens that are at least this fraction as likely as the most likely one; 0 is
    /// off.
    pub min_p: f64,
    /// Locally typical sampling (arXiv:2202.00666): sample from the tokens whose information is
    /// nearest to the entropy, until their probabilities add up to this; 1 is off.
    pub typical_p: f64,
    /// Sample from tokens with at least this probability (arXiv:2210.15191); 0 is off.
    pub epsilon_cutoff: f64,
    /// Sample from tokens with at least the probability min(η, √η · exp(-entropy))
    /// (arXiv:2210.15191); 0 is off.
    pub eta_cutoff: f64,
    /// The logits of tokens seen before are divided by this (multiplied if negative); 1 is off.
    pub repetition_penalty: f64,
    /// The logits of the prompt's tokens are multiplied by this (divided if negative); 1 is off.
    pub encoder_repetition_penalty: f64,
    /// No n-gram of this length occurs twice; 0 is off.
    pub no_repeat_ngram_size: usize,
    /// No n-gram of this length from the prompt occurs again; 0 is off.
    pub encoder_no_repeat_ngram_size: usize,
    /// Token sequences that are never completed. A single end token is ignored. As in transformers,
    /// a sequence is checked only once there are as many tokens as it has.
    pub bad_words_ids: Vec<Vec<u32>>,
    /// For each token sequence, what is added to the logit of its last token when the others
    /// precede it.
    pub sequence_bias: Vec<(Vec<u32>, f64)>,
    /// For each of these tokens, what is added to its logit. No file of a model sets it.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Subtracted from the logits of tokens that were generated before; 0 is off. Tokens of the
    /// prompt do not count.
    pub presence_penalty: f32,
    /// Subtracted from the logit of a token once for each time it was generated; 0 is off. Tokens
    /// of the prompt do not count.
    pub frequency_penalty: f32,
    /// Tokens that are never generated.
    pub suppress_tokens: Vec<u32>,
    /// Tokens that are never generated first.
    pub begin_suppress_tokens: Vec<u32>,
    /// The first new token, if the prompt is a single token.
    pub forced_bos_token_id: Option<u32>,
    /// When the maximum length is reached, the last token is one of these.
    pub forced_eos_token_ids: Vec<u32>,
    /// `(start, factor)`: the logit `x` of each end token grows by `|x| · (factor^n - 1)`, where
    /// `n` is the number of new tokens beyond `start`.
    pub exponential_decay_length_penalty: Option<(i64, f64)>,
    /// Replace NaN in the logits by 0 and infinities by the largest finite numbers, instead of
    /// failing.
    pub remove_invalid_values: bool,
    /// Random seed; the same seed gives the same text.
    pub seed: u64,
    /// Stop strings, which end generation. The text ends before them, but the ids include the token
    /// that completes one. They are matched in the text with special tokens, and a match may begin
    /// in the prompt.
    pub stop: Vec<String>,
    /// Tokens that end generation.
    pub eos_token_ids: Vec<u32>,
    /// The begin-of-sequence token, which replaces an empty prompt.
    pub bos_token_id: Option<u32>,
    /// Speculative decoding: draft up to this many tokens from earlier text and check them in one
    /// forward pass; 0 is off. The output is the same, and repetitive text is faster. Needs
    /// outliers per row.
    pub speculate: usize,
    /// Cut off the beginning of a prompt that is too long, instead of failing.
    pub truncate: bool,
}

impl Default for GenerationConfig {
    fn default() -> Self {
        Self {
            max_new_tokens: None,
            max_length: None,
            min_new_tokens: None,
            min_length: 0,
            max_time: None,
            do_sample: false,
            temperature: 1.0,
            top_k: 50,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            epsilon_cutoff: 0.0,
            eta_cutoff: 0.0,
            repetition_penalty: 1.0,
            encoder_repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            encoder_no_repeat_ngram_size: 0,
            bad_words_ids: Vec::new(),
            sequence_bias: Vec::new(),
            logit_bias: BTreeMap::new(),
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            suppress_tokens: Vec::new(),
            begin_suppress_tokens: Vec::new(),
            forced_bos_token_id: None,
            forced_eos_token_ids: Vec::new(),
            exponential_decay_length_penalty: None,
            remove_invalid_values: false,
            seed: 0,
            stop: Vec::new(),
            eos_token_ids: Vec::new(),
            bos_token_id: None,
            speculate: 0,
            truncate: false,
        }
    }
}

impl GenerationConfig {
    /// The maximum number of new tokens after a prompt of `prompt` tokens, for a model with
    /// `positions` positions: at least 1, unless `max_new_tokens` is 0.
    pub(crate) fn new_tokens(&self, prompt: usize, positions: usize) -> Result<usize> {
        match (self.max_new_tokens, self.max_length) {
            (Some(new), _) => Ok(new),
            (None, Some(length)) if prompt >= length => Err(LlmError::Setting {
                name: "max_length",
                value: length.to_string(),
                expected: "it includes the prompt and leaves no room for new tokens; set max_new_tokens",
            }),
            (None, Some(length)) => Ok(length.min(positions).saturating_sub(prompt).max(1)),
            (None, None) => {
                let prompt = if self.truncate { 1 } else { prompt };
                Ok(DEFAULT_NEW_TOKENS
                    .min(positions.saturating_sub(prompt))
                    .max(1))
            }
        }
    }

    /// Rejects invalid settings. Those of sampling are checked only if `do_sample` is set.
    pub(super) fn check(&self) -> Result<()> {
        let refuse = |name, value: f64, expected| {
            Err(LlmError::Setting {
                name,
                value: value.to_string(),
                expected,
            })
        };

        let penalties = [
            ("repetition_penalty", self.repetition_penalty),
            (
                "encoder_repetition_penalty",
                self.encoder_repetition_penalty,
            ),
        ];
        for (name, penalty) in penalties {
            if !(penalty > 0.0 && penalty.is_finite()) {
                return refuse(name, penalty, "it must be greater than 0");
            }
        }

        let added = [
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ];
        let biases = self.logit_bias.values();
        let added = added.into_iter();
        let mut added = added.chain(biases.map(|bias| ("logit_bias", *bias)));
        if let Some((name, value)) = added.find(|(_, value)| !value.is_finite()) {
            return refuse(name, f64::from(value), "it must be a finite number");
        }

        if !self.do_sample {
            return Ok(());
        }

        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            let expected = "it must be greater than 0 (for greedy decoding, turn sampling off)";
            return refuse("temperature", self.temperature, expected);
        }

        let fractions = [
            ("top_p", self.top_p),
            ("min_p", self.min_p),
            ("epsilon_cutoff", self.epsilon_cutoff),
            ("eta_cutoff", self.eta_cutoff),
        ];
        for (name, fraction) in fractions {
            if !(0.0..=1.0).contains(&fraction) {
                return refuse(name, fraction, "it must be between 0 and 1");
            }
        }

        if !(self.typical_p > 0.0 && self.typical_p <= 1.0) {
            return refuse(
                "typical_p",
                self.typical_p,
                "it must be greater than 0 and at most 1",
            );
        }

        Ok(())
    }

    /// Rejects biased or forced tokens that are not in the vocabulary.
    pub(super) fn check_vocabulary(&self, vocabulary: usize) -> Result<()> {
        let biased = self
            .sequence_bias
            .iter()
            .flat_map(|(ids, _)| ids)
            .map(|id| ("sequence_bias", id));
        let openai = self.logit_bias.keys().map(|id| ("logit_bias", id));
        let bad = self
            .bad_words_ids
            .iter()
            .flatten()
            .map(|id| ("bad_words_ids", id));
        let bos = self
            .forced_bos_token_id
            .iter()
            .map(|id| ("forced_bos_token_id", id));
        let eos = self
            .forced_eos_token_ids
            .iter()
            .map(|id| ("forced_eos_token_id", id));

        match biased
            .chain(openai)
            .chain(bad)
            .chain(bos)
            .chain(eos)
            .find(|(_, id)| **id as usize >= vocabulary)
        {
            Some((name, id)) => Err(LlmError::Setting {
                name,
                value: format!("for token {id}"),
                expected: "the model's vocabulary does not have this token",
            }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_settings_are_refused() {
        let base = GenerationConfig {
            do_sample: true,
            ..GenerationConfig::default()
        };
        assert!(base.check().is_ok());
        for wrong in [
            GenerationConfig {
                temperature: 0.0,
                ..base.clone()
            },
            GenerationConfig {
                temperature: f64::NAN,
                ..base.clone()
            },
            GenerationConfig {
                top_p: 1.5,
                ..base.clone()
            },
            GenerationConfig {
                min_p: -0.1,
                ..base.clone()
            },
            GenerationConfig {
                typical_p: 0.0,
                ..base.clone()
            },
            GenerationConfig {
                eta_cutoff: f64::NAN,
                ..base.clone()
            },
        ] {
            assert!(wrong.check().is_err(), "{wrong:?}");
            let greedy = GenerationConfig {
                do_sample: false,
                ..wrong
            };
            assert!(
                greedy.check().is_ok(),
                "greedy decoding ignores it: {greedy:?}"
            );
        }

        let penalty = GenerationConfig {
            repetition_penalty: 0.0,
            ..GenerationConfig::default()
        };
        assert!(penalty.check().is_err());
        assert!(
            GenerationConfig { top_p: 0.0, ..base }.check().is_ok(),
            "transformers keeps one token"
        );
    }

    #[test]
    fn tokens_beyond_the_vocabulary_are_refused_like_in_transformers() {
        let bad = GenerationConfig {
            bad_words_ids: vec![vec![1, 300]],
            ..GenerationConfig::default()
        };
        let error = bad.check_vocabulary(300).unwrap_err().to_string();
        assert!(
            error.contains("bad_words_ids") && error.contains("300"),
            "{error}"
        );
        assert!(bad.check_vocabulary(301).is_ok());
        let suppressed = GenerationConfig {
            suppress_tokens: vec![300],
            ..GenerationConfig::default()
        };
        assert!(suppressed.check_vocabulary(300).is_ok());
    }

    #[test]
    fn lengths_are_those_of_transformers() {
        let config = |max_new_tokens, max_length| GenerationConfig {
            max_new_tokens,
            max_length,
            ..GenerationConfig::default()
        };
        assert_eq!(
            config(Some(9), Some(4)).new_tokens(6, 512).unwrap(),
            9,
            "max_new_tokens wins"
        );

        assert_eq!(config(None, Some(30)).new_tokens(6, 512).unwrap(), 24);
        assert_eq!(config(None, Some(9999)).new_tokens(6, 512).unwrap(), 506);
        assert!(config(None, Some(6)).new_tokens(6, 512).is_err());
        assert_eq!(config(None, None).new_tokens(6, 512).unwrap(), 64);
        assert_eq!(config(None, None).new_tokens(500, 512).unwrap(), 12);
        assert_eq!(
            config(None, None).new_tokens(600, 512).unwrap(),
            1,
            "which does not fit either"
        );
    }
}
