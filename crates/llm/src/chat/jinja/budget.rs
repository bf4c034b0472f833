//! Limits on what a template may cost. Jinja2 has none, but a template comes from whoever published
//! the model: it gets a fixed budget of work, output and nesting.

use super::error::{Error, Result};
use super::held::{self, Held};

/// Units of work of one rendering: one for each node evaluated, one for each element visited, one
/// for every 16 bytes of text that an operation reads or writes. A conversation of a hundred
/// thousand messages needs fewer.
const WORK: u64 = 32 << 20;

/// The longest string, in bytes. The rendered conversation is one of them.
pub(super) const LONGEST_TEXT: usize = 32 << 20;

/// The longest list, in elements.
pub(super) const LONGEST_LIST: usize = 1 << 20;

/// The deepest nesting of expressions, statements and macro calls while they are evaluated. A level
/// takes up to 2.4 kB of stack, and threads have 2 MiB.
const DEEPEST_EVALUATION: u32 = 400;

/// Units of work of a list, a string or another value with memory of its own, which an operation makes
/// for every element that it visits. Allocating and freeing it takes that much longer than a visit.
pub(super) const MAKING: u64 = 6;

/// Bytes of text that count as one unit of work.
const BYTES_PER_UNIT: usize = 16;

/// The work that is left and the current nesting.
#[derive(Debug)]
pub(super) struct Budget {
    work: u64,
    depth: u32,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self {
            work: WORK,
            depth: 0,
        }
    }

    /// Takes units of work; an error once none are left, or values take too much memory.
    pub(super) fn spend(&mut self, units: u64) -> Result<()> {
        self.work = self.work.checked_sub(units).ok_or_else(Error::endless)?;
        held::check()
    }

    /// Begins a nested evaluation; [`Budget::leave`] ends it. After an error nothing need be left:
    /// the rendering is over.
    pub(super) fn enter(&mut self) -> Result<()> {
        self.spend(1)?;
        if self.depth >= DEEPEST_EVALUATION {
            return Err(Error::new("it recurses too deeply"));
        }
        self.depth += 1;
        Ok(())
    }

    pub(super) fn leave(&mut self) {
        self.depth -= 1;
    }
}

/// Units of work of a string of `bytes` bytes.
pub(super) fn text_units(bytes: usize) -> u64 {
    1 + (bytes / BYTES_PER_UNIT) as u64
}

/// Checks the length of a string before it is made; `None` stands for an overflow.
pub(super) fn check_text(bytes: Option<usize>) -> Result<usize> {
    bytes
        .filter(|bytes| *bytes <= LONGEST_TEXT)
        .ok_or_else(Error::too_large)
}

/// Checks the length of a list before it is made; `None` stands for an overflow.
pub(super) fn check_list(elements: Option<usize>) -> Result<usize> {
    elements
        .filter(|elements| *elements <= LONGEST_LIST)
        .ok_or_else(|| {
            Error::new(format!(
                "it makes a list of more than {LONGEST_LIST} elements"
            ))
        })
}

/// A growing string that refuses to exceed [`LONGEST_TEXT`].
#[derive(Debug, Default)]
pub(super) struct Text(String, Held);

impl Text {
    pub(super) fn push(&mut self, text: &str) -> Result<()> {
        check_text(self.0.len().checked_add(text.len()))?;
        self.1.grow(text.len());
        self.0.push_str(text);
        Ok(())
    }

    /// Appends `count` times the same character.
    pub(super) fn pad(&mut self, with: char, count: usize) -> Result<()> {
        check_text(
            count
                .checked_mul(with.len_utf8())
                .and_then(|bytes| bytes.checked_add(self.0.len())),
        )?;
        self.1.grow(count * with.len_utf8());
        self.0.extend(std::iter::repeat_n(with, count));
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn into_string(self) -> String {
        self.0
    }
}
