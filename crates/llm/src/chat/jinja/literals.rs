//! Number and string literals.

use super::error::{Error, Result};
use super::lexer::TokenKind;

/// A number at the beginning of a text, and its length. After a dot it is an index, never a float:
/// `x.1.5` is `x[1][5]`.
pub(super) fn number(text: &str, follows_dot: bool) -> Result<(TokenKind, usize)> {
    let float = if follows_dot { None } else { float_len(text) };
    if let Some(len) = float {
        let number = text[..len].replace('_', "").parse();
        return number
            .map(|number| (TokenKind::Float(number), len))
            .map_err(|_| Error::new(format!("'{}' is not a number", &text[..len])));
    }

    let (radix, prefix) = match text.as_bytes() {
        [b'0', b'b' | b'B', ..] => (2, 2),
        [b'0', b'o' | b'O', ..] => (8, 2),
        [b'0', b'x' | b'X', ..] => (16, 2),
        _ => (10, 0),
    };

    let mut digits = digits_len(&text[prefix..], |c| c.is_digit(radix), prefix > 0);
    let (mut radix, mut prefix) = (radix, prefix);
    if prefix > 0 && digits == 0 {
        (radix, prefix, digits) = (10, 0, 1);
    } else if prefix == 0 && text.starts_with('0') {
        // Zeros only: `01` becomes two numbers, which the parser rejects.
        digits = digits_len(text, |c| c == '0', false);
    }

    let number = i128::from_str_radix(&text[prefix..prefix + digits].replace('_', ""), radix);
    number
        .map(|number| (TokenKind::Int(number), prefix + digits))
        .map_err(|_| Error::new("an integer has more than 127 bits"))
}

/// Length of a run of digits with single underscores between them.
fn digits_len(
    text: &str,
    is_digit: impl Fn(char) -> bool,
    may_begin_with_underscore: bool,
) -> usize {
    let mut len = 0;
    let mut was_digit = may_begin_with_underscore;
    for (offset, c) in text.char_indices() {
        match c {
            '_' if was_digit => was_digit = false,
            c if is_digit(c) => {
                was_digit = true;
                len = offset + c.len_utf8();
            }
            _ => break,
        }
    }
    len
}

/// Length of a float, which has a fraction, an exponent, or both; `None` if this is not a
/// float.
fn float_len(text: &str) -> Option<usize> {
    let digits = |text: &str| {
        let starts = text.starts_with(|c: char| c.is_ascii_digit());
        if starts {
            digits_len(text, |c| c.is_ascii_digit(), false)
        } else {
            0
        }
    };

    let whole = digits(text);
    let fraction = text[whole..].strip_prefix('.').map_or(0, digits);
    let mantissa = if fraction > 0 {
        whole + 1 + fraction
    } else {
        whole
    };

    let exponent = text[mantissa..].strip_prefix(['e', 'E']).map_or(0, |text| {
        let sign = usize::from(text.starts_with(['+', '-']));
        match digits(&text[sign..]) {
            0 => 0,
            len => 1 + sign + len,
        }
    });

    (whole > 0 && (fraction > 0 || exponent > 0)).then_some(mantissa + exponent)
}

/// A string literal at the beginning of a text, and its length.
pub(super) fn string(text: &str) -> Result<(TokenKind, usize)> {
    let quote = text.chars().next().unwrap_or('\'');
    let mut is_escaped = false;
    for (offset, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            c if c == quote => {
                return Ok((TokenKind::Str(unescaped(&text[1..offset])?), offset + 1));
            }
            _ => {}
        }
    }

    Err(Error::new(format!(
        "unexpected char {quote:?}: the string has no end"
    )))
}

/// Python's `unicode-escape` codec.
fn unescaped(text: &str) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(offset) = rest.find('\\') {
        out.push_str(&rest[..offset]);
        let Some(c) = rest[offset + 1..].chars().next() else {
            break;
        };

        rest = &rest[offset + 1 + c.len_utf8()..];
        match c {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(c),
            'a' => out.push('\u{7}'),
            'b' => out.push('\u{8}'),
            'f' => out.push('\u{c}'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\u{b}'),
            '0'..='7' => {
                let more = rest
                    .bytes()
                    .take(2)
                    .take_while(|byte| (b'0'..=b'7').contains(byte))
                    .count();
                let code = u32::from_str_radix(&format!("{c}{}", &rest[..more]), 8).ok();
                out.push(character(code)?);
                rest = &rest[more..];
            }
            'x' | 'u' | 'U' => {
                let digits = [2, 4, 8][usize::from(c != 'x') + usize::from(c == 'U')];
                let hexadecimal = rest
                    .get(..digits)
                    .filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()));
                let error = || Error::new(format!("truncated \\{c}{} escape", "X".repeat(digits)));
                out.push(character(
                    u32::from_str_radix(hexadecimal.ok_or_else(error)?, 16).ok(),
                )?);
                rest = &rest[digits..];
            }
            'N' => return Err(Error::new("\\N escapes of characters by name are not read")),
            // Jinja2 encodes such a character as an escape first; the backslash before it then
            // escapes that escape's backslash, which leaves the escape in the text.
            c if !c.is_ascii() => super::print::push_escaped(c, &mut out),
            c => out.extend(['\\', c]),
        }
    }

    out.push_str(rest);
    Ok(out)
}

/// The character of a numeric escape.
fn character(code: Option<u32>) -> Result<char> {
    let error = || Error::new("an escape is no character: a surrogate or above \\U0010ffff");
    code.and_then(char::from_u32).ok_or_else(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_literals_are_read_as_python_reads_them() {
        for (text, kind, len) in [
            ("12", TokenKind::Int(12), 2),
            ("1_000x", TokenKind::Int(1000), 5),
            ("0x_fF", TokenKind::Int(255), 5),
            ("0b101", TokenKind::Int(5), 5),
            ("0b2", TokenKind::Int(0), 1),
            ("00", TokenKind::Int(0), 2),
            ("1.5", TokenKind::Float(1.5), 3),
            ("1.", TokenKind::Int(1), 1),
            ("1e5", TokenKind::Float(1e5), 3),
            ("1.5e-3]", TokenKind::Float(1.5e-3), 6),
            ("1e", TokenKind::Int(1), 1),
            ("1.x", TokenKind::Int(1), 1),
        ] {
            assert_eq!(number(text, false).unwrap(), (kind, len), "{text}");
        }

        assert_eq!(number("1.5", true).unwrap(), (TokenKind::Int(1), 1));
        assert!(number(&"9".repeat(50), false).is_err());
    }

    #[test]
    fn escapes_are_read_as_python_reads_them() {
        let read = |text: &str| match string(text) {
            Ok((TokenKind::Str(text), _)) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(read(r#"'a\'b\"c\\d' rest"#), "a'b\"c\\d");
        assert_eq!(read(r"'\x41\u00e9\U0001F642\101\0'"), "Aé🙂A\0");
        assert_eq!(read(r"'\d\s\é'"), r"\d\s\xe9");
        assert_eq!(read("'a\\\nb'"), "ab");

        for broken in [r"'\x4'", r"'\u12'", r"'\ud83d'", "'no end", r"'\"] {
            assert!(string(broken).is_err(), "{broken}");
        }
    }
}
