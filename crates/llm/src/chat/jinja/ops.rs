//! Python's operators.

use super::budget::{check_list, check_text};
use super::dict::Dict;
use super::error::{Error, Result};
use super::value::{Items, Value, ViewKind};
use std::cmp::Ordering;

/// The arithmetic operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

impl Arithmetic {
    fn symbol(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Sub => "-",
            Self::Mul => "*",
            Self::Div => "/",
            Self::FloorDiv => "//",
            Self::Mod => "%",
            Self::Pow => "** or pow()",
        }
    }
}

/// `left operator right`. `%` with a string on the left is formatting: see `percent`.
pub(super) fn arithmetic(operator: Arithmetic, left: &Value, right: &Value) -> Result<Value> {
    if let (Value::Undefined(missing), _) | (_, Value::Undefined(missing)) = (left, right) {
        return Err(missing.error());
    }
    if let (Some(a), Some(b)) = (left.as_int(), right.as_int()) {
        return integers(operator, a, b);
    }
    if let (Some(a), Some(b)) = (left.as_float(), right.as_float()) {
        return floats(operator, a, b).map(Value::Float);
    }

    let result = match operator {
        Arithmetic::Add => concatenated(left, right)?,
        Arithmetic::Mul => match (left.as_int(), right.as_int()) {
            (_, Some(count)) => repeated(left, count)?,
            (Some(count), _) => repeated(right, count)?,
            _ => None,
        },
        _ => None,
    };

    result.ok_or_else(|| {
        let (left, right) = (left.type_name(), right.type_name());
        Error::new(format!(
            "unsupported operand type(s) for {}: '{left}' and '{right}'",
            operator.symbol()
        ))
    })
}

fn integers(operator: Arithmetic, a: i128, b: i128) -> Result<Value> {
    use Arithmetic as Op;

    let zero = || Error::new("division by zero");
    if b == 0 && matches!(operator, Op::Div | Op::FloorDiv | Op::Mod) {
        return Err(zero());
    }

    let result = match operator {
        Op::Add => a.checked_add(b),
        Op::Sub => a.checked_sub(b),
        Op::Mul => a.checked_mul(b),
        Op::Div => return Ok(Value::Float(a as f64 / b as f64)),
        // Python rounds toward minus infinity; the remainder has the sign of the divisor.
        Op::FloorDiv => a.checked_div(b).and_then(|quotient| {
            let is_above = a % b != 0 && (a < 0) != (b < 0);
            quotient.checked_sub(i128::from(is_above))
        }),
        Op::Mod => a.checked_rem(b).map(|rest| {
            if rest != 0 && (rest < 0) != (b < 0) {
                rest + b
            } else {
                rest
            }
        }),
        Op::Pow if b < 0 => return floats(operator, a as f64, b as f64).map(Value::Float),
        Op::Pow => u32::try_from(b)
            .ok()
            .and_then(|exponent| a.checked_pow(exponent))
            .or(match a {
                0 | 1 => Some(a),
                -1 => Some(if b % 2 == 0 { 1 } else { -1 }),
                _ => None,
            }),
    };

    result
        .map(Value::Int)
        .ok_or_else(|| Error::new("an integer has more than 127 bits"))
}

fn floats(operator: Arithmetic, a: f64, b: f64) -> Result<f64> {
    use Arithmetic as Op;

    if b == 0.0 && matches!(operator, Op::Div | Op::FloorDiv | Op::Mod) {
        return Err(Error::new("float division by zero"));
    }

    Ok(match operator {
        Op::Add => a + b,
        Op::Sub => a - b,
        Op::Mul => a * b,
        Op::Div => a / b,
        Op::FloorDiv => floor_div(a, b),
        Op::Mod => modulo(a, b),
        Op::Pow if a == 0.0 && b < 0.0 => {
            return Err(Error::new("0.0 cannot be raised to a negative power"));
        }
        Op::Pow if a < 0.0 && b.fract() != 0.0 && b.is_finite() => {
            return Err(Error::new(
                "a negative number raised to a fraction is complex",
            ));
        }
        Op::Pow => {
            let power = a.powf(b);
            if power.is_infinite() && a.is_finite() && b.is_finite() {
                return Err(Error::new("the result of ** is too large for a float"));
            }
            power
        }
    })
}

/// `a % b`: the result has the sign of `b`.
fn modulo(a: f64, b: f64) -> f64 {
    let rest = a % b;
    match rest {
        0.0 => 0.0_f64.copysign(b),
        rest if (rest < 0.0) != (b < 0.0) => rest + b,
        rest => rest,
    }
}

/// CPython's `float_divmod`.
fn floor_div(a: f64, b: f64) -> f64 {
    let quotient = (a - modulo(a, b)) / b;
    if quotient == 0.0 {
        return 0.0_f64.copysign(a / b);
    }

    let floor = quotient.floor();
    if quotient - floor > 0.5 {
        floor + 1.0
    } else {
        floor
    }
}

/// `left + right` of strings, lists or tuples; `None` for other types.
fn concatenated(left: &Value, right: &Value) -> Result<Option<Value>> {
    let joined = |a: &Items, b: &Items| {
        check_list(a.values().len().checked_add(b.values().len()))?;
        Ok([a.values(), b.values()].concat())
    };
    Ok(match (left, right) {
        (Value::Str(a), Value::Str(b)) => {
            check_text(a.len().checked_add(b.len()))?;
            Some(Value::str([&**a, &**b].concat()))
        }
        (Value::Markup(a), Value::Markup(b)) => Some(Value::Markup([&**a, &**b].concat().into())),
        (Value::Markup(a), Value::Str(b)) => {
            Some(Value::Markup([a, &*escape_html(b)?].concat().into()))
        }
        (Value::Str(a), Value::Markup(b)) => {
            Some(Value::Markup([&*escape_html(a)?, b].concat().into()))
        }
        (Value::List(a), Value::List(b)) => Some(Value::list(joined(a, b)?)?),
        (Value::Tuple(a), Value::Tuple(b)) => Some(Value::tuple(joined(a, b)?)?),
        _ => None,
    })
}

/// `value * count` of a string, list or tuple; `None` for other types.
fn repeated(value: &Value, count: i128) -> Result<Option<Value>> {
    let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
    let text = |text: &str| {
        check_text(text.len().checked_mul(count))?;
        Ok(text.repeat(if text.is_empty() { 0 } else { count }))
    };

    let items = |items: &Items| {
        check_list(items.values().len().checked_mul(count))?;
        let len = items.values().len().saturating_mul(count);

        Ok(items
            .values()
            .iter()
            .cycle()
            .take(len)
            .cloned()
            .collect::<Vec<_>>())
    };

    Ok(match value {
        Value::Str(string) => Some(Value::str(text(string)?)),
        Value::Markup(string) => Some(Value::Markup(text(string)?.into())),
        Value::List(list) => Some(Value::list(items(list)?)?),
        Value::Tuple(tuple) => Some(Value::tuple(items(tuple)?)?),
        _ => None,
    })
}

/// markupsafe's `escape` of a plain string.
pub(super) fn escape_html(text: &str) -> Result<String> {
    let mut out = super::budget::Text::default();
    for piece in text.split_inclusive(['&', '<', '>', '"', '\'']) {
        let (plain, special) = match piece.chars().next_back() {
            Some('&') => (&piece[..piece.len() - 1], "&amp;"),
            Some('<') => (&piece[..piece.len() - 1], "&lt;"),
            Some('>') => (&piece[..piece.len() - 1], "&gt;"),
            Some('"') => (&piece[..piece.len() - 1], "&#34;"),
            Some('\'') => (&piece[..piece.len() - 1], "&#39;"),
            _ => (piece, ""),
        };

        out.push(plain)?;
        out.push(special)?;
    }

    Ok(out.into_string())
}

/// Unary minus and plus.
pub(super) fn signed(value: &Value, is_negative: bool) -> Result<Value> {
    match value {
        Value::Undefined(missing) => Err(missing.error()),
        Value::Float(number) => Ok(Value::Float(if is_negative { -number } else { *number })),
        other => match other.as_int() {
            Some(number) => Ok(Value::Int(if is_negative { -number } else { number })),
            None => {
                let sign = if is_negative { '-' } else { '+' };
                Err(Error::new(format!(
                    "bad operand type for unary {sign}: '{}'",
                    other.type_name()
                )))
            }
        },
    }
}

/// `left == right`.
pub(super) fn equal(left: &Value, right: &Value) -> bool {
    if let (Some(a), Some(b)) = (left.as_str(), right.as_str()) {
        return a == b;
    }
    if let (Some(a), Some(b)) = (left.as_int(), right.as_int()) {
        return a == b;
    }
    if let (Some(a), Some(b)) = (left.as_float(), right.as_float()) {
        return a == b;
    }

    let all = |a: &Items, b: &Items| {
        let (a, b) = (a.values(), b.values());
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
    };
    match (left, right) {
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => all(a, b),
        (Value::Dict(a), Value::Dict(b)) => {
            a.entries().len() == b.entries().len() && contains_entries(a, b)
        }
        (Value::Range(a), Value::Range(b)) => {
            a.len() == b.len()
                && (a.len() == 0 || a.start == b.start && (a.len() == 1 || a.step == b.step))
        }
        (Value::View(ViewKind::Keys, a), Value::View(ViewKind::Keys, b)) => {
            a.entries().len() == b.entries().len()
                && a.entries().iter().all(|(key, _)| b.get(key).is_some())
        }
        (Value::View(ViewKind::Items, a), Value::View(ViewKind::Items, b)) => {
            a.entries().len() == b.entries().len() && contains_entries(a, b)
        }
        _ => same(left, right),
    }
}

/// Whether `all` has every entry of `some`.
fn contains_entries(all: &Dict, some: &Dict) -> bool {
    some.entries()
        .iter()
        .all(|(key, value)| all.get(key).is_some_and(|other| equal(other, value)))
}

/// `left is right`. Equal integers and equal strings count as the same object: Python interns those
/// that a template can rely on.
pub(super) fn same(left: &Value, right: &Value) -> bool {
    use std::rc::Rc;

    match (left, right) {
        (Value::None, Value::None) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Int(a), Value::Int(b)) => a == b,
        (Value::Str(a), Value::Str(b)) => a == b,
        (Value::Undefined(a), Value::Undefined(b)) => Rc::ptr_eq(a, b),
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => Rc::ptr_eq(a, b),
        (Value::Dict(a), Value::Dict(b)) => Rc::ptr_eq(a, b),
        (Value::Iterator(a), Value::Iterator(b)) => Rc::ptr_eq(a, b),
        (Value::Loop(a), Value::Loop(b)) => Rc::ptr_eq(a, b),
        (Value::Cycler(a), Value::Cycler(b)) => Rc::ptr_eq(a, b),
        (Value::Joiner(a), Value::Joiner(b)) => Rc::ptr_eq(a, b),
        (Value::Namespace(a), Value::Namespace(b)) | (Value::Macro(a), Value::Macro(b)) => a == b,
        (Value::Function(a), Value::Function(b)) => a == b,
        _ => false,
    }
}

/// How two values compare for `<`, `<=`, `>` and `>=`; `None` if either is NaN. `symbol` is the
/// operator in the error message.
pub(super) fn order(left: &Value, right: &Value, symbol: &str) -> Result<Option<Ordering>> {
    if let (Value::Undefined(missing), _) | (_, Value::Undefined(missing)) = (left, right) {
        return Err(missing.error());
    }
    if let (Some(a), Some(b)) = (left.as_str(), right.as_str()) {
        return Ok(Some(a.cmp(b)));
    }
    if let (Some(a), Some(b)) = (left.as_int(), right.as_int()) {
        return Ok(Some(a.cmp(&b)));
    }
    if let (Some(a), Some(b)) = (left.as_float(), right.as_float()) {
        return Ok(a.partial_cmp(&b));
    }

    match (left, right) {
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            let differ = a
                .values()
                .iter()
                .zip(b.values())
                .find(|(a, b)| !equal(a, b));
            match differ {
                Some((a, b)) => order(a, b, symbol),
                None => Ok(Some(a.values().len().cmp(&b.values().len()))),
            }
        }
        _ => {
            let (left, right) = (left.type_name(), right.type_name());
            Err(Error::new(format!(
                "'{symbol}' not supported between instances of '{left}' and '{right}'"
            )))
        }
    }
}

/// `item in container`. A generator is used up to the element that is found.
pub(super) fn contains(container: &Value, item: &Value) -> Result<bool> {
    let among = |items: &[Value]| {
        items
            .iter()
            .any(|other| same(other, item) || equal(other, item))
    };
    match container {
        Value::Str(text) | Value::Markup(text) => {
            if let Value::Undefined(missing) = item {
                return Err(missing.error());
            }

            let error = || {
                let found = item.type_name();
                Error::new(format!(
                    "'in <string>' requires string as left operand, not {found}"
                ))
            };

            Ok(text.contains(item.as_str().ok_or_else(error)?))
        }
        Value::List(items) | Value::Tuple(items) => Ok(among(items.values())),
        Value::Dict(dict) | Value::View(ViewKind::Keys, dict) => match item {
            Value::List(_) | Value::Dict(_) => Err(Error::new(format!(
                "unhashable type: '{}'",
                item.type_name()
            ))),
            _ => Ok(dict.get(item).is_some()),
        },
        Value::View(ViewKind::Values, dict) => {
            Ok(dict.entries().iter().any(|(_, value)| equal(value, item)))
        }
        Value::View(ViewKind::Items, dict) => match item {
            Value::Tuple(pair) if pair.values().len() == 2 => Ok(dict
                .get(&pair.values()[0])
                .is_some_and(|value| equal(value, &pair.values()[1]))),
            _ => Ok(false),
        },
        Value::Range(range) => Ok((0..range.len()).any(|index| equal(&range.at(index), item))),
        Value::Iterator(stream) => {
            while let Some(other) = stream.next() {
                if equal(&other, item) {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Value::Undefined(_) => Ok(false),
        other => Err(Error::new(format!(
            "argument of type '{}' is not iterable",
            other.type_name()
        ))),
    }
}
