//! `'%s' % values`: Python's printf-style formatting.

use super::budget::{Text, check_text};
use super::error::{Error, Result};
use super::format::ascii;
use super::interpreter::Interpreter;
use super::numbers::{self, FloatStyle};
use super::ops::escape_html;
use super::print::expect_int;
use super::value::Value;
use std::collections::VecDeque;
use std::iter::Peekable;
use std::str::Chars;

/// The middle of `%[(key)][flags][width][.precision]type`.
#[derive(Debug, Default)]
struct Conversion {
    is_left: bool,
    sign: Option<char>,
    is_alternate: bool,
    has_zeros: bool,
    width: usize,
    precision: Option<usize>,
}

/// The right side of `%`: values taken in order, or a mapping.
struct Values {
    rest: VecDeque<Value>,
    mapping: Option<Value>,
    /// The format is `Markup`: strings that are not are escaped.
    is_markup: bool,
}

impl Values {
    fn next(&mut self) -> Result<Value> {
        self.rest
            .pop_front()
            .ok_or_else(|| Error::new("not enough arguments for format string"))
    }
}

impl Interpreter<'_> {
    /// `format % values`.
    pub(super) fn percent(&mut self, format: &Value, values: &Value) -> Result<Value> {
        let is_markup = matches!(format, Value::Markup(_));
        let (rest, mapping) = match values {
            Value::Tuple(items) => (items.values().iter().cloned().collect(), None),
            Value::Dict(_) | Value::Undefined(_) => {
                (VecDeque::from([values.clone()]), Some(values.clone()))
            }
            other => (VecDeque::from([other.clone()]), None),
        };

        // To CPython every type with `__getitem__` but `str` and `tuple` is a mapping here, lists
        // included; a mapping may be left over.
        let may_remain = mapping.is_some() || matches!(values, Value::List(_) | Value::Range(_));
        let mut values = Values {
            rest,
            mapping,
            is_markup,
        };
        let mut out = Text::default();
        self.spend_text(format.as_str().unwrap_or_default())?;
        self.write_percent(format.as_str().unwrap_or_default(), &mut values, &mut out)?;

        if !values.rest.is_empty() && !may_remain {
            return Err(Error::new(
                "not all arguments converted during string formatting",
            ));
        }

        Ok(super::attributes::text_like(format, out.into_string()))
    }

    fn write_percent(&mut self, format: &str, values: &mut Values, out: &mut Text) -> Result<()> {
        let mut chars = format.chars().peekable();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c.encode_utf8(&mut [0; 4]))?;
                continue;
            }

            let key = key(&mut chars)?;
            let keyed = match (key, &values.mapping) {
                (None, _) => None,
                (Some(key), Some(mapping)) => {
                    let mapping = mapping.clone();
                    let value = self.item(&mapping, &Value::str(key.as_str()))?;
                    if value.is_undefined() {
                        return Err(Error::new(format!("KeyError: '{key}'")));
                    }
                    Some(value)
                }
                (Some(_), None) => return Err(Error::new("format requires a mapping")),
            };

            let conversion = Conversion::parse(&mut chars, values)?;
            let letter = chars
                .next()
                .ok_or_else(|| Error::new("incomplete format"))?;
            if letter == '%' {
                out.push("%")?;
                continue;
            }

            let value = match keyed {
                Some(value) => value,
                None => values.next()?,
            };
            let text = self.percent_value(&conversion, letter, &value, values.is_markup)?;
            self.spend_text(&text)?;
            out.push(&text)?;
        }

        Ok(())
    }

    fn percent_value(
        &mut self,
        conversion: &Conversion,
        letter: char,
        value: &Value,
        is_markup: bool,
    ) -> Result<String> {
        match letter {
            's' | 'r' | 'a' => {
                let text = match letter {
                    's' => self.str(value)?.to_string(),
                    'r' => self.repr(value)?,
                    _ => ascii(&self.repr(value)?),
                };
                let is_plain = is_markup && !matches!(value, Value::Markup(_));
                let text = if is_plain { escape_html(&text)? } else { text };
                let text = text
                    .chars()
                    .take(conversion.precision.unwrap_or(usize::MAX))
                    .collect::<String>();

                conversion.padded("", &text, false)
            }
            'c' => conversion.padded("", &character(value)?, false),
            'd' | 'i' | 'u' | 'o' | 'x' | 'X' => conversion.integer(letter, value),
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => conversion.float(letter, value),
            other => Err(Error::new(format!(
                "unsupported format character '{other}'"
            ))),
        }
    }
}

/// The key in brackets after a `%`, if there is one.
fn key(chars: &mut Peekable<Chars<'_>>) -> Result<Option<String>> {
    if chars.next_if_eq(&'(').is_none() {
        return Ok(None);
    }

    let mut key = String::new();
    let mut depth = 1;
    for c in chars {
        depth += i32::from(c == '(') - i32::from(c == ')');
        if depth == 0 {
            return Ok(Some(key));
        }
        key.push(c);
    }

    Err(Error::new("incomplete format key"))
}

/// `%c`: a string of one character, or a code point.
fn character(value: &Value) -> Result<String> {
    if let Some(text) = value.as_str() {
        let mut chars = text.chars();
        return match (chars.next(), chars.next()) {
            (Some(c), None) => Ok(c.to_string()),
            _ => Err(Error::new("%c requires int or char")),
        };
    }

    let code = u32::try_from(expect_int(value, "%c")?)
        .ok()
        .and_then(char::from_u32);
    code.map(String::from)
        .ok_or_else(|| Error::new("%c arg not in range(0x110000)"))
}

impl Conversion {
    fn parse(chars: &mut Peekable<Chars<'_>>, values: &mut Values) -> Result<Self> {
        let mut conversion = Self::default();
        while let Some(flag) = chars.next_if(|c| matches!(c, '-' | '+' | ' ' | '#' | '0')) {
            match flag {
                '-' => conversion.is_left = true,
                '+' => conversion.sign = Some('+'),
                ' ' => conversion.sign = conversion.sign.or(Some(' ')),
                '#' => conversion.is_alternate = true,
                _ => conversion.has_zeros = true,
            }
        }

        if chars.next_if_eq(&'*').is_some() {
            let width = expect_int(&values.next()?, "* of a format")?;
            conversion.is_left |= width < 0;
            conversion.width = check_text(usize::try_from(width.unsigned_abs()).ok())?;
        } else {
            conversion.width = count(chars)?;
        }

        if chars.next_if_eq(&'.').is_some() {
            conversion.precision = Some(if chars.next_if_eq(&'*').is_some() {
                let precision = expect_int(&values.next()?, "* of a format")?;
                check_text(usize::try_from(precision.max(0)).ok())?
            } else {
                count(chars)?
            });
        }

        // The length modifiers of C, which Python ignores.
        while chars.next_if(|c| matches!(c, 'h' | 'l' | 'L')).is_some() {}
        Ok(conversion)
    }

    /// Pads `head` (sign and prefix) and `digits` to the width; zeros go between the two.
    fn padded(&self, head: &str, digits: &str, is_number: bool) -> Result<String> {
        let missing = self
            .width
            .saturating_sub(head.chars().count() + digits.chars().count());
        let mut out = Text::default();
        let has_zeros = self.has_zeros && !self.is_left && is_number;
        if !self.is_left && !has_zeros {
            out.pad(' ', missing)?;
        }

        out.push(head)?;
        if has_zeros {
            out.pad('0', missing)?;
        }

        out.push(digits)?;
        if self.is_left {
            out.pad(' ', missing)?;
        }

        Ok(out.into_string())
    }

    fn head(&self, is_negative: bool, prefix: &str) -> String {
        let sign = if is_negative { Some('-') } else { self.sign };
        sign.into_iter().chain(prefix.chars()).collect()
    }

    fn integer(&self, letter: char, value: &Value) -> Result<String> {
        let number = match (value, letter) {
            // `%d` truncates a float.
            (Value::Float(number), 'd' | 'i' | 'u') => super::convert::truncated(*number)?,
            (Value::Undefined(missing), _) => return Err(missing.error()),
            (value, _) => value.as_int().ok_or_else(|| {
                let found = value.type_name();
                Error::new(format!(
                    "%{letter} format: a real number is required, not {found}"
                ))
            })?,
        };

        let prefix = if self.is_alternate {
            numbers::radix_prefix(letter)
        } else {
            ""
        };

        let digits = numbers::integer(number, letter);
        let mut text = Text::default();
        text.pad(
            '0',
            self.precision.unwrap_or(0).saturating_sub(digits.len()),
        )?;
        text.push(&digits)?;

        self.padded(&self.head(number < 0, prefix), &text.into_string(), true)
    }

    fn float(&self, letter: char, value: &Value) -> Result<String> {
        if let Value::Undefined(missing) = value {
            return Err(missing.error());
        }

        let error = || Error::new(format!("must be real number, not {}", value.type_name()));
        let number = value.as_float().ok_or_else(error)?;
        let style = match letter.to_ascii_lowercase() {
            'e' => FloatStyle::Scientific,
            'f' => FloatStyle::Fixed,
            _ => FloatStyle::General,
        };

        let digits = numbers::float(
            number,
            style,
            self.precision.unwrap_or(6),
            self.is_alternate,
        )?;

        let digits = if letter.is_ascii_uppercase() {
            digits.to_uppercase()
        } else {
            digits
        };

        let is_negative = number.is_sign_negative() && !number.is_nan();
        self.padded(&self.head(is_negative, ""), &digits, true)
    }
}

/// A width or precision; zero if there are no digits.
fn count(chars: &mut Peekable<Chars<'_>>) -> Result<usize> {
    let mut count = Some(0_usize);
    while let Some(digit) = chars
        .next_if(char::is_ascii_digit)
        .and_then(|c| c.to_digit(10))
    {
        count = count.and_then(|count| count.checked_mul(10)?.checked_add(digit as usize));
    }

    check_text(count)
}
