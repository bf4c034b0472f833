//! `config.json`, read with messages that name the key.

use crate::dtype::FloatDtype;
use crate::error::{NnError, Result};
use serde_json::Value;

/// The keys of a `config.json`.
///
/// ```
/// use llm_int8_nn::models::ModelConfig;
/// let config = ModelConfig::parse(br#"{"model_type": "gpt2", "n_embd": 48}"#)?;
/// assert_eq!(config.model_type()?, "gpt2");
/// assert_eq!(config.size("n_embd")?, 48);
/// assert!(config.size("n_layer").unwrap_err().to_string().contains("`n_layer` is missing"));
/// # Ok::<(), llm_int8_nn::NnError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    values: Value,
}

impl ModelConfig {
    /// Parses the bytes of a `config.json`.
    ///
    /// # Errors
    /// [`NnError::Config`] where they are not a JSON object.
    pub fn parse(json: &[u8]) -> Result<Self> {
        let values: Value = serde_json::from_slice(json)
            .map_err(|cause| error(format!("it is not JSON ({cause}); download it again")))?;
        if !values.is_object() {
            return Err(error("it is not a JSON object".into()));
        }
        Ok(Self { values })
    }

    /// `model_type`.
    ///
    /// # Errors
    /// [`NnError::Config`] where it is missing.
    pub fn model_type(&self) -> Result<&str> {
        self.values["model_type"]
            .as_str()
            .ok_or_else(|| error("`model_type` is missing; it tells which family the model is of".into()))
    }

    /// A size: a positive whole number.
    ///
    /// # Errors
    /// [`NnError::Config`] where it is missing or something else.
    pub fn size(&self, key: &str) -> Result<usize> {
        self.optional_size(key)?.ok_or_else(|| error(format!("`{key}` is missing")))
    }

    /// A size that may be missing or null.
    ///
    /// # Errors
    /// [`NnError::Config`] where it is something else.
    pub fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        match &self.values[key] {
            Value::Null => Ok(None),
            value => match value.as_u64().and_then(|size| usize::try_from(size).ok()) {
                Some(size) => Ok(Some(size)),
                None => Err(error(format!("`{key}` is {value}; a positive whole number was expected"))),
            },
        }
    }

    /// A number with a default.
    ///
    /// # Errors
    /// [`NnError::Config`] where it is something else.
    pub fn number(&self, key: &str, default: f64) -> Result<f64> {
        match &self.values[key] {
            Value::Null => Ok(default),
            value => {
                value.as_f64().ok_or_else(|| error(format!("`{key}` is {value}; a number was expected")))
            }
        }
    }

    /// A flag with a default.
    ///
    /// # Errors
    /// [`NnError::Config`] where it is something else.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match &self.values[key] {
            Value::Null => Ok(default),
            value => value
                .as_bool()
                .ok_or_else(|| error(format!("`{key}` is {value}; true or false was expected"))),
        }
    }

    /// A text with a default.
    ///
    /// # Errors
    /// [`NnError::Config`] where it is something else.
    pub fn text<'a>(&'a self, key: &str, default: &'a str) -> Result<&'a str> {
        match &self.values[key] {
            Value::Null => Ok(default),
            value => value.as_str().ok_or_else(|| error(format!("`{key}` is {value}; a text was expected"))),
        }
    }

    /// The dtype the checkpoint says it is in (`dtype`, or `torch_dtype` of older writers).
    pub fn stored_dtype(&self) -> Option<FloatDtype> {
        let name = self.values["dtype"].as_str().or(self.values["torch_dtype"].as_str())?;
        FloatDtype::from_name(name)
    }

    /// The `quantization_config`, where there is one.
    pub fn quantization(&self) -> Option<&Value> {
        self.values.get("quantization_config").filter(|value| value.is_object())
    }

    /// Token ids under a key: a number or a list of numbers.
    pub fn token_ids(&self, key: &str) -> Vec<u32> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        match &self.values[key] {
            Value::Array(ids) => ids.iter().filter_map(id).collect(),
            value => id(value).into_iter().collect(),
        }
    }
}

fn error(reason: String) -> NnError {
    NnError::Config { reason }
}
