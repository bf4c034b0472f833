//! Typed access to the values of a `generation_config.json`, with errors that name the file and the
//! key.

use crate::error::{LlmError, Result};
use serde_json::{Map, Value};

/// Keys and values, and the name of their file. Null is a setting that is off.
pub(super) struct Settings<'a> {
    pub(super) values: &'a Map<String, Value>,
    pub(super) what: &'a str,
}

impl Settings<'_> {
    fn get(&self, key: &str) -> &Value {
        self.values.get(key).unwrap_or(&Value::Null)
    }

    /// Whether the key is present, even if its value is null.
    pub(super) fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// The error for a value that is not what was expected.
    pub(super) fn wrong(&self, key: &str, expected: &str) -> LlmError {
        // A long list would hide the rest of the message.
        let mut value = self.get(key).to_string();
        if value.chars().count() > 60 {
            value = value.chars().take(60).chain(['…']).collect();
        }

        let reason = format!("`{key}` is {value}; {expected} was expected");
        LlmError::MalformedJson {
            what: self.what.to_owned(),
            reason,
        }
    }

    /// A bool; false if missing.
    pub(super) fn flag(&self, key: &str) -> Result<bool> {
        match self.get(key) {
            Value::Null => Ok(false),
            value => value
                .as_bool()
                .ok_or_else(|| self.wrong(key, "true or false")),
        }
    }

    /// A number; `off` if missing.
    pub(super) fn number(&self, key: &str, off: f64) -> Result<f64> {
        Ok(self.optional_number(key)?.unwrap_or(off))
    }

    /// A number; `None` if missing.
    pub(super) fn optional_number(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            Value::Null => Ok(None),
            value => value
                .as_f64()
                .map(Some)
                .ok_or_else(|| self.wrong(key, "a number")),
        }
    }

    /// A whole number; `None` if missing. 20.0 counts as one, as in Python.
    pub(super) fn integer(&self, key: &str) -> Result<Option<i64>> {
        match self.get(key) {
            Value::Null => Ok(None),
            value => whole(value)
                .map(Some)
                .ok_or_else(|| self.wrong(key, "a whole number")),
        }
    }

    /// A whole number that is not negative; `None` if missing.
    pub(super) fn size(&self, key: &str) -> Result<Option<usize>> {
        let size = |number: i64| {
            usize::try_from(number).map_err(|_| self.wrong(key, "a number from 0 up"))
        };
        self.integer(key)?.map(size).transpose()
    }

    /// A whole number; 0 if missing or negative, which transformers treats as off.
    pub(super) fn count(&self, key: &str) -> Result<usize> {
        Ok(usize::try_from(self.integer(key)?.unwrap_or(0)).unwrap_or(0))
    }

    /// A token id; `None` if missing.
    pub(super) fn id(&self, key: &str) -> Result<Option<u32>> {
        let id = |number: i64| u32::try_from(number).map_err(|_| self.wrong(key, "a token id"));
        self.integer(key)?.map(id).transpose()
    }

    /// A token id or a list of them. Negative ids match no token, so they are dropped.
    pub(super) fn ids(&self, key: &str) -> Result<Vec<u32>> {
        let wrong = || self.wrong(key, "a token id or a list of token ids");
        let numbers: Option<Vec<i64>> = match self.get(key) {
            Value::Null => Some(Vec::new()),
            Value::Array(list) => list.iter().map(whole).collect(),
            value => whole(value).map(|number| vec![number]),
        };
        let ids = numbers
            .ok_or_else(wrong)?
            .into_iter()
            .filter(|number| *number >= 0);
        ids.map(|number| u32::try_from(number).map_err(|_| wrong()))
            .collect()
    }

    /// A list of lists of token ids, none of them empty.
    pub(super) fn sequences(&self, key: &str) -> Result<Vec<Vec<u32>>> {
        let sequences = match self.get(key) {
            Value::Null => return Ok(Vec::new()),
            Value::Array(list) => list.iter().map(sequence).collect::<Option<Vec<_>>>(),
            _ => None,
        };
        sequences.ok_or_else(|| self.wrong(key, "a list of lists of token ids, as [[1], [2, 3]],"))
    }

    /// A list of pairs `[token ids, bias]`.
    pub(super) fn biases(&self, key: &str) -> Result<Vec<(Vec<u32>, f64)>> {
        let pair = |value: &Value| match value.as_array().map(Vec::as_slice) {
            Some([ids, bias]) => Some((sequence(ids)?, bias.as_f64()?)),
            _ => None,
        };
        let biases = match self.get(key) {
            Value::Null => return Ok(Vec::new()),
            Value::Array(list) => list.iter().map(pair).collect::<Option<Vec<_>>>(),
            _ => None,
        };
        biases
            .ok_or_else(|| self.wrong(key, "a list of token ids and biases, as [[[1, 2], -0.5]],"))
    }

    /// A pair `[start, factor]`.
    pub(super) fn decay(&self, key: &str) -> Result<Option<(i64, f64)>> {
        let pair = match self.get(key) {
            Value::Null => return Ok(None),
            Value::Array(list) => match list.as_slice() {
                [start, factor] => whole(start).zip(factor.as_f64()),
                _ => None,
            },
            _ => None,
        };

        let expected = "a list of a number of tokens and a factor, as [15, 1.5],";
        pair.map(Some).ok_or_else(|| self.wrong(key, expected))
    }

    /// A string or a list of strings.
    pub(super) fn strings(&self, key: &str) -> Result<Vec<String>> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let texts = match self.get(key) {
            Value::Null => return Ok(Vec::new()),
            Value::Array(list) => list.iter().map(text).collect(),
            value => text(value).map(|text| vec![text]),
        };
        texts.ok_or_else(|| self.wrong(key, "a string or a list of strings"))
    }
}

/// A whole number, written as 20 or 20.0.
fn whole(value: &Value) -> Option<i64> {
    let of_float =
        |number: f64| (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64);
    value.as_i64().or_else(|| value.as_f64().and_then(of_float))
}

/// A list of token ids that is not empty.
fn sequence(value: &Value) -> Option<Vec<u32>> {
    let id = |value: &Value| whole(value).and_then(|number| u32::try_from(number).ok());
    value
        .as_array()?
        .iter()
        .map(id)
        .collect::<Option<Vec<u32>>>()
        .filter(|ids| !ids.is_empty())
}
