//! The error type of this crate.

use std::path::PathBuf;

/// A result with [`LlmError`].
pub type Result<T, E = LlmError> = std::result::Result<T, E>;

/// What can go wrong between a model's name and the text it generates.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LlmError {
    /// A model's files could not be found or downloaded.
    #[error(transparent)]
    Hub(#[from] llm_int8_hub::HubError),
    /// A model could not be built, loaded or run.
    #[error(transparent)]
    Decoder(llm_int8_decoder::DecoderError),
    /// A checkpoint or a layer cannot be used.
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
        /// The system's error.
        source: std::io::Error,
    },
    /// A JSON file has the wrong content.
    #[error("{what} is not usable: {reason}")]
    MalformedJson {
        /// The file.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The model has no tokenizer, and text was given or asked for.
    #[error(
        "{model} has no tokenizer (neither tokenizer.json nor vocab.json with merges.txt), so it can neither read nor \
         write text, only token ids"
    )]
    NoTokenizer {
        /// The model.
        model: String,
    },
    /// The tokenizer's files cannot be used, or a text cannot be encoded or decoded.
    #[error("the tokenizer {what}: {reason}")]
    Tokenizer {
        /// Which model, or which operation.
        what: String,
        /// What it said.
        reason: String,
    },
    /// The model has no chat template.
    #[error(
        "{model} has no chat template (neither chat_template.jinja nor one in tokenizer_config.json); \
         give one, or generate from plain text without roles"
    )]
    NoChatTemplate {
        /// The model.
        model: String,
    },
    /// The chat template is invalid, or rejected the messages.
    #[error("the chat template: {reason}")]
    ChatTemplate {
        /// What it said.
        reason: String,
    },
    /// One turn of a conversation does not fit the model's context.
    #[error(
        "this turn has {tokens} tokens with what the chat template adds, but the model has {available} positions; \
         shorten it"
    )]
    TurnTooLong {
        /// Tokens of the turn, including the system message.
        tokens: usize,
        /// Positions of the model.
        available: usize,
    },
    /// The caller stopped the operation.
    #[error("interrupted")]
    Interrupted,
    /// The prompt has no tokens.
    #[error("the prompt is empty and the model has no begin-of-sequence token; give a prompt")]
    EmptyPrompt,
    /// The prompt and the new tokens do not fit the model's positions.
    #[error(
        "the prompt has {prompt} tokens and {new} new ones are requested, but the model has {available} positions; \
         request fewer, shorten the prompt, or cut off its beginning (`truncate`)"
    )]
    ContextExceeded {
        /// Tokens of the prompt.
        prompt: usize,
        /// New tokens requested.
        new: usize,
        /// Positions of the model.
        available: usize,
    },
    /// One of several prompts failed.
    #[error("prompt {number}: {source}")]
    Prompt {
        /// Which one, counted from 1.
        number: usize,
        /// What is wrong with it.
        source: Box<LlmError>,
    },
    /// The model to compare with cannot be used.
    #[error("{model}, to compare with: {source}")]
    Against {
        /// Its name.
        model: String,
        /// What is wrong with it.
        source: Box<LlmError>,
    },
    /// A setting has an invalid value.
    #[error("{name} is {value}; {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is allowed, or why the value is not.
        expected: &'static str,
    },
    /// The logits are NaN or infinite, so no token can be chosen.
    #[error(
        "the model's output contains NaN or infinity, so no token can be drawn; \
         its weights or activations overflow: try bfloat16 (`dtype`), or load it without 8 bit"
    )]
    BadLogits,
    /// The grammar of a sequence failed ([`TokenConstraint`](crate::generate::TokenConstraint)).
    #[error("the constraint on tokens: {reason}")]
    Constraint {
        /// What it said.
        reason: String,
    },
    /// The keys and values of one request would exceed all memory that an engine may use for them.
    #[error(
        "the request has {tokens} tokens with the new ones, whose keys and values need {needed} bytes, but the engine \
         may use {available}; request fewer tokens, or give the engine more (`cache_bytes`)"
    )]
    CacheExceeded {
        /// Tokens of the prompt and new ones.
        tokens: usize,
        /// Bytes of their cache.
        needed: u64,
        /// The engine's limit.
        available: u64,
    },
    /// A forward pass failed, and with it the sequences that took part.
    #[error("the forward pass failed: {reason}")]
    PassFailed {
        /// The error or the panic.
        reason: String,
    },
}

impl From<llm_int8_decoder::DecoderError> for LlmError {
    /// An error of a layer or a checkpoint is [`LlmError::Nn`], whichever crate it came through.
    fn from(error: llm_int8_decoder::DecoderError) -> Self {
        match error {
            llm_int8_decoder::DecoderError::Nn(error) => Self::Nn(error),
            other => Self::Decoder(other),
        }
    }
}
