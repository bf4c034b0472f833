//! `POST /v1/chat/completions`.

use super::{Common, ResponseFormat, Sampling, ToolChoice, messages, tools};
use crate::fields::Fields;
use crate::reply::ApiResult;
use crate::tools::Tool;
use serde_json::{Map, Value};

/// A conversation and what the template is to do with it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Conversation {
    pub(crate) messages: Vec<Value>,
    pub(crate) tools: Vec<Tool>,
    /// Further variables of the template.
    pub(crate) extra: Map<String, Value>,
    /// Whether the prompt ends with the header of the assistant's turn.
    pub(crate) opens_reply: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ChatRequest {
    pub(crate) common: Common,
    pub(crate) conversation: Conversation,
    /// New tokens; `None`: as many as fit.
    pub(crate) max_tokens: Option<usize>,
    /// Log-probabilities with this many alternatives.
    pub(crate) logprobs: Option<usize>,
    pub(crate) format: ResponseFormat,
    pub(crate) tool_choice: ToolChoice,
    pub(crate) parallel_calls: bool,
}

/// Fields of OpenAI that mean something this server does not do.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("functions", "use `tools`"),
    ("function_call", "use `tool_choice`"),
    ("audio", "the model writes text"),
    ("web_search_options", "the server does not search the web"),
];

impl Conversation {
    /// The conversation in a request.
    pub(crate) fn read(fields: &Fields<'_>) -> ApiResult<(Self, ToolChoice)> {
        let (tools, choice) = tools::read(fields)?;
        let mut extra = fields
            .object("chat_template_kwargs")?
            .cloned()
            .unwrap_or_default();
        if let Some(effort) = fields.text("reasoning_effort")? {
            extra.insert("reasoning_effort".into(), effort.into());
        }
        let conversation = Self {
            messages: messages::read(fields)?,
            tools,
            extra,
            opens_reply: fields.flag("add_generation_prompt")?.unwrap_or(true),
        };
        Ok((conversation, choice))
    }
}

impl ChatRequest {
    /// Reads a request.
    ///
    /// # Errors
    /// One of status 400 that names the field.
    pub(crate) fn read(object: &Map<String, Value>) -> ApiResult<Self> {
        let fields = Fields::of(object);
        fields.refuse(UNSUPPORTED)?;
        let modalities = fields.list("modalities")?.unwrap_or_default();
        if modalities.iter().any(|one| one.as_str() != Some("text")) {
            return Err(fields.error("modalities", "the model writes text and nothing else"));
        }

        let common = Common::read(&fields, Sampling::read(&fields)?)?;
        let (conversation, tool_choice) = Conversation::read(&fields)?;
        let format = ResponseFormat::read(&fields)?;
        if format != ResponseFormat::Text && !conversation.tools.is_empty() {
            let message = "it cannot be combined with `tools`; set `tool_choice` to none";
            return Err(fields.error("response_format", message));
        }

        Ok(Self {
            common,
            conversation,
            max_tokens: max_tokens(&fields)?,
            logprobs: logprobs(&fields)?,
            format,
            tool_choice,
            parallel_calls: fields.flag("parallel_tool_calls")?.unwrap_or(true),
        })
    }
}

/// `max_completion_tokens`, or its older name `max_tokens`.
fn max_tokens(fields: &Fields<'_>) -> ApiResult<Option<usize>> {
    let new = fields.count("max_completion_tokens", 1..=usize::MAX)?;
    let old = fields.count("max_tokens", 1..=usize::MAX)?;
    Ok(new.or(old))
}

fn logprobs(fields: &Fields<'_>) -> ApiResult<Option<usize>> {
    let top = fields.count("top_logprobs", 0..=20)?;
    match (fields.flag("logprobs")?.unwrap_or(false), top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(fields.error("top_logprobs", "it needs `logprobs`: true")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(fields: Value) -> ApiResult<ChatRequest> {
        let mut request = json!({ "messages": [{ "role": "user", "content": "Hi" }] });
        let object = request.as_object_mut().unwrap();
        object.extend(fields.as_object().unwrap().clone());
        ChatRequest::read(object)
    }

    #[test]
    fn unknown_fields_are_ignored_and_unsupported_ones_are_not() {
        let plain = read(json!({})).unwrap();
        assert_eq!(
            read(json!({ "user": "u", "store": true, "metadata": {}, "nonsense": [1] })).unwrap(),
            plain
        );
        for (fields, param) in [
            (json!({ "functions": [{}] }), "functions"),
            (json!({ "modalities": ["text", "audio"] }), "modalities"),
            (json!({ "top_logprobs": 3 }), "top_logprobs"),
            (
                json!({ "logprobs": true, "top_logprobs": 21 }),
                "top_logprobs",
            ),
            (json!({ "n": 0 }), "n"),
            (json!({ "max_tokens": 0 }), "max_tokens"),
            (
                json!({ "stream_options": { "include_usage": true } }),
                "stream_options",
            ),
        ] {
            let error = read(fields.clone()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{fields}");
        }
    }

    #[test]
    fn both_names_of_the_length_are_read() {
        assert_eq!(
            read(json!({ "max_tokens": 5 })).unwrap().max_tokens,
            Some(5)
        );
        let both = json!({ "max_tokens": 5, "max_completion_tokens": 6 });
        assert_eq!(read(both).unwrap().max_tokens, Some(6));
    }
}
