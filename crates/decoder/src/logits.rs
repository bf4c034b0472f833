//! The logits of a pass, left on the CPU or the device that computed them, and the choice of the
//! most likely tokens there.

use crate::error::{DecoderError, Result};
use crate::execute::Spare;
use crate::execute::gpu::{HeadMemory, StagePass};
use llm_int8_cuda::ops::{Logits as DeviceLogits, Selected, penalise, select};
use std::fmt;
use std::ops::Range;

/// Maximum number of tokens chosen on a device; for more, the whole row of logits is copied.
pub(super) const MOST_CHOSEN: usize = 1024;
/// Maximum number of rows whose largest logits are found by one launch: each needs 12 bytes of the
/// memory that has 8 bytes for each of [`MOST_CHOSEN`] tokens.
const MOST_ROWS: usize = 8 * MOST_CHOSEN / 12;

/// A token and its logit.
type Token = (u32, f32);

/// The logits of a pass, one row for each requested position, on the CPU or still on a device.
pub struct Logits<'a> {
    place: Place<'a>,
    rows: usize,
    vocabulary: usize,
}

enum Place<'a> {
    Cpu(OnCpu<'a>),
    Device {
        pass: StagePass<'a>,
        /// The most likely token of each row (none: the row is not finite). Filled by the first
        /// call that needs one; cleared when a penalty changes a row.
        largest: Option<Vec<Option<Token>>>,
    },
}

/// Logits on the CPU, and where their memory is kept for the next pass.
struct OnCpu<'a> {
    values: Vec<f32>,
    spare: Option<&'a Spare>,
}

impl Drop for OnCpu<'_> {
    fn drop(&mut self) {
        if let Some(spare) = self.spare {
            spare.give_logits(std::mem::take(&mut self.values));
        }
    }
}

/// Which tokens [`Logits::choose`] returns.
#[derive(Debug, Clone, Copy)]
pub struct Choice<'a> {
    /// The number of tokens: the most likely ones.
    pub count: usize,
    /// Repetition penalty: positive logits of tokens in `seen` are divided by it, negative ones
    /// multiplied. 1: none.
    pub penalty: f32,
    /// Tokens to penalise; repetitions do not matter.
    pub seen: &'a [u32],
}

impl fmt::Debug for Logits<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logits")
            .field("rows", &self.rows)
            .field("vocabulary", &self.vocabulary)
            .finish()
    }
}

impl<'a> Logits<'a> {
    /// Logits of a pass on the CPU; `spare` gets their memory back.
    pub(super) fn on_cpu(logits: Vec<f32>, vocabulary: usize, spare: &'a Spare) -> Self {
        Self {
            rows: logits.len() / vocabulary.max(1),
            vocabulary,
            place: Place::Cpu(OnCpu {
                values: logits,
                spare: Some(spare),
            }),
        }
    }

    pub(super) fn on_device(pass: StagePass<'a>, rows: usize, vocabulary: usize) -> Self {
        Self {
            place: Place::Device {
                pass,
                largest: None,
            },
            rows,
            vocabulary,
        }
    }

    /// Number of rows: one for each requested position.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// All logits, f32 `[rows, V]`, copied from the device if they are on one.
    ///
    /// # Errors
    /// [`DecoderError::Cuda`].
    pub fn into_vec(self) -> Result<Vec<f32>> {
        match self.place {
            Place::Cpu(mut logits) => {
                logits.spare = None;
                Ok(std::mem::take(&mut logits.values))
            }
            Place::Device { pass, .. } => {
                let mut logits = vec![0f32; self.rows * self.vocabulary];
                pass.head()?.logits.all().read(&mut logits)?;
                Ok(logits)
            }
        }
    }

    /// The most likely tokens of a row with their logits, the most likely first; of equal logits,
    /// the lower id first. A penalty changes the row for good, so call this once per row.
    ///
    /// From a device, only these tokens are copied. For one token per row without a penalty, the
    /// first call finds those of all rows with one launch and one copy.
    ///
    /// ```
    /// use llm_int8_decoder::{Choice, Logits};
    /// let mut logits = Logits::from_vec(vec![0.5, 3.0, 2.0, 3.0], 4);
    /// let choice = Choice { count: 2, penalty: 1.0, seen: &[] };
    /// assert_eq!(logits.choose(0, &choice)?, [(1, 3.0), (3, 3.0)]);
    /// # Ok::<(), llm_int8_decoder::DecoderError>(())
    /// ```
    ///
    /// # Errors
    /// [`DecoderError::NonFiniteLogits`] for a row with NaN or infinity; [`DecoderError::Cuda`];
    /// [`DecoderError::Input`] for a row that does not exist.
    pub fn choose(&mut self, row: usize, choice: &Choice<'_>) -> Result<Vec<(u32, f32)>> {
        let range = self.range(row)?;
        let (pass, largest) = match &mut self.place {
            Place::Cpu(logits) => return choose_on_cpu(&mut logits.values[range], choice),
            Place::Device { pass, largest } => (pass, largest),
        };
        let memory = pass.head()?;

        if choice.count == 1 && choice.penalty == 1.0 && self.rows <= MOST_ROWS {
            if largest.is_none() {
                *largest = Some(largest_of_rows(memory, self.rows, self.vocabulary)?);
            }
            let token = largest.as_ref().and_then(|tokens| tokens[row]);
            return token
                .map(|token| vec![token])
                .ok_or(DecoderError::NonFiniteLogits);
        }

        if choice.count.min(self.vocabulary) <= MOST_CHOSEN {
            if choice.penalty != 1.0 {
                *largest = None;
            }
            return choose_on_device(memory, range, choice);
        }

        let mut logits = vec![0f32; self.vocabulary];
        memory.logits.part(range)?.read(&mut logits)?;
        choose_on_cpu(&mut logits, choice)
    }

    /// A copy of one row, f32 `[V]`, which may contain NaN and infinities.
    ///
    /// # Errors
    /// [`DecoderError::Cuda`]; [`DecoderError::Input`] for a row that does not exist.
    pub fn row(&self, row: usize) -> Result<Vec<f32>> {
        let range = self.range(row)?;
        match &self.place {
            Place::Cpu(logits) => Ok(logits.values[range].to_vec()),
            Place::Device { pass, .. } => {
                let mut logits = vec![0f32; self.vocabulary];
                pass.head()?.logits.part(range)?.read(&mut logits)?;
                Ok(logits)
            }
        }
    }

    /// The range of a row among all logits.
    fn range(&self, row: usize) -> Result<Range<usize>> {
        if row >= self.rows {
            let reason = format!(
                "there is no row {row}: {} positions were requested",
                self.rows
            );
            return Err(DecoderError::Input {
                model: "logits".into(),
                reason,
            });
        }
        Ok(row * self.vocabulary..(row + 1) * self.vocabulary)
    }

    /// Logits `[rows, vocabulary]` on the CPU.
    pub fn from_vec(logits: Vec<f32>, vocabulary: usize) -> Logits<'static> {
        Logits {
            rows: logits.len() / vocabulary.max(1),
            place: Place::Cpu(OnCpu {
                values: logits,
                spare: None,
            }),
            vocabulary,
        }
    }
}

/// The ids inside the vocabulary, sorted and without repetitions.
fn distinct(seen: &[u32], vocabulary: usize) -> Vec<u32> {
    let mut seen: Vec<u32> = seen
        .iter()
        .copied()
        .filter(|id| (*id as usize) < vocabulary)
        .collect();
    seen.sort_unstable();
    seen.dedup();
    seen
}

/// Most likely first. Equal logits are ordered by id, so that a seed gives the same text on every
/// machine.
fn by_likelihood(a: &Token, b: &Token) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

fn choose_on_cpu(logits: &mut [f32], choice: &Choice<'_>) -> Result<Vec<Token>> {
    // A fold instead of `any`: without an early exit the loop is vectorised.
    if logits
        .iter()
        .fold(false, |bad, logit| bad | !logit.is_finite())
    {
        return Err(DecoderError::NonFiniteLogits);
    }

    if choice.penalty != 1.0 {
        for id in distinct(choice.seen, logits.len()) {
            let logit = &mut logits[id as usize];
            *logit = if *logit > 0.0 {
                *logit / choice.penalty
            } else {
                *logit * choice.penalty
            };
        }
    }
    Ok(largest(logits, choice.count))
}

/// The `count` largest logits of a row with their ids, in the order of [`Logits::choose`]. The row
/// may contain infinities: -inf rules a token out.
pub fn largest(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    if count == 1 {
        let id = most_likely(logits);
        return logits
            .get(id as usize)
            .map(|logit| (id, *logit))
            .into_iter()
            .collect();
    }

    let mut tokens: Vec<Token> = (0u32..).zip(logits.iter().copied()).collect();
    if count < tokens.len() && count > 0 {
        tokens.select_nth_unstable_by(count - 1, by_likelihood);
    }
    tokens.truncate(count);
    tokens.sort_unstable_by(by_likelihood);
    tokens
}

/// The id of the largest logit, the first of equal ones (as `torch.argmax` on a CPU).
fn most_likely(logits: &[f32]) -> u32 {
    // Sixteen running maxima are vectorised; a search that keeps the index is not.
    const LANES: usize = 16;
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (whole, rest) = logits.as_chunks::<LANES>();

    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in whole {
        lanes
            .iter_mut()
            .zip(chunk)
            .for_each(|(lane, x)| *lane = larger(*lane, *x));
    }
    let largest = lanes
        .iter()
        .chain(rest)
        .copied()
        .fold(f32::NEG_INFINITY, larger);

    logits
        .iter()
        .position(|logit| *logit == largest)
        .unwrap_or(0) as u32
}

/// The most likely token of each row of logits `[rows, vocabulary]`; none for a row that is not
/// finite.
fn largest_of_rows(
    memory: &HeadMemory,
    rows: usize,
    vocabulary: usize,
) -> Result<Vec<Option<Token>>> {
    // All ids, then all logits, then all marks of bad rows: one copy reads them.
    let found = memory.chosen.part(..12 * rows)?;
    let into = Selected {
        ids: found.part(..4 * rows)?.cast()?,
        values: found.part(4 * rows..8 * rows)?.cast()?,
        is_bad: found.part(8 * rows..)?.cast()?,
    };
    let logits = DeviceLogits {
        values: memory.logits.all(),
        rows,
        vocabulary,
    };
    select(&logits, 1, &into)?;

    let mut words = vec![0u32; 3 * rows];
    found.cast::<u32>()?.read(&mut words)?;

    let token = |row: usize| {
        let id = words[row];
        let logit = f32::from_bits(words[rows + row]);
        let is_bad = words[2 * rows + row] != 0;
        (!is_bad).then_some((id, logit))
    };
    Ok((0..rows).map(token).collect())
}

/// The most likely tokens of the row of logits at `range`.
fn choose_on_device(
    memory: &HeadMemory,
    range: Range<usize>,
    choice: &Choice<'_>,
) -> Result<Vec<Token>> {
    let vocabulary = range.len();
    let row = memory.logits.part(range)?;

    if choice.penalty != 1.0 {
        let seen = distinct(choice.seen, vocabulary);
        memory.seen.all().write(&seen)?;
        penalise(row, memory.seen.all(), seen.len(), choice.penalty)?;
    }
    let count = choice.count.min(vocabulary);
    if count == 0 {
        return Ok(Vec::new());
    }

    // All ids, then all logits, then the mark of a bad row: one copy reads them.
    let found = memory.chosen.part(..8 * count + 4)?;
    let into = Selected {
        ids: found.part(..4 * count)?.cast()?,
        values: found.part(4 * count..8 * count)?.cast()?,
        is_bad: found.part(8 * count..)?.cast()?,
    };
    let logits = DeviceLogits {
        values: row,
        rows: 1,
        vocabulary,
    };
    select(&logits, count, &into)?;

    let mut bytes = vec![0u8; 8 * count + 4];
    found.read(&mut bytes)?;
    let words: Vec<u32> = bytemuck::allocation::pod_collect_to_vec(&bytes);
    if words[2 * count] != 0 {
        return Err(DecoderError::NonFiniteLogits);
    }

    let values = words[count..2 * count]
        .iter()
        .map(|bits| f32::from_bits(*bits));
    let mut tokens: Vec<Token> = words[..count].iter().copied().zip(values).collect();
    tokens.sort_unstable_by(by_likelihood);
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(logits: &[f32], count: usize, penalty: f32, seen: &[u32]) -> Result<Vec<u32>> {
        let choice = Choice {
            count,
            penalty,
            seen,
        };
        let chosen = Logits::from_vec(logits.to_vec(), logits.len()).choose(0, &choice)?;
        Ok(chosen.into_iter().map(|(id, _)| id).collect())
    }

    #[test]
    fn the_most_likely_tokens_come_first_and_ties_are_broken_by_id() {
        let logits = [1.0, 3.0, 3.0, -1.0];
        assert_eq!(choose(&logits, 1, 1.0, &[]).unwrap(), [1]);
        assert_eq!(choose(&logits, 3, 1.0, &[]).unwrap(), [1, 2, 0]);
        assert_eq!(choose(&logits, 9, 1.0, &[]).unwrap(), [1, 2, 0, 3]);
    }

    #[test]
    fn a_penalty_divides_positive_logits_and_multiplies_negative_ones_once() {
        let mut logits = Logits::from_vec(vec![4.0, -1.0, 3.0], 3);
        let choice = Choice {
            count: 3,
            penalty: 2.0,
            seen: &[0, 0, 1, 77],
        };
        assert_eq!(
            logits.choose(0, &choice).unwrap(),
            [(2, 3.0), (0, 2.0), (1, -2.0)]
        );
    }

    #[test]
    fn rows_are_copied_unchanged_and_largest_accepts_infinities() {
        let logits = Logits::from_vec(vec![1.0, f32::NEG_INFINITY, 2.0, f32::NAN], 2);
        assert_eq!(logits.row(0).unwrap(), [1.0, f32::NEG_INFINITY]);
        assert!(logits.row(1).unwrap()[1].is_nan() && logits.row(2).is_err());

        let inf = f32::NEG_INFINITY;
        assert_eq!(largest(&[inf, 1.0, inf], 2), [(1, 1.0), (0, inf)]);
        assert_eq!(
            largest(&[inf, inf], 1),
            [(0, inf)],
            "like torch.argmax when all tokens are ruled out"
        );
        assert!(largest(&[], 1).is_empty());
    }

    #[test]
    fn nan_and_a_missing_row_are_errors() {
        assert!(matches!(
            choose(&[f32::NAN], 1, 1.0, &[]),
            Err(DecoderError::NonFiniteLogits)
        ));
        assert!(
            Logits::from_vec(vec![1.0], 1)
                .choose(
                    1,
                    &Choice {
                        count: 1,
                        penalty: 1.0,
                        seen: &[]
                    }
                )
                .is_err()
        );
    }
}
