//! What to generate: a prompt and its settings.

use super::constraint::{Constraint, TokenConstraint};
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

/// A prompt with its own settings, for an [`Engine`](super::Engine), a [`Service`](super::Service)
/// or a [`Batch`](super::Batch).
///
/// Prompts and [`Generation`]s convert [`Into`] it.
///
/// ```
/// use llm_int8::{AutoModelForCausalLM, GenerationConfig, LoadConfig, Request};
/// let model = AutoModelForCausalLM::from_pretrained("tiny-gpt2", &LoadConfig::default())?;
/// let config = GenerationConfig { max_new_tokens: Some(3), ..model.generation_config() };
/// let request = Request::new("ROMEO:").config(config).prompt_logprobs(2);
/// let generated = model.generate_batch([request]).run()?.remove(0);
/// assert!(generated.prompt_logprobs[0].is_none(), "nothing precedes the first token");
/// assert!(generated.prompt_logprobs[1].as_ref().unwrap().logprob < 0.0);
/// # Ok::<(), llm_int8::LlmError>(())
/// ```
#[derive(Debug)]
#[must_use = "a request does nothing until an engine or a batch runs it"]
pub struct Request {
    pub(super) prompt: Prompt,
    /// `None`: the settings of the model's files.
    pub(super) config: Option<GenerationConfig>,
    /// Whether the new ids are decoded to text.
    pub(super) has_text: bool,
    /// Number of most likely tokens with each new token's log-probability.
    pub(super) logprobs: Option<usize>,
    /// The same for the tokens of the prompt.
    pub(super) prompt_logprobs: Option<usize>,
    pub(super) salt: Option<String>,
    pub(super) constraint: Option<Constraint>,
}

impl Request {
    /// A request with the settings of the model's files.
    pub fn new(prompt: impl Into<Prompt>) -> Self {
        Self {
            prompt: prompt.into(),
            config: None,
            has_text: true,
            logprobs: None,
            prompt_logprobs: None,
            salt: None,
            constraint: None,
        }
    }

    /// Replaces the settings.
    pub fn config(mut self, config: GenerationConfig) -> Self {
        self.config = Some(config);
        self
    }

    /// Gives each piece its log-probability under the model's own logits, and those of the `top`
    /// most likely tokens.
    pub fn logprobs(mut self, top: usize) -> Self {
        self.logprobs = Some(top);
        self
    }

    /// Gives the result the log-probabilities of the prompt's tokens, and for each those of the
    /// `top` most likely ones. All of the prompt is then computed, even if a part of it is kept.
    pub fn prompt_logprobs(mut self, top: usize) -> Self {
        self.prompt_logprobs = Some(top);
        self
    }

    /// Shares kept prefixes only with requests of the same salt. Without one, with those that have
    /// none. The time to the first token tells whether a prefix was kept, so people who may not
    /// learn of each other's prompts need different salts.
    pub fn cache_salt(mut self, salt: impl Into<String>) -> Self {
        self.salt = Some(salt.into());
        self
    }

    /// Restricts the new tokens.
    pub fn constraint(mut self, constraint: Box<dyn TokenConstraint>) -> Self {
        self.constraint = Some(Constraint(constraint));
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
