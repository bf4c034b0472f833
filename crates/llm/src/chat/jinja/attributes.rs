//! `object.name`, `object[key]` and `object[start:stop:step]`, within what Jinja2's
//! `ImmutableSandboxedEnvironment` allows.

use super::error::{Error, Result};
use super::held::SharedText;
use super::interpreter::Interpreter;
use super::value::{Cycler, Loop, Method, Missing, Range, Value};
use std::rc::Rc;
use std::sync::Arc;

/// Methods of each type that a template may call.
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

/// Methods that change a dict or a list: the immutable sandbox forbids them.
const CHANGES_DICT: &[&str] = &["clear", "pop", "popitem", "setdefault", "update"];
const CHANGES_LIST: &[&str] = &[
    "append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort",
];

impl Interpreter<'_> {
    /// `object.name`: an attribute, else the item of that name.
    pub(super) fn attribute(&mut self, object: &Value, name: &Arc<str>) -> Result<Value> {
        if let Value::Undefined(missing) = object {
            return Err(missing.error());
        }
        if let Some(value) = self.own_attribute(object, name) {
            return Ok(value);
        }

        let key = Value::str(name.clone());
        Ok(self
            .own_item(object, &key)?
            .unwrap_or_else(|| Value::missing(object, &key)))
    }

    /// `object[key]`: an item, else the attribute of that name.
    pub(super) fn item(&mut self, object: &Value, key: &Value) -> Result<Value> {
        if let Value::Undefined(missing) = object {
            return Err(missing.error());
        }
        if let Some(value) = self.own_item(object, key)? {
            return Ok(value);
        }

        let attribute = match key {
            Value::Str(name) | Value::Markup(name) => self.own_attribute(object, name.arc()),
            _ => None,
        };
        Ok(attribute.unwrap_or_else(|| Value::missing(object, key)))
    }

    /// The `attr` filter: an attribute, never an item.
    pub(super) fn attribute_only(&mut self, object: &Value, name: &Arc<str>) -> Result<Value> {
        if let Value::Undefined(missing) = object {
            return Err(missing.error());
        }
        let found = self.own_attribute(object, name);
        Ok(found.unwrap_or_else(|| Value::missing(object, &Value::str(name.clone()))))
    }

    /// Python's `getattr`; an attribute that the sandbox forbids is an undefined value that says
    /// so.
    fn own_attribute(&mut self, object: &Value, name: &Arc<str>) -> Option<Value> {
        let is_special = name.len() > 4 && name.starts_with("__") && name.ends_with("__");
        let forbidden = || {
            Value::Undefined(Rc::new(Missing::Unsafe {
                object: object.type_name(),
                name: name.clone(),
            }))
        };

        if is_special {
            return Some(forbidden());
        }

        let among = |names: &[&str]| names.contains(&&**name);
        let method = || {
            Some(Value::Method(Rc::new(Method {
                receiver: object.clone(),
                name: name.clone(),
            })))
        };

        match object {
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
            Value::Range(range) => range_attribute(range, name),
            Value::Int(_) if among(&["bit_length"]) => method(),
            Value::Float(_) if among(&["is_integer"]) => method(),
            Value::Loop(_) if among(&["cycle", "changed"]) => method(),
            Value::Loop(state) => loop_attribute(state, name),
            Value::Namespace(index) => {
                let attributes = self.namespaces.get(*index)?;
                let (_, value) = attributes.iter().find(|(known, _)| known == name)?;
                Some(match name.starts_with('_') {
                    true => forbidden(),
                    false => value.clone(),
                })
            }
            Value::Cycler(_) if among(&["next", "reset"]) => method(),
            Value::Cycler(cycler) => cycler_attribute(cycler, name),
            Value::Joiner(joiner) => match &**name {
                "sep" => Some(joiner.separator.clone()),
                "used" => Some(Value::Bool(joiner.used.get())),
                _ => None,
            },
            Value::Macro(index) => self.macro_attribute(*index, name),
            _ => None,
        }
    }

    /// Python's `object[key]`, if there is such an item.
    fn own_item(&mut self, object: &Value, key: &Value) -> Result<Option<Value>> {
        let index = |len: usize| {
            let index = key.as_int()?;
            usize::try_from(if index < 0 {
                index + len as i128
            } else {
                index
            })
            .ok()
            .filter(|index| *index < len)
        };

        Ok(match object {
            Value::List(items) | Value::Tuple(items) => {
                index(items.values().len()).map(|index| items.values()[index].clone())
            }
            Value::Dict(dict) => {
                if key.as_str().is_none() {
                    self.budget
                        .spend(key.units().saturating_mul(dict.entries().len() as u64))?;
                }
                dict.get(key).cloned()
            }
            Value::Str(text) | Value::Markup(text) if key.as_int().is_some() => {
                self.budget.spend(object.shallow_units())?;
                let found =
                    index(object.len().unwrap_or(0)).and_then(|index| text.chars().nth(index));
                found.map(|c| text_like(object, c.to_string()))
            }
            Value::Range(range) => index(range.len()).map(|index| range.at(index)),
            _ => None,
        })
    }

    /// `object[start:stop:step]`.
    pub(super) fn slice(&mut self, object: &Value, slice: Slice) -> Result<Value> {
        if let Value::Undefined(missing) = object {
            return Err(missing.error());
        }

        self.budget.spend(object.shallow_units())?;
        match object {
            Value::List(items) => Value::list(sliced(items.values(), &slice)?),
            Value::Tuple(items) => Value::tuple(sliced(items.values(), &slice)?),
            Value::Str(text) | Value::Markup(text) => {
                Ok(text_like(object, sliced_text(text, &slice)?))
            }
            Value::Range(range) => {
                let indices = slice.indices(range.len())?;
                let at = |index: i128| range.start.saturating_add(range.step.saturating_mul(index));

                Ok(Value::Range(Range {
                    start: at(indices.start),
                    stop: at(indices.stop),
                    step: range.step.saturating_mul(indices.step),
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

/// A string of the same type as `like`: `Markup` if that is `Markup`, else `str`.
pub(super) fn text_like(like: &Value, text: impl Into<SharedText>) -> Value {
    match like {
        Value::Markup(_) => Value::Markup(text.into()),
        _ => Value::Str(text.into()),
    }
}

fn range_attribute(range: &Range, name: &str) -> Option<Value> {
    match name {
        "start" => Some(Value::Int(range.start)),
        "stop" => Some(Value::Int(range.stop)),
        "step" => Some(Value::Int(range.step)),
        _ => None,
    }
}

fn cycler_attribute(cycler: &Cycler, name: &str) -> Option<Value> {
    let position = cycler.position.get();
    match name {
        "current" => cycler.items.values().get(position).cloned(),
        "pos" => Some(Value::Int(position as i128)),
        "items" => Some(Value::Tuple(cycler.items.clone())),
        _ => None,
    }
}

fn loop_attribute(state: &Rc<Loop>, name: &str) -> Option<Value> {
    let index0 = state.index0.get();
    let items = state.items.values();
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

/// A slice as the template writes it; `None` where a bound is left out.
pub(super) struct Slice {
    pub(super) start: Value,
    pub(super) stop: Value,
    pub(super) step: Value,
}

/// A slice of a sequence of known length. `stop` is exclusive and -1 if a negative step runs to the
/// beginning.
struct SliceIndices {
    start: i128,
    stop: i128,
    step: i128,
}

impl Slice {
    /// Clamps the bounds to a length, as CPython's `PySlice_AdjustIndices` does.
    fn indices(&self, len: usize) -> Result<SliceIndices> {
        let index = |value: &Value| match value {
            Value::None => Ok(None),
            Value::Undefined(missing) => Err(missing.error()),
            // No sequence is this long; the clamp keeps the sums below from overflowing.
            other => match other.as_int() {
                Some(number) => Ok(Some(number.clamp(-(1 << 62), 1 << 62))),
                None => Err(Error::new("slice indices must be integers or None")),
            },
        };

        let len = len as i128;
        let step = index(&self.step)?.unwrap_or(1);
        if step == 0 {
            return Err(Error::new("slice step cannot be zero"));
        }

        let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
        let clamp = |index: i128| {
            if index < 0 {
                (index + len).max(low)
            } else {
                index.min(high)
            }
        };

        let (first, last) = if step > 0 { (low, high) } else { (high, low) };
        Ok(SliceIndices {
            start: index(&self.start)?.map_or(first, clamp),
            stop: index(&self.stop)?.map_or(last, clamp),
            step,
        })
    }
}

/// Walks the text instead of making a list of its characters, which would take four times as much.
fn sliced_text(text: &str, slice: &Slice) -> Result<String> {
    let len = text.chars().count();
    let SliceIndices { start, stop, step } = slice.indices(len)?;
    let span = if step > 0 { stop - start } else { start - stop };
    if span <= 0 {
        return Ok(String::new());
    }

    let size = |number: i128| usize::try_from(number).unwrap_or(usize::MAX);
    let stride = size(step.saturating_abs());
    let count = size((span - 1) / step.saturating_abs() + 1);
    Ok(if step > 0 {
        let chars = text.chars().skip(size(start));
        chars.step_by(stride).take(count).collect()
    } else {
        let chars = text.chars().rev().skip(size(len as i128 - 1 - start));
        chars.step_by(stride).take(count).collect()
    })
}

fn sliced<T: Clone>(values: &[T], slice: &Slice) -> Result<Vec<T>> {
    let SliceIndices { start, stop, step } = slice.indices(values.len())?;

    let mut found = Vec::new();
    let mut index = start;
    while if step > 0 { index < stop } else { index > stop } {
        found.extend(
            usize::try_from(index)
                .ok()
                .and_then(|index| values.get(index))
                .cloned(),
        );
        index += step;
    }

    Ok(found)
}

#[cfg(test)]
mod tests {
    use crate::chat::jinja::Template;

    /// What a slice of a string is, a slice of the list of its characters is, too.
    #[test]
    fn slices_of_strings_are_those_of_lists() {
        let bounds = [
            "", "0", "1", "3", "9", "-1", "-2", "-9", "2 ** 90", "-2 ** 90",
        ];
        for text in ["", "a", "aé日😀b"] {
            for start in bounds {
                for stop in bounds {
                    for step in ["", "1", "2", "-1", "-3", "2 ** 90", "-2 ** 90"] {
                        let slice = format!("{start}:{stop}:{step}");
                        let template = format!(
                            "{{{{ '{text}'[{slice}] }}}}|{{{{ ('{text}' | list)[{slice}] | join }}}}"
                        );
                        let made = Template::new(&template).unwrap();
                        let made = made.render(std::iter::empty()).unwrap();
                        let (of_text, of_list) = made.split_once('|').unwrap();
                        assert_eq!(of_text, of_list, "{template}");
                    }
                }
            }
        }
    }
}
