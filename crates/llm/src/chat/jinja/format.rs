//! `str.format`, and the format specs of its replacement fields.

use super::args::Args;
use super::budget::{Text, check_list, check_text};
use super::error::{Error, Result};
use super::held::SharedText;
use super::interpreter::Interpreter;
use super::numbers::{self, FloatStyle};
use super::print::{float_repr, str_repr};
use super::value::Value;

/// A format spec: `[[fill]align][sign][#][0][width][grouping][.precision][type]`.
#[derive(Debug)]
struct Spec {
    fill: char,
    align: Option<char>,
    /// `0` before the width: numbers are padded with zeros after their sign.
    has_zeros: bool,
    sign: char,
    is_alternate: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    letter: Option<char>,
}

impl Spec {
    fn parse(text: &str) -> Result<Self> {
        // No spec is long, and a list takes more than its text.
        check_list(Some(text.len()))?;
        let chars: Vec<char> = text.chars().collect();
        let mut position = 0;
        let is_align = |c: Option<&char>| matches!(c, Some('<' | '>' | '=' | '^'));

        let mut fill = None;
        let mut align = None;
        if is_align(chars.get(1)) {
            (fill, align, position) = (chars.first().copied(), chars.get(1).copied(), 2);
        } else if is_align(chars.first()) {
            (align, position) = (chars.first().copied(), 1);
        }

        let mut take = |accepted: &[char]| {
            let found = chars
                .get(position)
                .copied()
                .filter(|c| accepted.contains(c));
            position += usize::from(found.is_some());
            found
        };
        let sign = take(&['+', '-', ' ']).unwrap_or('-');
        let is_alternate = take(&['#']).is_some();
        let has_zeros = take(&['0']).is_some();
        if has_zeros {
            fill = fill.or(Some('0'));
        }

        let width = digits(&chars, &mut position)?.unwrap_or(0);
        let grouping = chars
            .get(position)
            .copied()
            .filter(|c| matches!(c, ',' | '_'));
        position += usize::from(grouping.is_some());

        let mut precision = None;
        if chars.get(position) == Some(&'.') {
            position += 1;
            let error = || Error::new("Format specifier missing precision");
            precision = Some(digits(&chars, &mut position)?.ok_or_else(error)?);
        }

        let letter = chars.get(position).copied();
        if chars.len() > position + 1 {
            return Err(Error::new(format!("Invalid format specifier '{text}'")));
        }

        Ok(Self {
            fill: fill.unwrap_or(' '),
            align,
            has_zeros,
            sign,
            is_alternate,
            width,
            grouping,
            precision,
            letter,
        })
    }

    /// Sign, prefix (`0x`, …) and digits of a number, grouped and padded.
    fn number(&self, is_negative: bool, prefix: &str, digits: String) -> Result<String> {
        let sign = match (is_negative, self.sign) {
            (true, _) => "-",
            (false, '+') => "+",
            (false, ' ') => " ",
            _ => "",
        };

        let head = format!("{sign}{prefix}");
        let is_filled_inside = self.align == Some('=') || self.has_zeros && self.align.is_none();
        let digits = match self.grouping {
            Some(separator) => {
                let group = if self.letter.is_some_and(|c| "boxX".contains(c)) {
                    4
                } else {
                    3
                };

                let width = if is_filled_inside && self.fill == '0' {
                    self.width.saturating_sub(head.len())
                } else {
                    0
                };

                numbers::grouped(&digits, separator, group, width)?
            }
            None => digits,
        };

        if is_filled_inside {
            let mut text = Text::default();
            text.push(&head)?;
            text.pad(
                self.fill,
                self.width
                    .saturating_sub(head.len() + digits.chars().count()),
            )?;
            text.push(&digits)?;
            return Ok(text.into_string());
        }

        self.padded(&(head + &digits), '>')
    }

    /// Pads to the width, by the spec's alignment or else by `align`.
    fn padded(&self, text: &str, align: char) -> Result<String> {
        let missing = self.width.saturating_sub(text.chars().count());
        let left = match self.align.unwrap_or(align) {
            '<' => 0,
            '^' => missing / 2,
            _ => missing,
        };
        let mut out = Text::default();
        out.pad(self.fill, left)?;
        out.push(text)?;
        out.pad(self.fill, missing - left)?;

        Ok(out.into_string())
    }
}

/// A decimal number at `position`, which moves past it; `None` if there are no digits.
fn digits(chars: &[char], position: &mut usize) -> Result<Option<usize>> {
    let text: String = chars[*position..]
        .iter()
        .take_while(|c| c.is_ascii_digit())
        .collect();
    *position += text.len();
    if text.is_empty() {
        return Ok(None);
    }

    check_text(text.parse().ok()).map(Some)
}

fn float(spec: &Spec, number: f64) -> Result<String> {
    let lower = spec.letter.map(|c| c.to_ascii_lowercase());
    let precision = spec.precision.unwrap_or(6);

    let digits = match lower {
        Some('f') => numbers::float(number, FloatStyle::Fixed, precision, spec.is_alternate)?,
        Some('e') => numbers::float(number, FloatStyle::Scientific, precision, spec.is_alternate)?,
        Some('g' | 'n') => {
            numbers::float(number, FloatStyle::General, precision, spec.is_alternate)?
        }
        Some('%') => {
            numbers::float(
                number * 100.0,
                FloatStyle::Fixed,
                precision,
                spec.is_alternate,
            )? + "%"
        }
        None if spec.precision.is_none() => float_repr(number.abs()),
        None => numbers::float(number, FloatStyle::Plain, precision, spec.is_alternate)?,
        Some(letter) => return Err(unknown_code(letter, "float")),
    };

    let digits = if spec.letter != lower {
        digits.to_uppercase()
    } else {
        digits
    };

    spec.number(number.is_sign_negative() && !number.is_nan(), "", digits)
}

fn integer(spec: &Spec, number: i128) -> Result<String> {
    let letter = spec.letter.unwrap_or('d');
    match letter {
        'b' | 'd' | 'n' | 'o' | 'x' | 'X' if spec.precision.is_some() => Err(Error::new(
            "Precision not allowed in integer format specifier",
        )),
        'b' | 'd' | 'n' | 'o' | 'x' | 'X' => {
            let prefix = if spec.is_alternate {
                numbers::radix_prefix(letter)
            } else {
                ""
            };
            spec.number(number < 0, prefix, numbers::integer(number, letter))
        }
        'c' => {
            let c = u32::try_from(number).ok().and_then(char::from_u32);
            let c = c.ok_or_else(|| Error::new("%c arg not in range(0x110000)"))?;
            spec.padded(&c.to_string(), '<')
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%' => float(spec, number as f64),
        letter => Err(unknown_code(letter, "int")),
    }
}

fn text(spec: &Spec, text: &str) -> Result<String> {
    if spec.letter.is_some_and(|letter| letter != 's') {
        return Err(unknown_code(spec.letter.unwrap_or(' '), "str"));
    }
    if spec.align == Some('=') || spec.sign != '-' || spec.grouping.is_some() {
        return Err(Error::new("the format specifier does not suit a string"));
    }

    let shortened: String = text
        .chars()
        .take(spec.precision.unwrap_or(usize::MAX))
        .collect();
    spec.padded(&shortened, '<')
}

fn unknown_code(letter: char, type_name: &str) -> Error {
    Error::new(format!(
        "Unknown format code '{letter}' for object of type '{type_name}'"
    ))
}

/// A replacement field `{name!conversion:spec}`.
struct Field<'a> {
    name: &'a str,
    conversion: Option<char>,
    spec: &'a str,
}

/// How many positional arguments `{}` has taken so far, or `None` once a field has named one by its
/// number: a format string cannot do both.
type Automatic = Option<usize>;

impl Interpreter<'_> {
    /// `format(value, spec)`.
    fn formatted(&mut self, value: &Value, spec: &str) -> Result<SharedText> {
        if spec.is_empty() {
            return self.str(value);
        }

        let made = match value {
            Value::Str(string) | Value::Markup(string) => text(&Spec::parse(spec)?, string),
            Value::Int(_) | Value::Bool(_) => {
                integer(&Spec::parse(spec)?, value.as_int().unwrap_or(0))
            }
            Value::Float(number) => float(&Spec::parse(spec)?, *number),
            other => {
                let type_name = other.type_name();
                Err(Error::new(format!(
                    "unsupported format string passed to {type_name}.__format__"
                )))
            }
        };

        made.map(SharedText::from)
    }

    /// `format.format(*args, **named)`.
    pub(super) fn str_format(&mut self, format: &str, args: &Args) -> Result<String> {
        let mut automatic = Some(0);
        let mut out = Text::default();
        self.write_format(format, args, &mut automatic, 2, &mut out)?;
        Ok(out.into_string())
    }

    /// Appends a format string with its fields replaced. `levels` is how deep specs may still nest.
    fn write_format(
        &mut self,
        format: &str,
        args: &Args,
        automatic: &mut Automatic,
        levels: u32,
        out: &mut Text,
    ) -> Result<()> {
        if levels == 0 {
            return Err(Error::new("Max string recursion exceeded"));
        }
        let mut rest = format;
        while let Some(position) = rest.find(['{', '}']) {
            out.push(&rest[..position])?;
            let bracket = &rest[position..=position];
            rest = &rest[position + 1..];

            if let Some(after) = rest.strip_prefix(bracket) {
                out.push(bracket)?;
                rest = after;
                continue;
            }

            if bracket == "}" {
                return Err(Error::new("Single '}' encountered in format string"));
            }

            let end = field_end(rest)?;
            let field = Field::parse(&rest[..end])?;
            rest = &rest[end + 1..];
            let value = self.field_value(field.name, args, automatic)?;
            let value = self.converted(value, field.conversion)?;
            let mut spec = Text::default();
            self.write_format_spec(field.spec, args, automatic, levels, &mut spec)?;
            let text = self.formatted(&value, &spec.into_string())?;
            self.spend_text(&text)?;
            out.push(&text)?;
        }
        out.push(rest)
    }

    /// Appends a field's spec, which may contain replacement fields itself.
    fn write_format_spec(
        &mut self,
        spec: &str,
        args: &Args,
        automatic: &mut Automatic,
        levels: u32,
        out: &mut Text,
    ) -> Result<()> {
        if spec.contains(['{', '}']) {
            return self.write_format(spec, args, automatic, levels - 1, out);
        }
        out.push(spec)
    }

    fn converted(&mut self, value: Value, conversion: Option<char>) -> Result<Value> {
        match conversion {
            None => Ok(value),
            Some('s') => self.str(&value).map(Value::Str),
            Some('r') => self.repr(&value).map(Value::str),
            Some('a') => self.repr(&value).map(|text| Value::str(ascii(&text))),
            Some(other) => Err(Error::new(format!("Unknown conversion specifier {other}"))),
        }
    }

    /// The value of a field's name, such as `0.attribute[key]`.
    fn field_value(&mut self, name: &str, args: &Args, automatic: &mut Automatic) -> Result<Value> {
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut path) = name.split_at(end);

        let mut value = argument(first, args, automatic)?;
        while !path.is_empty() {
            if let Some(after) = path.strip_prefix('.') {
                let end = after.find(['.', '[']).unwrap_or(after.len());
                value = self.attribute(&value, &after[..end].into())?;
                path = &after[end..];
            } else {
                let after = path.strip_prefix('[').unwrap_or(path);
                let end = after
                    .find(']')
                    .ok_or_else(|| Error::new("Missing ']' in format string"))?;
                let key = match after[..end].parse() {
                    Ok(number) => Value::Int(number),
                    Err(_) => Value::str(&after[..end]),
                };
                value = self.item(&value, &key)?;
                path = &after[end + 1..];
            }
        }

        Ok(value)
    }
}

/// The argument that the first part of a field's name stands for.
fn argument(name: &str, args: &Args, automatic: &mut Automatic) -> Result<Value> {
    let out_of_range = || Error::new("Replacement index out of range for positional args tuple");
    if name.is_empty() {
        let error = || {
            Error::new("cannot switch from manual field specification to automatic field numbering")
        };
        let position = automatic.ok_or_else(error)?;
        *automatic = Some(position + 1);
        return args
            .positional
            .get(position)
            .cloned()
            .ok_or_else(out_of_range);
    }

    if let Ok(position) = name.parse::<usize>() {
        if automatic.is_some_and(|taken| taken > 0) {
            return Err(Error::new(
                "cannot switch from automatic field numbering to manual field specification",
            ));
        }

        *automatic = None;
        return args
            .positional
            .get(position)
            .cloned()
            .ok_or_else(out_of_range);
    }

    let named = args.named.iter().find(|(known, _)| **known == *name);
    named
        .map(|(_, value)| value.clone())
        .ok_or_else(|| Error::new(format!("KeyError: {}", str_repr(name))))
}

/// The position of the brace that closes a field, given the text after the opening one.
fn field_end(text: &str) -> Result<usize> {
    let mut depth = 0;
    for (position, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return Ok(position),
            '}' => depth -= 1,
            _ => {}
        }
    }

    Err(Error::new("expected '}' before end of string"))
}

impl<'a> Field<'a> {
    fn parse(text: &'a str) -> Result<Self> {
        let (head, spec) = text.split_once(':').unwrap_or((text, ""));
        let (name, conversion) = match head.split_once('!') {
            None => (head, None),
            Some((name, conversion)) => {
                let mut chars = conversion.chars();
                match (chars.next(), chars.next()) {
                    (Some(conversion), None) => (name, Some(conversion)),
                    _ => return Err(Error::new("expected ':' after conversion specifier")),
                }
            }
        };

        Ok(Self {
            name,
            conversion,
            spec,
        })
    }
}

/// Escapes what is not ASCII: `ascii(x)` is this of `repr(x)`.
pub(super) fn ascii(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() {
            out.push(c)
        } else {
            super::print::push_escaped(c, &mut out)
        }
    }

    out
}
