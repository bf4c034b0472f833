//! What happens to the sequences of an engine, and what the engine is doing.

use super::{Generated, Piece};
use crate::error::LlmError;

/// Identifies a sequence of an [`Engine`](super::Engine). Ids are not reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub(super) u64);

impl SequenceId {
    /// The id of a sequence that runs alone.
    pub(super) const ALONE: Self = Self(0);
}

/// Something that happened to a sequence.
#[derive(Debug)]
pub struct Event {
    /// The sequence.
    pub id: SequenceId,
    /// What happened.
    pub update: Update,
}

/// What can happen to a sequence.
#[derive(Debug)]
pub enum Update {
    /// The sequence runs now; its first event.
    Started {
        /// Tokens of the prompt, the reused ones included.
        prompt_tokens: usize,
        /// Of those, tokens whose keys and values were kept from earlier sequences.
        reused_tokens: usize,
    },
    /// A new token.
    Piece(Piece),
    /// The sequence has ended; this is its last event.
    Finished(Generated),
    /// An error has ended this sequence; this is its last event. After [`LlmError::PassFailed`] all
    /// sequences of the pass get one.
    Failed(LlmError),
}

/// What an [`Engine`](super::Engine) or a [`Service`](super::Service) is doing, and what it has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceState {
    /// Running sequences.
    pub running: usize,
    /// Sequences that wait for a free slot or for memory.
    pub waiting: usize,
    /// Bytes that the caches of running sequences may grow to, and those of kept prefixes.
    pub cache_bytes: u64,
    /// The limit of `cache_bytes`.
    pub cache_budget: Option<u64>,
    /// Kept prefixes.
    pub kept_prefixes: usize,
    /// Bytes of kept prefixes.
    pub kept_bytes: u64,
    /// Prompt tokens that were looked for among the kept prefixes.
    pub prefix_queries: u64,
    /// Those that were found.
    pub prefix_hits: u64,
    /// Prompt tokens of all sequences that started, reused ones included.
    pub prompt_tokens: u64,
    /// New tokens of all sequences.
    pub generated_tokens: u64,
    /// Forward passes.
    pub passes: u64,
    /// Those that failed.
    pub failed_passes: u64,
}
