//! The template language of chat templates: Jinja2 over Python's values, in the sandbox that transformers renders
//! them in (`transformers/utils/chat_template_utils.py`: `ImmutableSandboxedEnvironment` with `trim_blocks`,
//! `lstrip_blocks`, `break` and `continue`, its own `tojson`, `raise_exception`, `strftime_now` and `generation`).
//!
//! It is an engine of its own because a template's text is a model's input: one space or quote that another
//! engine prints differently is a different prompt. What Jinja2 leaves to Python (how values print, `%`, slices,
//! methods of `str` and `dict`, the order of keys) cannot be laid over an engine with values of another language.
//!
//! Text becomes tokens ([`lexer`]), tokens become a tree ([`parser`], [`expressions`]), and an [`interpreter`] walks
//! it once for each rendering, within a [`budget`].

mod args;
mod ast;
mod attributes;
mod budget;
mod calls;
mod chars;
mod containers;
mod convert;
mod error;
mod eval;
mod expressions;
mod filters;
mod format;
mod interpreter;
mod lexer;
mod literals;
mod numbers;
mod ops;
mod parser;
mod percent;
mod predicates;
mod print;
mod scopes;
mod strings;
mod value;

pub(crate) use error::Error;

use interpreter::Interpreter;
use std::sync::Arc;
use value::Value;

/// A template that can be rendered.
#[derive(Debug)]
pub(crate) struct Template {
    body: Vec<ast::Stmt>,
}

impl Template {
    pub(crate) fn new(source: &str) -> Result<Self, Error> {
        Ok(Self { body: parser::parse(source)? })
    }

    /// The text of the template with these variables, of which a later one hides an earlier one of its name.
    pub(crate) fn render<'a>(
        &self,
        variables: impl Iterator<Item = (&'a str, &'a serde_json::Value)>,
    ) -> Result<String, Error> {
        let functions = calls::FUNCTIONS.iter().map(|function| (function.name(), Value::Function(*function)));
        let mut context: Vec<(Arc<str>, Value)> =
            functions.map(|(name, value)| (name.into(), value)).collect();
        for (name, json) in variables {
            let value = value::of_json(json)?;
            match context.iter_mut().find(|(known, _)| **known == *name) {
                Some((_, old)) => *old = value,
                None => context.push((name.into(), value)),
            }
        }
        Interpreter::new(context).render(&self.body)
    }
}
