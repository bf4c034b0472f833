//! `tools`, `tool_choice` and `parallel_tool_calls`.

use crate::fields::Fields;
use crate::reply::{ApiError, ApiResult};
use crate::tools::Tool;
use serde_json::{Value, json};

/// Whether and which tools the model may or must call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ToolChoice {
    None,
    Auto,
    /// At least one.
    Required,
    /// This one.
    Named(String),
}

/// Upper bound of the number of tools, that of OpenAI.
const MOST_TOOLS: usize = 128;
/// Upper bound of a name's length, that of OpenAI.
const LONGEST_NAME: usize = 64;

/// The tools of a request; none if `tool_choice` forbids them all.
pub(super) fn read(fields: &Fields<'_>) -> ApiResult<(Vec<Tool>, ToolChoice)> {
    let list = fields.list("tools")?.unwrap_or_default();
    if list.len() > MOST_TOOLS {
        let message = format!("{} tools; at most {MOST_TOOLS} are allowed", list.len());
        return Err(fields.error("tools", message));
    }
    let tools: Vec<Tool> = list
        .iter()
        .enumerate()
        .map(|(place, one)| tool(one, place))
        .collect::<ApiResult<_>>()?;

    let choice = choice(fields, &tools)?;
    let tools = if choice == ToolChoice::None {
        Vec::new()
    } else {
        tools
    };
    Ok((tools, choice))
}

fn tool(value: &Value, place: usize) -> ApiResult<Tool> {
    let path = format!("tools[{place}]");
    let refuse = |field: &str, message: &str| {
        let param = format!("{path}{field}");
        let message = format!("`{param}`: {message}");
        ApiError::invalid(param, message)
    };
    let function = match (value["type"].as_str(), &value["function"]) {
        (Some("function"), Value::Object(function)) => function,
        (Some("function"), _) => return Err(refuse(".function", "expected an object")),
        _ => {
            let message = "expected {\"type\": \"function\", \"function\": {…}}";
            return Err(refuse("", message));
        }
    };

    let inside = format!("{path}.function.");
    let fields = Fields::inside(function, &inside);
    fields.required("name")?;
    let name = fields.text("name")?.unwrap_or_default();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(is_plain) {
        let message = "expected 1 to 64 letters, digits, dots, underscores and hyphens";
        return Err(fields.error("name", message));
    }

    let parameters = match fields.object("parameters")? {
        Some(schema) => Value::Object(schema.clone()),
        None => json!({ "type": "object", "properties": {} }),
    };

    Ok(Tool {
        name: name.to_owned(),
        parameters,
        is_strict: fields.flag("strict")?.unwrap_or(false),
        whole: value.clone(),
    })
}

fn choice(fields: &Fields<'_>, tools: &[Tool]) -> ApiResult<ToolChoice> {
    let choice = match fields.get("tool_choice") {
        None if tools.is_empty() => ToolChoice::None,
        None => ToolChoice::Auto,
        Some(Value::String(text)) => match text.as_str() {
            "none" => ToolChoice::None,
            "auto" if tools.is_empty() => ToolChoice::None,
            "auto" => ToolChoice::Auto,
            "required" => ToolChoice::Required,
            other => {
                let message = format!("`{other}` is none of none, auto and required");
                return Err(fields.error("tool_choice", message));
            }
        },
        Some(value) => match value["function"]["name"].as_str() {
            Some(name) => ToolChoice::Named(name.to_owned()),
            None => {
                let message = "expected none, auto, required or \
                               {\"type\": \"function\", \"function\": {\"name\": …}}";
                return Err(fields.error("tool_choice", message));
            }
        },
    };

    match &choice {
        ToolChoice::Required if tools.is_empty() => {
            Err(fields.error("tool_choice", "there are no `tools` to call"))
        }
        ToolChoice::Named(name) if tools.iter().all(|tool| tool.name != *name) => {
            Err(fields.error("tool_choice", format_args!("`tools` has no {name}")))
        }
        _ => Ok(choice),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(value: Value) -> ApiResult<(Vec<Tool>, ToolChoice)> {
        read(&Fields::of(value.as_object().unwrap()))
    }

    fn f() -> Value {
        json!({ "type": "function", "function": { "name": "f", "parameters": { "type": "object" } } })
    }

    #[test]
    fn choices_need_the_tools_they_name() {
        let with = |choice: Value| read_all(json!({ "tools": [f()], "tool_choice": choice }));
        assert_eq!(with(Value::Null).unwrap().1, ToolChoice::Auto);
        assert_eq!(with(json!("none")).unwrap(), (Vec::new(), ToolChoice::None));
        assert_eq!(with(json!("required")).unwrap().1, ToolChoice::Required);
        let named = json!({ "type": "function", "function": { "name": "f" } });
        assert_eq!(with(named).unwrap().1, ToolChoice::Named("f".into()));
        assert_eq!(read_all(json!({})).unwrap().1, ToolChoice::None);

        for wrong in [
            json!("any"),
            json!(1),
            json!({ "function": { "name": "g" } }),
        ] {
            assert_eq!(
                with(wrong).unwrap_err().param.as_deref(),
                Some("tool_choice")
            );
        }
        assert!(read_all(json!({ "tool_choice": "required" })).is_err());
    }

    #[test]
    fn errors_say_which_tool() {
        for (tool, param) in [
            (json!({ "type": "web_search" }), "tools[1]"),
            (json!({ "type": "function" }), "tools[1].function"),
            (
                json!({ "type": "function", "function": {} }),
                "tools[1].function.name",
            ),
            (
                json!({ "type": "function", "function": { "name": "a b" } }),
                "tools[1].function.name",
            ),
            (
                json!({ "type": "function", "function": { "name": "a", "parameters": [] } }),
                "tools[1].function.parameters",
            ),
        ] {
            let error = read_all(json!({ "tools": [f(), tool] })).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param));
        }
    }
}
