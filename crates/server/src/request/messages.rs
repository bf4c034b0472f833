//! Messages, in the form that chat templates read.

use crate::fields::{Fields, kind};
use crate::reply::{ApiError, ApiResult};
use serde_json::{Map, Value, json};

/// The messages of a request: text parts are joined, `developer` is `system`, and the arguments of
/// earlier tool calls are objects instead of text, as templates expect.
pub(super) fn read(fields: &Fields<'_>) -> ApiResult<Vec<Value>> {
    fields.required("messages")?;
    let list = fields.list("messages")?.unwrap_or_default();
    if list.is_empty() {
        return Err(fields.error("messages", "there is no message"));
    }

    let one = |(place, value): (usize, &Value)| match value.as_object() {
        Some(object) => message(object, &format!("messages[{place}].")),
        None => {
            let param = format!("messages[{place}]");
            let message = format!("`{param}`: expected an object, found {}", kind(value));
            Err(ApiError::invalid(param, message))
        }
    };
    list.iter().enumerate().map(one).collect()
}

fn message(object: &Map<String, Value>, path: &str) -> ApiResult<Value> {
    let fields = Fields::inside(object, path);
    fields.required("role")?;
    let role = match fields.text("role")?.unwrap_or_default() {
        "developer" => "system",
        role @ ("system" | "user" | "assistant" | "tool") => role,
        "function" => {
            let message = "`function` is not supported; use the role `tool`";
            return Err(fields.error("role", message));
        }
        other => {
            let message =
                format!("`{other}` is none of developer, system, user, assistant and tool");
            return Err(fields.error("role", message));
        }
    };
    fields.refuse(&[
        ("function_call", "use `tool_calls`"),
        ("audio", "only text can be read"),
    ])?;

    let calls = fields.list("tool_calls")?.unwrap_or_default();
    let content = content(&fields, path)?;
    if content.is_none() && calls.is_empty() && role != "assistant" {
        return Err(fields.error("content", "this field is required"));
    }

    let mut message = Map::new();
    message.insert("role".into(), json!(role));
    // Templates add texts up, so there is always one.
    message.insert("content".into(), json!(content.unwrap_or_default()));
    if !calls.is_empty() {
        let calls = calls
            .iter()
            .enumerate()
            .map(|(place, call)| tool_call(call, &format!("{path}tool_calls[{place}]")));
        let calls: Vec<Value> = calls.collect::<ApiResult<_>>()?;
        message.insert("tool_calls".into(), Value::Array(calls));
    }
    for name in ["name", "tool_call_id", "reasoning_content"] {
        if let Some(text) = fields.text(name)? {
            message.insert(name.into(), json!(text));
        }
    }

    Ok(Value::Object(message))
}

fn content(fields: &Fields<'_>, path: &str) -> ApiResult<Option<String>> {
    let parts = match fields.get("content") {
        None => return Ok(None),
        Some(Value::String(text)) => return Ok(Some(text.clone())),
        Some(Value::Array(parts)) => parts,
        Some(_) => return Err(fields.error("content", "expected a string or a list of parts")),
    };

    let mut text = String::new();
    for (place, part) in parts.iter().enumerate() {
        let param = format!("{path}content[{place}]");
        match (part["type"].as_str(), part["text"].as_str()) {
            (Some("text") | None, Some(part)) => text.push_str(part),
            (Some(other), _) if other != "text" => {
                let message = format!("`{param}`: the model reads text, not `{other}`");
                return Err(ApiError::invalid(param, message));
            }
            _ => {
                let message = format!("`{param}`: expected {{\"type\": \"text\", \"text\": …}}");
                return Err(ApiError::invalid(param, message));
            }
        }
    }

    Ok(Some(text))
}

fn tool_call(value: &Value, path: &str) -> ApiResult<Value> {
    let function = &value["function"];
    let Some(name) = function["name"].as_str() else {
        let message = format!("`{path}`: expected {{\"function\": {{\"name\": …}}}}");
        return Err(ApiError::invalid(path, message));
    };
    let arguments = match &function["arguments"] {
        Value::String(text) if text.trim().is_empty() => json!({}),
        Value::String(text) => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
        Value::Null => json!({}),
        other => other.clone(),
    };

    let mut call = Map::new();
    if let Some(id) = value["id"].as_str() {
        call.insert("id".into(), json!(id));
    }
    call.insert("type".into(), json!("function"));
    let function = json!({ "name": name, "arguments": arguments });
    call.insert("function".into(), function);
    Ok(Value::Object(call))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(value: Value) -> ApiResult<Vec<Value>> {
        let request = json!({ "messages": value });
        read(&Fields::of(request.as_object().unwrap()))
    }

    #[test]
    fn messages_have_the_form_that_templates_read() {
        let given = json!([
            { "role": "developer", "content": "Be brief." },
            { "role": "user", "content": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }], "x": 1 },
            { "role": "assistant", "content": null, "tool_calls": [
                { "id": "c1", "type": "function", "function": { "name": "f", "arguments": "{\"x\": 1}" } }] },
            { "role": "tool", "tool_call_id": "c1", "content": "2" },
        ]);
        let expected = json!([
            { "role": "system", "content": "Be brief." },
            { "role": "user", "content": "ab" },
            { "role": "assistant", "content": "", "tool_calls": [
                { "id": "c1", "type": "function", "function": { "name": "f", "arguments": { "x": 1 } } }] },
            { "role": "tool", "content": "2", "tool_call_id": "c1" },
        ]);
        assert_eq!(Value::Array(read_all(given).unwrap()), expected);
    }

    #[test]
    fn errors_say_which_message() {
        let image = json!({ "type": "image_url", "image_url": { "url": "x" } });
        for (value, param) in [
            (json!("Hi"), "messages"),
            (json!([]), "messages"),
            (json!(["Hi"]), "messages[0]"),
            (json!([{ "content": "Hi" }]), "messages[0].role"),
            (
                json!([{ "role": "robot", "content": "" }]),
                "messages[0].role",
            ),
            (json!([{ "role": "user" }]), "messages[0].content"),
            (
                json!([{ "role": "user", "content": 1 }]),
                "messages[0].content",
            ),
            (
                json!([{ "role": "user", "content": [image] }]),
                "messages[0].content[0]",
            ),
            (
                json!([{ "role": "user", "content": [{ "type": "text" }] }]),
                "messages[0].content[0]",
            ),
            (
                json!([{ "role": "assistant", "tool_calls": [{}] }]),
                "messages[0].tool_calls[0]",
            ),
        ] {
            let error = read_all(value.clone()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{value}");
        }
    }
}
