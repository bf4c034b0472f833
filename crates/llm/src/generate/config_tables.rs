//! Generation settings that get special treatment in a model's files, and their values when they are
//! off, from transformers 4.57.

use serde_json::Value;

/// The value of a setting that is off.
pub(super) enum Unset {
    Number(f64),
    Flag(bool),
    Nothing,
}

/// Settings that transformers has and this library does not, with the values that turn them off.
/// Left out are those that only change what Python's `generate` returns (`output_scores`) or how
/// fast it is (`compile_config`), and those of encoder and assistant models.
pub(super) const UNSUPPORTED: [(&str, Unset); 19] = [
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

/// Settings that only apply to sampling, with the values that turn them off.
pub(super) const SAMPLING: [(&str, Unset); 7] = [
    ("temperature", Unset::Number(1.0)),
    ("top_k", Unset::Number(50.0)),
    ("top_p", Unset::Number(1.0)),
    ("min_p", Unset::Nothing),
    ("typical_p", Unset::Number(1.0)),
    ("epsilon_cutoff", Unset::Number(0.0)),
    ("eta_cutoff", Unset::Number(0.0)),
];

/// Generation settings that transformers allows in every `config.json`
/// (`_get_global_generation_defaults`).
pub(super) const OF_MODEL_CONFIG: [(&str, Unset); 25] = [
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

/// Default `bos_token_id` and `eos_token_id` of each config class, for a `config.json` without
/// these keys.
pub(super) const CLASS_TOKENS: [(&str, Option<u32>, &[u32]); 20] = [
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
    /// Whether a value equals this one or is null. (In Python `1 == 1.0 == True`; no setting
    /// depends on it.)
    pub(super) fn is(&self, value: &Value) -> bool {
        match self {
            Self::Number(number) => value.is_null() || value.as_f64() == Some(*number),
            Self::Flag(flag) => value.is_null() || value.as_bool() == Some(*flag),
            Self::Nothing => value.is_null(),
        }
    }
}
