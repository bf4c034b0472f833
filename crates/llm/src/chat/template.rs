//! Chat templates: how a model wants a conversation written down (Jinja, as transformers runs it).

use crate::companion::Companion;
use crate::error::{LlmError, Result};
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, context};
use std::borrow::Cow;
use std::fmt::Write;

/// Instructions a template may take; a hundred thousand messages need fewer. A template that loops is
/// ended.
const FUEL: u64 = 20_000_000;

/// Bytes a template may write.
const LONGEST_TEXT: usize = 64 << 20;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

impl ChatMessage {
    /// What tells the model how to behave.
    pub fn system(content: impl Into<String>) -> Self {
        Self { role: "system".into(), content: content.into() }
    }

    /// What a person says.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: "user".into(), content: content.into() }
    }

    /// What the model said.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self { role: "assistant".into(), content: content.into() }
    }
}

/// A model's chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: serde_json::Value,
}

/// The name of the template in its environment.
const NAME: &str = "chat";

impl ChatTemplate {
    /// From the text of a template; `special_tokens` is an object of `bos_token`, `eos_token` and the like.
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
    /// [`LlmError::ChatTemplate`] where it is no Jinja.
    pub fn new(text: &str, special_tokens: serde_json::Value) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment.add_template_owned(NAME, without_generation_tags(text).into_owned()).map_err(refused)?;
        Ok(Self { environment, special_tokens })
    }

    /// The template among a model's small files: `chat_template.jinja`, or that of `tokenizer_config.json`.
    pub(crate) fn of(companions: &[Companion], model: &str) -> Result<Self> {
        let config = Companion::json(companions, "tokenizer_config.json")?.unwrap_or_default();
        let file = companions.iter().find(|companion| companion.name == "chat_template.jinja");
        let beside = Companion::json(companions, "chat_template.json")?.unwrap_or_default();
        let text = match file {
            Some(file) => Some(String::from_utf8_lossy(&file.read()?).into_owned()),
            None => named(&config["chat_template"]).or_else(|| named(&beside["chat_template"])),
        };
        let text = text.ok_or_else(|| LlmError::NoChatTemplate { model: model.to_owned() })?;
        Self::new(&text, special_tokens(&config))
    }

    /// Another template, with the special tokens that a model's small files name.
    pub(crate) fn with_tokens_of(companions: &[Companion], text: &str) -> Result<Self> {
        let config = Companion::json(companions, "tokenizer_config.json")?.unwrap_or_default();
        Self::new(text, special_tokens(&config))
    }

    /// The text of a conversation; with `add_generation_prompt`, up to where the model goes on.
    ///
    /// # Errors
    /// [`LlmError::ChatTemplate`] where the template refuses the messages, fails, or does not end.
    pub fn apply(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String> {
        let template = self.environment.get_template(NAME).map_err(refused)?;
        let none = Value::from(());
        let values = context! {
            messages,
            add_generation_prompt,
            tools => none,
            documents => none,
            ..Value::from_serialize(&self.special_tokens)
        };
        let mut text = Limited(Vec::new());
        template.render_captured_to(values, &mut text).map_err(refused)?;
        String::from_utf8(text.0).map_err(|cause| LlmError::ChatTemplate { reason: cause.to_string() })
    }
}

/// Text up to a length.
struct Limited(Vec<u8>);

impl std::io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > LONGEST_TEXT {
            return Err(std::io::Error::other("it writes more than 64 MiB"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A template, or that named `default` of several.
fn named(value: &serde_json::Value) -> Option<String> {
    let among = |list: &Vec<serde_json::Value>| {
        let of = |name: &str| list.iter().find(|one| one["name"] == name).or(list.first());
        of("default").and_then(|one| one["template"].as_str()).map(str::to_owned)
    };
    value.as_str().map(str::to_owned).or_else(|| value.as_array().and_then(among))
}

/// `bos_token` and the others, as texts.
fn special_tokens(config: &serde_json::Value) -> serde_json::Value {
    let of = |key: &str| config[key].as_str().or(config[key]["content"].as_str()).map(str::to_owned);
    let keys = ["bos_token", "eos_token", "unk_token", "pad_token"];
    keys.iter()
        .filter_map(|key| Some(((*key).to_owned(), of(key)?.into())))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn refused(error: Error) -> LlmError {
    let reason = match error.kind() {
        ErrorKind::OutOfFuel => "it does not come to an end".to_owned(),
        _ => {
            let cause =
                std::error::Error::source(&error).map_or(String::new(), |cause| format!(" ({cause})"));
            let text = error.detail().map_or_else(|| error.to_string(), str::to_owned);
            let place = error.line().map_or(String::new(), |line| format!(", line {line}"));
            format!("{text}{cause}{place}")
        }
    };
    LlmError::ChatTemplate { reason }
}

/// `{% generation %}` marks the model's words for training; here it means nothing.
fn without_generation_tags(text: &str) -> Cow<'_, str> {
    if !text.contains("generation %}") && !text.contains("generation -%}") {
        return Cow::Borrowed(text);
    }
    let mut rest = text;
    let mut found = String::with_capacity(text.len());
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let tag = &rest[start + 2..start + length];
        let word = tag.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        let stands_for = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            other => other,
        };
        found.push_str(&rest[..start + 2]);
        found.push_str(&tag.replacen(word, stands_for, 1));
        found.push_str("%}");
        rest = &rest[start + length + 2..];
    }
    found.push_str(rest);
    Cow::Owned(found)
}

/// Python's `json.dumps` as transformers calls it: nothing escaped for HTML, `indent` as asked for.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let failed = |cause: serde_json::Error| Error::new(ErrorKind::BadSerialization, cause.to_string());
    let indent: Option<usize> = options.get("indent")?;
    // Arguments that concern other characters or the order of keys change nothing here.
    let _: (Option<bool>, Option<bool>) = (options.get("ensure_ascii")?, options.get("sort_keys")?);
    options.assert_all_used()?;
    let value = serde_json::to_value(value).map_err(failed)?;
    let mut text = Vec::new();
    let written = match indent {
        Some(width) => {
            let spaces = vec![b' '; width.min(16)];
            let format = serde_json::ser::PrettyFormatter::with_indent(&spaces);
            serde::Serialize::serialize(
                &value,
                &mut serde_json::Serializer::with_formatter(&mut text, format),
            )
        }
        None => serde::Serialize::serialize(
            &value,
            &mut serde_json::Serializer::with_formatter(&mut text, Python),
        ),
    };
    written.map_err(failed)?;
    Ok(Value::from_safe_string(String::from_utf8_lossy(&text).into_owned()))
}

/// `{"a": 1, "b": [1, 2]}`: spaces where Python puts them.
struct Python;

impl serde_json::ser::Formatter for Python {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

/// Local time, as Python's `datetime.now().strftime(format)`.
fn strftime_now(format: String) -> Result<String, Error> {
    let mut text = String::new();
    match write!(text, "{}", chrono::Local::now().format(&format)) {
        Ok(()) => Ok(text),
        Err(_) => {
            Err(Error::new(ErrorKind::InvalidOperation, format!("strftime_now does not know `{format}`")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(text: &str) -> Result<String> {
        let messages = [ChatMessage::system("Be brief."), ChatMessage::user("Hi <b>")];
        ChatTemplate::new(text, serde_json::json!({ "bos_token": "<s>" }))?.apply(&messages, true)
    }

    #[test]
    fn templates_see_what_transformers_gives_them() {
        let text = "{{ bos_token }}{% if tools is none and not documents %}{{ messages[0]['content'] }}{% endif %}\
                    {% for m in messages[1:] %}{{ m['role'].upper() + ': ' + m.content }}{% endfor %}\
                    {% if add_generation_prompt %}>{% endif %}";
        assert_eq!(apply(text).unwrap(), "<s>Be brief.USER: Hi <b>>");
    }

    #[test]
    fn blocks_leave_no_lines_behind() {
        assert_eq!(
            apply("{% for m in messages %}\n  {% if true %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}")
                .unwrap(),
            "system\nuser\n"
        );
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        assert_eq!(
            apply("{{ {'a': [1, 'é<'], 'b': none} | tojson }}").unwrap(),
            "{\"a\": [1, \"é<\"], \"b\": null}"
        );
        assert_eq!(apply("{{ [1] | tojson(indent=2) }}").unwrap(), "[\n  1\n]");
    }

    #[test]
    fn marks_for_training_mean_nothing() {
        let text = "{% for m in messages %}{%- generation -%} {{ m.role }} {%- endgeneration %}{% endfor %}";
        assert_eq!(apply(text).unwrap(), "systemuser");
    }

    #[test]
    fn what_a_template_refuses_is_said() {
        let error =
            apply("{{ raise_exception('Conversation roles must alternate') }}").unwrap_err().to_string();
        assert!(error.contains("Conversation roles must alternate"), "{error}");
        let error = apply("{% for %}").unwrap_err().to_string();
        assert!(error.starts_with("the chat template: ") && error.contains("line 1"), "{error}");
        assert!(apply("{{ nothing.at.all }}").is_err());
    }

    #[test]
    fn a_template_that_does_not_end_is_ended() {
        let nested = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}";
        let error = apply(nested).unwrap_err().to_string();
        assert!(error.contains("does not come to an end"), "{error}");
        let error = apply("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").unwrap_err().to_string();
        assert!(error.contains("the chat template: "), "{error}");
        let large = "{% for a in range(100000) %}{{ messages[0].content * 1000 }}{% endfor %}";
        assert!(apply(large).is_err());
    }

    #[test]
    fn dates_are_formatted_and_unknown_formats_are_errors() {
        let year: u32 = apply("{{ strftime_now('%Y') }}").unwrap().parse().unwrap();
        assert!(year >= 2026);
        assert_eq!(apply("{{ strftime_now('%d %b %Y') | length }}").unwrap(), "11");
        assert!(apply("{{ strftime_now('%E') }}").unwrap_err().to_string().contains("does not know"));
    }

    #[test]
    fn of_several_templates_the_default_is_taken() {
        let several = serde_json::json!([
            { "name": "tool_use", "template": "t" },
            { "name": "default", "template": "d" },
        ]);
        assert_eq!(named(&several).unwrap(), "d");
        assert_eq!(named(&"one".into()).unwrap(), "one");
        assert!(named(&serde_json::Value::Null).is_none());
    }
}
