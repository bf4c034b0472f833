//! `tojson`: Python's `json.dumps`, with the arguments that transformers' filter passes on.

use crate::chat::jinja::args::Args;
use crate::chat::jinja::budget::{Text, check_text};
use crate::chat::jinja::dict::Dict;
use crate::chat::jinja::error::{Error, Result};
use crate::chat::jinja::interpreter::Interpreter;
use crate::chat::jinja::ops::order;
use crate::chat::jinja::print::{Brackets, expect_str, float_repr};
use crate::chat::jinja::value::Value;
use std::borrow::Cow;
use std::fmt::Write;

/// The arguments of `json.dumps`.
struct Style {
    is_ascii: bool,
    /// One level of indentation; `None` writes everything on one line.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sorts_keys: bool,
}

impl Interpreter<'_> {
    pub(super) fn json_text(&mut self, input: &Value, args: Args) -> Result<Value> {
        let args = args.bind(
            "tojson",
            ["ensure_ascii", "indent", "separators", "sort_keys"],
            0,
        )?;
        let indent = match args.get(1) {
            None | Some(Value::None) => None,
            Some(Value::Str(text) | Value::Markup(text)) => Some(text.to_string()),
            Some(_) => Some(" ".repeat(check_text(Some(args.count(1, 0)?))?)),
        };
        let (item_separator, key_separator) = match args.get(2) {
            None | Some(Value::None) => (
                if indent.is_some() { "," } else { ", " }.to_owned(),
                ": ".to_owned(),
            ),
            Some(separators) => {
                let parts = self.iterate(separators)?;
                let [item, key] = &parts[..] else {
                    return Err(Error::new(
                        "tojson: separators are two: (item_separator, key_separator)",
                    ));
                };

                let text = |part| expect_str(part, "tojson: a separator").map(str::to_owned);
                (text(item)?, text(key)?)
            }
        };

        let style = Style {
            is_ascii: args.truth(0, false),
            indent,
            item_separator,
            key_separator,
            sorts_keys: args.truth(3, false),
        };

        self.budget.spend(input.units())?;
        let mut out = Text::default();
        style.write(input, 0, &mut out)?;
        self.budget.spend(out.len() as u64 / 16)?;

        Ok(Value::str(out.into_string()))
    }
}

impl Style {
    fn write(&self, value: &Value, level: usize, out: &mut Text) -> Result<()> {
        match value {
            Value::None => out.push("null"),
            Value::Bool(true) => out.push("true"),
            Value::Bool(false) => out.push("false"),
            Value::Int(number) => out.push(&number.to_string()),
            Value::Float(number) => out.push(&json_float(*number)),
            Value::Str(text) | Value::Markup(text) => out.push(&self.quoted(text)),
            Value::List(items) | Value::Tuple(items) => {
                let values = items.values();
                self.write_all(Brackets::LIST, values, level, out, |value, out| {
                    self.write(value, level + 1, out)
                })
            }
            Value::Dict(dict) => self.write_dict(dict, level, out),
            other => {
                let type_name = other.type_name();
                Err(Error::new(format!(
                    "Object of type {type_name} is not JSON serializable"
                )))
            }
        }
    }

    fn write_dict(&self, dict: &Dict, level: usize, out: &mut Text) -> Result<()> {
        let mut entries: Cow<'_, [(Value, Value)]> = Cow::Borrowed(dict.entries());
        if self.sorts_keys {
            let by_key = |a: &(Value, Value), b: &(Value, Value)| order(&a.0, &b.0, "<");
            entries = Cow::Owned(super::sorting::sorted(entries.into_owned(), by_key, false)?);
        }

        self.write_all(Brackets::DICT, &entries, level, out, |(key, value), out| {
            out.push(&self.quoted(&key_text(key)?))?;
            out.push(&self.key_separator)?;
            self.write(value, level + 1, out)
        })
    }

    /// Elements between brackets, each on a line of its own if there is an indentation.
    fn write_all<T>(
        &self,
        Brackets { open, close }: Brackets,
        items: &[T],
        level: usize,
        out: &mut Text,
        write: impl Fn(&T, &mut Text) -> Result<()>,
    ) -> Result<()> {
        out.push(open)?;
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                out.push(&self.item_separator)?;
            }
            self.new_line(level + 1, out)?;
            write(item, out)?;
        }
        if !items.is_empty() {
            self.new_line(level, out)?;
        }
        out.push(close)
    }

    fn new_line(&self, level: usize, out: &mut Text) -> Result<()> {
        let Some(indent) = &self.indent else {
            return Ok(());
        };
        out.push("\n")?;
        (0..level).try_for_each(|_| out.push(indent))
    }

    fn quoted(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len() + 2);
        out.push('"');

        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                ' '..='~' => out.push(c),
                c if c >= ' ' && !self.is_ascii => out.push(c),
                c => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // Writing to a String cannot fail.
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
            }
        }

        out.push('"');
        out
    }
}

fn json_float(number: f64) -> String {
    match number {
        number if number.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "Infinity".to_owned(),
        f64::NEG_INFINITY => "-Infinity".to_owned(),
        number => float_repr(number),
    }
}

fn key_text(key: &Value) -> Result<Cow<'_, str>> {
    Ok(match key {
        Value::Str(text) | Value::Markup(text) => Cow::Borrowed(text),
        Value::None => "null".into(),
        Value::Bool(true) => "true".into(),
        Value::Bool(false) => "false".into(),
        Value::Int(number) => number.to_string().into(),
        Value::Float(number) => json_float(*number).into(),
        other => {
            let type_name = other.type_name();
            return Err(Error::new(format!(
                "keys must be str, int, float, bool or None, not {type_name}"
            )));
        }
    })
}
