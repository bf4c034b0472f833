//! `response_format`.

use crate::fields::Fields;
use crate::reply::ApiResult;
use serde_json::{Value, json};

/// The form that the text must have.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ResponseFormat {
    Text,
    /// JSON that follows a schema.
    Json(Value),
}

impl ResponseFormat {
    pub(super) fn read(fields: &Fields<'_>) -> ApiResult<Self> {
        let Some(format) = fields.object("response_format")? else {
            return Ok(Self::Text);
        };
        let inner = Fields::inside(format, "response_format.");
        inner.required("type")?;
        match inner.text("type")?.unwrap_or_default() {
            "text" => Ok(Self::Text),
            "json_object" => Ok(Self::Json(json!({ "type": "object" }))),
            "json_schema" => {
                inner.required("json_schema")?;
                let Some(described) = inner.object("json_schema")? else {
                    return Ok(Self::Text);
                };
                let described = Fields::inside(described, "response_format.json_schema.");
                let schema = match described.object("schema")? {
                    Some(schema) => Value::Object(schema.clone()),
                    // OpenAI: a schema that is left out allows any object.
                    None => json!({ "type": "object" }),
                };
                Ok(Self::Json(schema))
            }
            other => {
                let message = format!("`{other}` is none of text, json_object and json_schema");
                Err(inner.error("type", message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value) -> ApiResult<ResponseFormat> {
        let request = json!({ "response_format": value });
        ResponseFormat::read(&Fields::of(request.as_object().unwrap()))
    }

    #[test]
    fn formats_are_text_an_object_or_a_schema() {
        assert_eq!(read(Value::Null).unwrap(), ResponseFormat::Text);
        assert_eq!(
            read(json!({ "type": "text" })).unwrap(),
            ResponseFormat::Text
        );
        let object = ResponseFormat::Json(json!({ "type": "object" }));
        assert_eq!(read(json!({ "type": "json_object" })).unwrap(), object);
        let schema = json!({ "type": "array" });
        assert_eq!(
            read(
                json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema } })
            )
            .unwrap(),
            ResponseFormat::Json(schema)
        );
    }

    #[test]
    fn errors_name_the_inner_field() {
        for (value, param) in [
            (json!("json"), "response_format"),
            (json!({}), "response_format.type"),
            (json!({ "type": "grammar" }), "response_format.type"),
            (
                json!({ "type": "json_schema" }),
                "response_format.json_schema",
            ),
            (
                json!({ "type": "json_schema", "json_schema": { "schema": 1 } }),
                "response_format.json_schema.schema",
            ),
        ] {
            assert_eq!(
                read(value.clone()).unwrap_err().param.as_deref(),
                Some(param),
                "{value}"
            );
        }
    }
}
