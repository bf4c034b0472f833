//! Grammars: which tokens may come next, decided outside of this crate.

use crate::error::{LlmError, Result};
use crate::guard::caught;
use std::fmt;

/// The tokens that a [`TokenConstraint`] allows: one bit for each id, id 0 in the lowest bit of the
/// first word. Ids beyond the last word are not allowed.
///
/// ```
/// use llm_int8::generate::TokenMask;
/// let mask = TokenMask::from_words(vec![0b101, 1]);
/// assert!(mask.allows(0) && !mask.allows(1) && mask.allows(2) && mask.allows(32));
/// assert!(!mask.allows(64));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenMask(Vec<u32>);

impl TokenMask {
    /// A mask of these words.
    pub fn from_words(words: Vec<u32>) -> Self {
        Self(words)
    }

    /// Whether a token is allowed.
    pub fn allows(&self, id: u32) -> bool {
        self.0
            .get(id as usize / 32)
            .is_some_and(|word| word >> (id % 32) & 1 == 1)
    }
}

/// A grammar that a sequence must follow. It is asked before each token and told the token that
/// was chosen, also if that ends the sequence.
///
/// An error or a panic ends this sequence with [`LlmError::Constraint`] and no other.
pub trait TokenConstraint: Send {
    /// The tokens that may come next; `None`: all of them. At least one token of the vocabulary
    /// must be allowed.
    ///
    /// # Errors
    /// What is wrong, for a reader.
    fn allowed(&mut self) -> Result<Option<TokenMask>, String>;

    /// Takes the chosen token. True: the text is complete, and the sequence ends here with
    /// [`FinishReason::EndOfText`](super::FinishReason::EndOfText).
    ///
    /// # Errors
    /// What is wrong, for a reader.
    fn accept(&mut self, id: u32) -> Result<bool, String>;
}

/// A constraint whose panics are errors.
pub(super) struct Constraint(pub(super) Box<dyn TokenConstraint>);

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenConstraint")
    }
}

impl Constraint {
    pub(super) fn allowed(&mut self) -> Result<Option<TokenMask>> {
        flat(caught(|| self.0.allowed()))
    }

    pub(super) fn accept(&mut self, id: u32) -> Result<bool> {
        flat(caught(|| self.0.accept(id)))
    }
}

fn flat<T>(outcome: Result<Result<T, String>, String>) -> Result<T> {
    outcome
        .unwrap_or_else(Err)
        .map_err(|reason| LlmError::Constraint { reason })
}
