//! Reading `generation_config.json`, and the generation settings that older models keep in
//! `config.json`, as transformers 4.57 does (`generation/configuration_utils.py`).

use super::GenerationConfig;
use super::config_tables::{CLASS_TOKENS, OF_MODEL_CONFIG, SAMPLING, UNSUPPORTED, Unset};
use super::settings::Settings;
use crate::error::{LlmError, Result};
use crate::warning::Warning;
use llm_int8_decoder::ModelConfig;
use serde_json::{Map, Value};
use std::time::Duration;

impl GenerationConfig {
    /// The defaults, overridden by a `generation_config.json`. `what` names the file in messages.
    /// Unknown keys are ignored, as in transformers.
    ///
    /// # Errors
    /// [`LlmError::MalformedJson`] if it is not a JSON object or a setting has the wrong type.
    pub fn from_json(json: &[u8], what: &str) -> Result<Self> {
        Self::from_json_with(json, what, &mut Vec::new())
    }

    /// [`from_json`](Self::from_json), with warnings about settings that have no effect.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json).
    pub fn from_json_with(json: &[u8], what: &str, warnings: &mut Vec<Warning>) -> Result<Self> {
        let values = object(json, what)?;
        Self::from_values(&values, what, warnings)
    }

    /// The generation settings in a `config.json`. Older models keep them there, and transformers
    /// uses them if there is no `generation_config.json` (`GenerationConfig.from_model_config`).
    /// `what` names the file in messages.
    ///
    /// # Errors
    /// [`LlmError::MalformedJson`] if a setting has the wrong type.
    pub fn from_model_config(
        config: &ModelConfig,
        what: &str,
        warnings: &mut Vec<Warning>,
    ) -> Result<Self> {
        // Here null means unset. In most of these files `use_cache` is left over from training.
        let mut values = config.values().as_object().cloned().unwrap_or_default();
        values.retain(|key, value| !value.is_null() && key != "use_cache");
        let mut generation = Self::from_values(&values, what, warnings)?;

        let class = config
            .model_type()
            .ok()
            .and_then(|name| CLASS_TOKENS.iter().find(|(of, ..)| *of == name));
        if let Some((_, bos, eos)) = class {
            if !config.has("bos_token_id") {
                generation.bos_token_id = *bos;
            }

            if !config.has("eos_token_id") {
                generation.eos_token_ids = eos.to_vec();
            }
        }

        Ok(generation)
    }

    /// The generation settings of a model. They come from its `generation_config.json`, or from its
    /// `config.json` if there is none, or if the former is only a copy of the latter and the latter
    /// sets more. Each file comes with its name for messages.
    pub(crate) fn of_files(
        generation: Option<(&[u8], &str)>,
        (config, what): (&ModelConfig, &str),
        warnings: &mut Vec<Warning>,
    ) -> Result<Self> {
        let Some((json, name)) = generation else {
            return Self::from_model_config(config, what, warnings);
        };

        let values = object(json, name)?;
        let is_copy = values
            .get("_from_model_config")
            .is_some_and(|value| value == true);
        let sets_more = |config: &ModelConfig| {
            OF_MODEL_CONFIG
                .iter()
                .any(|(key, unset)| !unset.is(config.value(key)))
        };
        if is_copy && sets_more(config) {
            return Self::from_model_config(config, what, warnings);
        }

        Self::from_values(&values, name, warnings)
    }

    fn from_values(
        values: &Map<String, Value>,
        what: &str,
        warnings: &mut Vec<Warning>,
    ) -> Result<Self> {
        let settings = Settings { values, what };
        let mut config = Self::default();
        config.read_lengths(&settings)?;
        config.read_sampling(&settings)?;
        config.read_processors(&settings)?;
        config.read_tokens(&settings)?;

        let named = |table: &[(&str, Unset)]| -> Vec<String> {
            let differs = |key: &str, value: &Value| {
                table
                    .iter()
                    .any(|(name, unset)| *name == key && !unset.is(value))
            };

            values
                .iter()
                .filter(|(key, value)| differs(key, value))
                .map(|(key, _)| key.clone())
                .collect()
        };

        let mut keys = named(&UNSUPPORTED);
        // transformers ignores this value, since models choose their own cache class.
        keys.retain(|key| key != "cache_implementation" || values[key] != "hybrid");
        if !keys.is_empty() {
            warnings.push(Warning::IgnoredSettings {
                file: what.to_owned(),
                keys,
            });
        }

        let keys = named(&SAMPLING);
        if !config.do_sample && !keys.is_empty() {
            warnings.push(Warning::SamplingSettings {
                file: what.to_owned(),
                keys,
            });
        }

        Ok(config)
    }

    fn read_lengths(&mut self, settings: &Settings<'_>) -> Result<()> {
        self.max_new_tokens = settings.size("max_new_tokens")?;
        if self.max_new_tokens == Some(0) {
            return Err(settings.wrong("max_new_tokens", "a number greater than 0"));
        }

        // 20 is transformers' default, which it counts as new tokens rather than as the whole
        // length.
        match settings.size("max_length")? {
            Some(20) => self.max_new_tokens = self.max_new_tokens.or(Some(20)),
            length => self.max_length = length,
        }

        let new = settings.integer("min_new_tokens")?;
        self.min_new_tokens = new.map(|new| usize::try_from(new).unwrap_or(0));
        self.min_length = settings.count("min_length")?;

        let seconds = settings.optional_number("max_time")?;
        self.max_time =
            seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).ok());
        self.stop = settings.strings("stop_strings")?;

        Ok(())
    }

    fn read_sampling(&mut self, settings: &Settings<'_>) -> Result<()> {
        self.do_sample = settings.flag("do_sample")?;
        self.temperature = settings.number("temperature", 1.0)?;
        if settings.has("top_k") {
            // 0 and null are off. Only sampling rejects a negative number.
            let k = settings.integer("top_k")?.unwrap_or(0);
            match usize::try_from(k) {
                Ok(k) => self.top_k = k,
                Err(_) if self.do_sample => {
                    return Err(settings.wrong("top_k", "a number from 0 up"));
                }
                Err(_) => {}
            }
        }

        // transformers applies these filters only between 0 and 1; 0 is off here.
        let within = |value: f64| {
            if 0.0 < value && value < 1.0 {
                value
            } else {
                0.0
            }
        };

        self.top_p = settings.number("top_p", 1.0)?.min(1.0);
        self.min_p = settings.number("min_p", 0.0)?;
        self.typical_p = settings.number("typical_p", 1.0)?.min(1.0);
        self.epsilon_cutoff = within(settings.number("epsilon_cutoff", 0.0)?);
        self.eta_cutoff = within(settings.number("eta_cutoff", 0.0)?);

        Ok(())
    }

    fn read_processors(&mut self, settings: &Settings<'_>) -> Result<()> {
        self.repetition_penalty = settings.number("repetition_penalty", 1.0)?;
        self.encoder_repetition_penalty = settings.number("encoder_repetition_penalty", 1.0)?;
        self.no_repeat_ngram_size = settings.count("no_repeat_ngram_size")?;
        self.encoder_no_repeat_ngram_size = settings.count("encoder_no_repeat_ngram_size")?;
        self.bad_words_ids = settings.sequences("bad_words_ids")?;
        self.sequence_bias = settings.biases("sequence_bias")?;
        self.suppress_tokens = settings.ids("suppress_tokens")?;
        self.begin_suppress_tokens = settings.ids("begin_suppress_tokens")?;
        self.exponential_decay_length_penalty =
            settings.decay("exponential_decay_length_penalty")?;
        self.remove_invalid_values = settings.flag("remove_invalid_values")?;
        // Changes neither the most likely token nor the probabilities, so only its type is checked.
        settings.flag("renormalize_logits")?;

        Ok(())
    }

    fn read_tokens(&mut self, settings: &Settings<'_>) -> Result<()> {
        self.eos_token_ids = settings.ids("eos_token_id")?;
        self.bos_token_id = settings.id("bos_token_id")?;
        self.forced_bos_token_id = settings.id("forced_bos_token_id")?;
        self.forced_eos_token_ids = settings.ids("forced_eos_token_id")?;
        Ok(())
    }
}

fn object(json: &[u8], what: &str) -> Result<Map<String, Value>> {
    let error = |reason: String| LlmError::MalformedJson {
        what: what.to_owned(),
        reason,
    };
    match llm_int8_nn::json::parse(json).map_err(|cause| error(cause.to_string()))? {
        Value::Object(values) => Ok(values),
        _ => Err(error("it is not a JSON object".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> (GenerationConfig, Vec<String>) {
        let mut warnings = Vec::new();
        let config =
            GenerationConfig::from_json_with(json.as_bytes(), "g.json", &mut warnings).unwrap();
        (config, warnings.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn settings_of_a_model_are_read() {
        let json = r#"{"do_sample": true, "temperature": 0.6, "top_p": 0.9, "top_k": 20.0, "eos_token_id": [1, 2],
            "bos_token_id": 7, "stop_strings": "x", "max_time": 1.5, "transformers_version": "4.57.1"}"#;
        let expected = GenerationConfig {
            do_sample: true,
            temperature: 0.6,
            top_p: 0.9,
            top_k: 20,
            eos_token_ids: vec![1, 2],
            bos_token_id: Some(7),
            stop: vec!["x".into()],
            max_time: Some(Duration::from_millis(1500)),
            ..GenerationConfig::default()
        };
        assert_eq!(read(json), (expected, Vec::new()));
        assert_eq!(read(r#"{"eos_token_id": 50256}"#).0.eos_token_ids, [50256]);
        assert_eq!(read("{}").0, GenerationConfig::default());
        let off = read(r#"{"top_k": null, "top_p": null, "temperature": null, "min_p": null}"#).0;
        assert_eq!(
            off,
            GenerationConfig {
                top_k: 0,
                ..GenerationConfig::default()
            }
        );
    }

    #[test]
    fn a_wrong_type_is_reported_with_its_file_and_key() {
        for (key, wrong) in [
            ("temperature", r#""0.7""#),
            ("top_k", "2.5"),
            ("top_p", "[0.9]"),
            ("do_sample", r#""yes""#),
            ("max_new_tokens", "0"),
            ("max_new_tokens", r#""many""#),
            ("max_length", "-1"),
            ("no_repeat_ngram_size", "true"),
            ("eos_token_id", r#""</s>""#),
            ("eos_token_id", r#"[1, "</s>"]"#),
            ("eos_token_id", "99999999999"),
            ("bad_words_ids", "[1, 2]"),
            ("bad_words_ids", "[[]]"),
            ("bad_words_ids", "[[-1]]"),
            ("sequence_bias", r#"{"(1, 2)": 0.5}"#),
            ("sequence_bias", "[[[1]]]"),
            ("suppress_tokens", "{}"),
            ("forced_bos_token_id", "[1]"),
            ("exponential_decay_length_penalty", "[1]"),
            ("exponential_decay_length_penalty", "1.5"),
            ("stop_strings", "[1]"),
            ("remove_invalid_values", "1"),
            ("renormalize_logits", r#""true""#),
            ("max_time", r#""1""#),
        ] {
            let json = format!(r#"{{"{key}": {wrong}}}"#);
            let error = GenerationConfig::from_json(json.as_bytes(), "g.json")
                .unwrap_err()
                .to_string();
            assert!(error.starts_with("g.json is not usable: `"), "{error}");
            assert!(
                error.contains(&format!("`{key}` is ")) && error.contains("expected"),
                "{error}"
            );
        }

        for wrong in ["[", "[]", "1"] {
            assert!(
                GenerationConfig::from_json(wrong.as_bytes(), "x").is_err(),
                "{wrong}"
            );
        }

        let negative = r#"{"top_k": -1, "do_sample": true}"#;
        assert!(GenerationConfig::from_json(negative.as_bytes(), "x").is_err());
        assert_eq!(
            read(r#"{"top_k": -1}"#).0.top_k,
            50,
            "greedy decoding ignores it"
        );
    }

    #[test]
    fn unsupported_settings_are_reported_once_and_only_if_they_are_on() {
        let json = r#"{"num_beams": 4, "guidance_scale": 1.5, "length_penalty": 1.0, "early_stopping": false,
            "use_cache": true, "num_return_sequences": 1, "penalty_alpha": null, "watermarking_config": {"bias": 2},
            "output_scores": true, "chat_format": "x", "cache_implementation": "hybrid", "diversity_penalty": 0}"#;
        let (config, warnings) = read(json);
        assert_eq!(config, GenerationConfig::default());
        let [warning] = &warnings[..] else {
            panic!("{warnings:?}")
        };

        assert!(
            warning.starts_with("g.json: not supported and ignored: "),
            "{warning}"
        );
        let mut keys: Vec<&str> = warning.rsplit(": ").next().unwrap().split(", ").collect();
        keys.sort_unstable();
        assert_eq!(keys, ["guidance_scale", "num_beams", "watermarking_config"]);

        for one in [
            "num_beam_groups",
            "prompt_lookup_num_tokens",
            "penalty_alpha",
            "num_return_sequences",
        ] {
            assert!(read(&format!(r#"{{"{one}": 2}}"#)).1[0].ends_with(&format!(": {one}")));
        }

        assert!(read(r#"{"use_cache": false}"#).1[0].ends_with(": use_cache"));
        assert!(read(r#"{"constraints": []}"#).1[0].ends_with(": constraints"));
    }

    #[test]
    fn sampling_settings_with_greedy_decoding_are_reported() {
        let (_, warnings) =
            read(r#"{"top_p": 0.0, "temperature": 1.0, "top_k": 50, "typical_p": 0.9}"#);
        let [warning] = &warnings[..] else {
            panic!("{warnings:?}")
        };

        assert!(
            warning.contains("only when sampling") && warning.contains("top_p"),
            "{warning}"
        );
        assert!(
            warning.contains("typical_p") && !warning.contains("top_k"),
            "{warning}"
        );
        assert!(read(r#"{"do_sample": true, "top_p": 0.5}"#).1.is_empty());
    }

    #[test]
    fn tokens_missing_in_config_json_come_from_its_class() {
        let read = |json: &str| {
            let config = ModelConfig::parse(json.as_bytes()).unwrap();
            GenerationConfig::from_model_config(&config, "config.json", &mut Vec::new()).unwrap()
        };
        let opt = read(r#"{"model_type": "opt"}"#);
        assert_eq!((opt.bos_token_id, opt.eos_token_ids), (Some(2), vec![2]));
        let null = read(
            r#"{"model_type": "opt", "eos_token_id": null, "bos_token_id": 5, "top_k": null}"#,
        );
        assert_eq!(
            (null.bos_token_id, null.eos_token_ids, null.top_k),
            (Some(5), Vec::new(), 50)
        );
        assert!(read(r#"{"model_type": "qwen2"}"#).eos_token_ids.is_empty());

        let config =
            ModelConfig::parse(br#"{"model_type": "llama", "use_cache": false, "num_beams": 3}"#)
                .unwrap();
        let mut warnings = Vec::new();
        GenerationConfig::from_model_config(&config, "c.json", &mut warnings).unwrap();
        let named = Warning::IgnoredSettings {
            file: "c.json".into(),
            keys: vec!["num_beams".into()],
        };
        assert_eq!(warnings, [named]);
    }
}
