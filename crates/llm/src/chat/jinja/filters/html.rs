//! Filters for HTML and URLs.

use crate::chat::jinja::args::Args;
use crate::chat::jinja::budget::{MAKING, Text};
use crate::chat::jinja::error::{Error, Result};
use crate::chat::jinja::interpreter::Interpreter;
use crate::chat::jinja::lexer::is_space;
use crate::chat::jinja::ops::escape_html;
use crate::chat::jinja::value::Value;

impl Interpreter<'_> {
    pub(super) fn html_filter(&mut self, name: &str, input: Value, args: Args) -> Result<Value> {
        if name == "xmlattr" {
            let args = args.bind(name, ["autospace"], 0)?;
            return self
                .attributes_text(&input, args.truth(0, true))
                .map(Value::str);
        }

        args.none(name)?;
        if name == "urlencode" {
            self.budget.spend(MAKING.saturating_mul(input.units()))?;
            return self.url_encoded(&input).map(Value::str);
        }

        let text = self.str(&input)?;
        self.spend_text(&text)?;

        Ok(match name {
            "safe" => Value::Markup(text),
            "striptags" => Value::str(without_tags(&text)),
            "e" | "escape" if matches!(input, Value::Markup(_)) => input,
            _ => Value::Markup(escape_html(&text)?.into()),
        })
    }

    /// `xmlattr`: a dict as the attributes of a tag.
    fn attributes_text(&mut self, input: &Value, has_space: bool) -> Result<String> {
        let Value::Dict(dict) = input else {
            return Err(Error::new(format!(
                "'{}' object has no attribute 'items'",
                input.type_name()
            )));
        };

        let mut out = Text::default();
        for (key, value) in dict.entries() {
            if value.is_none() || value.is_undefined() {
                continue;
            }

            let key = self.str(key)?;
            if key.contains(|c: char| {
                c.is_ascii_whitespace() || matches!(c, '\u{b}' | '/' | '>' | '=')
            }) {
                return Err(Error::new(format!(
                    "Invalid character in attribute name: '{key}'"
                )));
            }

            let text = self.str(value)?;
            let text = if matches!(value, Value::Markup(_)) {
                text.to_string()
            } else {
                escape_html(&text)?
            };

            out.push(if out.len() > 0 || has_space { " " } else { "" })?;
            out.push(&escape_html(&key)?)?;
            out.push("=\"")?;
            out.push(&text)?;
            out.push("\"")?;
        }

        Ok(out.into_string())
    }

    fn url_encoded(&mut self, input: &Value) -> Result<String> {
        let is_text = matches!(
            input,
            Value::Str(_)
                | Value::Markup(_)
                | Value::None
                | Value::Bool(_)
                | Value::Int(_)
                | Value::Float(_)
        );

        if is_text {
            return quoted(&self.str(input)?, false);
        }

        let pairs = match input {
            Value::Dict(dict) => dict.entries().to_vec(),
            other => {
                let items = self.iterate(other)?;
                let pair = |item: &Value| {
                    let mut parts = self.iterate(item)?.into_iter();
                    match (parts.next(), parts.next(), parts.next()) {
                        (Some(key), Some(value), None) => Ok((key, value)),
                        _ => Err(Error::new("urlencode takes pairs")),
                    }
                };

                items.iter().map(pair).collect::<Result<_>>()?
            }
        };

        let mut out = Text::default();
        for (key, value) in &pairs {
            out.push(if out.len() > 0 { "&" } else { "" })?;
            out.push(&quoted(&self.str(key)?, true)?)?;
            out.push("=")?;
            out.push(&quoted(&self.str(value)?, true)?)?;
        }

        Ok(out.into_string())
    }
}

/// `urllib.parse.quote`. In a query string a slash is quoted and a space becomes a plus.
fn quoted(text: &str, is_query: bool) -> Result<String> {
    let mut out = Text::default();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => {
                out.pad(char::from(byte), 1)?;
            }
            b'/' if !is_query => out.push("/")?,
            b' ' if is_query => out.push("+")?,
            byte => out.push(&format!("%{byte:02X}"))?,
        }
    }

    Ok(out.into_string())
}

/// markupsafe's `striptags`: removes comments and tags, collapses white space, replaces entities by
/// their characters.
fn without_tags(text: &str) -> String {
    let mut text = removed(text, "<!--", "-->");
    text = removed(&text, "<", ">");
    let words: Vec<&str> = text
        .split(is_space)
        .filter(|word| !word.is_empty())
        .collect();

    unescaped(&words.join(" "))
}

/// Removes every `begin`…`end` and what is between them.
fn removed(text: &str, begin: &str, end: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(begin) {
        let Some(stop) = rest[start..].find(end) else {
            break;
        };
        out.push_str(&rest[..start]);
        rest = &rest[start + stop + end.len()..];
    }

    out + rest
}

/// Replaces entities by their characters: `&amp;`, `&lt;`, `&gt;`, `&quot;`, `&apos;`, `&nbsp;` and
/// numeric ones. Others stay.
fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('&') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let end = rest
            .char_indices()
            .take(12)
            .find(|(_, c)| *c == ';')
            .map(|(offset, _)| offset);

        match end.and_then(|end| entity(&rest[1..end]).map(|c| (c, end))) {
            Some((c, end)) => {
                out.push(c);
                rest = &rest[end + 1..];
            }
            None => {
                out.push('&');
                rest = &rest[1..];
            }
        }
    }

    out + rest
}

/// The character of an entity, given without `&` and `;`.
fn entity(name: &str) -> Option<char> {
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        "nbsp" => Some('\u{a0}'),
        _ => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix(['x', 'X']) {
                Some(digits) => u32::from_str_radix(digits, 16),
                None => number.parse(),
            };
            char::from_u32(code.ok()?)
        }
    }
}
