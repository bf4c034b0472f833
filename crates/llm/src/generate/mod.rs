//! From a prompt to text, token by token, with drafts, or several prompts at once.
//!
//! A [`Generation`] is one prompt by itself, a [`Batch`] a known number of them, and an [`Engine`]
//! takes them as they come. All three run their sequences by the same passes (`running`), and
//! choose and end by the same rules (`sequence`).

mod batch;
mod config;
mod config_file;
mod draft;
mod engine;
#[cfg(test)]
mod engine_tests;
mod filters;
mod generation;
#[cfg(test)]
mod golden;
mod processors;
mod request;
mod running;
mod sampler;
mod sequence;
mod settings;
mod stop;
mod text_stream;

pub use batch::{Batch, Results};
pub use config::GenerationConfig;
pub use engine::{Engine, Event, SequenceId, Update};
pub use generation::{Generation, Pieces};
pub use request::{Prompt, Request};

pub(crate) use running::Context;

use std::time::Duration;

/// Why generating ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model said so with one of its end tokens.
    EndOfText,
    /// A stop string appeared.
    StopString,
    /// The requested number of tokens was generated.
    Length,
    /// `max_time` is over.
    Time,
    /// The caller had enough: pieces were no longer asked for, or the sequence was cancelled.
    Interrupted,
}

/// How long it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timing {
    /// Tokens of the prompt that were computed.
    pub prompt_tokens: usize,
    /// Tokens of the prompt whose keys and values were there from before.
    pub reused_tokens: usize,
    /// Time until the first new token.
    pub prefill: Duration,
    /// New tokens after the first.
    pub decoded_tokens: usize,
    /// Time for those.
    pub decode: Duration,
    /// Tokens drafted; 0 unless [`GenerationConfig::speculate`] is set.
    pub drafted_tokens: usize,
    /// Drafted tokens that the model would have chosen too.
    pub accepted_tokens: usize,
}

impl Timing {
    /// Prompt tokens a second.
    pub fn prefill_rate(&self) -> f64 {
        self.prompt_tokens as f64 / self.prefill.as_secs_f64().max(1e-9)
    }

    /// New tokens a second, the first not counted; none where there was only one.
    pub fn decode_rate(&self) -> Option<f64> {
        (self.decoded_tokens > 0)
            .then(|| self.decoded_tokens as f64 / self.decode.as_secs_f64().max(1e-9))
    }

    /// The share of drafted tokens that were accepted; none where none were drafted.
    pub fn acceptance_rate(&self) -> Option<f64> {
        (self.drafted_tokens > 0).then(|| self.accepted_tokens as f64 / self.drafted_tokens as f64)
    }
}

/// One new token and the text it completes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The token; an end token is one too.
    pub id: u32,
    /// The text, which never ends inside a character. Empty where it completes none, where it may
    /// be part of a stop string, and where ids alone are asked for.
    pub text: String,
}

/// What was generated.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The new text; empty where ids alone are asked for.
    pub text: String,
    /// The new ids, an end token included.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// How long it took.
    pub timing: Timing,
    /// Bytes of keys and values at the end.
    pub cache_bytes: u64,
}
