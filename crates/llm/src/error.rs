//! The one error of this crate.

use std::path::PathBuf;

/// The result of everything in this crate that can fail.
pub type Result<T, E = LlmError> = std::result::Result<T, E>;

/// What can go wrong between a model's name and its text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LlmError {
    /// Finding or fetching files failed.
    #[error(transparent)]
    Hub(#[from] llm_int8_hub::HubError),
    /// A model could not be built, loaded or computed.
    #[error(transparent)]
    Decoder(llm_int8_decoder::DecoderError),
    /// A checkpoint or a layer is not usable.
    #[error(transparent)]
    Nn(#[from] llm_int8_nn::NnError),
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Candle(#[from] candle_core::Error),
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A small JSON file that is not what it should be.
    #[error("{what} is not usable: {reason}")]
    MalformedJson {
        /// The file.
        what: String,
        /// What does not hold.
        reason: String,
    },
    /// Text was given to a model without a tokenizer.
    #[error(
        "{model} has no tokenizer (neither tokenizer.json nor vocab.json with merges.txt), so it cannot read text; \
         give token ids instead"
    )]
    NoTokenizer {
        /// The model.
        model: String,
    },
    /// The tokenizer's files are not usable, or it refused a text.
    #[error("the tokenizer {what}: {reason}")]
    Tokenizer {
        /// File or operation.
        what: String,
        /// What it said.
        reason: String,
    },
    /// Chatting with a model that says nothing of how.
    #[error(
        "{model} has no chat template (neither chat_template.jinja nor one in tokenizer_config.json); \
         give one, or go on from a text without roles"
    )]
    NoChatTemplate {
        /// The model.
        model: String,
    },
    /// A chat template that cannot be used, or refused the messages.
    #[error("the chat template: {reason}")]
    ChatTemplate {
        /// What it said.
        reason: String,
    },
    /// One turn of a conversation that fills the model's context.
    #[error(
        "this turn has {tokens} tokens with what the chat template adds, but the model has {available} positions; \
         say it in fewer words"
    )]
    TurnTooLong {
        /// Tokens of the turn, a system message included.
        tokens: usize,
        /// Positions of the model.
        available: usize,
    },
    /// The caller ended it.
    #[error("interrupted")]
    Interrupted,
    /// Nothing to go on from.
    #[error("the prompt is empty and the model has no token to begin with; give a prompt")]
    EmptyPrompt,
    /// Prompt and new tokens are more than the model has positions for.
    #[error(
        "the prompt has {prompt} tokens and {new} new ones are requested, but the model has {available} positions; \
         ask for fewer, shorten the prompt, or let its beginning be cut off (`truncate`)"
    )]
    ContextExceeded {
        /// Tokens of the prompt.
        prompt: usize,
        /// New tokens requested.
        new: usize,
        /// Positions of the model.
        available: usize,
    },
    /// One of several prompts.
    #[error("prompt {number}: {source}")]
    Prompt {
        /// Which one, counted from 1.
        number: usize,
        /// What is wrong with it.
        source: Box<LlmError>,
    },
    /// A setting without sense.
    #[error("{name} is {value}; {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// What was given.
        value: String,
        /// What would do.
        expected: &'static str,
    },
    /// Logits that no token can be drawn from.
    #[error(
        "the model's output contains NaN or infinity, so no token can be drawn; \
         its weights or activations overflow: try bfloat16 (`dtype`), or load it without 8 bit"
    )]
    BadLogits,
}

impl From<llm_int8_decoder::DecoderError> for LlmError {
    /// An error of a layer or a checkpoint is [`LlmError::Nn`], whichever crate it comes through.
    fn from(error: llm_int8_decoder::DecoderError) -> Self {
        match error {
            llm_int8_decoder::DecoderError::Nn(error) => Self::Nn(error),
            other => Self::Decoder(other),
        }
    }
}
