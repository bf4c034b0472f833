//! A model's tokenizer, built when it is first needed.

use super::Tokenizer;
use crate::companion::Companion;
use crate::error::{LlmError, Result};
use serde_json::Value;
use std::sync::OnceLock;

/// The files of a tokenizer, and the tokenizer once it was asked for. Inspecting a model or running
/// it on token ids does not touch them.
#[derive(Debug)]
pub(crate) struct LazyTokenizer {
    companions: Vec<Companion>,
    model_config: Value,
    what: String,
    built: OnceLock<Result<Option<Tokenizer>>>,
}

impl LazyTokenizer {
    /// The tokenizer of these files; the arguments are those of [`Tokenizer::from_companions`].
    pub(crate) fn new(companions: Vec<Companion>, model_config: Value, what: String) -> Self {
        Self {
            companions,
            model_config,
            what,
            built: OnceLock::new(),
        }
    }

    /// A tokenizer whose files could not be made.
    pub(crate) fn failed(error: LlmError) -> Self {
        Self {
            built: Err(error).into(),
            ..Self::new(Vec::new(), Value::Null, String::new())
        }
    }

    /// The tokenizer; `None` if the model has none.
    pub(crate) fn get(&self) -> &Result<Option<Tokenizer>> {
        self.built.get_or_init(|| {
            Tokenizer::from_companions(&self.companions, &self.model_config, &self.what)
        })
    }
}
