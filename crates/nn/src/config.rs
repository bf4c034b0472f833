//! `config.json`, read with messages that name the key.

use crate::dtype::FloatDtype;
use crate::error::{NnError, Result};
use serde_json::Value;

/// No size of a model is larger, and products of two such sizes do not overflow.
const LARGEST_SIZE: u64 = 1 << 28;

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

    /// Keys and values put together by a program.
    pub(crate) fn from_values(values: Value) -> Self {
        Self { values }
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

    /// A size under the first of these keys that there is.
    ///
    /// # Errors
    /// [`NnError::Config`] where all are missing, or it is something else.
    pub fn size_of(&self, keys: &[&str]) -> Result<usize> {
        let found = keys.iter().find(|key| !self.values[**key].is_null());
        self.size(found.or(keys.first()).copied().unwrap_or_default())
    }

    /// The row of padding of a token table with `rows` rows: `pad_token_id`, counted from the end where it
    /// is negative; `default` where config.json does not speak of it.
    pub fn padding_row(&self, rows: usize, default: Option<usize>) -> Option<usize> {
        match &self.values["pad_token_id"] {
            Value::Null => default.filter(|_| !self.has("pad_token_id")),
            value => {
                let row = value.as_i64()?;
                usize::try_from(if row < 0 { row + rows as i64 } else { row }).ok()
            }
        }
    }

    /// A size that may be missing or null.
    ///
    /// # Errors
    /// [`NnError::Config`] where it is something else.
    pub fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        match &self.values[key] {
            Value::Null => Ok(None),
            value => match value.as_u64().filter(|size| (1..=LARGEST_SIZE).contains(size)) {
                Some(size) => Ok(Some(size as usize)),
                None => Err(error(format!(
                    "`{key}` is {value}; a whole number from 1 to {LARGEST_SIZE} was expected"
                ))),
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

    /// An object under a key, where there is one.
    pub fn object(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| value.is_object())
    }

    /// The keys of an object under a key, as a config of its own; empty where there is none.
    pub fn nested(&self, key: &str) -> Self {
        Self { values: self.object(key).cloned().unwrap_or_else(|| Value::Object(serde_json::Map::new())) }
    }

    /// A list of texts under a key, where there is one.
    pub fn texts(&self, key: &str) -> Option<Vec<&str>> {
        self.values[key].as_array().map(|items| items.iter().filter_map(Value::as_str).collect())
    }

    /// Whether the number under a key is written as a whole number.
    pub fn is_integer(&self, key: &str) -> bool {
        self.values[key].is_u64() || self.values[key].is_i64()
    }

    /// Whether the key is there, even if it is null.
    pub fn has(&self, key: &str) -> bool {
        self.values.get(key).is_some()
    }

    /// The raw value under a key; null where there is none.
    pub fn value(&self, key: &str) -> &Value {
        &self.values[key]
    }

    /// Every key and value.
    pub fn values(&self) -> &Value {
        &self.values
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
