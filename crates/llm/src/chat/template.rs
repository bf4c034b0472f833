//! Chat templates: the Jinja template by which a model's conversation becomes its prompt, rendered
//! as transformers does.

use super::jinja::{self, Template};
use crate::companion::Companion;
use crate::error::{LlmError, Result};
use serde_json::{Map, Value};

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The message's text.
    pub content: String,
}

impl ChatMessage {
    /// A system message: how the model is to behave.
    pub fn system(content: impl Into<String>) -> Self {
        Self {
            role: "system".into(),
            content: content.into(),
        }
    }

    /// A user message.
    pub fn user(content: impl Into<String>) -> Self {
        Self {
            role: "user".into(),
            content: content.into(),
        }
    }

    /// A reply of the model.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self {
            role: "assistant".into(),
            content: content.into(),
        }
    }
}

/// What a template sees besides the messages.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatInputs {
    /// Tools the model may call, each a JSON object (usually `{"type": "function", "function":
    /// {…}}`).
    pub tools: Option<Vec<Value>>,
    /// Documents to answer from, each a JSON object (usually with `title` and `text`).
    pub documents: Option<Vec<Value>>,
    /// End the prompt with the header of the assistant's turn, so that the model replies.
    pub add_generation_prompt: bool,
    /// Which template to use, if the model has several. `None`: `tool_use` if there are tools and
    /// the model has one of that name, else `default`.
    pub template: Option<String>,
    /// Further variables (`enable_thinking`, …). They take precedence over special tokens of the
    /// same name.
    pub extra: Map<String, Value>,
}

/// A model's chat template, or several with names.
#[derive(Debug)]
pub struct ChatTemplate {
    templates: Templates,
    special_tokens: Map<String, Value>,
}

#[derive(Debug)]
enum Templates {
    One(Template),
    /// One that does not parse is an error only once it is chosen.
    Named(Vec<(String, Result<Template, jinja::Error>)>),
}

/// The folder of further templates: the file `NAME.jinja` holds the one called `NAME`.
const ADDITIONAL: &str = "additional_chat_templates/";

impl ChatTemplate {
    /// Parses a template. `special_tokens` is a JSON object such as `{"bos_token": "<s>"}`; the
    /// template sees its keys as variables.
    ///
    /// ```
    /// use llm_int8::{ChatMessage, ChatTemplate};
    /// let text = "{% for m in messages %}<{{ m.role }}>{{ m.content.strip() }}{% endfor %}{{ eos_token }}";
    /// let template = ChatTemplate::new(text, serde_json::json!({ "eos_token": "</s>" }))?;
    /// assert_eq!(template.apply(&[ChatMessage::user(" Hi ")], true)?, "<user>Hi</s>");
    /// # Ok::<(), llm_int8::LlmError>(())
    /// ```
    ///
    /// # Errors
    /// [`LlmError::ChatTemplate`] if it is not valid Jinja.
    pub fn new(text: &str, special_tokens: Value) -> Result<Self> {
        let special_tokens = match special_tokens {
            Value::Object(tokens) => tokens,
            _ => Map::new(),
        };
        Ok(Self {
            templates: Templates::One(Template::new(text).map_err(template_error)?),
            special_tokens,
        })
    }

    /// Finds the template among a model's small files, in transformers' order:
    /// `chat_template.jinja` with `additional_chat_templates/`, then `tokenizer_config.json`, then
    /// `chat_template.json`.
    ///
    /// # Errors
    /// [`LlmError::NoChatTemplate`] if there is none, [`LlmError::ChatTemplate`] if it does not
    /// parse.
    pub(crate) fn from_companions(
        companions: &[Companion],
        special_tokens: Map<String, Value>,
        model: &str,
    ) -> Result<Self> {
        let files = from_files(companions)?;

        let in_config = || -> Result<Option<Value>> {
            for name in ["tokenizer_config.json", "chat_template.json"] {
                let config = Companion::json(companions, name)?.unwrap_or_default();
                if !config["chat_template"].is_null() {
                    return Ok(Some(config["chat_template"].clone()));
                }
            }
            Ok(None)
        };
        let found = if files.is_empty() {
            in_config()?.map(from_config).unwrap_or_default()
        } else {
            files
        };
        let templates = match &found[..] {
            [] => {
                return Err(LlmError::NoChatTemplate {
                    model: model.to_owned(),
                });
            }
            [(name, text)] if name == "default" => {
                Templates::One(Template::new(text).map_err(template_error)?)
            }
            _ => Templates::Named(
                found
                    .into_iter()
                    .map(|(name, text)| (name, Template::new(&text)))
                    .collect(),
            ),
        };
        Ok(Self {
            templates,
            special_tokens,
        })
    }

    /// Renders a conversation as a prompt. With `add_generation_prompt` it ends with the header of
    /// the assistant's turn, so that the model replies.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::apply_with`].
    pub fn apply(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String> {
        self.apply_with(
            &to_json(messages)?,
            &ChatInputs {
                add_generation_prompt,
                ..ChatInputs::default()
            },
        )
    }

    /// Renders a conversation whose messages are JSON objects, with whatever fields the template
    /// knows: `tool_calls`, `reasoning_content`, a `content` of several parts. Fields keep their
    /// order.
    ///
    /// ```
    /// use llm_int8::{ChatInputs, ChatTemplate};
    /// use serde_json::json;
    /// let text = "{{ tools | tojson }}{% for m in messages %}{{ m.content | map(attribute='text') | join }}{% endfor %}";
    /// let template = ChatTemplate::new(text, json!({}))?;
    /// let message = json!({ "role": "user", "content": [{ "type": "text", "text": "Hi" }] });
    /// let inputs = ChatInputs { tools: Some(vec![json!({ "name": "f" })]), ..ChatInputs::default() };
    /// assert_eq!(template.apply_with(&[message], &inputs)?, r#"[{"name": "f"}]Hi"#);
    /// # Ok::<(), llm_int8::LlmError>(())
    /// ```
    ///
    /// # Errors
    /// [`LlmError::ChatTemplate`] if the template rejects the messages (`raise_exception`), fails
    /// or does not end; if no template has the requested name; if a tool or document is not a JSON
    /// object.
    pub fn apply_with(&self, messages: &[Value], inputs: &ChatInputs) -> Result<String> {
        for (what, given) in [("tool", &inputs.tools), ("document", &inputs.documents)] {
            if given.iter().flatten().any(|one| !one.is_object()) {
                let reason = format!("a {what} is not a JSON object");
                return Err(LlmError::ChatTemplate { reason });
            }
        }

        let json = |list: &Option<Vec<Value>>| list.clone().map_or(Value::Null, Value::Array);
        let given = [
            ("messages", Value::Array(messages.to_vec())),
            ("tools", json(&inputs.tools)),
            ("documents", json(&inputs.documents)),
            (
                "add_generation_prompt",
                Value::Bool(inputs.add_generation_prompt),
            ),
        ];

        let variables = self.special_tokens.iter().chain(&inputs.extra);
        let variables = variables.map(|(name, value)| (name.as_str(), value));
        let variables = variables.chain(given.iter().map(|(name, value)| (*name, value)));

        self.chosen(inputs)?
            .render(variables)
            .map_err(template_error)
    }

    /// Chooses the template as transformers' `get_chat_template` does.
    fn chosen(&self, inputs: &ChatInputs) -> Result<&Template> {
        let all = match &self.templates {
            Templates::One(template)
                if inputs
                    .template
                    .as_deref()
                    .is_none_or(|name| name == "default") =>
            {
                return Ok(template);
            }
            Templates::One(_) => &[][..],
            Templates::Named(all) => all,
        };

        let by_name = |name: &str| {
            all.iter()
                .find(|(known, _)| known == name)
                .map(|(_, template)| template)
        };
        let found = match (&inputs.template, &inputs.tools) {
            (Some(name), _) => by_name(name),
            (None, Some(_)) => by_name("tool_use").or_else(|| by_name("default")),
            (None, None) => by_name("default"),
        };
        let Some(found) = found else {
            let requested = inputs.template.as_deref().unwrap_or("default");
            let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
            let known = if names.is_empty() {
                "default".to_owned()
            } else {
                names.join(", ")
            };

            let reason = format!("the model has none named {requested}; it has {known}");
            return Err(LlmError::ChatTemplate { reason });
        };

        found
            .as_ref()
            .map_err(|error| template_error(error.clone()))
    }
}

/// Messages as JSON objects, the form that templates see.
pub(super) fn to_json(messages: &[ChatMessage]) -> Result<Vec<Value>> {
    let values = messages
        .iter()
        .map(serde_json::to_value)
        .collect::<std::result::Result<_, _>>();
    values.map_err(|cause| LlmError::ChatTemplate {
        reason: cause.to_string(),
    })
}

/// The templates that have files of their own, with their names.
fn from_files(companions: &[Companion]) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for companion in companions {
        let name = match &*companion.name {
            "chat_template.jinja" => Some("default"),
            name => name
                .strip_prefix(ADDITIONAL)
                .and_then(|name| name.strip_suffix(".jinja")),
        };

        if let Some(name) = name {
            let text = String::from_utf8_lossy(&companion.read()?).into_owned();
            found.push((name.to_owned(), text));
        }
    }

    Ok(found)
}

/// The value of `chat_template` in a JSON file: a template, or a list of `{"name": …, "template":
/// …}`.
fn from_config(value: Value) -> Vec<(String, String)> {
    match value {
        Value::String(text) => vec![("default".to_owned(), text)],
        Value::Array(list) => {
            let text = |one: &Value, key: &str| one[key].as_str().map(str::to_owned);
            list.iter()
                .filter_map(|one| Some((text(one, "name")?, text(one, "template")?)))
                .collect()
        }
        _ => Vec::new(),
    }
}

fn template_error(error: jinja::Error) -> LlmError {
    LlmError::ChatTemplate {
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn apply(text: &str) -> Result<String> {
        let messages = [
            ChatMessage::system("Be brief."),
            ChatMessage::user("Hi <b>"),
        ];
        ChatTemplate::new(text, json!({ "bos_token": "<s>" }))?.apply(&messages, true)
    }

    #[test]
    fn templates_see_what_transformers_gives_them() {
        let text = "{{ bos_token }}{% if tools is none and not documents %}{{ messages[0]['content'] }}{% endif %}\
                    {% for m in messages[1:] %}{{ m['role'].upper() + ': ' + m.content }}{% endfor %}\
                    {% if add_generation_prompt %}>{% endif %}";
        assert_eq!(apply(text).unwrap(), "<s>Be brief.USER: Hi <b>>");
    }

    #[test]
    fn block_tags_leave_no_blank_lines() {
        assert_eq!(
            apply("{% for m in messages %}\n  {% if true %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}")
                .unwrap(),
            "system\nuser\n"
        );
    }

    #[test]
    fn errors_name_the_reason_and_the_line() {
        let error = apply("{{ raise_exception('Conversation roles must alternate') }}")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("Conversation roles must alternate"),
            "{error}"
        );
        let error = apply("\n{% for %}").unwrap_err().to_string();
        assert!(
            error.starts_with("the chat template: ") && error.contains("line 2"),
            "{error}"
        );
        let error = apply("a\r\nb\r\n{{ nothing.at.all }}")
            .unwrap_err()
            .to_string();
        assert!(error.contains("'nothing' is undefined, line 3"), "{error}");
    }

    #[test]
    fn dates_are_formatted_and_unknown_formats_are_errors() {
        let year: u32 = apply("{{ strftime_now('%Y') }}").unwrap().parse().unwrap();
        assert!(year >= 2025);
        assert_eq!(
            apply("{{ strftime_now('%d %b %Y') | length }}").unwrap(),
            "11"
        );
        assert_eq!(apply("{{ strftime_now('%f') | length }}").unwrap(), "6");
        assert!(
            apply("{{ strftime_now('%E') }}")
                .unwrap_err()
                .to_string()
                .contains("does not know")
        );
    }

    #[test]
    fn extra_variables_hide_special_tokens_but_not_messages() {
        let template = ChatTemplate::new(
            "{{ bos_token }} {{ messages }} {{ thinking }}",
            json!({ "bos_token": "<s>" }),
        )
        .unwrap();
        let extra = json!({ "bos_token": "<b>", "messages": 1, "thinking": false });
        let inputs = ChatInputs {
            extra: extra.as_object().unwrap().clone(),
            ..ChatInputs::default()
        };
        assert_eq!(template.apply_with(&[], &inputs).unwrap(), "<b> [] False");
    }

    fn from_files(files: &[(&'static str, &'static str)]) -> Result<ChatTemplate> {
        let companions: Vec<Companion> = files
            .iter()
            .map(|(name, text)| Companion::bytes(name, text.as_bytes()))
            .collect();
        ChatTemplate::from_companions(&companions, Map::new(), "m")
    }

    fn with(template: &ChatTemplate, tools: bool, name: Option<&str>) -> Result<String> {
        let tools = tools.then(Vec::new);
        let inputs = ChatInputs {
            tools,
            template: name.map(str::to_owned),
            ..ChatInputs::default()
        };
        template.apply_with(&[], &inputs)
    }

    const SEVERAL: &str = r#"{"chat_template": [{"name": "tool_use", "template": "t"},
        {"name": "default", "template": "d"}, {"name": "rag", "template": "{% if %}"}]}"#;

    #[test]
    fn several_templates_are_chosen_by_name_or_by_whether_there_are_tools() {
        let several = from_files(&[("tokenizer_config.json", SEVERAL)]).unwrap();
        assert_eq!(with(&several, false, None).unwrap(), "d");
        assert_eq!(with(&several, true, None).unwrap(), "t");
        assert_eq!(with(&several, true, Some("default")).unwrap(), "d");
        let error = with(&several, false, Some("other"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("none named other; it has tool_use, default, rag"),
            "{error}"
        );
        assert!(
            with(&several, false, Some("rag"))
                .unwrap_err()
                .to_string()
                .contains("line 1")
        );
    }

    #[test]
    fn template_files_take_precedence_over_tokenizer_config() {
        let config = ("tokenizer_config.json", r#"{"chat_template": "c"}"#);
        let file = ("chat_template.jinja", "f");
        let tools = ("additional_chat_templates/tool_use.jinja", "t");
        let processor = ("chat_template.json", r#"{"chat_template": "p"}"#);

        for (files, plain, with_tools) in [
            (vec![processor, config], Some("c"), Some("c")),
            (vec![processor], Some("p"), Some("p")),
            (vec![config, file], Some("f"), Some("f")),
            (vec![config, file, tools], Some("f"), Some("t")),
            (vec![config, tools], None, Some("t")),
        ] {
            let template = from_files(&files).unwrap();
            assert_eq!(
                with(&template, false, None).ok().as_deref(),
                plain,
                "{files:?}"
            );
            assert_eq!(
                with(&template, true, None).ok().as_deref(),
                with_tools,
                "{files:?}"
            );
        }

        assert!(matches!(
            from_files(&[]),
            Err(LlmError::NoChatTemplate { .. })
        ));
    }

    #[test]
    fn tools_and_documents_must_be_objects() {
        let template = ChatTemplate::new("", json!({})).unwrap();
        let inputs = ChatInputs {
            documents: Some(vec![json!("text")]),
            ..ChatInputs::default()
        };
        let error = template.apply_with(&[], &inputs).unwrap_err().to_string();
        assert!(error.contains("a document is not a JSON object"), "{error}");
    }
}
