//! Tool calls in a model's text. Each family writes them in its own way; [`parser`] takes them out
//! of a stream of text, and the grammars in `grammar` make a model write them.

mod json;
mod parser;

pub(crate) use parser::{Found, ToolParser};

use serde_json::Value;
#[cfg(feature = "grammar")]
use serde_json::{Map, json};

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ToolCall {
    pub(crate) name: String,
    /// A JSON object, as text.
    pub(crate) arguments: String,
}

/// How a model writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes, Qwen 2.5 and 3.
    Hermes,
    /// `{"name": …, "parameters": …}`, also after `<|python_tag|>`: Llama 3.1 to 3.3.
    Llama,
    /// `[TOOL_CALLS][{"name": …, "arguments": …}]` or `[TOOL_CALLS]name[ARGS]{…}`: Mistral.
    Mistral,
}

impl ToolFormat {
    /// Texts that have a meaning to the parser and may be special tokens, which text leaves out.
    pub(crate) fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Hermes => &["<tool_call>", "</tool_call>"],
            Self::Llama => &["<|python_tag|>"],
            Self::Mistral => &["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
        }
    }

    /// The key of the arguments in a call.
    #[cfg(feature = "grammar")]
    pub(crate) fn arguments_key(self) -> &'static str {
        match self {
            Self::Llama => "parameters",
            Self::Hermes | Self::Mistral => "arguments",
        }
    }

    /// The format in which a chat template writes the calls of earlier turns.
    pub(crate) fn in_text(text: &str) -> Option<Self> {
        if text.contains("<tool_call>") {
            Some(Self::Hermes)
        } else if text.contains("[TOOL_CALLS]") {
            Some(Self::Mistral)
        } else if text.contains("<|python_tag|>") || text.contains("\"parameters\"") {
            Some(Self::Llama)
        } else {
            None
        }
    }
}

/// A tool that a request offers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tool {
    pub(crate) name: String,
    /// JSON schema of the arguments.
    pub(crate) parameters: Value,
    /// The arguments must follow the schema.
    pub(crate) is_strict: bool,
    /// As the request has it, for the template.
    pub(crate) whole: Value,
}

impl Tool {
    /// The schema of a whole call: the name, and the arguments under `key`.
    #[cfg(feature = "grammar")]
    pub(crate) fn call_schema(&self, key: &str) -> Value {
        let mut parameters = self.parameters.clone();
        let mut schema = Map::new();
        // References such as `#/$defs/x` count from the root.
        if let Some(object) = parameters.as_object_mut() {
            for name in ["$defs", "definitions"] {
                if let Some(definitions) = object.remove(name) {
                    schema.insert(name.to_owned(), definitions);
                }
            }
        }

        let own = json!({
            "type": "object",
            "properties": { "name": { "const": self.name }, key: parameters },
            "required": ["name", key],
            "additionalProperties": false,
        });
        if let Value::Object(own) = own {
            schema.extend(own);
        }
        Value::Object(schema)
    }
}

#[cfg(all(test, feature = "grammar"))]
mod tests {
    use super::*;

    #[test]
    fn definitions_stay_where_references_look_for_them() {
        let tool = Tool {
            name: "f".into(),
            parameters: json!({
                "type": "object",
                "properties": { "x": { "$ref": "#/$defs/x" } },
                "$defs": { "x": { "type": "integer" } },
            }),
            is_strict: true,
            whole: Value::Null,
        };
        let schema = tool.call_schema("arguments");
        assert_eq!(schema["$defs"]["x"]["type"], "integer");
        assert_eq!(schema["properties"]["name"]["const"], "f");
        assert!(schema["properties"]["arguments"]["$defs"].is_null());
    }
}
