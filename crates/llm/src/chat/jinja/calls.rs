//! Calls of macros, of the global functions, and of methods.

use super::args::Args;
use super::ast::Macro;
use super::budget::text_units;
use super::error::{Error, Result};
use super::interpreter::Interpreter;
use super::print::expect_int;
use super::value::{Cycler, Function, Items, Joiner, Loop, Method, Missing, Range, Value};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

/// The longest `range`, in elements: `MAX_RANGE` of Jinja2's sandbox.
const LONGEST_RANGE: usize = 100_000;

/// The most attributes that `namespace(…)` accepts.
const MOST_ATTRIBUTES: usize = 1000;

/// Work charged for a value that is kept until the end of the rendering.
const KEPT: u64 = 16;

/// The global functions of a template.
pub(super) const FUNCTIONS: [Function; 7] = [
    Function::Range,
    Function::Dict,
    Function::Cycler,
    Function::Joiner,
    Function::Namespace,
    Function::RaiseException,
    Function::StrftimeNow,
];

impl<'t> Interpreter<'t> {
    pub(super) fn call(&mut self, callee: &Value, args: Args) -> Result<Value> {
        match callee {
            Value::Undefined(missing) => Err(missing.error()),
            Value::Function(function) => self.call_function(*function, args),
            Value::Method(method) => self.call_method(method, args),
            Value::Macro(index) => self.call_macro(*index, args),
            Value::Loop(state) => {
                let mut args = args.bind("loop", ["iterable"], 1)?;
                self.recurse(state, &args.value(0))
            }
            Value::Joiner(joiner) => {
                args.none("joiner")?;
                let is_first = !joiner.used.replace(true);
                Ok(if is_first {
                    Value::str("")
                } else {
                    joiner.separator.clone()
                })
            }
            other => Err(Error::new(format!(
                "'{}' object is not callable",
                other.type_name()
            ))),
        }
    }

    fn call_method(&mut self, method: &Method, args: Args) -> Result<Value> {
        self.budget.spend(method.receiver.shallow_units())?;
        self.budget.spend(args.shallow_units())?;

        let value = match &method.receiver {
            Value::Str(_) | Value::Markup(_) => {
                self.str_method(&method.receiver, &method.name, args)
            }
            Value::Loop(state) => self.loop_method(state, &method.name, args),
            Value::Cycler(cycler) => cycler_method(cycler, &method.name, args),
            receiver => self.container_method(receiver, &method.name, args),
        }?;

        self.budget.spend(value.shallow_units())?;
        Ok(value)
    }

    /// `loop.cycle(…)` and `loop.changed(…)`.
    fn loop_method(&mut self, state: &Rc<Loop>, name: &str, args: Args) -> Result<Value> {
        if name == "cycle" {
            let count = args.positional.len();
            let value = args
                .positional
                .into_iter()
                .nth(state.index0.get() % count.max(1));
            return value.ok_or_else(|| Error::new("no items for cycling given"));
        }

        let value = Value::tuple(args.positional)?;
        self.budget.spend(value.units())?;
        let Some(index) = state.changed.get() else {
            state.changed.set(Some(self.changed.len()));
            self.changed.push(value);
            return Ok(Value::Bool(true));
        };

        let has_changed = !super::ops::equal(&self.changed[index], &value);
        self.changed[index] = value;
        Ok(Value::Bool(has_changed))
    }

    fn call_macro(&mut self, index: usize, args: Args) -> Result<Value> {
        let Some(closure) = self.macros.get(index) else {
            return Err(Error::new("no such macro"));
        };

        let node = closure.node;
        let scope = closure.scope;

        let back = self.scopes.enter(scope);
        self.bind(node, args)?;
        let text = self.macro_text(node)?;
        self.scopes.leave(back);

        Ok(text)
    }

    /// Sets the variables of a macro from the arguments of a call, as Jinja2's `Macro.__call__`
    /// does.
    fn bind(&mut self, node: &'t Macro, mut args: Args) -> Result<()> {
        let name = node.name.as_deref().unwrap_or("anonymous");
        let rest = args
            .positional
            .split_off(args.positional.len().min(node.parameters.len()));

        let mut given: Vec<Option<Value>> = args.positional.into_iter().map(Some).collect();
        for parameter in node.parameters.iter().skip(given.len()) {
            let index = args.named.iter().position(|(name, _)| name == parameter);
            given.push(index.map(|index| args.named.remove(index).1));
        }

        let declares = |name: &str| node.parameters.iter().any(|parameter| **parameter == *name);
        if node.uses.caller && !declares("caller") {
            let index = args.named.iter().position(|(name, _)| **name == *"caller");
            let caller = index.map(|index| args.named.remove(index).1);
            let caller = caller.unwrap_or_else(|| Value::hint("No caller defined"));
            self.scopes.set(&"caller".into(), caller);
        }

        if node.uses.kwargs && !declares("kwargs") {
            let pairs = std::mem::take(&mut args.named).into_iter();
            let pairs = pairs
                .map(|(name, value)| (Value::str(name), value))
                .collect();
            self.scopes.set(&"kwargs".into(), Value::dict(pairs)?);
        } else if let Some((unknown, _)) = args.named.first() {
            return Err(Error::new(format!(
                "macro '{name}' takes no keyword argument '{unknown}'"
            )));
        }

        if node.uses.varargs && !declares("varargs") {
            self.scopes.set(&"varargs".into(), Value::tuple(rest)?);
        } else if !rest.is_empty() {
            let most = node.parameters.len();
            return Err(Error::new(format!(
                "macro '{name}' takes not more than {most} argument(s)"
            )));
        }

        self.bind_parameters(node, given)
    }

    /// Sets the parameters that were given, then the defaults of the others, which can refer to
    /// them.
    fn bind_parameters(&mut self, node: &'t Macro, given: Vec<Option<Value>>) -> Result<()> {
        let without_default = node.parameters.len() - node.defaults.len();
        let mut missing = Vec::new();
        for (index, (parameter, value)) in node.parameters.iter().zip(given).enumerate() {
            match value {
                Some(value) => self.scopes.set(parameter, value),
                None => missing.push((index, parameter)),
            }
        }

        for (index, parameter) in missing {
            let value = match index.checked_sub(without_default) {
                Some(default) => self.eval(&node.defaults[default])?,
                None => Value::hint(format!("parameter '{parameter}' was not provided")),
            };
            self.scopes.set(parameter, value);
        }

        Ok(())
    }

    pub(super) fn macro_name(&self, index: usize) -> Option<Arc<str>> {
        self.macros.get(index)?.node.name.clone()
    }

    pub(super) fn macro_attribute(&self, index: usize, name: &str) -> Option<Value> {
        let node = self.macros.get(index)?.node;
        match name {
            "name" => Some(node.name.clone().map_or(Value::None, Value::str)),
            "arguments" => {
                Value::tuple(node.parameters.iter().cloned().map(Value::str).collect()).ok()
            }
            "catch_kwargs" => Some(Value::Bool(node.uses.kwargs)),
            "catch_varargs" => Some(Value::Bool(node.uses.varargs)),
            "caller" => Some(Value::Bool(node.uses.caller)),
            _ => None,
        }
    }

    fn call_function(&mut self, function: Function, args: Args) -> Result<Value> {
        self.budget
            .spend((args.positional.len() + args.named.len()) as u64)?;
        match function {
            Function::Range => range(args),
            Function::Dict => self.dict_pairs(args).and_then(Value::dict),
            Function::Namespace => self.namespace(args),
            Function::Cycler if args.positional.is_empty() => {
                Err(Error::new("at least one item has to be provided"))
            }
            Function::Cycler => {
                let items = Rc::new(Items::new(args.positional)?);
                Ok(Value::Cycler(Rc::new(Cycler {
                    items,
                    position: Cell::new(0),
                })))
            }
            Function::Joiner => {
                let mut args = args.bind("joiner", ["sep"], 0)?;
                let separator = args.take(0).unwrap_or_else(|| Value::str(", "));
                Ok(Value::Joiner(Rc::new(Joiner {
                    separator,
                    used: Cell::new(false),
                })))
            }
            Function::RaiseException => {
                let mut args = args.bind("raise_exception", ["message"], 1)?;
                let message = self.str(&args.value(0))?;
                Err(Error::new(&*message))
            }
            Function::StrftimeNow => {
                let args = args.bind("strftime_now", ["format"], 1)?;
                strftime_now(args.str(0)?).map(Value::str)
            }
        }
    }

    /// `namespace(mapping, **named)`; keys that are not strings are dropped.
    fn namespace(&mut self, args: Args) -> Result<Value> {
        let pairs = self.dict_pairs(args)?;
        if pairs.len() > MOST_ATTRIBUTES {
            return Err(Error::new(format!(
                "a namespace begins with {MOST_ATTRIBUTES} attributes at most"
            )));
        }

        let name = |key: &Value| match key {
            Value::Str(name) | Value::Markup(name) => Some(name.arc().clone()),
            _ => None,
        };
        let named = pairs
            .into_iter()
            .filter_map(|(key, value)| Some((name(&key)?, value)));

        let mut attributes: Vec<(Arc<str>, Value)> = Vec::new();
        for (name, value) in named {
            attributes.retain(|(known, _)| *known != name);
            attributes.push((name, value));
        }

        self.budget.spend(KEPT + attributes.len() as u64)?;
        self.namespaces.push(attributes);
        Ok(Value::Namespace(self.namespaces.len() - 1))
    }

    /// The pairs of `dict(mapping, **named)`.
    fn dict_pairs(&mut self, args: Args) -> Result<Vec<(Value, Value)>> {
        let mut positional = args.positional.into_iter();
        let mut pairs = match positional.next() {
            None => Vec::new(),
            Some(Value::Dict(dict)) => dict.entries().to_vec(),
            Some(Value::Namespace(_)) => {
                return Err(Error::new("'Namespace' object is not iterable"));
            }
            Some(other) => {
                let items = self.iterate(&other)?;
                items
                    .iter()
                    .map(|item| self.pair(item))
                    .collect::<Result<_>>()?
            }
        };

        if positional.next().is_some() {
            return Err(Error::new("dict expected at most 1 argument"));
        }

        pairs.extend(
            args.named
                .into_iter()
                .map(|(name, value)| (Value::str(name), value)),
        );
        // A key that is not a string is compared with every other key.
        let others = pairs
            .iter()
            .filter(|(key, _)| key.as_str().is_none())
            .map(|(key, _)| key.units());
        let work = others
            .fold(0, u64::saturating_add)
            .saturating_mul(pairs.len() as u64);
        self.budget.spend(work + pairs.len() as u64)?;

        Ok(pairs)
    }

    /// An iterable of two elements.
    fn pair(&mut self, item: &Value) -> Result<(Value, Value)> {
        let mut parts = self.iterate(item)?.into_iter();
        match (parts.next(), parts.next(), parts.next()) {
            (Some(key), Some(value), None) => Ok((key, value)),
            _ => Err(Error::new("a dict is made of pairs")),
        }
    }

    /// Charges for reading or writing a string.
    pub(super) fn spend_text(&mut self, text: &str) -> Result<()> {
        self.budget.spend(text_units(text.len()))
    }
}

fn cycler_method(cycler: &Cycler, name: &str, args: Args) -> Result<Value> {
    args.none(name)?;
    let position = cycler.position.get();
    if name == "reset" {
        cycler.position.set(0);
        return Ok(Value::None);
    }

    let items = cycler.items.values();
    cycler.position.set((position + 1) % items.len().max(1));
    Ok(items.get(position).cloned().unwrap_or(Value::None))
}

fn range(args: Args) -> Result<Value> {
    let numbers = args.positional.iter().map(|value| match value {
        Value::Undefined(missing) => Err(Missing::error(missing)),
        other => {
            expect_int(other, "range: a bound").map(|number| number.clamp(-(1 << 100), 1 << 100))
        }
    });

    let numbers = numbers.collect::<Result<Vec<_>>>()?;
    let (start, stop, step) = match numbers[..] {
        [stop] => (0, stop, 1),
        [start, stop] => (start, stop, 1),
        [start, stop, step] => (start, stop, step),
        _ => return Err(Error::new("range takes one to three numbers")),
    };

    if step == 0 {
        return Err(Error::new("range: the step must not be zero"));
    }

    let range = Range { start, stop, step };
    if range.len() > LONGEST_RANGE {
        return Err(Error::new(format!(
            "Range too big. The sandbox blocks ranges larger than MAX_RANGE ({LONGEST_RANGE})."
        )));
    }

    Ok(Value::Range(range))
}

/// The local time: Python's `datetime.now().strftime(format)`.
fn strftime_now(format: &str) -> Result<String> {
    use std::fmt::Write;

    if format.len() > 1000 {
        return Err(Error::new(
            "strftime_now: the format has more than 1000 bytes",
        ));
    }

    let mut text = String::new();
    match write!(
        text,
        "{}",
        chrono::Local::now().format(&chrono_format(format))
    ) {
        Ok(()) => Ok(text),
        Err(_) => Err(Error::new(format!("strftime_now does not know `{format}`"))),
    }
}

/// Translates a Python `strftime` format for chrono: Python's `%f` is microseconds, and a
/// `datetime` without a time zone prints nothing for `%z` and `%Z`.
fn chrono_format(format: &str) -> String {
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        match (c, if c == '%' { chars.next() } else { None }) {
            ('%', Some('f')) => out.push_str("%6f"),
            ('%', Some('z' | 'Z')) => {}
            (c, next) => out.extend([Some(c), next].into_iter().flatten()),
        }
    }

    out
}
