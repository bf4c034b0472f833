//! Python's `int`, `float` and `round`.

use super::chars::decimal_digit;
use super::error::{Error, Result};
use super::lexer::is_space;
use super::numbers::{self, FloatStyle};
use super::value::Value;

/// `int(text, base)`; `None` where Python raises a `ValueError`.
pub(super) fn int_of(text: &str, base: u32) -> Option<i128> {
    if base != 0 && !(2..=36).contains(&base) {
        return None;
    }

    let text = text.trim_matches(is_space);
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_lowercase();

    let prefix = |mark: &str, radix: u32| {
        (base == radix || base == 0)
            .then(|| lower.strip_prefix(mark))
            .flatten()
            .map(|digits| (digits, radix))
    };

    let prefixed = prefix("0x", 16)
        .or_else(|| prefix("0o", 8))
        .or_else(|| prefix("0b", 2));
    let (digits, base) = match prefixed {
        Some((digits, base)) => (digits.strip_prefix('_').unwrap_or(digits), base),
        None => (&*lower, if base == 0 { 10 } else { base }),
    };
    let digits = without_underscores(digits)?;
    let ascii = with_ascii_digits(&digits);

    if ascii.starts_with(['+', '-']) {
        return None;
    }

    i128::from_str_radix(&format!("{sign}{ascii}"), base).ok()
}

/// `float(text)`; `None` where Python raises a `ValueError`.
pub(super) fn float_of(text: &str) -> Option<f64> {
    let digits = without_underscores(text.trim_matches(is_space))?;
    with_ascii_digits(&digits).parse().ok()
}

/// The text with the decimal digits of all scripts written as ASCII.
fn with_ascii_digits(text: &str) -> String {
    let ascii = |c: char| match c.is_ascii() {
        true => c,
        false => decimal_digit(c).unwrap_or(c),
    };
    text.chars().map(ascii).collect()
}

/// Removes the underscores of a number; `None` unless each is between two digits.
fn without_underscores(text: &str) -> Option<String> {
    let is_digit = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    let is_between = |place: usize| {
        is_digit(text[..place].chars().next_back()) && is_digit(text[place + 1..].chars().next())
    };
    let is_valid = text.match_indices('_').all(|(place, _)| is_between(place));

    is_valid.then(|| text.replace('_', ""))
}

/// `int` of a float: rounds toward zero.
pub(super) fn truncated(number: f64) -> Result<i128> {
    if !number.is_finite() {
        return Err(Error::new(
            "cannot convert float infinity or NaN to integer",
        ));
    }

    if number.abs() >= 1.7e38 {
        return Err(Error::new("an integer has more than 127 bits"));
    }

    Ok(number as i128)
}

/// Python's `round(value, digits)`: ties go to even.
pub(super) fn rounded(value: &Value, digits: i128) -> Result<Value> {
    let digits = digits.clamp(-400, 400) as i32;
    if let Some(number) = value.as_int() {
        let Some(unit) = 10_i128.checked_pow(digits.min(0).unsigned_abs()) else {
            return Ok(Value::Int(0));
        };
        let whole = number.div_euclid(unit);
        let rest = number.rem_euclid(unit);
        let is_up = rest * 2 > unit || (rest * 2 == unit && whole % 2 != 0);
        return Ok(Value::Int((whole + i128::from(is_up)) * unit));
    }

    let error = || {
        Error::new(format!(
            "type {} doesn't define __round__ method",
            value.type_name()
        ))
    };

    let number = value.as_float().ok_or_else(error)?;
    if !number.is_finite() {
        return Ok(Value::Float(number));
    }
    if digits < 0 {
        let unit = 10_f64.powi(-digits);
        return Ok(Value::Float((number / unit).round_ties_even() * unit));
    }

    let text = numbers::float(number, FloatStyle::Fixed, digits as usize, false)?;
    let magnitude: f64 = text
        .parse()
        .map_err(|_| Error::new("a number cannot be rounded"))?;
    Ok(Value::Float(magnitude.copysign(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_python_reads_them() {
        assert_eq!(int_of(" -1_000 ", 10), Some(-1000));
        assert_eq!(int_of("0xff", 16), Some(255));
        assert_eq!(int_of("ff", 16), Some(255));
        assert_eq!(int_of("0b11", 0), Some(3));
        assert_eq!(int_of("٣", 10), Some(3));
        for broken in ["", "1__0", "_1", "1.5", "+-1", "x"] {
            assert_eq!(int_of(broken, 10), None, "{broken}");
        }

        assert_eq!(float_of(" 1_0.5e2 "), Some(1050.0));
        assert_eq!(float_of("-Infinity"), Some(f64::NEG_INFINITY));
        assert_eq!(float_of("1_"), None);
    }

    #[test]
    fn halves_round_to_even() {
        let round = |number: f64, digits| match rounded(&Value::Float(number), digits) {
            Ok(Value::Float(number)) => number,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            (round(2.5, 0), round(2.675, 2), round(-0.4, 0).to_bits()),
            (2.0, 2.67, (-0.0_f64).to_bits())
        );
        assert!(matches!(rounded(&Value::Int(25), -1), Ok(Value::Int(20))));
        assert!(matches!(rounded(&Value::Int(-35), -1), Ok(Value::Int(-40))));
    }
}
