//! Python's `pprint.pformat`: 80 columns, keys sorted.

use super::sorting::sorted;
use crate::chat::jinja::budget::{Text, text_units};
use crate::chat::jinja::chars::lines;
use crate::chat::jinja::error::Result;
use crate::chat::jinja::interpreter::Interpreter;
use crate::chat::jinja::lexer::is_space;
use crate::chat::jinja::ops::order;
use crate::chat::jinja::print::{Brackets, str_repr};
use crate::chat::jinja::value::Value;

const WIDTH: usize = 80;

/// Where a value is printed: its column, the columns to keep free after it on its last line, and
/// its nesting level.
#[derive(Clone, Copy)]
struct Place {
    indent: usize,
    allowance: usize,
    level: usize,
}

impl Interpreter<'_> {
    pub(super) fn pretty(&mut self, value: &Value) -> Result<String> {
        self.budget.spend(value.units())?;
        let value = with_sorted_keys(value)?;
        let mut out = Text::default();
        self.write_pretty(
            &value,
            Place {
                indent: 0,
                allowance: 0,
                level: 0,
            },
            &mut out,
        )?;

        Ok(out.into_string())
    }

    fn write_pretty(&mut self, value: &Value, place: Place, out: &mut Text) -> Result<()> {
        let repr = self.repr(value)?;
        if repr.chars().count() + place.indent + place.allowance <= WIDTH {
            return out.push(&repr);
        }

        let place = Place {
            level: place.level + 1,
            ..place
        };
        match value {
            Value::Dict(dict) if !dict.entries().is_empty() => {
                out.push("{")?;
                let place = Place {
                    indent: place.indent + 1,
                    allowance: place.allowance + 1,
                    ..place
                };

                for (index, (key, value)) in dict.entries().iter().enumerate() {
                    self.separate(index, place.indent, out)?;
                    let key = self.repr(key)?;
                    out.push(&key)?;
                    out.push(": ")?;
                    let is_last = index + 1 == dict.entries().len();
                    let indent = place.indent + key.chars().count() + 2;
                    let allowance = if is_last { place.allowance } else { 1 };
                    self.write_pretty(
                        value,
                        Place {
                            indent,
                            allowance,
                            ..place
                        },
                        out,
                    )?;
                }

                out.push("}")
            }
            Value::List(items) => self.write_elements(items.values(), Brackets::LIST, place, out),
            Value::Tuple(items) if items.values().len() == 1 => {
                self.write_elements(items.values(), Brackets::SINGLE_TUPLE, place, out)
            }
            Value::Tuple(items) => self.write_elements(items.values(), Brackets::TUPLE, place, out),
            Value::Str(text) if !text.is_empty() => self.write_text(text, place, out),
            _ => out.push(&repr),
        }
    }

    fn separate(&mut self, index: usize, indent: usize, out: &mut Text) -> Result<()> {
        if index == 0 {
            return Ok(());
        }
        out.push(",\n")?;
        out.pad(' ', indent)
    }

    fn write_elements(
        &mut self,
        values: &[Value],
        Brackets { open, close }: Brackets,
        place: Place,
        out: &mut Text,
    ) -> Result<()> {
        out.push(open)?;
        let indent = place.indent + 1;
        for (index, value) in values.iter().enumerate() {
            self.separate(index, indent, out)?;
            let is_last = index + 1 == values.len();
            let allowance = if is_last {
                place.allowance + close.len()
            } else {
                1
            };

            self.write_pretty(
                value,
                Place {
                    indent,
                    allowance,
                    ..place
                },
                out,
            )?;
        }
        out.push(close)
    }

    /// A string that does not fit: one literal a line, split after line ends and then between words.
    fn write_text(&mut self, text: &str, place: Place, out: &mut Text) -> Result<()> {
        let is_outermost = place.level == 1;
        let indent = place.indent + usize::from(is_outermost);
        let allowance = place.allowance + usize::from(is_outermost);
        let width = WIDTH.saturating_sub(indent);

        let fits = |text: &str, is_last: bool| {
            let width = if is_last {
                width.saturating_sub(allowance)
            } else {
                width
            };
            str_repr(text).chars().count() <= width
        };

        let all = lines(text, true);
        let mut chunks = Vec::new();
        for (index, line) in all.iter().enumerate() {
            let is_last_line = index + 1 == all.len();
            if fits(line, is_last_line) {
                chunks.push(str_repr(line));
                continue;
            }

            let words = words(line);
            let mut current = String::new();
            for (index, word) in words.iter().enumerate() {
                let candidate = format!("{current}{word}");
                self.budget.spend(2 * text_units(candidate.len()))?;
                if fits(&candidate, is_last_line && index + 1 == words.len()) {
                    current = candidate;
                    continue;
                }

                if !current.is_empty() {
                    chunks.push(str_repr(&current));
                }

                current = (*word).to_owned();
            }

            if !current.is_empty() {
                chunks.push(str_repr(&current));
            }
        }

        let has_brackets = is_outermost && chunks.len() > 1;
        out.push(if has_brackets { "(" } else { "" })?;

        for (index, chunk) in chunks.iter().enumerate() {
            if index > 0 {
                out.push("\n")?;
                out.pad(' ', indent)?;
            }
            out.push(chunk)?;
        }

        out.push(if has_brackets { ")" } else { "" })
    }
}

/// The words of a line, each with the white space after it.
fn words(line: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = line;
    while !rest.is_empty() {
        let word = rest.find(is_space).unwrap_or(rest.len());
        let after = rest[word..].trim_start_matches(is_space);
        let end = rest.len() - after.len();
        words.push(&rest[..end]);
        rest = after;
    }

    words
}

fn with_sorted_keys(value: &Value) -> Result<Value> {
    match value {
        Value::List(items) => Value::list(
            items
                .values()
                .iter()
                .map(with_sorted_keys)
                .collect::<Result<_>>()?,
        ),
        Value::Tuple(items) => Value::tuple(
            items
                .values()
                .iter()
                .map(with_sorted_keys)
                .collect::<Result<_>>()?,
        ),
        Value::Dict(dict) => {
            let by_key =
                |a: &(Value, Value), b: &(Value, Value)| order(&a.0, &b.0, "<").or(Ok(None));
            let entries = dict
                .entries()
                .iter()
                .map(|(key, value)| Ok((key.clone(), with_sorted_keys(value)?)));
            Value::dict(sorted(entries.collect::<Result<_>>()?, by_key, false)?)
        }
        other => Ok(other.clone()),
    }
}
