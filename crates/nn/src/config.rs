//! `config.json`, with errors that name the key at fault, and the configuration classes that supply
//! its defaults.

use crate::dtype::FloatDtype;
use crate::error::{NnError, Result};
use crate::json;
use serde_json::{Map, Value};

/// Upper bound of any size in a configuration. No model comes near it, and multiplying two such
/// sizes does not overflow.
const LARGEST_SIZE: u64 = 1 << 28;

/// Keys that every configuration class has, with their defaults (`PretrainedConfig`).
const BASE_DEFAULTS: &str =
    r#"{ "tie_word_embeddings": true, "pad_token_id": null, "add_cross_attention": false }"#;

/// A configuration class of transformers (`configuration_*.py`): the defaults of keys that are
/// missing from config.json, and the aliases of keys.
#[derive(Debug, Clone, Copy)]
pub struct ConfigClass {
    /// Defaults of the class's `__init__`, as a JSON object.
    pub defaults: &'static str,
    /// `attribute_map`: pairs of an alias and the name it stands for. If the file has both, the
    /// alias wins, as in transformers, which sets it last.
    pub aliases: &'static [(&'static str, &'static str)],
    /// Which key of `rope_scaling` names the kind if both `rope_type` and `type` are present.
    pub rope_kind: RopeKind,
}

/// Which key of `rope_scaling` names the kind of scaling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeKind {
    /// `rope_type`, falling back to `type`.
    RopeType,
    /// `type`, the older name, falling back to `rope_type`.
    Type,
    /// Like [`RopeKind::Type`], and `su` and `yarn`, Phi 3's early names, mean `longrope`.
    Phi3,
}

impl ConfigClass {
    /// A class without aliases that prefers `rope_type` over `type`.
    pub const fn new(defaults: &'static str) -> Self {
        Self {
            defaults,
            aliases: &[],
            rope_kind: RopeKind::RopeType,
        }
    }

    /// Whether a key has a default.
    pub fn has(&self, key: &str) -> bool {
        self.defaults.contains(&format!("\"{key}\":"))
    }

    /// The same class with aliases.
    pub const fn with_aliases(self, aliases: &'static [(&'static str, &'static str)]) -> Self {
        Self { aliases, ..self }
    }

    /// The same class with another rule for the kind of RoPE scaling.
    pub const fn with_rope_kind(self, rope_kind: RopeKind) -> Self {
        Self { rope_kind, ..self }
    }
}

/// The keys of a `config.json`.
///
/// ```
/// use llm_int8_nn::config::ModelConfig;
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
    /// Parses the bytes of a `config.json` as Python's `json` does ([`json::parse`]).
    ///
    /// # Errors
    /// [`NnError::Config`] if they are not a JSON object.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let values = json::parse(bytes).map_err(|cause| match cause {
            json::JsonError::Syntax(_) => error(format!("{cause}; check it, or download it again")),
            json::JsonError::ByteOrderMark => error(cause.to_string()),
        })?;

        if !values.is_object() {
            return Err(error("it is not a JSON object".into()));
        }

        Ok(Self { values })
    }

    /// A configuration assembled in code, not read from a file.
    pub fn from_values(values: Value) -> Self {
        Self { values }
    }

    /// The keys as an instance of a configuration class would have them: missing keys take the
    /// class's defaults, aliases appear under the names they stand for, and the kind of
    /// `rope_scaling` is under `rope_type`. A key that is null stays null.
    ///
    /// ```
    /// use llm_int8_nn::config::{ConfigClass, ModelConfig};
    /// const CLASS: ConfigClass =
    ///     ConfigClass::new(r#"{"n_embd": 768, "n_layer": 12}"#).with_aliases(&[("hidden_size", "n_embd")]);
    /// let config = ModelConfig::parse(br#"{"hidden_size": 48}"#)?.of_class(&CLASS)?;
    /// assert_eq!((config.size("n_embd")?, config.size("n_layer")?), (48, 12));
    /// # Ok::<(), llm_int8_nn::NnError>(())
    /// ```
    ///
    /// # Errors
    /// [`NnError::Config`] for a `rope_scaling` that is neither an object nor null.
    pub fn of_class(&self, class: &ConfigClass) -> Result<Self> {
        let table = |text: &str| {
            serde_json::from_str::<Map<String, Value>>(text)
                .map_err(|cause| error(format!("the defaults of its class are not JSON ({cause})")))
        };
        let mut values = table(BASE_DEFAULTS)?;
        values.extend(table(class.defaults)?);
        values.extend(self.values.as_object().cloned().unwrap_or_default());

        for (alias, name) in class.aliases {
            if let Some(value) = self.values.get(*alias) {
                values.insert((*name).to_owned(), value.clone());
            }
        }

        match values.get_mut("rope_scaling") {
            None | Some(Value::Null) => {}
            Some(Value::Object(scaling)) => name_rope_kind(scaling, class.rope_kind),
            Some(other) => {
                return Err(error(format!(
                    "`rope_scaling` is {}; an object was expected",
                    json::shown(other)
                )));
            }
        }

        Ok(Self {
            values: Value::Object(values),
        })
    }

    /// `model_type`.
    ///
    /// # Errors
    /// [`NnError::Config`] if it is missing or not a string.
    pub fn model_type(&self) -> Result<&str> {
        match &self.values["model_type"] {
            Value::Null => Err(error(
                "`model_type` is missing, and neither `architectures` nor the folder's name tells which family the \
                 model belongs to; add it"
                    .into(),
            )),
            value => value.as_str().ok_or_else(|| unusable("model_type", value, "a string")),
        }
    }

    /// Sets `model_type`.
    pub fn set_model_type(&mut self, model_type: &str) {
        self.values["model_type"] = model_type.into();
    }

    /// A size: a positive integer.
    ///
    /// # Errors
    /// [`NnError::Config`] if it is missing, null, or anything else.
    pub fn size(&self, key: &str) -> Result<usize> {
        self.optional_size(key)?.ok_or_else(|| self.absent(key))
    }

    /// A size that may be missing or null.
    ///
    /// # Errors
    /// [`NnError::Config`] if it is present and not a positive integer.
    pub fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        let value = &self.values[key];
        if value.is_null() {
            return Ok(None);
        }

        match value.as_u64() {
            Some(size @ 1..=LARGEST_SIZE) => Ok(Some(size as usize)),
            _ => {
                let expected = format!("a whole number from 1 to {LARGEST_SIZE}");
                Err(unusable(key, value, &expected))
            }
        }
    }

    /// The padding row of a token embedding with `rows` rows: `pad_token_id`, counted from the end
    /// if it is negative.
    ///
    /// # Errors
    /// [`NnError::Config`] for a row outside the table.
    pub fn padding_row(&self, rows: usize) -> Result<Option<usize>> {
        let value = &self.values["pad_token_id"];
        if value.is_null() {
            return Ok(None);
        }

        let count = i64::try_from(rows).unwrap_or(i64::MAX);
        let row = value.as_i64().filter(|row| (-count..count).contains(row));
        let row = row.map(|row| if row < 0 { row + count } else { row });

        match row.and_then(|row| usize::try_from(row).ok()) {
            Some(row) => Ok(Some(row)),
            None => Err(unusable(
                "pad_token_id",
                value,
                &format!("a row of the embedding, which has {rows}, or null"),
            )),
        }
    }

    /// A number.
    ///
    /// # Errors
    /// [`NnError::Config`] if it is missing, null, or anything else.
    pub fn number(&self, key: &str) -> Result<f64> {
        self.optional_number(key)?.ok_or_else(|| self.absent(key))
    }

    /// A number that may be missing or null.
    ///
    /// # Errors
    /// [`NnError::Config`] if it is present and not a number.
    pub fn optional_number(&self, key: &str) -> Result<Option<f64>> {
        match &self.values[key] {
            Value::Null => Ok(None),
            value => value
                .as_f64()
                .map(Some)
                .ok_or_else(|| unusable(key, value, "a number")),
        }
    }

    /// A flag. As in Python, null and 0 are false and other numbers are true. A string is an error,
    /// because Python would take even `"false"` as true.
    ///
    /// # Errors
    /// [`NnError::Config`] if it is missing or anything else.
    pub fn flag(&self, key: &str) -> Result<bool> {
        match &self.values[key] {
            Value::Null if !self.has(key) => Err(self.absent(key)),
            Value::Null => Ok(false),
            Value::Bool(flag) => Ok(*flag),
            Value::Number(number) => Ok(number.as_f64() != Some(0.0)),
            value => Err(unusable(key, value, "true or false")),
        }
    }

    /// A string.
    ///
    /// # Errors
    /// [`NnError::Config`] if it is missing, null, or anything else.
    pub fn text(&self, key: &str) -> Result<&str> {
        match &self.values[key] {
            Value::Null => Err(self.absent(key)),
            value => value
                .as_str()
                .ok_or_else(|| unusable(key, value, "a string")),
        }
    }

    /// The object under a key, if there is one.
    pub fn object(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| value.is_object())
    }

    /// The object under a key as a configuration of its own; empty if there is none.
    pub fn nested(&self, key: &str) -> Self {
        Self {
            values: self
                .object(key)
                .cloned()
                .unwrap_or_else(|| Value::Object(Map::new())),
        }
    }

    /// A list of strings that may be missing or null.
    ///
    /// # Errors
    /// [`NnError::Config`] if it is present and not a list of strings.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let value = &self.values[key];
        if value.is_null() {
            return Ok(None);
        }

        let strings = value
            .as_array()
            .and_then(|items| items.iter().map(Value::as_str).collect());
        strings
            .map(Some)
            .ok_or_else(|| unusable(key, value, "a list of strings"))
    }

    /// Whether the number under a key is written as an integer (`1`, not `1.0`).
    pub fn is_integer(&self, key: &str) -> bool {
        self.values[key].is_u64() || self.values[key].is_i64()
    }

    /// Whether the key is present, even if it is null.
    pub fn has(&self, key: &str) -> bool {
        self.values.get(key).is_some()
    }

    /// The raw value under a key; null if it is missing.
    pub fn value(&self, key: &str) -> &Value {
        &self.values[key]
    }

    /// Every key and value. To write them, use [`json::to_text`].
    pub fn values(&self) -> &Value {
        &self.values
    }

    /// The dtype the checkpoint claims to be in (`dtype`, or `torch_dtype` in older files).
    pub fn stored_dtype(&self) -> Option<FloatDtype> {
        let name = self.values["dtype"]
            .as_str()
            .or(self.values["torch_dtype"].as_str())?;
        FloatDtype::from_name(name)
    }

    /// The `quantization_config`, if there is one.
    pub fn quantization(&self) -> Option<&Value> {
        self.values
            .get("quantization_config")
            .filter(|value| value.is_object())
    }

    /// Token ids under a key: one number or a list of numbers. Anything else is ignored.
    pub fn token_ids(&self, key: &str) -> Vec<u32> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        match &self.values[key] {
            Value::Array(ids) => ids.iter().filter_map(id).collect(),
            value => id(value).into_iter().collect(),
        }
    }

    fn absent(&self, key: &str) -> NnError {
        let what = if self.has(key) {
            "null, but needs a value"
        } else {
            "missing"
        };
        error(format!("`{key}` is {what}"))
    }
}

/// Puts the kind of scaling under `rope_type`.
fn name_rope_kind(scaling: &mut Map<String, Value>, rule: RopeKind) {
    let older = scaling.get("type").cloned();
    let kind = match (rule, older) {
        (_, None) => return,
        (RopeKind::RopeType, Some(_)) if scaling.contains_key("rope_type") => return,
        (RopeKind::Phi3, Some(kind)) if kind == "su" || kind == "yarn" => "longrope".into(),
        (_, Some(kind)) => kind,
    };

    scaling.insert("rope_type".to_owned(), kind);
}

fn unusable(key: &str, value: &Value, expected: &str) -> NnError {
    error(format!(
        "`{key}` is {}; {expected} was expected",
        json::shown(value)
    ))
}

fn error(reason: String) -> NnError {
    NnError::Config { reason }
}
