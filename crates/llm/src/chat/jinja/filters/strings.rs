//! String filters.

use super::wrap::Wrap;
use crate::chat::jinja::args::Args;
use crate::chat::jinja::attributes::text_like;
use crate::chat::jinja::budget::{MAKING, Text, check_text, text_units};
use crate::chat::jinja::chars;
use crate::chat::jinja::error::{Error, Result};
use crate::chat::jinja::interpreter::Interpreter;
use crate::chat::jinja::lexer::is_space;
use crate::chat::jinja::print::expect_str;
use crate::chat::jinja::strings::{justified, replaced, stripped};
use crate::chat::jinja::value::Value;

impl Interpreter<'_> {
    pub(super) fn string_filter(&mut self, name: &str, input: Value, args: Args) -> Result<Value> {
        let text = match name {
            // These accept only strings; the others convert their input.
            "indent" | "truncate" | "wordwrap" => None,
            _ => Some(self.str(&input)?),
        };
        let Some(text) = text else {
            return self.strict_string_filter(name, input, args);
        };

        self.spend_text(&text)?;
        if matches!(name, "replace" | "title") {
            self.budget.spend(2 * text_units(text.len()))?;
        }
        let like = |made: String| Ok(text_like(&input, made));

        match name {
            "capitalize" | "lower" | "upper" | "string" | "title" | "wordcount" => {
                args.none(name)?;
                match name {
                    "capitalize" => like(chars::capitalized(&text)),
                    "lower" => like(text.to_lowercase()),
                    "upper" => like(text.to_uppercase()),
                    "string" => Ok(text_like(&input, text)),
                    "title" => Ok(Value::str(titled(&text))),
                    _ => Ok(Value::Int(word_count(&text))),
                }
            }
            "center" => {
                let args = args.bind(name, ["width"], 0)?;
                like(justified(&text, name, args.count(0, 80)?, ' ')?)
            }
            "trim" => {
                let args = args.bind(name, ["chars"], 0)?;
                like(stripped(&text, "strip", args.maybe_str(0)?).to_owned())
            }
            "replace" => {
                let mut args = args.bind(name, ["old", "new", "count"], 2)?;
                let count = args.maybe_int(2)?.unwrap_or(-1);
                let old = self.str(&args.value(0))?;
                let new = self.str(&args.value(1))?;
                replaced(&text, &old, &new, count).map(Value::str)
            }
            _ => self.format_filter(&text_like(&input, text), args),
        }
    }

    /// `format`: `%` with the arguments on its right.
    fn format_filter(&mut self, format: &Value, args: Args) -> Result<Value> {
        let values = match (args.positional.is_empty(), args.named.is_empty()) {
            (false, false) => {
                return Err(Error::new(
                    "can't handle positional and keyword arguments at the same time",
                ));
            }
            (_, true) => Value::tuple(args.positional)?,
            _ => {
                let pairs = args
                    .named
                    .into_iter()
                    .map(|(name, value)| (Value::str(name), value));
                Value::dict(pairs.collect())?
            }
        };

        self.percent(format, &values)
    }

    /// The filters that accept only strings.
    fn strict_string_filter(&mut self, name: &str, input: Value, args: Args) -> Result<Value> {
        if name == "truncate" {
            // Counting the characters takes time, however few are kept.
            self.budget.spend(input.shallow_units())?;
            return truncate(input, args);
        }

        let text = expect_str(&input, name)?;
        self.spend_text(text)?;
        if name == "wordwrap" {
            self.budget.spend(2 * MAKING * text_units(text.len()))?;
        }

        match name {
            "indent" => {
                let args = args.bind(name, ["width", "first", "blank"], 0)?;
                let spaces = match args.get(0) {
                    Some(Value::Str(text) | Value::Markup(text)) => text.to_string(),
                    _ => " ".repeat(check_text(Some(args.count(0, 4)?))?),
                };
                let text = indented(text, &spaces, args.truth(1, false), args.truth(2, false))?;

                Ok(text_like(&input, text))
            }
            _ => {
                let names = [
                    "width",
                    "break_long_words",
                    "wrapstring",
                    "break_on_hyphens",
                ];

                let args = args.bind(name, names, 0)?;
                let wrap = Wrap {
                    width: args.count(0, 79)?,
                    breaks_words: args.truth(1, true),
                    breaks_at_hyphens: args.truth(3, true),
                };
                let separator = args.maybe_str(2)?.unwrap_or("\n");

                let mut out = Text::default();
                for (index, line) in chars::lines(text, false).into_iter().enumerate() {
                    out.push(if index > 0 { separator } else { "" })?;
                    for (index, part) in wrap.wrapped(line)?.iter().enumerate() {
                        out.push(if index > 0 { separator } else { "" })?;
                        out.push(part)?;
                    }
                }

                Ok(Value::str(out.into_string()))
            }
        }
    }
}

/// Jinja2's own `title`, not Python's: a word begins after white space, a hyphen or an opening
/// bracket.
fn titled(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let is_break = |c: char| is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');

    let mut rest = text;
    while !rest.is_empty() {
        let space = rest.len() - rest.trim_start_matches(is_break).len();
        out.push_str(&rest[..space]);
        let word = &rest[space..];
        let word = &word[..word.find(is_break).unwrap_or(word.len())];
        let mut chars = word.chars();
        out.extend(chars.next().into_iter().flat_map(char::to_uppercase));
        out.push_str(&chars.as_str().to_lowercase());
        rest = &rest[space + word.len()..];
    }

    out
}

fn word_count(text: &str) -> i128 {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    text.split(|c| !is_word(c))
        .filter(|word| !word.is_empty())
        .count() as i128
}

/// `indent`: `with_first` also indents the first line, `with_blank` the empty ones.
fn indented(text: &str, spaces: &str, with_first: bool, with_blank: bool) -> Result<String> {
    let text = format!("{text}\n");
    let mut out = Text::default();
    for (index, line) in chars::lines(&text, false).into_iter().enumerate() {
        let is_indented = if index == 0 {
            with_first
        } else {
            with_blank || !line.is_empty()
        };

        out.push(if index > 0 { "\n" } else { "" })?;
        out.push(if is_indented { spaces } else { "" })?;
        out.push(line)?;
    }

    Ok(out.into_string())
}

fn truncate(input: Value, args: Args) -> Result<Value> {
    let args = args.bind("truncate", ["length", "killwords", "end", "leeway"], 0)?;
    let length = args.count(0, 255)?;
    let end = args.maybe_str(2)?.unwrap_or("...");
    let leeway = args.maybe_int(3)?.unwrap_or(5);
    let end_len = end.chars().count();

    let Some(kept) = length.checked_sub(end_len) else {
        return Err(Error::new(format!(
            "expected length >= {end_len}, got {length}"
        )));
    };

    let leeway = usize::try_from(leeway)
        .map_err(|_| Error::new(format!("expected leeway >= 0, got {leeway}")))?;
    // Short input stays as it is, whatever its type.
    if input
        .len()
        .is_some_and(|len| len <= length.saturating_add(leeway))
    {
        return Ok(input);
    }

    let text = expect_str(&input, "truncate")?;
    let kept: String = text.chars().take(kept).collect();
    let kept = match kept.rsplit_once(' ') {
        Some((words, _)) if !args.truth(1, false) => words,
        _ => &kept,
    };

    Ok(text_like(&input, format!("{kept}{end}")))
}
