//! `adapter_config.json`: rank and scale of an adapter, for all layers and for single ones.

use crate::error::{NnError, Result};
use crate::json;
use regex::Regex;
use serde_json::Value;

/// Keys of `adapter_config.json` that change what is computed, and must be off.
const UNSUPPORTED: &[&str] = &[
    "use_dora",
    "use_qalora",
    "modules_to_save",
    "bias",
    "lora_bias",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "velora_config",
];

/// Names in `init_lora_weights` of beginnings that leave the base as it is. PEFT repeats the others
/// (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) when it loads an adapter, and they change the base's
/// weights.
const PLAIN_INITS: &[&str] = &["gaussian", "eva", "orthogonal"];

/// Rank and scale of one layer's adapter: the keys of PEFT's `adapter_config.json` that change what
/// is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoraConfig {
    /// `r`.
    pub rank: usize,
    /// `lora_alpha`.
    pub alpha: f64,
    /// `use_rslora`: divide alpha by the root of the rank.
    pub rank_stabilized: bool,
}

impl LoraConfig {
    /// PEFT's plain LoRA.
    pub fn new(rank: usize, alpha: f64) -> Self {
        Self {
            rank,
            alpha,
            rank_stabilized: false,
        }
    }

    /// Reads PEFT's `adapter_config.json` of an adapter whose layers all have the same rank and
    /// alpha; [`AdapterConfig`] reads any.
    ///
    /// ```
    /// use llm_int8_nn::lora::LoraConfig;
    /// let config = LoraConfig::parse(br#"{"peft_type": "LORA", "r": 8, "lora_alpha": 16}"#)?;
    /// assert_eq!((config, config.scale()), (LoraConfig::new(8, 16.0), 2.0));
    /// assert!(LoraConfig::parse(br#"{"peft_type": "IA3"}"#).is_err());
    /// # Ok::<(), llm_int8_nn::NnError>(())
    /// ```
    ///
    /// # Errors
    /// As [`AdapterConfig::parse`]; [`NnError::Adapter`] also for ranks or scales of single layers.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let config = AdapterConfig::parse(bytes)?;
        let patterns = [
            ("rank_pattern", config.ranks.is_empty()),
            ("alpha_pattern", config.alphas.is_empty()),
        ];
        match patterns.iter().find(|(_, is_empty)| !is_empty) {
            Some((key, _)) => Err(error(format!(
                "`{key}` gives layers a value of their own, and one for all is needed here"
            ))),
            None => Ok(config.common),
        }
    }

    /// What the update is multiplied by.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        if self.rank_stabilized {
            self.alpha / rank.sqrt()
        } else {
            self.alpha / rank
        }
    }
}

/// PEFT's `adapter_config.json`.
#[derive(Debug, Clone)]
pub struct AdapterConfig {
    common: LoraConfig,
    /// `rank_pattern` and `alpha_pattern`: values of the layers whose path matches.
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
}

impl AdapterConfig {
    /// Reads the file. What it says about training (dropout, layers to choose, `fan_in_fan_out`)
    /// does not matter: an adapter's tensors say which layers it changes.
    ///
    /// ```
    /// use llm_int8_nn::lora::AdapterConfig;
    /// let config = AdapterConfig::parse(
    ///     br#"{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "rank_pattern": {"q_proj": 4}}"#,
    /// )?;
    /// assert_eq!(config.layer("model.layers.0.self_attn.q_proj").rank, 4);
    /// assert_eq!(config.layer("model.layers.0.mlp.up_proj").rank, 8);
    /// # Ok::<(), llm_int8_nn::NnError>(())
    /// ```
    ///
    /// # Errors
    /// [`NnError::Adapter`] for JSON that is none, for another kind of adapter, and for settings
    /// that would change the result and are not supported: DoRA, trained biases, whole modules
    /// beside the adapter, beginnings that change the base (PiSSA).
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let values = json::parse(bytes).map_err(|cause| error(cause.to_string()))?;
        check_supported(&values)?;

        let rank = rank(&values["r"]);
        let alpha = alpha(&values["lora_alpha"]);
        let (Some(rank), Some(alpha)) = (rank, alpha) else {
            return Err(error(
                "it needs numbers `r`, above 0, and `lora_alpha`".into(),
            ));
        };
        Ok(Self {
            common: LoraConfig {
                rank,
                alpha,
                rank_stabilized: values["use_rslora"] == true,
            },
            ranks: patterns(&values, "rank_pattern", self::rank)?,
            alphas: patterns(&values, "alpha_pattern", self::alpha)?,
        })
    }

    /// Rank and scale of the layer at a path of the model. The first pattern that matches counts
    /// (PEFT, `get_pattern_key`).
    pub fn layer(&self, path: &str) -> LoraConfig {
        LoraConfig {
            rank: first_match(&self.ranks, path).unwrap_or(self.common.rank),
            alpha: first_match(&self.alphas, path).unwrap_or(self.common.alpha),
            ..self.common
        }
    }
}

fn error(reason: String) -> NnError {
    NnError::Adapter { reason }
}

fn check_supported(values: &Value) -> Result<()> {
    let kind = values["peft_type"].as_str().unwrap_or("missing");
    if kind != "LORA" {
        return Err(error(format!(
            "`peft_type` is {kind}; only LORA is supported"
        )));
    }

    let is_off = |key: &str| match &values[key] {
        Value::Null | Value::Bool(false) => true,
        Value::Object(entries) => entries.is_empty(),
        Value::Array(entries) => entries.is_empty(),
        Value::String(text) => key == "bias" && text == "none",
        _ => false,
    };
    let init = &values["init_lora_weights"];
    let changes_base = init
        .as_str()
        .is_some_and(|name| !PLAIN_INITS.contains(&name));

    let on = UNSUPPORTED.iter().find(|key| !is_off(key));
    match on.or(changes_base.then_some(&"init_lora_weights")) {
        Some(key) => Err(error(format!(
            "`{key}` is {}, which is not supported",
            json::shown(&values[*key])
        ))),
        None => Ok(()),
    }
}

fn rank(value: &Value) -> Option<usize> {
    let rank = value.as_u64().filter(|rank| *rank > 0)?;
    usize::try_from(rank).ok()
}

fn alpha(value: &Value) -> Option<f64> {
    value.as_f64().filter(|alpha| alpha.is_finite())
}

/// The patterns under a key, in the order of the file. A pattern matches whole components at the
/// end of a path.
fn patterns<T>(
    values: &Value,
    key: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<(Regex, T)>> {
    let entries = match &values[key] {
        Value::Null => return Ok(Vec::new()),
        Value::Object(entries) => entries,
        other => {
            let found = json::shown(other);
            return Err(error(format!("`{key}` is {found}; an object is needed")));
        }
    };

    let pattern = |(name, value): (&String, &Value)| {
        let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{name})$"))
            .map_err(|_| error(format!("`{key}`: the pattern `{name}` cannot be read")))?;
        let found = json::shown(value);
        let value = read(value)
            .ok_or_else(|| error(format!("`{key}`: the value of `{name}` is {found}")))?;
        Ok((regex, value))
    };
    entries.iter().map(pattern).collect()
}

fn first_match<T: Copy>(patterns: &[(Regex, T)], path: &str) -> Option<T> {
    let found = patterns.iter().find(|(pattern, _)| pattern.is_match(path));
    found.map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(more: &str) -> Result<AdapterConfig> {
        let text = format!(r#"{{"peft_type": "LORA", "r": 4, "lora_alpha": 8{more}}}"#);
        AdapterConfig::parse(text.as_bytes())
    }

    /// The expected values are those of `get_pattern_key` in PEFT 0.21.
    #[test]
    fn patterns_match_as_in_peft() {
        let config = parse(
            r#", "rank_pattern": {"q_proj": 1, "layers\\.1\\..*": 2, "a|b": 3, "^c.d": 5},
               "alpha_pattern": {"up": 0.5}"#,
        )
        .unwrap();
        for (path, rank) in [
            ("q_proj", 1),
            ("model.layers.1.q_proj", 1),
            ("model.layers.1.k_proj", 2),
            ("model.layers.11.k_proj", 4),
            ("my_q_proj", 4),
            ("q_proj.x", 4),
            ("x.b", 3),
            ("x.ab", 4),
            ("c.d", 5),
            ("cxd", 5),
            ("x.c.d", 4),
        ] {
            assert_eq!(config.layer(path).rank, rank, "{path}");
        }
        assert_eq!(config.layer("x.up").alpha, 0.5);
        assert_eq!(config.layer("x.up").scale(), 0.125);
        assert_eq!(config.layer("x.down"), LoraConfig::new(4, 8.0));
    }

    #[test]
    fn unusable_patterns_are_refused() {
        for (more, expected) in [
            (r#", "rank_pattern": {"q": 0}"#, "`q` is 0"),
            (r#", "rank_pattern": {"q": 1.5}"#, "`q` is 1.5"),
            (r#", "alpha_pattern": {"q": "2"}"#, r#"`q` is "2""#),
            (r#", "alpha_pattern": {"q": NaN}"#, "`q` is NaN"),
            (r#", "alpha_pattern": {"(q": 1}"#, "`(q` cannot be read"),
            (r#", "rank_pattern": [1]"#, "an object is needed"),
        ] {
            let error = parse(more).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn beginnings_that_change_the_base_are_refused() {
        for init in ["true", "false", "null", r#""gaussian""#, r#""eva""#] {
            assert!(parse(&format!(r#", "init_lora_weights": {init}"#)).is_ok());
        }
        for init in ["pissa", "pissa_niter_4", "olora", "loftq"] {
            let error = parse(&format!(r#", "init_lora_weights": "{init}""#)).unwrap_err();
            let expected = format!(r#"`init_lora_weights` is "{init}""#);
            assert!(error.to_string().contains(&expected), "{error}");
        }
    }
}
