//! `object.name`, `object[key]` and `object[start:stop:step]`, as the immutable sandbox of Jinja2
//! allows them.

use super::error::{Error, Result};
use super::interpreter::Interpreter;
use super::value::{Loop, Method, Missing, Range, Value};
use std::rc::Rc;
use std::sync::Arc;

const STR: &[&str] = &[
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];
const DICT: &[&str] = &["copy", "get", "items", "keys", "values"];
const LIST: &[&str] = &["copy", "count", "index"];
const TUPLE: &[&str] = &["count", "index"];

/// Methods that would change a dict or list.
const CHANGES_DICT: &[&str] = &["clear", "pop", "popitem", "setdefault", "update"];
const CHANGES_LIST: &[&str] = &[
    "append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort",
];

impl Interpreter<'_> {
    /// `of.name`: an attribute, else the item of that name.
    pub(super) fn attribute(&mut self, of: &Value, name: &Arc<str>) -> Result<Value> {
        if let Value::Undefined(missing) = of {
            return Err(missing.error());
        }
        if let Some(value) = self.own_attribute(of, name) {
            return Ok(value);
        }

        let key = Value::Str(name.clone());
        Ok(self
            .own_item(of, &key)?
            .unwrap_or_else(|| Value::missing(of, &key)))
    }

    /// `of[key]`: an item, else the attribute of that name.
    pub(super) fn item(&mut self, of: &Value, key: &Value) -> Result<Value> {
        if let Value::Undefined(missing) = of {
            return Err(missing.error());
        }
        if let Some(value) = self.own_item(of, key)? {
            return Ok(value);
        }

        let attribute = match key {
            Value::Str(name) | Value::Markup(name) => self.own_attribute(of, name),
            _ => None,
        };
        Ok(attribute.unwrap_or_else(|| Value::missing(of, key)))
    }

    /// The `attr` filter: an attribute and never an item.
    pub(super) fn attribute_only(&mut self, of: &Value, name: &Arc<str>) -> Result<Value> {
        if let Value::Undefined(missing) = of {
            return Err(missing.error());
        }
        let found = self.own_attribute(of, name);
        Ok(found.unwrap_or_else(|| Value::missing(of, &Value::Str(name.clone()))))
    }

    /// Python's `getattr`, and the sandbox's word on it.
    fn own_attribute(&mut self, of: &Value, name: &Arc<str>) -> Option<Value> {
        let is_special = name.len() > 4 && name.starts_with("__") && name.ends_with("__");
        let forbidden = || {
            Value::Undefined(Rc::new(Missing::Unsafe {
                of: of.type_name(),
                name: name.clone(),
            }))
        };

        if is_special {
            return Some(forbidden());
        }

        let among = |names: &[&str]| names.contains(&&**name);
        let method = || {
            Some(Value::Method(Rc::new(Method {
                of: of.clone(),
                name: name.clone(),
            })))
        };

        match of {
            Value::Str(_) | Value::Markup(_) if among(STR) => method(),
            Value::Dict(_) if among(CHANGES_DICT) => Some(forbidden()),
            Value::Dict(_) if among(DICT) => method(),
            Value::List(_) if among(CHANGES_LIST) => Some(forbidden()),
            Value::List(_) if among(LIST) => method(),
            Value::Tuple(_) if among(TUPLE) => method(),
            Value::Tuple(items) if items.is_group => match &**name {
                "grouper" => items.values().first().cloned(),
                "list" => items.values().get(1).cloned(),
                _ => None,
            },
            Value::Range(_) if among(TUPLE) => method(),
            Value::Range(range) => match &**name {
                "start" => Some(Value::Int(range.start)),
                "stop" => Some(Value::Int(range.stop)),
                "step" => Some(Value::Int(range.step)),
                _ => None,
            },
            Value::Int(_) if among(&["bit_length"]) => method(),
            Value::Float(_) if among(&["is_integer"]) => method(),
            Value::Loop(_) if among(&["cycle", "changed"]) => method(),
            Value::Loop(state) => loop_attribute(state, name),
            Value::Namespace(index) => {
                let value = self
                    .namespaces
                    .get(*index)?
                    .iter()
                    .find(|(known, _)| known == name)?
                    .1
                    .clone();

                Some(if name.starts_with('_') {
                    forbidden()
                } else {
                    value
                })
            }
            Value::Cycler(_) if among(&["next", "reset"]) => method(),
            Value::Cycler(cycler) => match &**name {
                "current" => cycler.items.values().get(cycler.position.get()).cloned(),
                "pos" => Some(Value::Int(cycler.position.get() as i128)),
                "items" => Some(Value::Tuple(cycler.items.clone())),
                _ => None,
            },
            Value::Joiner(joiner) => match &**name {
                "sep" => Some(joiner.separator.clone()),
                "used" => Some(Value::Bool(joiner.used.get())),
                _ => None,
            },
            Value::Macro(index) => self.macro_attribute(*index, name),
            _ => None,
        }
    }

    /// Python's `of[key]`, where there is such an item.
    fn own_item(&mut self, of: &Value, key: &Value) -> Result<Option<Value>> {
        let place = |len: usize| {
            let place = key.as_int()?;
            usize::try_from(if place < 0 {
                place + len as i128
            } else {
                place
            })
            .ok()
            .filter(|place| *place < len)
        };

        Ok(match of {
            Value::List(items) | Value::Tuple(items) => {
                place(items.values().len()).map(|place| items.values()[place].clone())
            }
            Value::Dict(dict) => {
                if key.as_str().is_none() {
                    self.budget
                        .spend(key.units().saturating_mul(dict.entries().len() as u64))?;
                }
                dict.get(key).cloned()
            }
            Value::Str(text) | Value::Markup(text) if key.as_int().is_some() => {
                self.budget.spend(of.shallow_units())?;
                let found = place(of.len().unwrap_or(0)).and_then(|place| text.chars().nth(place));
                found.map(|c| text_like(of, c.to_string()))
            }
            Value::Range(range) => place(range.len()).map(|place| range.at(place)),
            _ => None,
        })
    }

    /// `of[start:stop:step]`.
    pub(super) fn slice(&mut self, of: &Value, bounds: [&Value; 3]) -> Result<Value> {
        if let Value::Undefined(missing) = of {
            return Err(missing.error());
        }

        self.budget.spend(of.shallow_units())?;
        match of {
            Value::List(items) => Value::list(sliced(items.values(), bounds)?),
            Value::Tuple(items) => Value::tuple(sliced(items.values(), bounds)?),
            Value::Str(text) | Value::Markup(text) => {
                let chars: Vec<char> = text.chars().collect();
                Ok(text_like(
                    of,
                    sliced(&chars, bounds)?.into_iter().collect::<String>(),
                ))
            }
            Value::Range(range) => {
                let slice = Slice::of(bounds, range.len())?;
                let at = |place: i128| range.start.saturating_add(range.step.saturating_mul(place));
                let (start, stop) = (at(slice.start), at(slice.stop));

                Ok(Value::Range(Range {
                    start,
                    stop,
                    step: range.step.saturating_mul(slice.step),
                }))
            }
            Value::Dict(_) => Err(Error::new("unhashable type: 'slice'")),
            other => Err(Error::new(format!(
                "'{}' object is not subscriptable",
                other.type_name()
            ))),
        }
    }
}

/// A text of the same kind: `str` or Markup.
pub(super) fn text_like(like: &Value, text: impl Into<Arc<str>>) -> Value {
    match like {
        Value::Markup(_) => Value::Markup(text.into()),
        _ => Value::Str(text.into()),
    }
}

fn loop_attribute(state: &Rc<Loop>, name: &str) -> Option<Value> {
    let (index0, items) = (state.index0.get(), state.items.values());
    let number = |number: usize| Some(Value::Int(number as i128));

    match name {
        "index0" => number(index0),
        "index" => number(index0 + 1),
        "revindex0" => number(items.len().saturating_sub(index0 + 1)),
        "revindex" => number(items.len().saturating_sub(index0)),
        "first" => Some(Value::Bool(index0 == 0)),
        "last" => Some(Value::Bool(index0 + 1 >= items.len())),
        "length" => number(items.len()),
        "depth0" => number(state.depth0),
        "depth" => number(state.depth0 + 1),
        "previtem" if index0 == 0 => Some(Value::hint("there is no previous item")),
        "previtem" => items.get(index0 - 1).cloned(),
        "nextitem" => Some(
            items
                .get(index0 + 1)
                .cloned()
                .unwrap_or_else(|| Value::hint("there is no next item")),
        ),
        _ => None,
    }
}

/// A slice fitted to a length: CPython's `PySlice_AdjustIndices`.
struct Slice {
    start: i128,
    stop: i128,
    step: i128,
}

impl Slice {
    fn of([start, stop, step]: [&Value; 3], len: usize) -> Result<Self> {
        let index = |value: &Value| match value {
            Value::None => Ok(None),
            Value::Undefined(missing) => Err(missing.error()),
            // Further than this nothing lies.
            other => match other.as_int() {
                Some(number) => Ok(Some(number.clamp(-(1 << 62), 1 << 62))),
                None => Err(Error::new("slice indices must be integers or None")),
            },
        };

        let len = len as i128;
        let step = index(step)?.unwrap_or(1);
        if step == 0 {
            return Err(Error::new("slice step cannot be zero"));
        }

        let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
        let fitted = |place: i128| {
            if place < 0 {
                (place + len).max(low)
            } else {
                place.min(high)
            }
        };

        let (first, last) = if step > 0 { (low, high) } else { (high, low) };
        Ok(Self {
            start: index(start)?.map_or(first, fitted),
            stop: index(stop)?.map_or(last, fitted),
            step,
        })
    }
}

fn sliced<T: Clone>(values: &[T], bounds: [&Value; 3]) -> Result<Vec<T>> {
    let slice = Slice::of(bounds, values.len())?;
    let mut found = Vec::new();
    let mut place = slice.start;
    while if slice.step > 0 {
        place < slice.stop
    } else {
        place > slice.stop
    } {
        found.extend(
            usize::try_from(place)
                .ok()
                .and_then(|place| values.get(place))
                .cloned(),
        );
        place += slice.step;
    }

    Ok(found)
}
