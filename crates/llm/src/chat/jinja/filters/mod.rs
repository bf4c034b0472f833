//! Jinja2's filters, with `tojson` as transformers defines it. [`NAMES`] lists them; `random` and
//! `urlize` are missing.

mod html;
mod json;
mod numbers;
mod pprint;
mod sequences;
mod sorting;
mod strings;
mod wrap;

use super::args::Args;
use super::error::{Error, Result};
use super::interpreter::Interpreter;
use super::ops::Arithmetic;
use super::value::Value;

/// The supported filters.
pub(super) const NAMES: [&str; 52] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "pprint",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "striptags",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "wordcount",
    "wordwrap",
    "xmlattr",
];

impl Interpreter<'_> {
    /// `input | name(args)`.
    pub(super) fn filter(&mut self, name: &str, input: Value, args: Args) -> Result<Value> {
        self.budget.spend(1)?;
        self.budget.spend(args.shallow_units())?;

        let value = self.filter_by_name(name, input, args)?;
        self.budget.spend(value.shallow_units())?;
        Ok(value)
    }

    fn filter_by_name(&mut self, name: &str, input: Value, args: Args) -> Result<Value> {
        match name {
            "count" | "length" => {
                args.none(name)?;
                self.length(&input)
            }
            "d" | "default" => {
                let mut args = args.bind(name, ["default_value", "boolean"], 0)?;
                let is_missing = input.is_undefined() || args.truth(1, false) && !input.truth();
                Ok(if is_missing {
                    args.take(0).unwrap_or_else(|| Value::str(""))
                } else {
                    input
                })
            }
            "attr" => {
                let args = args.bind(name, ["name"], 1)?;
                let name = args.str(0)?.into();
                self.attribute_only(&input, &name)
            }
            "pprint" => {
                args.none(name)?;
                self.pretty(&input).map(Value::str)
            }
            "tojson" => self.json_text(&input, args),
            "e" | "escape" | "forceescape" | "safe" | "striptags" | "urlencode" | "xmlattr" => {
                self.html_filter(name, input, args)
            }
            "abs" | "filesizeformat" | "float" | "int" | "round" => {
                self.number_filter(name, &input, args)
            }
            "capitalize" | "center" | "format" | "indent" | "lower" | "replace" | "string"
            | "title" | "trim" | "truncate" | "upper" | "wordcount" | "wordwrap" => {
                self.string_filter(name, input, args)
            }
            "batch" | "dictsort" | "first" | "groupby" | "items" | "join" | "last" | "list"
            | "map" | "max" | "min" | "reject" | "rejectattr" | "reverse" | "select"
            | "selectattr" | "slice" | "sort" | "sum" | "unique" => {
                self.sequence_filter(name, input, args)
            }
            "random" | "urlize" => Err(Error::new(format!("the filter '{name}' is not offered"))),
            _ => Err(Error::new(format!("No filter named '{name}'."))),
        }
    }

    /// Python's `len()`. Only a string has to be walked to count its characters.
    fn length(&mut self, input: &Value) -> Result<Value> {
        let work = match input.as_str() {
            Some(_) => input.shallow_units(),
            None => 1,
        };
        self.budget.spend(work)?;

        let error = || {
            Error::new(format!(
                "object of type '{}' has no len()",
                input.type_name()
            ))
        };
        let len = input.len().ok_or_else(error)?;
        Ok(Value::Int(len as i128))
    }

    /// `left + right`, charged for its result.
    fn add(&mut self, left: &Value, right: &Value) -> Result<Value> {
        let sum = super::ops::arithmetic(Arithmetic::Add, left, right)?;
        self.budget.spend(sum.shallow_units())?;
        Ok(sum)
    }
}
