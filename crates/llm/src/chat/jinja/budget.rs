//! Limits on what a template may cost. Jinja2 has none; a template comes from whoever published the
//! model, so here it gets a fixed amount of work, of text, and of nesting.

use super::error::{Error, Result};

/// Units of work: one for each node that is evaluated and for each element visited, one for every
/// 16 bytes of text that an operation reads or writes. A hundred thousand messages need fewer.
const WORK: u64 = 32 << 20;

/// Bytes of one text, the rendered conversation included.
pub(super) const LONGEST_TEXT: usize = 64 << 20;

/// Elements of one list.
pub(super) const LONGEST_LIST: usize = 1 << 20;

/// Nesting of evaluation: expressions, statements and macro calls inside of each other.
const DEEPEST_EVALUATION: u32 = 900;

/// Bytes that count as one unit of work.
const BYTES_PER_UNIT: usize = 16;

/// Work and nesting that are left.
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

    /// Takes units of work.
    pub(super) fn spend(&mut self, units: u64) -> Result<()> {
        self.work = self.work.checked_sub(units).ok_or_else(Error::endless)?;
        Ok(())
    }

    /// Begins an evaluation inside of another; [`Budget::leave`] ends it.
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

/// Units of work of a text.
pub(super) fn text_units(bytes: usize) -> u64 {
    1 + (bytes / BYTES_PER_UNIT) as u64
}

/// An error for a text of more bytes than one may have; `None` stands for an overflow.
pub(super) fn check_text(bytes: Option<usize>) -> Result<usize> {
    bytes
        .filter(|bytes| *bytes <= LONGEST_TEXT)
        .ok_or_else(Error::too_large)
}

/// An error for a list of more elements than one may have; `None` stands for an overflow.
pub(super) fn check_list(elements: Option<usize>) -> Result<usize> {
    elements
        .filter(|elements| *elements <= LONGEST_LIST)
        .ok_or_else(|| {
            Error::new(format!(
                "it makes a list of more than {LONGEST_LIST} elements"
            ))
        })
}

/// A text that grows up to the limit.
#[derive(Debug, Default)]
pub(super) struct Text(String);

impl Text {
    pub(super) fn push(&mut self, text: &str) -> Result<()> {
        check_text(self.0.len().checked_add(text.len()))?;
        self.0.push_str(text);
        Ok(())
    }

    /// The same character, `count` times.
    pub(super) fn pad(&mut self, with: char, count: usize) -> Result<()> {
        check_text(
            count
                .checked_mul(with.len_utf8())
                .and_then(|bytes| bytes.checked_add(self.0.len())),
        )?;
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
