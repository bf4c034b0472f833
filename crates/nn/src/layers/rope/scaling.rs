//! RoPE scaling, as configured by `rope_scaling` or `rope_parameters` in a `config.json`.

use super::{Frequencies, Rope, inverse_frequencies};
use crate::config::ModelConfig;
use crate::error::{NnError, Result};
use crate::json;
use serde_json::Value;

/// Key of the context length that a model was trained for before scaling.
const ORIGINAL_CONTEXT: &str = "original_max_position_embeddings";

impl Rope {
    /// RoPE as configured by `rope_parameters` (written by transformers 5) or else `rope_scaling`.
    /// `base` is used if they name no base; `positions` is `max_position_embeddings`.
    ///
    /// # Errors
    /// [`NnError::Config`] for an unknown kind, or one whose numbers are missing.
    pub fn from_config(
        config: &ModelConfig,
        base: f64,
        dims: usize,
        positions: usize,
    ) -> Result<Self> {
        let (mut values, is_newer) = match (
            config.object("rope_parameters"),
            config.object("rope_scaling"),
        ) {
            (Some(values), _) => (values.clone(), true),
            (None, Some(values)) => (values.clone(), false),
            (None, None) => return Ok(Self::plain(base, dims)),
        };

        if !is_newer {
            // transformers 4 reads the base only from the top level.
            values["rope_theta"] = Value::Null;
        }

        if is_newer && kind_value(&values).is_null() {
            values["rope_type"] = "default".into();
        }

        // LongRoPE takes the original context from the top level, the other kinds from
        // `rope_scaling`.
        if kind(&values) == Some("longrope") && (!is_newer || values[ORIGINAL_CONTEXT].is_null()) {
            values[ORIGINAL_CONTEXT] = config.value(ORIGINAL_CONTEXT).clone();
        }

        Self::from_values(&values, base, dims, positions)
    }

    /// RoPE as configured by the keys of `rope_scaling` or `rope_parameters`.
    ///
    /// # Errors
    /// As [`Rope::from_config`].
    pub fn from_values(scaling: &Value, base: f64, dims: usize, positions: usize) -> Result<Self> {
        let base = optional(scaling, "rope_theta")?.unwrap_or(base);
        let plain = Self::plain(base, dims);
        let number = |key: &str| number(scaling, key);
        let fixed = |frequencies| Self {
            frequencies: Frequencies::Fixed(frequencies),
            ..plain.clone()
        };

        match kind(scaling) {
            Some("default") => Ok(plain),
            Some("linear") => {
                let factor = number("factor")? as f32;
                let frequencies = inverse_frequencies(base, dims);
                Ok(Self {
                    stretch: f64::from(factor).max(1.0),
                    ..fixed(frequencies.into_iter().map(|f| f / factor).collect())
                })
            }
            Some("dynamic") => {
                let factor = number("factor")?;
                Ok(Self {
                    frequencies: Frequencies::Dynamic {
                        base,
                        factor,
                        limit: positions,
                    },
                    stretch: factor.max(1.0),
                    ..plain
                })
            }
            Some("llama3") => Ok(fixed(llama3(scaling, base, dims)?)),
            Some("yarn") => yarn(scaling, base, dims, positions, plain),
            Some("longrope") => longrope(scaling, base, dims, positions, plain),
            _ => Err(unknown_kind(scaling)),
        }
    }
}

/// `rope_type`, or `type` if that is missing.
fn kind_value(scaling: &Value) -> &Value {
    scaling.get("rope_type").unwrap_or(&scaling["type"])
}

fn kind(scaling: &Value) -> Option<&str> {
    kind_value(scaling).as_str()
}

fn unknown_kind(scaling: &Value) -> NnError {
    let name = match kind_value(scaling) {
        Value::Null => return error("`rope_scaling` has no `rope_type`".into()),
        Value::String(name) => format!("`{name}`"),
        other => other.to_string(),
    };

    error(format!(
        "rope_scaling of type {name} is not known; known are default, linear, dynamic, llama3, yarn and longrope"
    ))
}

fn error(reason: String) -> NnError {
    NnError::Config { reason }
}

/// A number that may be missing or null.
fn optional(scaling: &Value, key: &str) -> Result<Option<f64>> {
    match &scaling[key] {
        Value::Null => Ok(None),
        value => value.as_f64().map(Some).ok_or_else(|| {
            error(format!(
                "`rope_scaling.{key}` is {}; a number was expected",
                json::shown(value)
            ))
        }),
    }
}

/// A positive number.
fn number(scaling: &Value, key: &str) -> Result<f64> {
    let value = optional(scaling, key)?.filter(|x| x.is_finite() && *x > 0.0);
    value.ok_or_else(|| {
        error(format!(
            "`rope_scaling` has no usable `{key}`; a positive number was expected"
        ))
    })
}

/// Frequencies of Llama 3.1: low frequencies are divided by `factor`, high ones stay, those between
/// are interpolated.
fn llama3(scaling: &Value, base: f64, dims: usize) -> Result<Vec<f32>> {
    let factor = number(scaling, "factor")? as f32;
    let low = number(scaling, "low_freq_factor")? as f32;
    let high = number(scaling, "high_freq_factor")? as f32;
    let original = number(scaling, ORIGINAL_CONTEXT)? as f32;
    let scaled = |f: f32| {
        let wavelength = 2.0 * std::f32::consts::PI / f;
        if wavelength < original / high {
            f
        } else if wavelength > original / low {
            f / factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            (1.0 - smooth) * f / factor + smooth * f
        }
    };

    Ok(inverse_frequencies(base, dims)
        .into_iter()
        .map(scaled)
        .collect())
}

/// YaRN (Peng et al. 2023): each pair is interpolated or kept, depending on how often it rotates
/// within the original context; cosines and sines are scaled by an attention factor.
fn yarn(scaling: &Value, base: f64, dims: usize, positions: usize, plain: Rope) -> Result<Rope> {
    let factor = number(scaling, "factor")?;
    let given = |key: &str, default: f64| -> Result<f64> {
        Ok(optional(scaling, key)?
            .filter(|x| *x != 0.0)
            .unwrap_or(default))
    };

    let original = given(ORIGINAL_CONTEXT, positions as f64)?;
    let frequencies = yarn_frequencies(scaling, base, dims, factor, original)?;

    let mscale = |weight: f64| {
        if factor <= 1.0 {
            1.0
        } else {
            0.1 * weight * factor.ln() + 1.0
        }
    };

    let some = given("mscale", 0.0)?;
    let all = given("mscale_all_dim", 0.0)?;
    let scale = match optional(scaling, "attention_factor")? {
        Some(scale) => scale,
        None if some != 0.0 && all != 0.0 => mscale(some) / mscale(all),
        None => mscale(1.0),
    };

    Ok(Rope {
        frequencies: Frequencies::Fixed(frequencies),
        scale: scale as f32,
        stretch: (original * factor / positions as f64).max(1.0),
        ..plain
    })
}

fn yarn_frequencies(
    scaling: &Value,
    base: f64,
    dims: usize,
    factor: f64,
    original: f64,
) -> Result<Vec<f32>> {
    let rotations = |key: &str, default: f64| -> Result<f64> {
        Ok(optional(scaling, key)?
            .filter(|x| *x != 0.0)
            .unwrap_or(default))
    };

    // The (fractional) pair that makes this many rotations within the original context.
    let pair = |rotations: f64| {
        dims as f64 * (original / (rotations * 2.0 * std::f64::consts::PI)).ln() / (2.0 * base.ln())
    };
    let mut low = pair(rotations("beta_fast", 32.0)?);
    let mut high = pair(rotations("beta_slow", 1.0)?);

    let truncate = scaling.get("truncate").is_none_or(|value| value == true);
    if truncate {
        low = low.floor();
        high = high.ceil();
    }

    low = low.max(0.0);
    high = high.min(dims as f64 - 1.0);
    if low == high {
        high += 0.001; // avoids a division by zero
    }

    let frequency = |i: usize| {
        let power = (base as f32).powf((2 * i) as f32 / dims as f32);
        let keep = 1.0 - ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
        (1.0 / (factor as f32 * power)) * (1.0 - keep) + (1.0 / power) * keep
    };

    Ok((0..dims / 2).map(frequency).collect())
}

/// LongRoPE (Ding et al. 2024): one factor for each pair, with separate sets for short and long
/// sequences.
fn longrope(
    scaling: &Value,
    base: f64,
    dims: usize,
    positions: usize,
    plain: Rope,
) -> Result<Rope> {
    let frequencies = |key: &str| -> Result<Vec<f32>> {
        let values = scaling[key]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let factors: Vec<f32> = values
            .iter()
            .filter_map(Value::as_f64)
            .map(|x| x as f32)
            .collect();
        if factors.len() != dims / 2
            || factors.len() != values.len()
            || factors.iter().any(|x| *x <= 0.0)
        {
            return Err(error(format!(
                "`rope_scaling.{key}` must be {} positive numbers",
                dims / 2
            )));
        }
        let frequency =
            |(i, f): (usize, &f32)| 1.0 / (f * (base as f32).powf((2 * i) as f32 / dims as f32));
        Ok(factors.iter().enumerate().map(frequency).collect())
    };

    let short = frequencies("short_factor")?;
    let long = frequencies("long_factor")?;

    let original = optional(scaling, ORIGINAL_CONTEXT)?.filter(|size| *size > 0.0);
    let limit = original.map_or(positions, |size| size as usize);
    let scale = match optional(scaling, "attention_factor")? {
        Some(scale) => scale,
        None => {
            let factor = match original {
                Some(original) => positions as f64 / original,
                None => number(scaling, "factor")?,
            };

            if factor <= 1.0 {
                1.0
            } else {
                (1.0 + factor.ln() / (limit as f64).ln()).sqrt()
            }
        }
    };

    Ok(Rope {
        frequencies: Frequencies::Long { short, long, limit },
        scale: scale as f32,
        ..plain
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(scaling: &str) -> ModelConfig {
        ModelConfig::parse(format!("{{\"rope_scaling\": {scaling}}}").as_bytes()).unwrap()
    }

    #[test]
    fn linear_scaling_divides_positions_by_the_factor() {
        let linear =
            Rope::from_config(&config(r#"{"type": "linear", "factor": 4}"#), 1e4, 8, 64).unwrap();
        assert_eq!(linear.table(8, 1).cos, Rope::plain(1e4, 8).table(2, 1).cos);
    }

    #[test]
    fn dynamic_scaling_begins_past_the_trained_context() {
        let dynamic =
            Rope::from_config(&config(r#"{"type": "dynamic", "factor": 2}"#), 1e4, 8, 64).unwrap();
        assert_eq!(dynamic.table(63, 1), Rope::plain(1e4, 8).table(63, 1));
        assert_ne!(dynamic.table(64, 1), Rope::plain(1e4, 8).table(64, 1));
    }

    #[test]
    fn errors_name_what_is_missing_or_unknown() {
        for (scaling, word) in [
            (r#"{"type": "spiral"}"#, "`spiral`"),
            (r#"{"type": "linear"}"#, "`factor`"),
            (
                r#"{"type": "linear", "factor": "2"}"#,
                "`rope_scaling.factor` is \"2\"",
            ),
            (
                r#"{"type": "longrope", "short_factor": [1], "long_factor": [1]}"#,
                "short_factor",
            ),
            (r#"{"rope_type": "llama3", "factor": 8}"#, "low_freq_factor"),
            (
                r#"{"type": "mrope", "mrope_section": [1, 1, 2]}"#,
                "`mrope`",
            ),
            (r#"{"type": "su"}"#, "`su`"),
            (
                r#"{"rope_type": null, "type": "linear", "factor": 2}"#,
                "no `rope_type`",
            ),
            (r#"{"factor": 2}"#, "no `rope_type`"),
            ("{}", "no `rope_type`"),
        ] {
            let error = Rope::from_config(&config(scaling), 1e4, 8, 64)
                .unwrap_err()
                .to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
