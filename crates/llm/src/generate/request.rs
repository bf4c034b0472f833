//! What to generate: a prompt and its settings.

use super::{Generation, GenerationConfig};

/// What the generated text follows. Strings and token ids convert [`Into`] it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// A text, for the model's tokenizer. An empty one stands for the begin-of-sequence token.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<&String> for Prompt {
    fn from(text: &String) -> Self {
        Self::Text(text.clone())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&[u32]> for Prompt {
    fn from(ids: &[u32]) -> Self {
        Self::Ids(ids.to_vec())
    }
}

impl From<&Vec<u32>> for Prompt {
    fn from(ids: &Vec<u32>) -> Self {
        Self::Ids(ids.clone())
    }
}

impl From<Vec<u32>> for Prompt {
    fn from(ids: Vec<u32>) -> Self {
        Self::Ids(ids)
    }
}

impl<const N: usize> From<[u32; N]> for Prompt {
    fn from(ids: [u32; N]) -> Self {
        Self::Ids(ids.to_vec())
    }
}

/// A prompt with its own settings, for an [`Engine`](super::Engine) or a [`Batch`](super::Batch).
///
/// Prompts and [`Generation`]s convert [`Into`] it.
#[derive(Debug, Clone, PartialEq)]
#[must_use = "a request does nothing until an engine or a batch runs it"]
pub struct Request {
    pub(super) prompt: Prompt,
    /// `None`: the settings of the model's files.
    pub(super) config: Option<GenerationConfig>,
    /// Whether the new ids are decoded to text.
    pub(super) has_text: bool,
}

impl Request {
    /// A request with the settings of the model's files.
    pub fn new(prompt: impl Into<Prompt>) -> Self {
        Self {
            prompt: prompt.into(),
            config: None,
            has_text: true,
        }
    }

    /// Replaces the settings.
    pub fn config(mut self, config: GenerationConfig) -> Self {
        self.config = Some(config);
        self
    }

    /// Produces only ids, no text. This needs a tokenizer only if there are stop strings.
    pub fn ids_only(mut self) -> Self {
        self.has_text = false;
        self
    }
}

impl<P: Into<Prompt>> From<P> for Request {
    fn from(prompt: P) -> Self {
        Self::new(prompt)
    }
}

impl From<Generation<'_>> for Request {
    fn from(generation: Generation<'_>) -> Self {
        generation.into_request()
    }
}
