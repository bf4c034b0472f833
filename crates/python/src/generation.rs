//! Generation settings from keyword arguments, by transformers' names.

use llm_int8::{FinishReason, GenerationConfig};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use std::collections::BTreeMap;
use std::time::Duration;

/// What transformers' `generate` also takes: the values with which it does what is done here anyway.
const HARMLESS: [(&str, &[&str]); 7] = [
    ("num_beams", &["1"]),
    ("num_return_sequences", &["1"]),
    ("use_cache", &["True"]),
    ("renormalize_logits", &["False"]),
    ("return_dict_in_generate", &["False"]),
    ("output_scores", &["False"]),
    ("early_stopping", &["False"]),
];

/// The settings of a model's files with those of `arguments` in their place. `None` as a value leaves a
/// setting as the files have it.
///
/// Without `do_sample`, a `temperature` above 0 turns sampling on and 0 turns it off, and `top_k`,
/// `top_p`, `min_p` and `typical_p` turn it on.
///
/// # Errors
/// `TypeError` for an unknown name or a value of the wrong type; `ValueError` for what transformers
/// does and this library does not.
pub(crate) fn config_of(
    mut config: GenerationConfig,
    arguments: Option<&Bound<'_, PyDict>>,
) -> PyResult<GenerationConfig> {
    let mut do_sample = None;
    let mut samples = false;
    for (name, value) in arguments.into_iter().flat_map(|dict| dict.iter()) {
        let name: String = name.extract()?;
        if value.is_none() {
            continue;
        }
        match &*name {
            "do_sample" => do_sample = Some(get::<bool>(&name, &value)?),
            "temperature" => {
                let temperature: f64 = get(&name, &value)?;
                samples |= temperature != 0.0;
                match temperature {
                    0.0 => do_sample = do_sample.or(Some(false)),
                    _ => config.temperature = temperature,
                }
            }
            "top_k" | "top_p" | "min_p" | "typical_p" => {
                samples = true;
                set_filter(&mut config, &name, &value)?;
            }
            _ => {
                let is_known = set_length(&mut config, &name, &value)?
                    || set_filter(&mut config, &name, &value)?
                    || set_penalty(&mut config, &name, &value)?
                    || set_tokens(&mut config, &name, &value)?
                    || is_harmless(&name, &value)?;
                if !is_known {
                    let text = format!(
                        "`{name}` is no setting of generation; help(llm_int8.Model.generate) lists them"
                    );
                    return Err(PyTypeError::new_err(text));
                }
            }
        }
    }

    config.do_sample = do_sample.unwrap_or(config.do_sample || samples);
    Ok(config)
}

fn set_length(
    config: &mut GenerationConfig,
    name: &str,
    value: &Bound<'_, PyAny>,
) -> PyResult<bool> {
    match name {
        "max_new_tokens" => config.max_new_tokens = Some(get(name, value)?),
        "max_length" => {
            config.max_length = Some(get(name, value)?);
            config.max_new_tokens = None;
        }
        "min_new_tokens" => config.min_new_tokens = Some(get(name, value)?),
        "min_length" => config.min_length = get(name, value)?,
        "max_time" => {
            let seconds = get(name, value)?;
            let time = Duration::try_from_secs_f64(seconds).map_err(|cause| {
                PyValueError::new_err(format!("max_time is {seconds}: {cause}"))
            })?;
            config.max_time = Some(time);
        }
        "truncate" => config.truncate = get(name, value)?,
        "speculate" | "prompt_lookup_num_tokens" => config.speculate = get(name, value)?,
        "seed" => config.seed = get(name, value)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn set_filter(
    config: &mut GenerationConfig,
    name: &str,
    value: &Bound<'_, PyAny>,
) -> PyResult<bool> {
    match name {
        "top_k" => config.top_k = get(name, value)?,
        "top_p" => config.top_p = get(name, value)?,
        "min_p" => config.min_p = get(name, value)?,
        "typical_p" => config.typical_p = get(name, value)?,
        "epsilon_cutoff" => config.epsilon_cutoff = get(name, value)?,
        "eta_cutoff" => config.eta_cutoff = get(name, value)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn set_penalty(
    config: &mut GenerationConfig,
    name: &str,
    value: &Bound<'_, PyAny>,
) -> PyResult<bool> {
    match name {
        "repetition_penalty" => config.repetition_penalty = get(name, value)?,
        "encoder_repetition_penalty" => config.encoder_repetition_penalty = get(name, value)?,
        "no_repeat_ngram_size" => config.no_repeat_ngram_size = get(name, value)?,
        "encoder_no_repeat_ngram_size" => config.encoder_no_repeat_ngram_size = get(name, value)?,
        "presence_penalty" => config.presence_penalty = get(name, value)?,
        "frequency_penalty" => config.frequency_penalty = get(name, value)?,
        "exponential_decay_length_penalty" => {
            config.exponential_decay_length_penalty = Some(get(name, value)?);
        }
        "remove_invalid_values" => config.remove_invalid_values = get(name, value)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn set_tokens(
    config: &mut GenerationConfig,
    name: &str,
    value: &Bound<'_, PyAny>,
) -> PyResult<bool> {
    match name {
        "stop" | "stop_strings" => {
            config.stop = match value.cast::<PyString>() {
                Ok(text) => vec![text.extract()?],
                Err(_) => get(name, value)?,
            };
        }
        "eos_token_id" => {
            config.eos_token_ids = match value.extract::<u32>() {
                Ok(id) => vec![id],
                Err(_) => get(name, value)?,
            };
        }
        "bos_token_id" => config.bos_token_id = Some(get(name, value)?),
        "bad_words_ids" => config.bad_words_ids = get(name, value)?,
        "sequence_bias" => {
            config.sequence_bias = match value.cast::<PyDict>() {
                Ok(dict) => dict
                    .iter()
                    .map(|(ids, bias)| Ok((get(name, &ids)?, get(name, &bias)?)))
                    .collect::<PyResult<_>>()?,
                Err(_) => get(name, value)?,
            };
        }
        "logit_bias" => config.logit_bias = get::<BTreeMap<u32, f32>>(name, value)?,
        "suppress_tokens" => config.suppress_tokens = get(name, value)?,
        "begin_suppress_tokens" => config.begin_suppress_tokens = get(name, value)?,
        "forced_bos_token_id" => config.forced_bos_token_id = Some(get(name, value)?),
        "forced_eos_token_id" => {
            config.forced_eos_token_ids = match value.extract::<u32>() {
                Ok(id) => vec![id],
                Err(_) => get(name, value)?,
            };
        }
        // Batches are not padded.
        "pad_token_id" => {}
        _ => return Ok(false),
    }
    Ok(true)
}

/// Whether it is a setting of transformers with a value that changes nothing here.
fn is_harmless(name: &str, value: &Bound<'_, PyAny>) -> PyResult<bool> {
    let Some((_, values)) = HARMLESS.iter().find(|(known, _)| *known == name) else {
        return Ok(false);
    };
    let text = value.str()?.to_string();
    if values.contains(&&*text) {
        return Ok(true);
    }
    let expected = values.join(" or ");
    Err(PyValueError::new_err(format!(
        "{name} is {text}; only {expected} is supported"
    )))
}

/// A value, with the setting's name in the error.
fn get<'py, T: for<'a> FromPyObject<'a, 'py, Error: Into<PyErr>>>(
    name: &str,
    value: &Bound<'py, PyAny>,
) -> PyResult<T> {
    value.extract::<T>().map_err(|cause| {
        let cause: PyErr = cause.into();
        let reason = cause.value(value.py()).to_string();
        PyTypeError::new_err(format!("{name}: {reason}"))
    })
}

/// The reason by a short name.
pub(crate) fn reason_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::EndOfText => "eos",
        FinishReason::StopString => "stop",
        FinishReason::Length => "length",
        FinishReason::Time => "time",
        FinishReason::Interrupted => "interrupted",
    }
}
