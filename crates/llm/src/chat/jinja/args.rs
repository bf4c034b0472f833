//! Arguments of a call, and their binding to parameters.

use super::error::{Error, Result};
use super::print::{expect_int, expect_str};
use super::value::Value;
use std::sync::Arc;

/// The arguments of a call as it is written.
#[derive(Debug, Default, Clone)]
pub(super) struct Args {
    pub(super) positional: Vec<Value>,
    pub(super) named: Vec<(Arc<str>, Value)>,
}

/// Arguments bound to `N` parameters, with the name of what is called for messages.
#[derive(Debug)]
pub(super) struct Bound<'a, const N: usize> {
    what: &'a str,
    names: [&'static str; N],
    values: [Option<Value>; N],
}

impl Args {
    /// Binds to parameters of which the first `required` have no default. A name that begins with
    /// `/` can only be given by position.
    pub(super) fn bind<'a, const N: usize>(
        self,
        what: &'a str,
        names: [&'static str; N],
        required: usize,
    ) -> Result<Bound<'a, N>> {
        let given = self.positional.len();
        if given > N {
            return Err(Error::new(format!(
                "{what}() takes at most {N} argument(s) ({given} given)"
            )));
        }
        let mut values = [const { None }; N];
        for (slot, value) in values.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.named {
            let Some(place) = names.iter().position(|known| **known == *name) else {
                return Err(Error::new(format!(
                    "{what}() got an unexpected keyword argument '{name}'"
                )));
            };

            if values[place].replace(value).is_some() {
                return Err(Error::new(format!(
                    "{what}() got multiple values for argument '{name}'"
                )));
            }
        }
        match values.iter().take(required).position(Option::is_none) {
            Some(place) => {
                let name = names[place].trim_start_matches('/');
                Err(Error::new(format!("{what}() misses the argument '{name}'")))
            }
            None => Ok(Bound {
                what,
                names,
                values,
            }),
        }
    }

    /// A call without arguments.
    pub(super) fn none(self, what: &str) -> Result<()> {
        self.bind(what, [], 0).map(|_: Bound<'_, 0>| ())
    }
}

impl<const N: usize> Bound<'_, N> {
    fn name(&self, place: usize) -> String {
        format!(
            "{}: {}",
            self.what,
            self.names[place].trim_start_matches('/')
        )
    }

    pub(super) fn get(&self, place: usize) -> Option<&Value> {
        self.values[place].as_ref()
    }

    pub(super) fn take(&mut self, place: usize) -> Option<Value> {
        self.values[place].take()
    }

    /// The value, or `None` where it is not given.
    pub(super) fn value(&mut self, place: usize) -> Value {
        self.take(place).unwrap_or(Value::None)
    }

    pub(super) fn truth(&self, place: usize, default: bool) -> bool {
        self.get(place).map_or(default, Value::truth)
    }

    /// A switch that Python reads as an integer; off where it is not given.
    pub(super) fn flag(&self, place: usize) -> Result<bool> {
        self.get(place).map_or(Ok(false), |value| {
            Ok(expect_int(value, &self.name(place))? != 0)
        })
    }

    /// A text that must be there.
    pub(super) fn str(&self, place: usize) -> Result<&str> {
        expect_str(self.get(place).unwrap_or(&Value::None), &self.name(place))
    }

    /// A text, where one is given and not `None`.
    pub(super) fn maybe_str(&self, place: usize) -> Result<Option<&str>> {
        match self.get(place) {
            None | Some(Value::None) => Ok(None),
            Some(value) => expect_str(value, &self.name(place)).map(Some),
        }
    }

    /// An integer that must be there.
    pub(super) fn int(&self, place: usize) -> Result<i128> {
        expect_int(self.get(place).unwrap_or(&Value::None), &self.name(place))
    }

    /// An integer, where one is given and not `None`.
    pub(super) fn maybe_int(&self, place: usize) -> Result<Option<i128>> {
        match self.get(place) {
            None | Some(Value::None) => Ok(None),
            Some(value) => expect_int(value, &self.name(place)).map(Some),
        }
    }

    /// A count: negative ones are zero.
    pub(super) fn count(&self, place: usize, default: usize) -> Result<usize> {
        let count = |number: i128| usize::try_from(number.max(0)).unwrap_or(usize::MAX);
        Ok(match self.get(place) {
            None => default,
            Some(value) => count(expect_int(value, &self.name(place))?),
        })
    }
}
