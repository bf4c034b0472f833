//! How the next token is chosen and when to end (`GenerationConfig` of transformers).

use crate::error::{LlmError, Result};
use serde_json::Value;

/// Settings of generating. The default is greedy, 64 tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationConfig {
    /// New tokens at most.
    pub max_new_tokens: usize,
    /// Draw tokens at random; otherwise the most likely one is taken.
    pub do_sample: bool,
    /// Logits are divided by it before drawing; smaller is safer. Greater than 0.
    pub temperature: f64,
    /// Draw among that many most likely tokens; 0 among all.
    pub top_k: usize,
    /// Draw among the most likely tokens that together reach this probability; 1 among all.
    pub top_p: f64,
    /// Draw among tokens at least this fraction as likely as the most likely one; 0 among all.
    pub min_p: f64,
    /// Logits of tokens that were there are divided by it (multiplied where negative); 1 is none.
    pub repetition_penalty: f64,
    /// Seed of the drawing; the same seed gives the same text.
    pub seed: u64,
    /// Texts that end generating; they are not part of the result.
    pub stop: Vec<String>,
    /// Tokens that end generating.
    pub eos_token_ids: Vec<u32>,
    /// Draft up to so many tokens from what was there before and compute them together; 0 drafts none. The
    /// text is the same, a repetitive one is there sooner. Needs outliers per row.
    pub speculate: usize,
    /// Cut off the beginning of a prompt that is too long, instead of an error.
    pub truncate: bool,
}

impl Default for GenerationConfig {
    fn default() -> Self {
        Self {
            max_new_tokens: 64,
            do_sample: false,
            temperature: 1.0,
            top_k: 50,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
            stop: Vec::new(),
            eos_token_ids: Vec::new(),
            speculate: 0,
            truncate: false,
        }
    }
}

impl GenerationConfig {
    /// The defaults with what a `generation_config.json` says.
    ///
    /// # Errors
    /// [`LlmError::MalformedJson`] where it is not JSON.
    pub fn from_json(json: &[u8], what: &str) -> Result<Self> {
        let values: Value = serde_json::from_slice(json)
            .map_err(|cause| LlmError::MalformedJson { what: what.to_owned(), reason: cause.to_string() })?;
        let mut config = Self::default();
        let number = |key: &str, into: &mut f64| {
            if let Some(value) = values[key].as_f64() {
                *into = value;
            }
        };
        number("temperature", &mut config.temperature);
        number("top_p", &mut config.top_p);
        number("min_p", &mut config.min_p);
        number("repetition_penalty", &mut config.repetition_penalty);
        if let Some(k) = values["top_k"].as_u64() {
            config.top_k = usize::try_from(k).unwrap_or(0);
        }
        config.do_sample = values["do_sample"].as_bool().unwrap_or(false);
        config.eos_token_ids = token_ids(&values["eos_token_id"]);
        Ok(config)
    }

    /// Refuses settings without sense.
    pub(super) fn check(&self) -> Result<()> {
        let refuse =
            |name, value: f64, expected| Err(LlmError::Setting { name, value: value.to_string(), expected });
        if self.do_sample && !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return refuse("temperature", self.temperature, "it must be greater than 0 (use --greedy for 0)");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse("top_p", self.top_p, "it must be greater than 0 and at most 1");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return refuse("min_p", self.min_p, "it must be between 0 and 1");
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return refuse("repetition_penalty", self.repetition_penalty, "it must be greater than 0");
        }
        Ok(())
    }
}

/// One id or a list.
fn token_ids(value: &Value) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(ids) => ids.iter().filter_map(id).collect(),
        value => id(value).into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_model_says_is_taken() {
        let json = br#"{"do_sample": true, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [1, 2]}"#;
        let config = GenerationConfig::from_json(json, "x").unwrap();
        assert_eq!((config.do_sample, config.temperature, config.top_p), (true, 0.6, 0.9));
        assert_eq!(config.eos_token_ids, [1, 2]);
        assert_eq!(
            GenerationConfig::from_json(br#"{"eos_token_id": 50256}"#, "x").unwrap().eos_token_ids,
            [50256]
        );
        assert!(GenerationConfig::from_json(b"[", "x").is_err());
    }

    #[test]
    fn settings_without_sense_are_refused() {
        let base = GenerationConfig { do_sample: true, ..GenerationConfig::default() };
        assert!(base.check().is_ok());
        for wrong in [
            GenerationConfig { temperature: 0.0, ..base.clone() },
            GenerationConfig { temperature: f64::NAN, ..base.clone() },
            GenerationConfig { top_p: 1.5, ..base.clone() },
            GenerationConfig { min_p: -0.1, ..base.clone() },
            GenerationConfig { repetition_penalty: 0.0, ..base.clone() },
        ] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
    }
}
