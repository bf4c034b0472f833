//! Stretched rotations as `rope_scaling` of a `config.json`, or `rope_parameters`, asks for them.

use super::{Frequencies, Rope, inverse_frequencies};
use crate::config::ModelConfig;
use crate::error::{NnError, Result};
use crate::json;
use serde_json::Value;

/// The context a model was trained for before its rotations were stretched.
const ORIGINAL: &str = "original_max_position_embeddings";

impl Rope {
    /// As `rope_scaling` of a `config.json` asks for, or the `rope_parameters` that transformers 5
    /// writes, with the base `base` where they name none; `positions` is `max_position_embeddings`.
    ///
    /// # Errors
    /// [`NnError::Config`] for a kind that is not known or lacks its numbers.
    pub fn from_config(
        config: &ModelConfig,
        base: f64,
        dims: usize,
        positions: usize,
    ) -> Result<Self> {
        // LongRoPE takes it from beside `rope_scaling` only, the other kinds from within.
        let beside = config.value(ORIGINAL);
        let (mut values, is_newer) = match (
            config.object("rope_parameters"),
            config.object("rope_scaling"),
        ) {
            (Some(values), _) => (values.clone(), true),
            (None, Some(values)) => (values.clone(), false),
            (None, None) => return Ok(Self::plain(base, dims)),
        };
        if !is_newer {
            // transformers 4 knows it at the top only.
            values["rope_theta"] = Value::Null;
        }
        if is_newer && name_of_kind(&values).is_null() {
            values["rope_type"] = "default".into();
        }
        if kind(&values) == Some("longrope") && (!is_newer || values[ORIGINAL].is_null()) {
            values[ORIGINAL] = beside.clone();
        }
        Self::from_values(&values, base, dims, positions)
    }

    /// As the keys of `rope_scaling` or `rope_parameters` ask for.
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
                let rope = fixed(
                    inverse_frequencies(base, dims)
                        .into_iter()
                        .map(|f| f / factor)
                        .collect(),
                );
                Ok(Self {
                    stretch: f64::from(factor).max(1.0),
                    ..rope
                })
            }
            Some("dynamic") => {
                let factor = number("factor")?;
                let frequencies = Frequencies::Dynamic {
                    base,
                    factor,
                    limit: positions,
                };
                Ok(Self {
                    frequencies,
                    stretch: factor.max(1.0),
                    ..plain
                })
            }
            Some("llama3") => Ok(fixed(llama3(scaling, base, dims)?)),
            Some("yarn") => yarn(scaling, base, dims, positions, plain),
            Some("longrope") => long(scaling, base, dims, positions, plain),
            _ => Err(error(match name_of_kind(scaling) {
                Value::Null => "`rope_scaling` has no `rope_type`".into(),
                other => format!(
                    "rope_scaling of type {} is not known; known are default, linear, dynamic, llama3, yarn and \
                     longrope",
                    other
                        .as_str()
                        .map_or(other.to_string(), |name| format!("`{name}`"))
                ),
            })),
        }
    }
}

/// `rope_type`, or `type` where it is missing.
fn name_of_kind(scaling: &Value) -> &Value {
    scaling.get("rope_type").unwrap_or(&scaling["type"])
}

fn kind(scaling: &Value) -> Option<&str> {
    name_of_kind(scaling).as_str()
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

fn number(scaling: &Value, key: &str) -> Result<f64> {
    let value = optional(scaling, key)?.filter(|x| x.is_finite() && *x > 0.0);
    value.ok_or_else(|| {
        error(format!(
            "`rope_scaling` has no usable `{key}`; a positive number was expected"
        ))
    })
}

/// Llama 3.1: long wavelengths are stretched, short ones stay, those between are mixed.
fn llama3(scaling: &Value, base: f64, dims: usize) -> Result<Vec<f32>> {
    let factor = number(scaling, "factor")? as f32;
    let low = number(scaling, "low_freq_factor")? as f32;
    let high = number(scaling, "high_freq_factor")? as f32;
    let original = number(scaling, "original_max_position_embeddings")? as f32;
    let stretch = |f: f32| {
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
        .map(stretch)
        .collect())
}

/// YaRN (Peng et al. 2023).
fn yarn(scaling: &Value, base: f64, dims: usize, positions: usize, plain: Rope) -> Result<Rope> {
    let factor = number(scaling, "factor")?;
    let given = |key: &str, default: f64| -> Result<f64> {
        Ok(optional(scaling, key)?
            .filter(|x| *x != 0.0)
            .unwrap_or(default))
    };
    let original = given(ORIGINAL, positions as f64)?;
    let truncate = scaling.get("truncate").is_none_or(|value| value == true);
    let correction = |rotations: f64| {
        dims as f64 * (original / (rotations * 2.0 * std::f64::consts::PI)).ln() / (2.0 * base.ln())
    };
    let (low, high) = (
        correction(given("beta_fast", 32.0)?),
        correction(given("beta_slow", 1.0)?),
    );
    let (low, high) = if truncate {
        (low.floor(), high.ceil())
    } else {
        (low, high)
    };
    let (low, high) = (low.max(0.0), high.min(dims as f64 - 1.0));
    let high = if low == high { high + 0.001 } else { high };
    let frequencies = (0..dims / 2)
        .map(|i| {
            let power = (base as f32).powf((2 * i) as f32 / dims as f32);
            let keep = 1.0 - ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
            (1.0 / (factor as f32 * power)) * (1.0 - keep) + (1.0 / power) * keep
        })
        .collect();
    let mscale = |weight: f64| {
        if factor <= 1.0 {
            1.0
        } else {
            0.1 * weight * factor.ln() + 1.0
        }
    };
    let (some, all) = (given("mscale", 0.0)?, given("mscale_all_dim", 0.0)?);
    let scale = match optional(scaling, "attention_factor")? {
        Some(scale) => scale,
        None if some != 0.0 && all != 0.0 => mscale(some) / mscale(all),
        None => mscale(1.0),
    };
    let stretch = (original * factor / positions as f64).max(1.0);
    Ok(Rope {
        frequencies: Frequencies::Fixed(frequencies),
        scale: scale as f32,
        stretch,
        ..plain
    })
}

/// LongRoPE (Ding et al. 2024).
fn long(scaling: &Value, base: f64, dims: usize, positions: usize, plain: Rope) -> Result<Rope> {
    let factors = |key: &str| -> Result<Vec<f32>> {
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
        let stretch =
            |(i, f): (usize, &f32)| 1.0 / (f * (base as f32).powf((2 * i) as f32 / dims as f32));
        Ok(factors.iter().enumerate().map(stretch).collect())
    };
    let (short, long) = (factors("short_factor")?, factors("long_factor")?);

    let original = optional(scaling, ORIGINAL)?.filter(|size| *size > 0.0);
    let limit = original.map_or(positions, |size| size as usize);
    let scale = match (optional(scaling, "attention_factor")?, original) {
        (Some(scale), _) => scale,
        (None, original) => {
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
    let frequencies = Frequencies::Long { short, long, limit };
    Ok(Rope {
        frequencies,
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
    fn linear_scaling_divides_positions() {
        let linear =
            Rope::from_config(&config(r#"{"type": "linear", "factor": 4}"#), 1e4, 8, 64).unwrap();
        assert_eq!(linear.table(8, 1).cos, Rope::plain(1e4, 8).table(2, 1).cos);
    }

    #[test]
    fn dynamic_scaling_begins_where_the_context_ends() {
        let dynamic =
            Rope::from_config(&config(r#"{"type": "dynamic", "factor": 2}"#), 1e4, 8, 64).unwrap();
        assert_eq!(dynamic.table(63, 1), Rope::plain(1e4, 8).table(63, 1));
        assert_ne!(dynamic.table(64, 1), Rope::plain(1e4, 8).table(64, 1));
    }

    #[test]
    fn what_is_missing_or_unknown_is_named() {
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
