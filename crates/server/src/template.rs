//! The chat template, and what it says about tools.

use crate::request::Conversation;
use crate::tools::{Tool, ToolFormat};
use llm_int8::{AutoModelForCausalLM, ChatInputs, ChatTemplate, LlmError, Tokenizer};
use serde_json::{Value, json};
use std::collections::HashMap;

/// A model's chat template, if it has one.
#[derive(Debug)]
pub(crate) struct Template {
    template: Result<ChatTemplate, String>,
    /// How calls are written; `None` if the template does not show tools to the model.
    format: Option<ToolFormat>,
}

impl Template {
    /// The model's own template, or `text`. A model without one can be served; its chats are refused.
    ///
    /// # Errors
    /// [`LlmError::ChatTemplate`] if `text` cannot be used.
    pub(crate) fn new(model: &AutoModelForCausalLM, text: Option<&str>) -> llm_int8::Result<Self> {
        let template = match text {
            Some(text) => Ok(model.chat_template_of(text)?),
            None => model.chat_template().map_err(|error| error.to_string()),
        };
        let format = template.as_ref().ok().and_then(tool_format);
        Ok(Self { template, format })
    }

    /// How the model writes tool calls.
    pub(crate) fn format(&self) -> Option<ToolFormat> {
        self.format
    }

    /// The prompt of a conversation.
    ///
    /// # Errors
    /// [`LlmError::ChatTemplate`], also if there is none.
    pub(crate) fn render(&self, conversation: &Conversation) -> llm_int8::Result<String> {
        let template = match &self.template {
            Ok(template) => template,
            Err(reason) => {
                let reason = reason.clone();
                return Err(LlmError::ChatTemplate { reason });
            }
        };
        let tools = &conversation.tools;
        let inputs = ChatInputs {
            tools: (!tools.is_empty()).then(|| tools.iter().map(|t| t.whole.clone()).collect()),
            add_generation_prompt: conversation.opens_reply,
            extra: conversation.extra.clone(),
            ..ChatInputs::default()
        };
        template.apply_with(&conversation.messages, &inputs)
    }

    /// Marks of calls that are single special tokens, which decoded text leaves out.
    pub(crate) fn special_marks(&self, tokenizer: &Tokenizer) -> HashMap<&'static str, u32> {
        let marks = self.format.map_or(&[][..], ToolFormat::marks);
        let id = |mark: &&'static str| match tokenizer.encode_templated(mark).ok()?[..] {
            [id] if tokenizer.is_special(id) => Some((*mark, id)),
            _ => None,
        };
        marks.iter().filter_map(id).collect()
    }
}

/// How a template writes calls, found out by having it write one.
fn tool_format(template: &ChatTemplate) -> Option<ToolFormat> {
    let name = "probe_of_tools";
    let parameters = json!({ "type": "object", "properties": { "probe": { "type": "string" } } });
    let whole = json!({
        "type": "function",
        "function": { "name": name, "description": "Probes.", "parameters": parameters },
    });
    let tool = Tool {
        name: name.into(),
        parameters,
        is_strict: false,
        whole,
    };
    let user = json!({ "role": "user", "content": "Probe." });
    let render = |messages: &[Value]| {
        let inputs = ChatInputs {
            tools: Some(vec![tool.whole.clone()]),
            ..ChatInputs::default()
        };
        template.apply_with(messages, &inputs).ok()
    };
    let shown = render(std::slice::from_ref(&user)).filter(|text| text.contains(name))?;

    let call = json!({ "role": "assistant", "content": "", "tool_calls": [{
        // Mistral's templates want nine letters.
        "id": "abcdefghi",
        "type": "function",
        "function": { "name": name, "arguments": { "probe": "x" } },
    }]});
    let answer = json!({
        "role": "tool", "content": "y", "tool_call_id": "abcdefghi", "name": name,
    });
    let written = render(&[user.clone(), call.clone(), answer]).or_else(|| render(&[user, call]));
    let written = written.as_deref();
    // The description of tools may speak of another form than the calls have.
    let after = written.and_then(|text| text.get(text.find("Probe.")?..));
    after
        .and_then(ToolFormat::in_text)
        .or_else(|| ToolFormat::in_text(&shown))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(text: &str) -> Option<ToolFormat> {
        tool_format(&ChatTemplate::new(text, json!({})).unwrap())
    }

    const HERMES: &str = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}\
        {{ m.role }}: {{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>\n\
        {{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}\n</tool_call>\
        {% endfor %}{% endfor %}";

    #[test]
    fn a_template_shows_how_calls_are_written() {
        assert_eq!(format(HERMES), Some(ToolFormat::Hermes));
        let mistral = HERMES
            .replace("<tool_call>\n", "[TOOL_CALLS][")
            .replace("\n</tool_call>", "]");
        assert_eq!(format(&mistral), Some(ToolFormat::Mistral));
        let llama = HERMES
            .replace("<tool_call>\n", "")
            .replace("\n</tool_call>", "")
            .replace("'arguments':", "'parameters':");
        assert_eq!(format(&llama), Some(ToolFormat::Llama));
    }

    #[test]
    fn a_template_that_shows_no_tools_has_no_format() {
        assert_eq!(
            format("{% for m in messages %}{{ m.content }}{% endfor %}"),
            None
        );
        assert_eq!(format("{{ raise_exception('no') }}"), None);
    }
}
