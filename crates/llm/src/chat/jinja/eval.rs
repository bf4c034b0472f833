//! Evaluates expressions: the interpreter's half for [`Expr`].

use super::args::Args;
use super::ast::{CallArgs, Comparison, Conditional, Const, Expr, ExprKind, SliceBounds};
use super::attributes::Slice;
use super::budget::{Text, text_units};
use super::error::{Error, Result};
use super::interpreter::Interpreter;
use super::ops::{self, Arithmetic};
use super::value::{Missing, Value};
use std::cmp::Ordering;
use std::rc::Rc;
use std::sync::Arc;

impl<'t> Interpreter<'t> {
    /// The value of an expression.
    pub(super) fn eval(&mut self, expr: &'t Expr) -> Result<Value> {
        self.budget.enter()?;
        let value = self.value(expr).map_err(|error| error.at(expr.line))?;
        self.budget.leave();
        Ok(value)
    }

    fn value(&mut self, expr: &'t Expr) -> Result<Value> {
        match &expr.kind {
            ExprKind::Const(constant) => Ok(constant.value()),
            ExprKind::Name(name) => Ok(self.variable(name)),
            ExprKind::List(values) => Value::list(self.all(values)?),
            ExprKind::Tuple(values) => Value::tuple(self.all(values)?),
            ExprKind::Dict(pairs) => self.dict(pairs),
            ExprKind::Attribute(object, name) => {
                let object = self.eval(object)?;
                self.attribute(&object, name)
            }
            ExprKind::Item(object, key) => {
                let object = self.eval(object)?;
                let key = self.eval(key)?;
                self.item(&object, &key)
            }
            ExprKind::Slice(object, bounds) => self.sliced(object, bounds),
            ExprKind::Call(callee, args) => self.called(callee, args),
            ExprKind::Filter(input, name, args) => self.filter_expr(input.as_deref(), name, args),
            ExprKind::Test(operand, name, args) => {
                let operand = self.eval(operand)?;
                let args = self.args(args)?;
                self.test(name, &operand, args).map(Value::Bool)
            }
            ExprKind::Not(operand) => Ok(Value::Bool(!self.eval(operand)?.truth())),
            ExprKind::And(left, right) => {
                let left = self.eval(left)?;
                if left.truth() {
                    self.eval(right)
                } else {
                    Ok(left)
                }
            }
            ExprKind::Or(left, right) => {
                let left = self.eval(left)?;
                if left.truth() {
                    Ok(left)
                } else {
                    self.eval(right)
                }
            }
            ExprKind::Signed(is_negative, operand) => {
                ops::signed(&self.eval(operand)?, *is_negative)
            }
            ExprKind::Arithmetic(operator, left, right) => self.arithmetic(*operator, left, right),
            ExprKind::Compare(first, rest) => self.compared(first, rest),
            ExprKind::Concat(parts) => self.concatenated(parts),
            ExprKind::Conditional(parts) => self.conditional_value(parts, expr.line),
        }
    }

    fn variable(&self, name: &Arc<str>) -> Value {
        let found = self.scopes.get(name).cloned();
        found.unwrap_or_else(|| Value::Undefined(Rc::new(Missing::Name(name.clone()))))
    }

    /// The values of several expressions, in order.
    fn all(&mut self, exprs: &'t [Expr]) -> Result<Vec<Value>> {
        self.budget.spend(4)?;
        exprs.iter().map(|expr| self.eval(expr)).collect()
    }

    fn dict(&mut self, pairs: &'t [(Expr, Expr)]) -> Result<Value> {
        self.budget.spend(4 + pairs.len() as u64)?;
        let pairs = pairs
            .iter()
            .map(|(key, value)| Ok((self.eval(key)?, self.eval(value)?)));
        Value::dict(pairs.collect::<Result<_>>()?)
    }

    fn sliced(&mut self, object: &'t Expr, bounds: &'t SliceBounds) -> Result<Value> {
        let object = self.eval(object)?;
        let mut bound = |expr: &'t Option<Box<Expr>>| match expr {
            Some(expr) => self.eval(expr),
            None => Ok(Value::None),
        };
        let start = bound(&bounds.start)?;
        let stop = bound(&bounds.stop)?;
        let step = bound(&bounds.step)?;

        self.slice(&object, Slice { start, stop, step })
    }

    fn called(&mut self, callee: &'t Expr, args: &'t CallArgs) -> Result<Value> {
        let callee = self.eval(callee)?;
        let args = self.args(args)?;
        self.call(&callee, args)
    }

    /// The call of a `{% call %}` block: the block's body is passed to the macro as `caller`.
    pub(super) fn call_with_caller(&mut self, call: &'t Expr, caller: Value) -> Result<Value> {
        let ExprKind::Call(callee, args) = &call.kind else {
            return Err(Error::new("expected call"));
        };

        let callee = self.eval(callee)?;
        let mut args = self.args(args)?;
        args.named.push(("caller".into(), caller));

        self.call(&callee, args)
    }

    fn args(&mut self, args: &'t CallArgs) -> Result<Args> {
        let mut all = Args::default();
        for expr in &args.positional {
            all.positional.push(self.eval(expr)?);
        }

        for (name, expr) in &args.named {
            all.named.push((name.clone(), self.eval(expr)?));
        }

        if let Some(expr) = &args.all_positional {
            let values = self.eval(expr)?;
            all.positional.extend(self.iterate(&values)?);
        }

        if let Some(expr) = &args.all_named {
            let values = self.eval(expr)?;
            let Value::Dict(dict) = &values else {
                return Err(Error::new("the argument after ** must be a mapping"));
            };

            self.budget.spend(values.shallow_units())?;
            for (key, value) in dict.entries() {
                let name = key
                    .as_str()
                    .ok_or_else(|| Error::new("keywords must be strings"))?;
                if all.named.iter().any(|(known, _)| **known == *name) {
                    return Err(Error::new(format!(
                        "got multiple values for keyword argument '{name}'"
                    )));
                }

                all.named.push((name.into(), value.clone()));
            }
        }

        Ok(all)
    }

    fn filter_expr(
        &mut self,
        input: Option<&'t Expr>,
        name: &Arc<str>,
        args: &'t CallArgs,
    ) -> Result<Value> {
        let input = match input {
            Some(input) => self.eval(input)?,
            None => self.inputs.last().cloned().unwrap_or(Value::None),
        };
        let args = self.args(args)?;
        self.filter(name, input, args)
    }

    fn arithmetic(
        &mut self,
        operator: Arithmetic,
        left: &'t Expr,
        right: &'t Expr,
    ) -> Result<Value> {
        let left = self.eval(left)?;
        let right = self.eval(right)?;
        if operator == Arithmetic::Mod && left.as_str().is_some() {
            return self.percent(&left, &right);
        }
        let value = ops::arithmetic(operator, &left, &right)?;
        self.budget.spend(value.shallow_units())?;
        Ok(value)
    }

    fn compared(&mut self, first: &'t Expr, rest: &'t [(Comparison, Expr)]) -> Result<Value> {
        let mut left = self.eval(first)?;
        for (comparison, expr) in rest {
            let right = self.eval(expr)?;
            if !self.compare(*comparison, &left, &right)? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }

        Ok(Value::Bool(true))
    }

    pub(super) fn compare(
        &mut self,
        comparison: Comparison,
        left: &Value,
        right: &Value,
    ) -> Result<bool> {
        use Comparison as Op;
        let (work, symbol) = match comparison {
            // `in` may compare the item with every element of the container.
            Op::In | Op::NotIn => (self.membership_units(right, left), "in"),
            Op::Lt => (left.units().min(right.units()), "<"),
            Op::Le => (left.units().min(right.units()), "<="),
            Op::Gt => (left.units().min(right.units()), ">"),
            Op::Ge => (left.units().min(right.units()), ">="),
            Op::Eq | Op::Ne => (left.units().min(right.units()), "=="),
        };
        self.budget.spend(work)?;
        let order = || ops::order(left, right, symbol);
        Ok(match comparison {
            Op::Eq => ops::equal(left, right),
            Op::Ne => !ops::equal(left, right),
            Op::In => ops::contains(right, left)?,
            Op::NotIn => !ops::contains(right, left)?,
            Op::Lt => order()? == Some(Ordering::Less),
            Op::Le => order()?.is_some_and(Ordering::is_le),
            Op::Gt => order()? == Some(Ordering::Greater),
            Op::Ge => order()?.is_some_and(Ordering::is_ge),
        })
    }

    /// The work of `item in container`.
    fn membership_units(&self, container: &Value, item: &Value) -> u64 {
        match container {
            Value::Str(text) | Value::Markup(text) => text_units(text.len()),
            Value::Dict(_) if item.as_str().is_some() => 1,
            Value::Range(range) => range.len() as u64,
            other => other
                .shallow_units()
                .saturating_mul(item.units().min(other.units())),
        }
    }

    fn concatenated(&mut self, parts: &'t [Expr]) -> Result<Value> {
        let mut text = Text::default();
        for part in parts {
            let value = self.eval(part)?;
            text.push(&self.str(&value)?)?;
        }

        self.budget.spend(text_units(text.len()))?;
        Ok(Value::str(text.into_string()))
    }

    fn conditional_value(&mut self, parts: &'t Conditional, line: u32) -> Result<Value> {
        if self.eval(&parts.condition)?.truth() {
            return self.eval(&parts.value);
        }

        match &parts.other {
            Some(other) => self.eval(other),
            None => Ok(Value::hint(format!(
                "the inline if-expression on line {line} evaluated to false and no else section was defined."
            ))),
        }
    }
}

impl Const {
    fn value(&self) -> Value {
        match self {
            Self::None => Value::None,
            Self::Bool(bool) => Value::Bool(*bool),
            Self::Int(number) => Value::Int(*number),
            Self::Float(number) => Value::Float(*number),
            Self::Str(text) => Value::str(text.clone()),
        }
    }
}
