//! The arguments of a call, and how they bind to the parameters of a built-in function.

use super::error::{Error, Result};
use super::print::{expect_int, expect_str};
use super::value::Value;
use std::sync::Arc;

/// The evaluated arguments of a call, before they are bound to parameters.
#[derive(Debug, Default, Clone)]
pub(super) struct Args {
    pub(super) positional: Vec<Value>,
    pub(super) named: Vec<(Arc<str>, Value)>,
}

/// Arguments bound to `N` parameters. `callee` is the function's name, for error messages.
#[derive(Debug)]
pub(super) struct Bound<'a, const N: usize> {
    callee: &'a str,
    names: [&'static str; N],
    values: [Option<Value>; N],
}

impl Args {
    /// Binds the arguments to parameters; the first `required` have no default. A name that begins
    /// with `/` is positional-only.
    pub(super) fn bind<'a, const N: usize>(
        self,
        callee: &'a str,
        names: [&'static str; N],
        required: usize,
    ) -> Result<Bound<'a, N>> {
        let given = self.positional.len();
        if given > N {
            return Err(Error::new(format!(
                "{callee}() takes at most {N} argument(s) ({given} given)"
            )));
        }
        let mut values = [const { None }; N];
        for (slot, value) in values.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.named {
            let Some(index) = names.iter().position(|known| **known == *name) else {
                return Err(Error::new(format!(
                    "{callee}() got an unexpected keyword argument '{name}'"
                )));
            };

            if values[index].replace(value).is_some() {
                return Err(Error::new(format!(
                    "{callee}() got multiple values for argument '{name}'"
                )));
            }
        }
        match values.iter().take(required).position(Option::is_none) {
            Some(index) => {
                let name = names[index].trim_start_matches('/');
                Err(Error::new(format!(
                    "{callee}() misses the argument '{name}'"
                )))
            }
            None => Ok(Bound {
                callee,
                names,
                values,
            }),
        }
    }

    /// The work of an operation that visits each argument's own elements.
    pub(super) fn shallow_units(&self) -> u64 {
        let named = self.named.iter().map(|(_, value)| value);
        self.positional
            .iter()
            .chain(named)
            .map(Value::shallow_units)
            .fold(0, u64::saturating_add)
    }

    /// Checks that there are no arguments.
    pub(super) fn none(self, callee: &str) -> Result<()> {
        self.bind(callee, [], 0).map(|_: Bound<'_, 0>| ())
    }
}

impl<const N: usize> Bound<'_, N> {
    /// How messages name a parameter: `callee: name`.
    fn name(&self, index: usize) -> String {
        format!(
            "{}: {}",
            self.callee,
            self.names[index].trim_start_matches('/')
        )
    }

    pub(super) fn get(&self, index: usize) -> Option<&Value> {
        self.values[index].as_ref()
    }

    pub(super) fn take(&mut self, index: usize) -> Option<Value> {
        self.values[index].take()
    }

    /// The argument, or Python's `None` if it was not given.
    pub(super) fn value(&mut self, index: usize) -> Value {
        self.take(index).unwrap_or(Value::None)
    }

    pub(super) fn truth(&self, index: usize, default: bool) -> bool {
        self.get(index).map_or(default, Value::truth)
    }

    /// A flag that Python reads as an integer; false if it was not given.
    pub(super) fn flag(&self, index: usize) -> Result<bool> {
        self.get(index).map_or(Ok(false), |value| {
            Ok(expect_int(value, &self.name(index))? != 0)
        })
    }

    /// A required string.
    pub(super) fn str(&self, index: usize) -> Result<&str> {
        expect_str(self.get(index).unwrap_or(&Value::None), &self.name(index))
    }

    /// An optional string: Python's `None` counts as not given.
    pub(super) fn maybe_str(&self, index: usize) -> Result<Option<&str>> {
        match self.get(index) {
            None | Some(Value::None) => Ok(None),
            Some(value) => expect_str(value, &self.name(index)).map(Some),
        }
    }

    /// A required integer.
    pub(super) fn int(&self, index: usize) -> Result<i128> {
        expect_int(self.get(index).unwrap_or(&Value::None), &self.name(index))
    }

    /// An optional integer: Python's `None` counts as not given.
    pub(super) fn maybe_int(&self, index: usize) -> Result<Option<i128>> {
        match self.get(index) {
            None | Some(Value::None) => Ok(None),
            Some(value) => expect_int(value, &self.name(index)).map(Some),
        }
    }

    /// A count: negative integers are zero.
    pub(super) fn count(&self, index: usize, default: usize) -> Result<usize> {
        let count = |number: i128| usize::try_from(number.max(0)).unwrap_or(usize::MAX);
        Ok(match self.get(index) {
            None => default,
            Some(value) => count(expect_int(value, &self.name(index))?),
        })
    }
}
