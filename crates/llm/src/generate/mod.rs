//! Text generation: one prompt, a batch of them, or an engine with continuous batching.
//!
//! A [`Generation`] runs a single prompt, a [`Batch`] a fixed list of them, an [`Engine`] takes
//! requests at any time, and a [`Service`] runs an engine on a thread. All share the forward pass
//! (`running`) and the rules for choosing tokens and stopping (`sequence`).

mod batch;
mod config;
mod config_file;
mod config_tables;
mod constraint;
mod draft;
mod engine;
#[cfg(test)]
mod engine_tests;
mod events;
#[cfg(test)]
mod failures;
mod filters;
mod generation;
#[cfg(test)]
mod golden;
mod limits;
mod logprobs;
mod prefix;
mod processors;
mod request;
mod running;
mod sampler;
mod schedule;
mod sequence;
mod service;
mod settings;
mod stop;
mod text_stream;

pub use batch::{Batch, Results};
pub use config::GenerationConfig;
pub use constraint::{TokenConstraint, TokenMask};
pub use engine::Engine;
pub use events::{Event, SequenceId, ServiceState, Update};
pub use generation::{Generation, Pieces};
pub use limits::EngineConfig;
pub use logprobs::Logprob;
pub use request::{Prompt, Request};
pub use service::{OnUpdate, SequenceHandle, Service, SubmitError};

pub(crate) use running::Context;

use std::time::Duration;

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model produced one of its end-of-sequence tokens.
    EndOfText,
    /// A stop string appeared.
    StopString,
    /// The requested number of tokens was generated.
    Length,
    /// `max_time` has passed.
    Time,
    /// The caller stopped: it asked for no more pieces, or cancelled the sequence.
    Interrupted,
}

/// How long generation took, and for how many tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timing {
    /// Prompt tokens that were computed.
    pub prompt_tokens: usize,
    /// Prompt tokens whose keys and values were already in the cache.
    pub reused_tokens: usize,
    /// Time until the first new token.
    pub prefill: Duration,
    /// New tokens, without the first.
    pub decoded_tokens: usize,
    /// Time for those tokens.
    pub decode: Duration,
    /// Drafted tokens; 0 unless [`GenerationConfig::speculate`] is set.
    pub drafted_tokens: usize,
    /// Drafted tokens that were accepted, because the model chose them too.
    pub accepted_tokens: usize,
}

impl Timing {
    /// Prompt tokens per second.
    pub fn prefill_rate(&self) -> f64 {
        self.prompt_tokens as f64 / self.prefill.as_secs_f64().max(1e-9)
    }

    /// New tokens per second, without the first; `None` if there was only one.
    pub fn decode_rate(&self) -> Option<f64> {
        (self.decoded_tokens > 0)
            .then(|| self.decoded_tokens as f64 / self.decode.as_secs_f64().max(1e-9))
    }

    /// The fraction of drafted tokens that were accepted; `None` if none were drafted.
    pub fn acceptance_rate(&self) -> Option<f64> {
        (self.drafted_tokens > 0).then(|| self.accepted_tokens as f64 / self.drafted_tokens as f64)
    }
}

/// One new token and the text it completes.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// The token id; end tokens are included.
    pub id: u32,
    /// The text, which never ends inside a character. Empty if the token completes no character, if
    /// the text may be the beginning of a stop string, or if only ids are requested.
    pub text: String,
    /// Its log-probability, if [`Request::logprobs`] asked for it.
    pub logprob: Option<Logprob>,
}

/// What was generated.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The new text; empty if only ids are requested.
    pub text: String,
    /// The new ids, including the end token.
    pub ids: Vec<u32>,
    /// Why generation ended.
    pub finish_reason: FinishReason,
    /// How long it took.
    pub timing: Timing,
    /// Size of the key/value cache at the end, in bytes.
    pub cache_bytes: u64,
    /// The log-probability of each token of the prompt, if [`Request::prompt_logprobs`] asked for
    /// them; none for the first token, and for those that were not computed when the sequence ended.
    pub prompt_logprobs: Vec<Option<Logprob>>,
}
