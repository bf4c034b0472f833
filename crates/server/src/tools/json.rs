//! JSON in the middle of a text.

use super::ToolCall;
use serde_json::Value;

/// A JSON value at the beginning of a text.
#[derive(Debug, PartialEq)]
pub(super) enum Beginning {
    /// The value and its length in bytes.
    Whole(Value, usize),
    /// It may still become one.
    Open,
    /// It is none.
    Not,
}

/// Reads the JSON value that `text` begins with.
pub(super) fn beginning(text: &str) -> Beginning {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    match values.next() {
        Some(Ok(value)) => Beginning::Whole(value, values.byte_offset()),
        Some(Err(error)) if error.is_eof() => Beginning::Open,
        None => Beginning::Open,
        Some(Err(_)) => Beginning::Not,
    }
}

/// The call that a JSON object describes: a name, and arguments under one of the names that models
/// use.
pub(super) fn call(value: &Value) -> Option<ToolCall> {
    let object = value.as_object()?;
    // Qwen and others sometimes repeat OpenAI's form.
    let object = match object.get("function") {
        Some(Value::Object(inner)) => inner,
        _ => object,
    };
    let name = object.get("name")?.as_str()?;
    let arguments = object.get("arguments").or(object.get("parameters"));
    Some(ToolCall {
        name: name.to_owned(),
        arguments: match arguments {
            None | Some(Value::Null) => "{}".to_owned(),
            // Already written out.
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_value_ends_where_its_text_ends() {
        let whole = Beginning::Whole(json!({ "a": "}" }), 9);
        assert_eq!(beginning("{\"a\":\"}\"}; rest"), whole);
        assert_eq!(beginning("{\"a\":"), Beginning::Open);
        assert_eq!(beginning(""), Beginning::Open);
        assert_eq!(beginning("{a"), Beginning::Not);
    }

    #[test]
    fn calls_have_a_name_and_arguments() {
        let of = |value: Value| call(&value).map(|call| (call.name, call.arguments));
        let pair = |arguments: &str| Some(("f".to_owned(), arguments.to_owned()));
        assert_eq!(
            of(json!({ "name": "f", "arguments": { "x": 1 } })),
            pair("{\"x\":1}")
        );
        assert_eq!(of(json!({ "name": "f", "parameters": {} })), pair("{}"));
        assert_eq!(of(json!({ "name": "f" })), pair("{}"));
        assert_eq!(of(json!({ "name": "f", "arguments": "{}" })), pair("{}"));
        assert_eq!(
            of(json!({ "type": "function", "function": { "name": "f" } })),
            pair("{}")
        );
        assert_eq!(of(json!({ "arguments": {} })), None);
        assert_eq!(of(json!([1])), None);
    }
}
