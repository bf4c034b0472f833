//! Filters that compute numbers or format them.

use crate::chat::jinja::args::Args;
use crate::chat::jinja::budget::{MAKING, text_units};
use crate::chat::jinja::convert::{float_of, int_of, rounded, truncated};
use crate::chat::jinja::error::{Error, Result};
use crate::chat::jinja::interpreter::Interpreter;
use crate::chat::jinja::ops::{Arithmetic, arithmetic};
use crate::chat::jinja::value::Value;

impl Interpreter<'_> {
    pub(super) fn number_filter(&mut self, name: &str, input: &Value, args: Args) -> Result<Value> {
        if let (Value::Undefined(missing), "int" | "float" | "filesizeformat") = (input, name) {
            return Err(missing.error());
        }
        // Parsing looks at every character, which takes longer than copying it.
        if let Some(text) = input.as_str() {
            self.budget
                .spend(MAKING.saturating_mul(text_units(text.len())))?;
        }

        match name {
            "abs" => {
                args.none(name)?;
                match (input, input.as_int()) {
                    (Value::Float(number), _) => Ok(Value::Float(number.abs())),
                    (_, Some(number)) => Ok(Value::Int(number.saturating_abs())),
                    _ => Err(Error::new(format!(
                        "bad operand type for abs(): '{}'",
                        input.type_name()
                    ))),
                }
            }
            "int" => {
                let mut args = args.bind(name, ["default", "base"], 0)?;
                let base = u32::try_from(args.maybe_int(1)?.unwrap_or(10)).unwrap_or(1);
                let default = args.take(0).unwrap_or(Value::Int(0));
                int(input, base, default)
            }
            "float" => {
                let mut args = args.bind(name, ["default"], 0)?;
                let number = input.as_str().map_or_else(|| input.as_float(), float_of);
                Ok(number.map_or_else(|| args.take(0).unwrap_or(Value::Float(0.0)), Value::Float))
            }
            "round" => round(input, args),
            _ => {
                let args = args.bind(name, ["binary"], 0)?;
                file_size(input, args.truth(0, false)).map(Value::str)
            }
        }
    }
}

fn int(input: &Value, base: u32, default: Value) -> Result<Value> {
    if let Some(text) = input.as_str() {
        let number = int_of(text, base).or_else(|| truncated(float_of(text)?).ok());
        return Ok(number.map_or(default, Value::Int));
    }

    match input {
        Value::Float(number) if number.is_nan() => Ok(default),
        Value::Float(number) => truncated(*number).map(Value::Int),
        other => Ok(other.as_int().map_or(default, Value::Int)),
    }
}

fn round(input: &Value, args: Args) -> Result<Value> {
    let args = args.bind("round", ["precision", "method"], 0)?;
    let precision = args.maybe_int(0)?.unwrap_or(0);
    let method = args.maybe_str(1)?.unwrap_or("common");

    if method == "common" {
        return rounded(input, precision);
    }

    let unit = arithmetic(Arithmetic::Pow, &Value::Int(10), &Value::Int(precision))?;
    let scaled = arithmetic(Arithmetic::Mul, input, &unit)?;

    let whole = match (&scaled, method) {
        (Value::Float(number), "ceil") => Value::Int(truncated(number.ceil())?),
        (Value::Float(number), "floor") => Value::Int(truncated(number.floor())?),
        (_, "ceil" | "floor") => scaled,
        _ => return Err(Error::new("method must be common, ceil or floor")),
    };

    arithmetic(Arithmetic::Div, &whole, &unit)
}

fn file_size(input: &Value, is_binary: bool) -> Result<String> {
    let error = || Error::new(format!("could not convert to float: {}", input.type_name()));
    let number = input
        .as_str()
        .map_or_else(|| input.as_float(), float_of)
        .ok_or_else(error)?;
    let base: f64 = if is_binary { 1024.0 } else { 1000.0 };

    if number == 1.0 {
        return Ok("1 Byte".to_owned());
    }
    if number < base {
        return Ok(format!("{} Bytes", truncated(number)?));
    }

    let prefixes = ["k", "M", "G", "T", "P", "E", "Z", "Y"];
    let mut unit = base;
    let mut prefix = "";
    for next in prefixes {
        unit *= base;
        prefix = next;
        if number < unit {
            break;
        }
    }

    let prefix = if is_binary {
        format!("{}i", prefix.to_uppercase())
    } else {
        prefix.to_owned()
    };

    Ok(format!("{:.1} {prefix}B", base * number / unit))
}
