//! Filters that compare elements: `sort`, `dictsort`, `groupby`, `min`, `max` and `unique`.

use super::sequences::Path;
use crate::chat::jinja::args::Args;
use crate::chat::jinja::budget::MAKING;
use crate::chat::jinja::error::{Error, Result};
use crate::chat::jinja::interpreter::Interpreter;
use crate::chat::jinja::ops::{equal, order};
use crate::chat::jinja::value::{Items, Value};
use std::cmp::Ordering;
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;

/// The result of a comparison that can fail; `None` where the values have no order (NaN).
type Compared = Result<Option<Ordering>>;

/// What `groupby` collects: elements whose keys compare equal, and the value of the first of them,
/// which keeps its case.
struct Group {
    key: Value,
    grouper: Value,
    elements: Vec<Value>,
}

impl Interpreter<'_> {
    /// `dictsort`: the pairs of a dict as a sorted list.
    pub(super) fn dict_sort(&mut self, input: &Value, args: Args) -> Result<Value> {
        let args = args.bind("dictsort", ["case_sensitive", "by", "reverse"], 0)?;
        let index = match args.maybe_str(1)?.unwrap_or("key") {
            "key" => 0,
            "value" => 1,
            _ => {
                return Err(Error::new(
                    "You can only sort by either \"key\" or \"value\"",
                ));
            }
        };

        let Value::Dict(dict) = input else {
            if let Value::Undefined(missing) = input {
                return Err(missing.error());
            }

            return Err(Error::new(format!(
                "'{}' object has no attribute 'items'",
                input.type_name()
            )));
        };

        let is_sensitive = args.truth(0, false);
        let key = |pair: &(Value, Value)| {
            let key = if index == 0 { &pair.0 } else { &pair.1 };
            sort_key(key.clone(), is_sensitive)
        };

        let keyed = dict
            .entries()
            .iter()
            .map(|pair| (key(pair), pair.clone()))
            .collect::<Vec<_>>();
        self.budget
            .spend(2 * MAKING * dict.entries().len() as u64)?;
        self.spend_sorting(input)?;
        let keyed = sorted(keyed, |a, b| order(&a.0, &b.0, "<"), args.flag(2)?)?;

        Value::list(
            keyed
                .into_iter()
                .map(|(_, (key, value))| Value::tuple(vec![key, value]))
                .collect::<Result<_>>()?,
        )
    }

    /// Charges for sorting: each of `n` elements is compared with about `log n` others.
    fn spend_sorting(&mut self, input: &Value) -> Result<()> {
        let elements = input.len().unwrap_or(1 << 20).max(1);
        let rounds = 1 + elements.ilog2();
        // The elements of a string are its characters.
        let units = input.units().max(elements as u64);
        self.budget
            .spend(units.saturating_mul(2 * u64::from(rounds)))
    }

    /// `sort`, by one or several attributes.
    pub(super) fn sort(&mut self, input: &Value, args: Args) -> Result<Value> {
        let args = args.bind("sort", ["reverse", "case_sensitive", "attribute"], 0)?;
        let is_sensitive = args.truth(1, false);
        let paths: Vec<Path> = match args.get(2) {
            Some(Value::Str(names)) => names.split(',').map(Path::parse).collect(),
            other => vec![Path::new(other)],
        };

        let mut keyed = Vec::new();
        for value in self.iterate(input)? {
            self.budget.spend(2 * MAKING)?;
            let mut keys = Vec::new();
            for path in &paths {
                let key = self.at_path(value.clone(), path, None)?;
                keys.push(sort_key(key, is_sensitive));
            }

            keyed.push((Value::list(keys)?, value));
        }

        self.spend_sorting(input)?;
        let keyed = sorted(keyed, |a, b| order(&a.0, &b.0, "<"), args.flag(0)?)?;
        Value::list(keyed.into_iter().map(|(_, value)| value).collect())
    }

    /// `groupby`: sorts, then groups neighbours with equal keys.
    pub(super) fn group(&mut self, input: &Value, args: Args) -> Result<Value> {
        let mut args = args.bind("groupby", ["attribute", "default", "case_sensitive"], 1)?;
        let path = Path::new(args.get(0));
        let default = args.take(1).filter(|default| !default.is_none());
        let is_sensitive = args.truth(2, false);

        let mut keyed = Vec::new();
        for value in self.iterate(input)? {
            self.budget.spend(3 * MAKING)?;
            let grouper = self.at_path(value.clone(), &path, default.as_ref())?;
            let key = sort_key(grouper.clone(), is_sensitive);
            keyed.push((key, grouper, value));
        }

        self.spend_sorting(input)?;
        let keyed = sorted(keyed, |a, b| order(&a.0, &b.0, "<"), false)?;

        let mut groups: Vec<Group> = Vec::new();
        for (key, grouper, value) in keyed {
            match groups.last_mut().filter(|group| equal(&group.key, &key)) {
                Some(group) => group.elements.push(value),
                None => groups.push(Group {
                    key,
                    grouper,
                    elements: vec![value],
                }),
            }
        }

        let pair = |group: Group| {
            let mut items = Items::new(vec![group.grouper, Value::list(group.elements)?])?;
            items.is_group = true;
            Ok(Value::Tuple(Rc::new(items)))
        };
        Value::list(groups.into_iter().map(pair).collect::<Result<_>>()?)
    }

    /// `min`, `max` and `unique`.
    pub(super) fn by_key(&mut self, name: &str, input: &Value, args: Args) -> Result<Value> {
        let args = args.bind(name, ["case_sensitive", "attribute"], 0)?;
        let is_sensitive = args.truth(0, false);
        let path = Path::new(args.get(1));
        self.budget.spend(input.units())?;

        let mut keyed = Vec::new();
        for value in self.iterate(input)? {
            self.budget.spend(MAKING)?;
            let key = self.at_path(value.clone(), &path, None)?;
            keyed.push((sort_key(key, is_sensitive), value));
        }

        if name == "unique" {
            return self.unique(keyed);
        }

        let better = if name == "min" {
            Ordering::Less
        } else {
            Ordering::Greater
        };

        let mut best: Option<(Value, Value)> = None;
        for (key, value) in keyed {
            let is_better = match &best {
                None => true,
                Some((known, _)) => order(&key, known, "<")? == Some(better),
            };
            if is_better {
                best = Some((key, value));
            }
        }

        let empty = || Value::hint("No aggregated item, sequence was empty.");
        Ok(best.map_or_else(empty, |(_, value)| value))
    }

    /// The first value of each key.
    fn unique(&mut self, keyed: Vec<(Value, Value)>) -> Result<Value> {
        let mut strings: HashSet<Arc<str>> = HashSet::new();
        let mut others: Vec<Value> = Vec::new();
        let mut unique = Vec::new();

        for (key, value) in keyed {
            let is_new = match &key {
                Value::Str(text) | Value::Markup(text) => strings.insert(text.arc().clone()),
                Value::List(_) | Value::Dict(_) => {
                    return Err(Error::new(format!(
                        "unhashable type: '{}'",
                        key.type_name()
                    )));
                }
                _ => {
                    self.budget
                        .spend(key.units().saturating_mul(1 + others.len() as u64))?;
                    let is_new = !others.iter().any(|other| equal(other, &key));
                    if is_new {
                        others.push(key);
                    }
                    is_new
                }
            };

            if is_new {
                unique.push(value);
            }
        }

        Value::stream("sync_do_unique", unique)
    }
}

/// The key that Jinja2 compares: a string in lower case unless case counts, any other value itself.
fn sort_key(value: Value, is_case_sensitive: bool) -> Value {
    match value.as_str() {
        Some(text) if !is_case_sensitive => Value::str(text.to_lowercase()),
        _ => value,
    }
}

/// Merge sort: stable, with a comparison that can fail. The standard library's sort expects a total
/// order, which Python's values need not have.
pub(super) fn sorted<T>(
    items: Vec<T>,
    compare: impl Fn(&T, &T) -> Compared + Copy,
    is_reverse: bool,
) -> Result<Vec<T>> {
    let mut runs: Vec<Vec<T>> = items.into_iter().map(|item| vec![item]).collect();
    while runs.len() > 1 {
        let mut merged = Vec::with_capacity(runs.len().div_ceil(2));
        let mut rest = runs.into_iter();
        while let Some(left) = rest.next() {
            merged.push(match rest.next() {
                Some(right) => merge(left, right, compare, is_reverse)?,
                None => left,
            });
        }

        runs = merged;
    }

    Ok(runs.pop().unwrap_or_default())
}

fn merge<T>(
    left: Vec<T>,
    right: Vec<T>,
    compare: impl Fn(&T, &T) -> Compared,
    is_reverse: bool,
) -> Result<Vec<T>> {
    let earlier = if is_reverse {
        Ordering::Greater
    } else {
        Ordering::Less
    };

    let mut out = Vec::with_capacity(left.len() + right.len());
    let mut left = left.into_iter().peekable();
    let mut right = right.into_iter().peekable();

    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        // Take the right one only if it sorts before the left one: equal elements keep their order.
        let next = if compare(b, a)? == Some(earlier) {
            right.next()
        } else {
            left.next()
        };

        out.extend(next);
    }

    out.extend(left);
    out.extend(right);
    Ok(out)
}
