//! `generation_config.json`, and the generation settings that older models keep in `config.json`,
//! read as transformers 4.57 reads them (`generation/configuration_utils.py`).

use super::GenerationConfig;
use super::settings::Settings;
use crate::error::{LlmError, Result};
use crate::warning::Warning;
use llm_int8_decoder::ModelConfig;
use serde_json::{Map, Value};
use std::time::Duration;

/// What a setting is where a file does not set it.
enum Unset {
    Number(f64),
    Flag(bool),
    Nothing,
}

/// Settings of transformers that are not built here, with the values that do nothing. Not among
/// them are those that only shape what Python's `generate` returns (`output_scores`), how fast it
/// is (`compile_config`), or that only an encoder or an assistant model would use.
const NOT_BUILT: [(&str, Unset); 19] = [
    ("early_stopping", Unset::Flag(false)),
    ("num_beams", Unset::Number(1.0)),
    ("num_beam_groups", Unset::Number(1.0)),
    ("length_penalty", Unset::Number(1.0)),
    ("diversity_penalty", Unset::Number(0.0)),
    ("constraints", Unset::Nothing),
    ("force_words_ids", Unset::Nothing),
    ("num_return_sequences", Unset::Number(1.0)),
    ("penalty_alpha", Unset::Number(0.0)),
    ("dola_layers", Unset::Nothing),
    ("guidance_scale", Unset::Number(1.0)),
    ("watermarking_config", Unset::Nothing),
    ("token_healing", Unset::Flag(false)),
    ("prompt_lookup_num_tokens", Unset::Nothing),
    ("assistant_early_exit", Unset::Nothing),
    ("low_memory", Unset::Flag(false)),
    ("cache_implementation", Unset::Nothing),
    ("cache_config", Unset::Nothing),
    ("use_cache", Unset::Flag(true)),
];

/// Settings that only sampling looks at, with the values that do nothing.
const SAMPLING: [(&str, Unset); 7] = [
    ("temperature", Unset::Number(1.0)),
    ("top_k", Unset::Number(50.0)),
    ("top_p", Unset::Number(1.0)),
    ("min_p", Unset::Nothing),
    ("typical_p", Unset::Number(1.0)),
    ("epsilon_cutoff", Unset::Number(0.0)),
    ("eta_cutoff", Unset::Number(0.0)),
];

/// Generation settings that transformers has in every `config.json`
/// (`_get_global_generation_defaults`).
const OF_MODEL_CONFIG: [(&str, Unset); 25] = [
    ("max_length", Unset::Number(20.0)),
    ("min_length", Unset::Number(0.0)),
    ("do_sample", Unset::Flag(false)),
    ("early_stopping", Unset::Flag(false)),
    ("num_beams", Unset::Number(1.0)),
    ("temperature", Unset::Number(1.0)),
    ("top_k", Unset::Number(50.0)),
    ("top_p", Unset::Number(1.0)),
    ("typical_p", Unset::Number(1.0)),
    ("repetition_penalty", Unset::Number(1.0)),
    ("length_penalty", Unset::Number(1.0)),
    ("no_repeat_ngram_size", Unset::Number(0.0)),
    ("encoder_no_repeat_ngram_size", Unset::Number(0.0)),
    ("bad_words_ids", Unset::Nothing),
    ("num_return_sequences", Unset::Number(1.0)),
    ("output_scores", Unset::Flag(false)),
    ("return_dict_in_generate", Unset::Flag(false)),
    ("forced_bos_token_id", Unset::Nothing),
    ("forced_eos_token_id", Unset::Nothing),
    ("remove_invalid_values", Unset::Flag(false)),
    ("exponential_decay_length_penalty", Unset::Nothing),
    ("suppress_tokens", Unset::Nothing),
    ("begin_suppress_tokens", Unset::Nothing),
    ("num_beam_groups", Unset::Number(1.0)),
    ("diversity_penalty", Unset::Number(0.0)),
];

/// `bos_token_id` and `eos_token_id` of a configuration class, for a `config.json` without these
/// keys.
const CLASS_TOKENS: [(&str, Option<u32>, &[u32]); 20] = [
    ("bloom", Some(1), &[2]),
    ("falcon", Some(11), &[11]),
    ("gemma2", Some(2), &[1]),
    ("gemma3_text", Some(2), &[1]),
    ("glm", None, &[151329, 151336, 151338]),
    ("gpt2", Some(50256), &[50256]),
    ("gpt_bigcode", Some(50256), &[50256]),
    ("gpt_neo", Some(50256), &[50256]),
    ("gpt_neox", Some(0), &[2]),
    ("gptj", Some(50256), &[50256]),
    ("granite", Some(1), &[2]),
    ("llama", Some(1), &[2]),
    ("mistral", Some(1), &[2]),
    ("olmo2", None, &[50279]),
    ("opt", Some(2), &[2]),
    ("phi", Some(1), &[2]),
    ("phi3", Some(1), &[32000]),
    ("smollm3", Some(128000), &[128001]),
    ("stablelm", Some(0), &[0]),
    ("starcoder2", Some(50256), &[50256]),
];

impl Unset {
    /// Whether a value is this one, or null. Python's `1 == 1.0 == True` does not matter here.
    fn is(&self, value: &Value) -> bool {
        match self {
            Self::Number(number) => value.is_null() || value.as_f64() == Some(*number),
            Self::Flag(flag) => value.is_null() || value.as_bool() == Some(*flag),
            Self::Nothing => value.is_null(),
        }
    }
}

impl GenerationConfig {
    /// The defaults with what a `generation_config.json` sets; `what` names it in messages. Unknown
    /// keys are ignored, as transformers ignores them.
    ///
    /// # Errors
    /// [`LlmError::MalformedJson`] where it is not a JSON object, or a setting is of a wrong type.
    pub fn from_json(json: &[u8], what: &str) -> Result<Self> {
        Self::from_json_with(json, what, &mut Vec::new())
    }

    /// [`from_json`](Self::from_json), telling which settings of the file have no effect.
    ///
    /// # Errors
    /// As there.
    pub fn from_json_with(json: &[u8], what: &str, warnings: &mut Vec<Warning>) -> Result<Self> {
        let values = object(json, what)?;
        Self::from_values(&values, what, warnings)
    }

    /// The settings that a `config.json` holds, as older models have them and transformers takes
    /// them where there is no `generation_config.json` (`GenerationConfig.from_model_config`).
    /// `what` names the file in messages.
    ///
    /// # Errors
    /// [`LlmError::MalformedJson`] where a setting is of a wrong type.
    pub fn from_model_config(
        config: &ModelConfig,
        what: &str,
        warnings: &mut Vec<Warning>,
    ) -> Result<Self> {
        // Null is as good as nothing there. `use_cache` is a setting of training in most of these
        // files.
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

    /// The settings of a model's files, each with its name: those of its `generation_config.json`;
    /// those of its `config.json` where there is none, or where the former only was a copy of the
    /// latter and the latter sets more.
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
        let mut keys = named(&NOT_BUILT);
        // transformers takes this name for nothing, since models have their own kinds of caches.
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

        // transformers' default, which it does not take for a length of prompt and text.
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
            // 0 is not limited, and so is null. Only sampling minds a negative number.
            let k = settings.integer("top_k")?.unwrap_or(0);
            match usize::try_from(k) {
                Ok(k) => self.top_k = k,
                Err(_) if self.do_sample => {
                    return Err(settings.wrong("top_k", "a number from 0 up"));
                }
                Err(_) => {}
            }
        }

        // Values that transformers applies no filter for are those of no filter here.
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
        // It changes neither the most likely token nor the probabilities: only its type matters.
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
    fn what_a_model_says_is_taken() {
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
    fn a_value_of_a_wrong_type_is_named_with_its_file_and_key() {
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
            "greedy decoding does not mind"
        );
    }

    #[test]
    fn what_is_not_built_is_named_once_and_only_where_it_does_something() {
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
    fn sampling_settings_beside_greedy_decoding_are_named() {
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
    fn a_config_json_has_its_class_s_tokens_where_it_says_nothing() {
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
