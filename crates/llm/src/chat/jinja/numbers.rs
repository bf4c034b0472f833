//! How `%` and `str.format` format numbers.

use super::budget::{Text, check_text};
use super::error::Result;
use super::print::float_repr;

/// No `f64` has more decimals than this: further ones are zeros.
const DECIMALS: usize = 1100;

/// How a float is formatted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FloatStyle {
    /// `f`.
    Fixed,
    /// `e`.
    Scientific,
    /// `g`: fixed or scientific by the exponent, without trailing zeros.
    General,
    /// A precision without a letter: as `g`, but with at least one decimal.
    Plain,
}

/// The absolute value of a float, in lower case. `keeps_point` is the flag `#`: the decimal point
/// stays even without decimals.
pub(super) fn float(
    number: f64,
    style: FloatStyle,
    precision: usize,
    keeps_point: bool,
) -> Result<String> {
    let number = number.abs();
    if number.is_nan() || number.is_infinite() {
        return Ok(float_repr(number));
    }
    Ok(match style {
        FloatStyle::Fixed => {
            let text = fixed(number, precision)?;
            if keeps_point && precision == 0 {
                text + "."
            } else {
                text
            }
        }
        FloatStyle::Scientific => {
            let (mantissa, exponent) = scientific(number, precision)?;
            let point = if keeps_point && precision == 0 {
                "."
            } else {
                ""
            };

            format!("{mantissa}{point}{}", exponent_text(exponent))
        }
        FloatStyle::General | FloatStyle::Plain => {
            general(number, style, precision.max(1), keeps_point)?
        }
    })
}

fn general(number: f64, style: FloatStyle, precision: usize, keeps_point: bool) -> Result<String> {
    let (mantissa, exponent) = scientific(number, precision - 1)?;
    let is_plain = style == FloatStyle::Plain;
    let limit = i64::try_from(precision).unwrap_or(i64::MAX) - i64::from(is_plain);
    let is_fixed = (-4..limit).contains(&i64::from(exponent));

    let digits = if is_fixed {
        let decimals = i64::try_from(precision).unwrap_or(i64::MAX) - 1 - i64::from(exponent);
        fixed(number, usize::try_from(decimals).unwrap_or(0))?
    } else {
        mantissa
    };

    let digits = match digits.contains('.') {
        true if !keeps_point => digits
            .trim_end_matches('0')
            .trim_end_matches('.')
            .to_owned(),
        false if keeps_point => digits + ".",
        _ => digits,
    };

    Ok(match is_fixed {
        true if is_plain && !digits.contains('.') => digits + ".0",
        true => digits,
        false => digits + &exponent_text(exponent),
    })
}

fn fixed(number: f64, decimals: usize) -> Result<String> {
    with_zeros(format!("{number:.*}", decimals.min(DECIMALS)), decimals)
}

/// The mantissa with `decimals` decimals, and the exponent.
fn scientific(number: f64, decimals: usize) -> Result<(String, i32)> {
    let text = format!("{number:.*e}", decimals.min(DECIMALS));
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    Ok((
        with_zeros(mantissa.to_owned(), decimals)?,
        exponent.parse().unwrap_or(0),
    ))
}

fn with_zeros(digits: String, decimals: usize) -> Result<String> {
    let mut text = Text::default();
    text.push(&digits)?;
    text.pad('0', decimals.saturating_sub(DECIMALS))?;
    Ok(text.into_string())
}

fn exponent_text(exponent: i32) -> String {
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("e{sign}{:02}", exponent.abs())
}

/// The absolute value of an integer in the base of a format letter: `b`, `o`, `x`, `X`, else
/// decimal.
pub(super) fn integer(number: i128, letter: char) -> String {
    let number = number.unsigned_abs();
    match letter {
        'b' => format!("{number:b}"),
        'o' => format!("{number:o}"),
        'x' => format!("{number:x}"),
        'X' => format!("{number:X}"),
        _ => number.to_string(),
    }
}

/// The prefix that the flag `#` gives an integer.
pub(super) fn radix_prefix(letter: char) -> &'static str {
    match letter {
        'b' => "0b",
        'o' => "0o",
        'x' => "0x",
        'X' => "0X",
        _ => "",
    }
}

/// Puts a separator between groups of `group` digits of the integer part, which is zero-padded so
/// that the whole fills `width`.
pub(super) fn grouped(digits: &str, separator: char, group: usize, width: usize) -> Result<String> {
    check_text(Some(width))?;
    let end = digits
        .find(|c: char| !c.is_ascii_hexdigit())
        .unwrap_or(digits.len());
    let (whole, rest) = digits.split_at(end);
    let mut whole = whole.to_owned();
    let len_with = |digits: usize| digits + (digits.max(1) - 1) / group;
    let needed = width.saturating_sub(rest.chars().count());
    let mut count = whole.len();
    while len_with(count) < needed {
        count += 1;
    }

    whole.insert_str(0, &"0".repeat(count - whole.len()));
    let mut out = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % group == 0 {
            out.push(separator);
        }
        out.push(digit);
    }

    Ok(out + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_rounded_and_shortened_as_c_does() {
        for (number, style, precision, text) in [
            (2.5, FloatStyle::Fixed, 0, "2"),
            (0.125, FloatStyle::Fixed, 2, "0.12"),
            (1234.5, FloatStyle::Scientific, 2, "1.23e+03"),
            (1234.5, FloatStyle::General, 6, "1234.5"),
            (1e6, FloatStyle::General, 6, "1e+06"),
            (1e-5, FloatStyle::General, 6, "1e-05"),
            (10.0, FloatStyle::Plain, 2, "1e+01"),
            (10.0, FloatStyle::Plain, 3, "10.0"),
            (0.0, FloatStyle::General, 6, "0"),
        ] {
            assert_eq!(float(number, style, precision, false).unwrap(), text);
        }

        assert!(float(1.0, FloatStyle::Fixed, usize::MAX, false).is_err());
    }

    #[test]
    fn separators_count_toward_the_width() {
        assert_eq!(grouped("1234567.5", ',', 3, 0).unwrap(), "1,234,567.5");
        assert_eq!(grouped("1234", ',', 3, 10).unwrap(), "00,001,234");
    }
}
