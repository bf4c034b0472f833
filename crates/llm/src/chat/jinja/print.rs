//! How Python prints values: `str()` and `repr()`.

use super::budget::Text;
use super::dict::Dict;
use super::error::{Error, Result};
use super::held::SharedText;
use super::interpreter::Interpreter;
use super::value::{Function, Items, Value, ViewKind};
use std::fmt::Write;

/// What a container is printed between.
#[derive(Clone, Copy)]
pub(super) struct Brackets {
    pub(super) open: &'static str,
    pub(super) close: &'static str,
}

impl Brackets {
    pub(super) const LIST: Self = Self::new("[", "]");
    pub(super) const TUPLE: Self = Self::new("(", ")");
    /// A tuple of one element, which Python prints with a comma.
    pub(super) const SINGLE_TUPLE: Self = Self::new("(", ",)");
    pub(super) const DICT: Self = Self::new("{", "}");

    const fn new(open: &'static str, close: &'static str) -> Self {
        Self { open, close }
    }
}

impl Interpreter<'_> {
    /// `str(value)`.
    pub(super) fn str(&mut self, value: &Value) -> Result<SharedText> {
        match value {
            Value::Str(text) | Value::Markup(text) => Ok(text.clone()),
            Value::Undefined(_) => Ok(SharedText::from("")),
            other => self.repr(other).map(SharedText::from),
        }
    }

    /// `repr(value)`.
    pub(super) fn repr(&mut self, value: &Value) -> Result<String> {
        self.budget.spend(value.units())?;
        let mut text = Text::default();
        self.write_repr(value, &mut text)?;
        Ok(text.into_string())
    }

    fn write_repr(&mut self, value: &Value, out: &mut Text) -> Result<()> {
        match value {
            Value::Undefined(_) => out.push("Undefined"),
            Value::None => out.push("None"),
            Value::Bool(true) => out.push("True"),
            Value::Bool(false) => out.push("False"),
            Value::Int(number) => out.push(&number.to_string()),
            Value::Float(number) => out.push(&float_repr(*number)),
            Value::Str(text) => out.push(&str_repr(text)),
            Value::Markup(text) => out.push(&format!("Markup({})", str_repr(text))),
            Value::List(items) => self.write_items(items, Brackets::LIST, out),
            Value::Tuple(items) if items.values().len() == 1 => {
                self.write_items(items, Brackets::SINGLE_TUPLE, out)
            }
            Value::Tuple(items) => self.write_items(items, Brackets::TUPLE, out),
            Value::Dict(dict) => self.write_dict(dict, out),
            Value::View(kind, dict) => self.write_view(*kind, dict, out),
            other => self.write_object(other, out),
        }
    }

    fn write_items(
        &mut self,
        items: &Items,
        Brackets { open, close }: Brackets,
        out: &mut Text,
    ) -> Result<()> {
        out.push(open)?;
        for (index, value) in items.values().iter().enumerate() {
            if index > 0 {
                out.push(", ")?;
            }
            self.write_repr(value, out)?;
        }
        out.push(close)
    }

    fn write_dict(&mut self, dict: &Dict, out: &mut Text) -> Result<()> {
        out.push("{")?;
        for (index, (key, value)) in dict.entries().iter().enumerate() {
            if index > 0 {
                out.push(", ")?;
            }
            self.write_repr(key, out)?;
            out.push(": ")?;
            self.write_repr(value, out)?;
        }

        out.push("}")
    }

    fn write_view(&mut self, kind: ViewKind, dict: &Dict, out: &mut Text) -> Result<()> {
        out.push(match kind {
            ViewKind::Keys => "dict_keys([",
            ViewKind::Values => "dict_values([",
            ViewKind::Items => "dict_items([",
        })?;
        for (index, (key, value)) in dict.entries().iter().enumerate() {
            if index > 0 {
                out.push(", ")?;
            }

            match kind {
                ViewKind::Keys => self.write_repr(key, out)?,
                ViewKind::Values => self.write_repr(value, out)?,
                ViewKind::Items => {
                    out.push("(")?;
                    self.write_repr(key, out)?;
                    out.push(", ")?;
                    self.write_repr(value, out)?;
                    out.push(")")?;
                }
            }
        }

        out.push("])")
    }

    /// A value that is neither data nor a container. Python prints the address of some of these;
    /// here they print without it.
    fn write_object(&mut self, value: &Value, out: &mut Text) -> Result<()> {
        match value {
            Value::Range(range) if range.step == 1 => {
                out.push(&format!("range({}, {})", range.start, range.stop))
            }
            Value::Range(range) => out.push(&format!(
                "range({}, {}, {})",
                range.start, range.stop, range.step
            )),
            Value::Loop(state) => {
                let index = state.index0.get() + 1;
                out.push(&format!(
                    "<LoopContext {index}/{}>",
                    state.items.values().len()
                ))
            }
            Value::Namespace(index) => self.write_namespace(*index, out),
            Value::Macro(index) => {
                let name = self
                    .macro_name(*index)
                    .map_or("anonymous".to_owned(), |name| str_repr(&name));
                out.push(&format!("<Macro {name}>"))
            }
            Value::Iterator(stream) => out.push(&format!("<generator object {}>", stream.name)),
            Value::Function(function) => out.push(&format!("<function {}>", function.name())),
            Value::Method(method) => {
                let receiver = method.receiver.type_name();
                out.push(&format!(
                    "<built-in method {} of {receiver} object>",
                    method.name
                ))
            }
            other => out.push(&format!("<{} object>", other.type_name())),
        }
    }

    fn write_namespace(&mut self, index: usize, out: &mut Text) -> Result<()> {
        // Namespaces can contain each other: the budget ends the recursion.
        self.budget.enter()?;
        let attributes = self.namespaces.get(index).cloned().unwrap_or_default();
        out.push("<Namespace {")?;

        for (index, (name, value)) in attributes.iter().enumerate() {
            if index > 0 {
                out.push(", ")?;
            }

            out.push(&str_repr(name))?;
            out.push(": ")?;
            self.budget.spend(value.units())?;
            self.write_repr(value, out)?;
        }

        self.budget.leave();
        out.push("}>")
    }
}

impl Function {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Range => "range",
            Self::Dict => "dict",
            Self::Cycler => "cycler",
            Self::Joiner => "joiner",
            Self::Namespace => "namespace",
            Self::RaiseException => "raise_exception",
            Self::StrftimeNow => "strftime_now",
        }
    }
}

/// `repr` of a `str`: in single quotes, or in double quotes if the string contains single ones
/// only.
pub(super) fn str_repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };

    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);

    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if is_printable(c) => out.push(c),
            c => push_escaped(c, &mut out),
        }
    }

    out.push(quote);
    out
}

/// The shortest escape that holds the character: `\x7f`, `\u200b` or `\U0001f600`.
pub(super) fn push_escaped(c: char, out: &mut String) {
    let code = u32::from(c);
    // Writing to a String cannot fail.
    let _ = match code {
        0..=0xff => write!(out, "\\x{code:02x}"),
        0x100..=0xffff => write!(out, "\\u{code:04x}"),
        _ => write!(out, "\\U{code:08x}"),
    };
}

/// `str.isprintable` of one character. Rust's `escape_debug` goes by the same Unicode categories;
/// the leading `a` keeps it from escaping combining characters, which it does at the start of a
/// string only.
pub(super) fn is_printable(c: char) -> bool {
    match c {
        ' '..='~' => true,
        '\0'..='\u{9f}' => false,
        c => {
            let mut text = [b'a', 0, 0, 0, 0];
            let len = c.encode_utf8(&mut text[1..]).len();
            let text = std::str::from_utf8(&text[..1 + len]).unwrap_or_default();
            text.escape_debug().nth(1) == Some(c)
        }
    }
}

/// `repr` of a `float`: the shortest digits that round-trip, in scientific notation if the exponent
/// is below -4 or above 15.
pub(super) fn float_repr(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }

    if number.is_infinite() {
        return if number > 0.0 {
            "inf".to_owned()
        } else {
            "-inf".to_owned()
        };
    }

    let scientific = format!("{number:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);

    if (-4..16).contains(&exponent) {
        let plain = format!("{number}");
        return if plain.contains('.') {
            plain
        } else {
            plain + ".0"
        };
    }

    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

/// The string of an argument, or an error if it is not a `str`.
pub(super) fn expect_str<'a>(value: &'a Value, what: &str) -> Result<&'a str> {
    match value {
        Value::Undefined(missing) => Err(missing.error()),
        other => {
            let error = || Error::new(format!("{what} must be str, not {}", other.type_name()));
            other.as_str().ok_or_else(error)
        }
    }
}

/// The integer of an argument, or an error if it is not an `int`.
pub(super) fn expect_int(value: &Value, what: &str) -> Result<i128> {
    match value {
        Value::Undefined(missing) => Err(missing.error()),
        other => {
            let error = || Error::new(format!("{what} must be int, not {}", other.type_name()));
            other.as_int().ok_or_else(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_python_prints_them() {
        for (number, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e100, "1.25e+100"),
            (123456.789, "123456.789"),
            (f64::INFINITY, "inf"),
            (f64::NAN, "nan"),
        ] {
            assert_eq!(float_repr(number), text);
        }
    }

    #[test]
    fn strings_are_quoted_as_python_quotes_them() {
        assert_eq!(str_repr("it"), "'it'");
        assert_eq!(str_repr("it's"), "\"it's\"");
        assert_eq!(str_repr("it's \"so\""), "'it\\'s \"so\"'");
        assert_eq!(
            str_repr("a\n\t\\\u{7}\u{200b}é🙂\u{301}"),
            "'a\\n\\t\\\\\\x07\\u200bé🙂\u{301}'"
        );
    }
}
