//! Filters of lists, dicts and whatever can be walked.

use super::json::Compared;
use crate::chat::jinja::args::Args;
use crate::chat::jinja::budget::{Text, check_list};
use crate::chat::jinja::dict::Dict;
use crate::chat::jinja::error::{Error, Result};
use crate::chat::jinja::interpreter::Interpreter;
use crate::chat::jinja::ops::{equal, order};
use crate::chat::jinja::value::{Items, Value};
use std::cmp::Ordering;
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;

impl Interpreter<'_> {
    pub(super) fn sequence_filter(
        &mut self,
        name: &str,
        input: Value,
        args: Args,
    ) -> Result<Value> {
        match name {
            "first" | "last" | "list" | "reverse" | "items" => {
                self.plain_filter(name, &input, args)
            }
            "join" => self.join(&input, args),
            "batch" | "slice" => self.pieces(name, &input, args),
            "map" => self.map(&input, args),
            "select" | "reject" | "selectattr" | "rejectattr" => self.select(name, &input, args),
            "dictsort" => self.dict_sort(&input, args),
            "sort" => self.sort(&input, args),
            "groupby" => self.group(&input, args),
            "sum" => self.sum(&input, args),
            _ => self.by_key(name, &input, args),
        }
    }

    fn plain_filter(&mut self, name: &str, input: &Value, args: Args) -> Result<Value> {
        args.none(name)?;
        let empty = |what: &str| Value::hint(format!("No {what} item, sequence was empty."));

        match (name, input) {
            ("first" | "last", Value::List(items) | Value::Tuple(items)) => {
                let values = items.values();
                let found = if name == "first" {
                    values.first()
                } else {
                    values.last()
                };

                Ok(found.cloned().unwrap_or_else(|| empty(name)))
            }
            ("first", Value::Iterator(stream)) => Ok(stream.next().unwrap_or_else(|| empty(name))),
            ("last", Value::Iterator(_)) => Err(Error::new("'generator' object is not reversible")),
            ("first", _) => Ok(self
                .iterate(input)?
                .into_iter()
                .next()
                .unwrap_or_else(|| empty(name))),
            ("last", _) => Ok(self.iterate(input)?.pop().unwrap_or_else(|| empty(name))),
            ("list", _) => Value::list(self.iterate(input)?),
            ("items", Value::Undefined(_)) => Value::stream("do_items", Vec::new()),
            ("items", Value::Dict(dict)) => Value::stream("do_items", pairs(dict)?),
            ("items", _) => Err(Error::new("Can only get item pairs from a mapping.")),
            (_, Value::Str(text) | Value::Markup(text)) => {
                self.spend_text(text)?;
                let reversed: String = text.chars().rev().collect();
                Ok(crate::chat::jinja::attributes::text_like(input, reversed))
            }
            (_, other) => {
                let mut values = self.iterate(other)?;
                values.reverse();
                match other {
                    Value::Iterator(_) => Value::list(values),
                    _ => Value::stream("reversed", values),
                }
            }
        }
    }

    fn join(&mut self, input: &Value, args: Args) -> Result<Value> {
        let mut args = args.bind("join", ["d", "attribute"], 0)?;
        let separator = args.take(0).unwrap_or_else(|| Value::str(""));
        let separator = self.str(&separator)?;
        let path = Path::of(args.get(1));

        let mut text = Text::default();
        for (place, value) in self.iterate(input)?.into_iter().enumerate() {
            let value = self.at_path(value, &path, None)?;
            if place > 0 {
                text.push(&separator)?;
            }
            text.push(&self.str(&value)?)?;
        }

        Ok(Value::str(text.into_string()))
    }

    /// `batch` and `slice`: lists of some of the elements.
    fn pieces(&mut self, name: &str, input: &Value, args: Args) -> Result<Value> {
        let names = if name == "batch" {
            ["linecount", "fill_with"]
        } else {
            ["slices", "fill_with"]
        };

        let mut args = args.bind(name, names, 1)?;
        let count = check_list(Some(args.count(0, 0)?))?;
        let fill = args.take(1).filter(|fill| !fill.is_none());
        let values = self.iterate(input)?;

        let mut pieces = Vec::new();
        if name == "batch" {
            // As in Jinja2: after an empty list, one of all.
            let size = if count == 0 { usize::MAX } else { count };
            if args.maybe_int(0)? == Some(0) && !values.is_empty() {
                pieces.push(Value::list(Vec::new())?);
            }

            for piece in values.chunks(size) {
                let mut piece = piece.to_vec();
                if let Some(fill) = &fill {
                    let missing = count.saturating_sub(piece.len());
                    self.budget.spend(missing as u64)?;
                    piece.extend(std::iter::repeat_n(fill.clone(), missing));
                }

                pieces.push(Value::list(piece)?);
            }

            return Value::stream("do_batch", pieces);
        }

        if count == 0 {
            return Err(Error::new("integer division or modulo by zero"));
        }

        self.budget.spend(count as u64)?;
        let (size, extra) = (values.len() / count, values.len() % count);

        let mut rest = &values[..];
        for place in 0..count {
            let (piece, after) = rest.split_at(size + usize::from(place < extra));
            rest = after;
            let fill = fill.clone().filter(|_| place >= extra);
            pieces.push(Value::list(piece.iter().cloned().chain(fill).collect())?);
        }

        Value::stream("sync_do_slice", pieces)
    }

    fn map(&mut self, input: &Value, mut args: Args) -> Result<Value> {
        if !input.truth() {
            return Value::stream("sync_do_map", Vec::new());
        }

        let values = self.iterate(input)?;
        let mut mapped = Vec::with_capacity(values.len());
        if args.positional.is_empty() && args.named.iter().any(|(name, _)| **name == *"attribute") {
            let mut args = args.bind("map", ["/", "attribute", "default"], 0)?;
            let path = Path::of(args.get(1));
            let default = args.take(2).filter(|default| !default.is_none());
            for value in values {
                mapped.push(self.at_path(value, &path, default.as_ref())?);
            }

            return Value::stream("sync_do_map", mapped);
        }

        if args.positional.is_empty() {
            return Err(Error::new("map requires a filter argument"));
        }

        let name = args.positional.remove(0);
        let name = self.str(&name)?;

        for value in values {
            self.budget.enter()?;
            mapped.push(self.filter(&name, value, args.clone())?);
            self.budget.leave();
        }

        Value::stream("sync_do_map", mapped)
    }

    fn select(&mut self, name: &str, input: &Value, mut args: Args) -> Result<Value> {
        if !input.truth() {
            return Value::stream("select_or_reject", Vec::new());
        }

        let values = self.iterate(input)?;
        let path = if name.ends_with("attr") {
            if args.positional.is_empty() {
                return Err(Error::new("Missing parameter for attribute name"));
            }
            Path::of(Some(&args.positional.remove(0)))
        } else {
            Path::default()
        };

        let test = if args.positional.is_empty() {
            None
        } else {
            Some(args.positional.remove(0))
        };

        let test = test.map(|test| self.str(&test)).transpose()?;
        let mut selected = Vec::new();
        for value in values {
            let tested = self.at_path(value.clone(), &path, None)?;
            let holds = match &test {
                Some(test) => self.test(test, &tested, args.clone())?,
                None => tested.truth(),
            };
            if holds == name.starts_with("select") {
                selected.push(value);
            }
        }

        Value::stream("select_or_reject", selected)
    }

    fn dict_sort(&mut self, input: &Value, args: Args) -> Result<Value> {
        let args = args.bind("dictsort", ["case_sensitive", "by", "reverse"], 0)?;
        let place = match args.maybe_str(1)?.unwrap_or("key") {
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
            let key = if place == 0 { &pair.0 } else { &pair.1 };
            if is_sensitive {
                key.clone()
            } else {
                without_case(key)
            }
        };

        let keyed = dict
            .entries()
            .iter()
            .map(|pair| (key(pair), pair.clone()))
            .collect::<Vec<_>>();
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
    fn spend_sorting(&mut self, of: &Value) -> Result<()> {
        let rounds = 1 + of.len().unwrap_or(1 << 20).max(1).ilog2();
        self.budget
            .spend(of.units().saturating_mul(u64::from(rounds)))
    }

    fn sort(&mut self, input: &Value, args: Args) -> Result<Value> {
        let args = args.bind("sort", ["reverse", "case_sensitive", "attribute"], 0)?;
        let is_sensitive = args.truth(1, false);
        let paths: Vec<Path> = match args.get(2) {
            Some(Value::Str(names)) => names.split(',').map(Path::of_text).collect(),
            other => vec![Path::of(other)],
        };

        let mut keyed = Vec::new();
        for value in self.iterate(input)? {
            let mut keys = Vec::new();
            for path in &paths {
                let key = self.at_path(value.clone(), path, None)?;
                keys.push(if is_sensitive {
                    key
                } else {
                    without_case(&key)
                });
            }

            keyed.push((Value::list(keys)?, value));
        }

        self.spend_sorting(input)?;
        let keyed = sorted(keyed, |a, b| order(&a.0, &b.0, "<"), args.flag(0)?)?;
        Value::list(keyed.into_iter().map(|(_, value)| value).collect())
    }

    fn group(&mut self, input: &Value, args: Args) -> Result<Value> {
        let mut args = args.bind("groupby", ["attribute", "default", "case_sensitive"], 1)?;
        let path = Path::of(args.get(0));
        let default = args.take(1).filter(|default| !default.is_none());
        let is_sensitive = args.truth(2, false);

        let mut keyed = Vec::new();
        for value in self.iterate(input)? {
            let real = self.at_path(value.clone(), &path, default.as_ref())?;
            let key = if is_sensitive {
                real.clone()
            } else {
                without_case(&real)
            };

            keyed.push((key, real, value));
        }

        self.spend_sorting(input)?;
        let keyed = sorted(keyed, |a, b| order(&a.0, &b.0, "<"), false)?;

        let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
        for (key, real, value) in keyed {
            match groups.last_mut().filter(|group| equal(&group.0, &key)) {
                Some(group) => group.2.push(value),
                None => groups.push((key, real, vec![value])),
            }
        }

        let group = |(_, real, values)| {
            let mut items = Items::new(vec![real, Value::list(values)?])?;
            items.is_group = true;
            Ok(Value::Tuple(Rc::new(items)))
        };
        Value::list(groups.into_iter().map(group).collect::<Result<_>>()?)
    }

    fn sum(&mut self, input: &Value, args: Args) -> Result<Value> {
        let mut args = args.bind("sum", ["attribute", "start"], 0)?;
        let path = Path::of(args.get(0));
        let mut sum = args.take(1).unwrap_or(Value::Int(0));

        if sum.as_str().is_some() {
            return Err(Error::new(
                "sum() can't sum strings [use ''.join(seq) instead]",
            ));
        }

        for value in self.iterate(input)? {
            let value = self.at_path(value, &path, None)?;
            sum = self.add(&sum, &value)?;
        }

        Ok(sum)
    }

    /// `min`, `max` and `unique`.
    fn by_key(&mut self, name: &str, input: &Value, args: Args) -> Result<Value> {
        let args = args.bind(name, ["case_sensitive", "attribute"], 0)?;
        let is_sensitive = args.truth(0, false);
        let path = Path::of(args.get(1));
        self.budget.spend(input.units())?;

        let mut keyed = Vec::new();
        for value in self.iterate(input)? {
            let key = self.at_path(value.clone(), &path, None)?;
            keyed.push((
                if is_sensitive {
                    key
                } else {
                    without_case(&key)
                },
                value,
            ));
        }

        if name == "unique" {
            return self.unique(keyed);
        }

        let wanted = if name == "min" {
            Ordering::Less
        } else {
            Ordering::Greater
        };

        let mut best: Option<(Value, Value)> = None;
        for (key, value) in keyed {
            let is_better = match &best {
                None => true,
                Some((known, _)) => order(&key, known, "<")? == Some(wanted),
            };
            if is_better {
                best = Some((key, value));
            }
        }

        let empty = || Value::hint("No aggregated item, sequence was empty.");
        Ok(best.map_or_else(empty, |(_, value)| value))
    }

    fn unique(&mut self, keyed: Vec<(Value, Value)>) -> Result<Value> {
        let mut texts: HashSet<Arc<str>> = HashSet::new();
        let mut others: Vec<Value> = Vec::new();
        let mut unique = Vec::new();
        for (key, value) in keyed {
            let is_new = match &key {
                Value::Str(text) | Value::Markup(text) => texts.insert(text.clone()),
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

    /// The value at a path inside of another.
    fn at_path(&mut self, mut value: Value, path: &Path, default: Option<&Value>) -> Result<Value> {
        self.budget.spend(1)?;
        for part in &path.0 {
            value = self.item(&value, part)?;
            if let (true, Some(default)) = (value.is_undefined(), default) {
                value = default.clone();
            }
        }

        Ok(value)
    }
}

/// `a.b.0`: names and indices.
#[derive(Debug, Default)]
struct Path(Vec<Value>);

impl Path {
    fn of(attribute: Option<&Value>) -> Self {
        match attribute {
            None | Some(Value::None) => Self::default(),
            Some(Value::Str(text) | Value::Markup(text)) => Self::of_text(text),
            Some(other) => Self(vec![other.clone()]),
        }
    }

    fn of_text(text: &str) -> Self {
        let part = |part: &str| match part.parse() {
            Ok(number) if part.bytes().all(|byte| byte.is_ascii_digit()) => Value::Int(number),
            _ => Value::str(part),
        };
        Self(text.split('.').map(part).collect())
    }
}

fn pairs(dict: &Dict) -> Result<Vec<Value>> {
    dict.entries()
        .iter()
        .map(|(key, value)| Value::tuple(vec![key.clone(), value.clone()]))
        .collect()
}

fn without_case(value: &Value) -> Value {
    value
        .as_str()
        .map_or_else(|| value.clone(), |text| Value::str(text.to_lowercase()))
}

/// Sorts stably with a comparison that can fail. The standard library's sort wants a total order,
/// which Python's values need not have.
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
    let wanted = if is_reverse {
        Ordering::Greater
    } else {
        Ordering::Less
    };
    let mut out = Vec::with_capacity(left.len() + right.len());
    let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        // The right one goes first only where it must: equal ones keep their order.
        let next = if compare(b, a)? == Some(wanted) {
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
