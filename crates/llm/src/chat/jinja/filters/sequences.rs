//! Filters for lists, dicts and other iterables.

use crate::chat::jinja::args::Args;
use crate::chat::jinja::budget::{MAKING, Text, check_list};
use crate::chat::jinja::dict::Dict;
use crate::chat::jinja::error::{Error, Result};
use crate::chat::jinja::interpreter::Interpreter;
use crate::chat::jinja::value::Value;

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
            ("items", Value::Dict(dict)) => {
                self.budget.spend(MAKING * dict.entries().len() as u64)?;
                Value::stream("do_items", pairs(dict)?)
            }
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
        let path = Path::new(args.get(1));

        let mut text = Text::default();
        for (index, value) in self.iterate(input)?.into_iter().enumerate() {
            let value = self.at_path(value, &path, None)?;
            if index > 0 {
                text.push(&separator)?;
            }
            text.push(&self.str(&value)?)?;
        }

        Ok(Value::str(text.into_string()))
    }

    /// `batch` and `slice`: split the elements into lists.
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
            // `batch(0)` in Jinja2 gives an empty list, then one of all elements.
            let size = if count == 0 { usize::MAX } else { count };
            if args.maybe_int(0)? == Some(0) && !values.is_empty() {
                pieces.push(Value::list(Vec::new())?);
            }

            for piece in values.chunks(size) {
                self.budget.spend(MAKING)?;
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

        self.budget.spend(MAKING * count as u64)?;
        let size = values.len() / count;
        let extra = values.len() % count;

        let mut rest = &values[..];
        for index in 0..count {
            let (piece, after) = rest.split_at(size + usize::from(index < extra));
            rest = after;
            let fill = fill.clone().filter(|_| index >= extra);
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
            let path = Path::new(args.get(1));
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
            Path::new(Some(&args.positional.remove(0)))
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

    fn sum(&mut self, input: &Value, args: Args) -> Result<Value> {
        let mut args = args.bind("sum", ["attribute", "start"], 0)?;
        let path = Path::new(args.get(0));
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

    /// Follows a path of attributes and indices; `default` replaces what is undefined.
    pub(super) fn at_path(
        &mut self,
        mut value: Value,
        path: &Path,
        default: Option<&Value>,
    ) -> Result<Value> {
        self.budget.spend(1 + MAKING * path.0.len() as u64)?;
        for part in &path.0 {
            value = self.item(&value, part)?;
            if let (true, Some(default)) = (value.is_undefined(), default) {
                value = default.clone();
            }
        }

        Ok(value)
    }
}

/// An `attribute` argument such as `a.b.0`: names and indices.
#[derive(Debug, Default)]
pub(super) struct Path(Vec<Value>);

impl Path {
    pub(super) fn new(attribute: Option<&Value>) -> Self {
        match attribute {
            None | Some(Value::None) => Self::default(),
            Some(Value::Str(text) | Value::Markup(text)) => Self::parse(text),
            Some(other) => Self(vec![other.clone()]),
        }
    }

    pub(super) fn parse(text: &str) -> Self {
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
