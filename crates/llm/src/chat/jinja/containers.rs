//! The methods of `dict`, `list`, `tuple`, `range`, `int` and `float` that the sandbox allows:
//! those that change nothing.

use super::args::Args;
use super::error::{Error, Result};
use super::interpreter::Interpreter;
use super::ops;
use super::value::{Value, ViewKind};

impl Interpreter<'_> {
    pub(super) fn container_method(
        &mut self,
        receiver: &Value,
        name: &str,
        args: Args,
    ) -> Result<Value> {
        match (receiver, name) {
            (Value::Dict(dict), "items" | "keys" | "values") => {
                args.none(name)?;
                let kind = match name {
                    "items" => ViewKind::Items,
                    "keys" => ViewKind::Keys,
                    _ => ViewKind::Values,
                };
                Ok(Value::View(kind, dict.clone()))
            }
            (Value::Dict(dict), "get") => {
                let mut args = args.bind(name, ["/key", "/default"], 1)?;
                let key = args.value(0);
                self.budget.spend(key.units())?;

                if matches!(key, Value::List(_) | Value::Dict(_)) {
                    return Err(Error::new(format!(
                        "unhashable type: '{}'",
                        key.type_name()
                    )));
                }

                let found = dict.get(&key).cloned();
                Ok(found.unwrap_or_else(|| args.value(1)))
            }
            (Value::Dict(_) | Value::List(_), "copy") => {
                args.none(name)?;
                Ok(receiver.clone())
            }
            (Value::List(_) | Value::Tuple(_) | Value::Range(_), "count" | "index") => {
                self.count_or_index(receiver, name, args)
            }
            (Value::Int(number), "bit_length") => {
                args.none(name)?;
                Ok(Value::Int(i128::from(
                    128 - number.unsigned_abs().leading_zeros(),
                )))
            }
            (Value::Float(number), "is_integer") => {
                args.none(name)?;
                Ok(Value::Bool(number.is_finite() && number.fract() == 0.0))
            }
            _ => Err(Error::new(format!(
                "'{}' object has no attribute '{name}'",
                receiver.type_name()
            ))),
        }
    }

    /// `count` and `index` of a sequence.
    fn count_or_index(&mut self, receiver: &Value, name: &str, args: Args) -> Result<Value> {
        let mut args = args.bind(name, ["/value", "/start", "/stop"], 1)?;
        let value = args.value(0);
        let values = self.iterate(receiver)?;
        self.budget
            .spend(value.units().saturating_mul(1 + values.len() as u64))?;

        if name == "count" {
            let count = values
                .iter()
                .filter(|other| ops::equal(other, &value))
                .count();
            return Ok(Value::Int(count as i128));
        }

        let clamp = |index: Option<i128>, default: usize| match index {
            Some(index) if index < 0 => usize::try_from(index + values.len() as i128).unwrap_or(0),
            Some(index) => usize::try_from(index).unwrap_or(usize::MAX),
            None => default,
        };
        let start = clamp(args.maybe_int(1)?, 0);
        let stop = clamp(args.maybe_int(2)?, values.len()).min(values.len());
        let found = (start..stop).find(|index| ops::equal(&values[*index], &value));

        found
            .map(|index| Value::Int(index as i128))
            .ok_or_else(|| Error::new(format!("the value is not in the {}", receiver.type_name())))
    }
}
