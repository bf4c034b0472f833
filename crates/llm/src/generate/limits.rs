//! How much an engine may run at once and keep.

use super::sequence::Prepared;
use crate::error::{LlmError, Result};
use llm_int8_decoder::Decoder;

/// Limits of an [`Engine`](super::Engine).
///
/// ```
/// use llm_int8::EngineConfig;
/// let config = EngineConfig { at_once: 4, prefix_cache_bytes: 256 << 20, ..EngineConfig::default() };
/// assert_eq!((config.cache_bytes, config.prefill_tokens), (None, 512));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// Sequences that run at once (default 8).
    pub at_once: usize,
    /// Bytes for the keys and values of running sequences and kept prefixes together; `None`: no
    /// limit. A sequence starts only if the cache it may grow to (prompt and new tokens) fits beside
    /// those of the running ones; kept prefixes are dropped first. Sequences start in the order in
    /// which they were added.
    pub cache_bytes: Option<u64>,
    /// Prompt tokens per pass (default 512). A pass is one row of every running sequence and a chunk
    /// of the prompts, so fewer tokens make a long prompt slow the others less. Models with dynamic
    /// NTK scaling get each prompt in one pass, and no prefixes are kept for them.
    pub prefill_tokens: usize,
    /// Bytes of keys and values that are kept after sequences ended, for later prompts that start
    /// with the same ids; 0 (the default): none. Unless it is 0, prompts also begin with what running
    /// sequences have computed, and wait while one of these computes at least half of them.
    pub prefix_cache_bytes: u64,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            at_once: 8,
            cache_bytes: None,
            prefill_tokens: 512,
            prefix_cache_bytes: 0,
        }
    }
}

impl EngineConfig {
    /// Rejects limits with which nothing could run.
    pub(super) fn check(&self) -> Result<()> {
        let refuse = |name| {
            Err(LlmError::Setting {
                name,
                value: "0".to_owned(),
                expected: "it must be 1 or more",
            })
        };

        match (self.at_once, self.prefill_tokens) {
            (0, _) => refuse("the number of sequences that run at once"),
            (_, 0) => refuse("the number of prompt tokens per pass"),
            _ => Ok(()),
        }
    }

    /// The limits for a model. One whose keys depend on the passes that computed them gets each
    /// prompt in one pass, and nothing is kept.
    pub(super) fn for_decoder(self, decoder: &Decoder) -> Self {
        match decoder.keys_depend_on_passes() {
            true => Self {
                prefill_tokens: usize::MAX,
                prefix_cache_bytes: 0,
                ..self
            },
            false => self,
        }
    }

    /// Refuses a request that an engine could never start.
    pub(super) fn check_size(&self, decoder: &Decoder, prepared: &Prepared) -> Result<()> {
        let tokens = prepared.most_tokens();
        let needed = decoder.cache_bytes(tokens);
        match self.cache_bytes {
            Some(available) if needed > available => Err(LlmError::CacheExceeded {
                tokens,
                needed,
                available,
            }),
            _ => Ok(()),
        }
    }
}
