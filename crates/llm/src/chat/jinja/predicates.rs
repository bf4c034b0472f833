//! Jinja2's tests: the names that can follow `is`.

use super::args::Args;
use super::ast::Comparison;
use super::error::{Error, Result};
use super::filters;
use super::interpreter::Interpreter;
use super::ops::{self, Arithmetic};
use super::value::Value;

/// The supported tests.
const NAMES: [&str; 39] = [
    "!=",
    "<",
    "<=",
    "==",
    ">",
    ">=",
    "boolean",
    "callable",
    "defined",
    "divisibleby",
    "eq",
    "equalto",
    "escaped",
    "even",
    "false",
    "filter",
    "float",
    "ge",
    "greaterthan",
    "gt",
    "in",
    "integer",
    "iterable",
    "le",
    "lessthan",
    "lower",
    "lt",
    "mapping",
    "ne",
    "none",
    "number",
    "odd",
    "sameas",
    "sequence",
    "string",
    "test",
    "true",
    "undefined",
    "upper",
];

impl Interpreter<'_> {
    /// `value is name(args)`.
    pub(super) fn test(&mut self, name: &str, value: &Value, args: Args) -> Result<bool> {
        self.budget.spend(1)?;
        let comparison = match name {
            "==" | "eq" | "equalto" => Some(Comparison::Eq),
            "!=" | "ne" => Some(Comparison::Ne),
            "<" | "lt" | "lessthan" => Some(Comparison::Lt),
            "<=" | "le" => Some(Comparison::Le),
            ">" | "gt" | "greaterthan" => Some(Comparison::Gt),
            ">=" | "ge" => Some(Comparison::Ge),
            "in" => Some(Comparison::In),
            _ => None,
        };

        if let Some(comparison) = comparison {
            let mut args = args.bind(name, ["other"], 1)?;
            return self.compare(comparison, value, &args.value(0));
        }
        if name == "divisibleby" {
            let mut args = args.bind(name, ["num"], 1)?;
            return self.has_remainder(value, &args.value(0), 0);
        }
        if name == "sameas" {
            let mut args = args.bind(name, ["other"], 1)?;
            return Ok(ops::same(value, &args.value(0)));
        }
        if !NAMES.contains(&name) {
            return Err(Error::new(format!("No test named '{name}'.")));
        }

        args.none(name)?;
        match name {
            "odd" => self.has_remainder(value, &Value::Int(2), 1),
            "even" => self.has_remainder(value, &Value::Int(2), 0),
            "lower" => Ok(super::chars::is_all(&self.str(value)?, char::is_lowercase)),
            "upper" => Ok(super::chars::is_all(&self.str(value)?, char::is_uppercase)),
            _ => Ok(holds(name, value)),
        }
    }

    /// `value % number == rest`, which tests `odd`, `even` and `divisibleby`.
    fn has_remainder(&mut self, value: &Value, number: &Value, rest: i128) -> Result<bool> {
        let found = match value {
            Value::Str(_) | Value::Markup(_) => self.percent(value, number)?,
            _ => ops::arithmetic(Arithmetic::Mod, value, number)?,
        };
        Ok(ops::equal(&found, &Value::Int(rest)))
    }
}

/// The tests that look at the value alone.
fn holds(name: &str, value: &Value) -> bool {
    match name {
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "none" => value.is_none(),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => value.as_float().is_some(),
        "string" => value.as_str().is_some(),
        "escaped" => matches!(value, Value::Markup(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        // Anything with a length that can be indexed, strings and dicts included.
        "sequence" => matches!(
            value,
            Value::Str(_)
                | Value::Markup(_)
                | Value::List(_)
                | Value::Tuple(_)
                | Value::Dict(_)
                | Value::Range(_)
                | Value::Undefined(_)
        ),
        "iterable" => !matches!(
            value,
            Value::None
                | Value::Bool(_)
                | Value::Int(_)
                | Value::Float(_)
                | Value::Namespace(_)
                | Value::Cycler(_)
                | Value::Joiner(_)
                | Value::Macro(_)
                | Value::Function(_)
                | Value::Method(_)
        ),
        "callable" => matches!(
            value,
            Value::Undefined(_)
                | Value::Function(_)
                | Value::Method(_)
                | Value::Macro(_)
                | Value::Joiner(_)
                | Value::Loop(_)
        ),
        "filter" => value
            .as_str()
            .is_some_and(|name| filters::NAMES.contains(&name)),
        "test" => value.as_str().is_some_and(|name| NAMES.contains(&name)),
        _ => false,
    }
}
