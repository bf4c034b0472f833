//! Reading the fields of a request. Fields that nobody knows are ignored, `null` is as good as
//! absent, and an error names the field.

use crate::reply::{ApiError, ApiResult};
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// The fields of a JSON object.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// Where the object is in the request, with a final dot: `response_format.`
    path: &'a str,
}

impl<'a> Fields<'a> {
    /// The fields of a whole request.
    pub(crate) fn of(object: &'a Map<String, Value>) -> Self {
        Self { object, path: "" }
    }

    /// The fields of an object inside of a request.
    pub(crate) fn inside(object: &'a Map<String, Value>, path: &'a str) -> Self {
        Self { object, path }
    }

    /// The value of a field that is there and not null.
    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// An error about a field.
    pub(crate) fn error(&self, name: &str, message: impl std::fmt::Display) -> ApiError {
        let param = format!("{}{name}", self.path);
        let message = format!("`{param}`: {message}");
        ApiError::invalid(param, message)
    }

    fn wrong(&self, name: &str, expected: &str) -> ApiError {
        let found = self.get(name).map_or("nothing", kind);
        self.error(name, format_args!("expected {expected}, found {found}"))
    }

    /// A field that must be there.
    pub(crate) fn required(&self, name: &str) -> ApiResult<&'a Value> {
        self.get(name)
            .ok_or_else(|| self.error(name, "this field is required"))
    }

    pub(crate) fn text(&self, name: &str) -> ApiResult<Option<&'a str>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let text = value.as_str();
        text.map(Some).ok_or_else(|| self.wrong(name, "a string"))
    }

    pub(crate) fn flag(&self, name: &str) -> ApiResult<Option<bool>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let flag = value.as_bool();
        flag.map(Some)
            .ok_or_else(|| self.wrong(name, "true or false"))
    }

    /// A whole number. Numbers such as `3.0`, which some clients send, are whole.
    pub(crate) fn integer(&self, name: &str, range: RangeInclusive<i64>) -> ApiResult<Option<i64>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let number = whole(value).ok_or_else(|| self.wrong(name, "a whole number"))?;
        if !range.contains(&number) {
            let (least, most) = range.into_inner();
            let message = match most {
                i64::MAX => format!("{number} is less than {least}"),
                most => format!("{number} is not between {least} and {most}"),
            };
            return Err(self.error(name, message));
        }

        Ok(Some(number))
    }

    pub(crate) fn count(
        &self,
        name: &str,
        range: RangeInclusive<usize>,
    ) -> ApiResult<Option<usize>> {
        let signed = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let (least, most) = range.into_inner();
        let number = self.integer(name, signed(least)..=signed(most))?;
        Ok(number.and_then(|number| usize::try_from(number).ok()))
    }

    pub(crate) fn number(&self, name: &str, range: RangeInclusive<f64>) -> ApiResult<Option<f64>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let number = value.as_f64().ok_or_else(|| self.wrong(name, "a number"))?;
        if !range.contains(&number) {
            let (least, most) = range.into_inner();
            let message = format!("{number} is not between {least} and {most}");
            return Err(self.error(name, message));
        }

        Ok(Some(number))
    }

    pub(crate) fn list(&self, name: &str) -> ApiResult<Option<&'a [Value]>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let list = value.as_array().map(Vec::as_slice);
        list.map(Some).ok_or_else(|| self.wrong(name, "a list"))
    }

    pub(crate) fn object(&self, name: &str) -> ApiResult<Option<&'a Map<String, Value>>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let object = value.as_object();
        object
            .map(Some)
            .ok_or_else(|| self.wrong(name, "an object"))
    }

    /// Refuses fields that mean something which the server does not do.
    pub(crate) fn refuse(&self, fields: &[(&str, &str)]) -> ApiResult<()> {
        // `false` and empty lists ask for nothing.
        let asks = |value: &Value| match value {
            Value::Bool(flag) => *flag,
            Value::Array(list) => !list.is_empty(),
            Value::String(text) => !text.is_empty(),
            _ => true,
        };
        match fields
            .iter()
            .find(|(name, _)| self.get(name).is_some_and(asks))
        {
            Some((name, why)) => Err(self.error(name, format_args!("not supported; {why}"))),
            None => Ok(()),
        }
    }
}

/// A whole number, also one written as `3.0`.
pub(crate) fn whole(value: &Value) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let rounded = || {
        let number = value.as_f64()?;
        let is_whole = number.fract() == 0.0 && number.abs() <= EXACT;
        is_whole.then_some(number as i64)
    };
    value.as_i64().or_else(rounded)
}

/// A token id.
pub(crate) fn token_id(value: &Value) -> Option<u32> {
    whole(value).and_then(|id| u32::try_from(id).ok())
}

/// What a JSON value is, in words.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn message<T: std::fmt::Debug>(result: ApiResult<T>) -> (Option<String>, String) {
        let error = result.unwrap_err();
        assert_eq!(error.status.as_u16(), 400);
        (error.param, error.message)
    }

    #[test]
    fn null_is_absent_and_errors_name_the_field() {
        let value = json!({ "a": null, "n": 3.0, "f": 0.5, "s": "x", "big": 1e300 });
        let fields = Fields::of(value.as_object().unwrap());
        assert_eq!(fields.text("a").unwrap(), None);
        assert_eq!(fields.integer("n", 0..=5).unwrap(), Some(3));
        assert_eq!(fields.number("n", 0.0..=5.0).unwrap(), Some(3.0));
        assert!(fields.required("a").is_err());

        let (param, text) = message(fields.integer("f", 0..=5));
        assert_eq!(param.as_deref(), Some("f"));
        assert_eq!(text, "`f`: expected a whole number, found a number");
        assert!(message(fields.integer("big", 0..=5)).1.contains("whole"));
        assert!(
            message(fields.count("n", 4..=usize::MAX))
                .1
                .contains("less than 4")
        );
        assert!(
            message(fields.number("n", 0.0..=2.0))
                .1
                .contains("between 0 and 2")
        );
        assert!(message(fields.list("s")).1.contains("found a string"));
    }

    #[test]
    fn paths_of_inner_objects_are_in_the_message() {
        let value = json!({ "type": 3 });
        let fields = Fields::inside(value.as_object().unwrap(), "response_format.");
        assert_eq!(
            message(fields.text("type")).0.as_deref(),
            Some("response_format.type")
        );
    }

    #[test]
    fn fields_that_ask_for_nothing_are_not_refused() {
        let value = json!({ "a": false, "b": [], "c": "", "d": null, "e": 1 });
        let fields = Fields::of(value.as_object().unwrap());
        let why = "leave it out";
        fields
            .refuse(&[("a", why), ("b", why), ("c", why), ("d", why)])
            .unwrap();
        assert_eq!(
            message(fields.refuse(&[("e", why)])).1,
            "`e`: not supported; leave it out"
        );
    }
}
