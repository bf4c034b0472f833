//! Logits of a pass, where they were computed, and the few tokens among them that matter.

use crate::error::{DecoderError, Result};
use crate::execute::gpu::{HeadMemory, StagePass};
use llm_int8_cuda::ops::{Logits as DeviceLogits, Selected, penalise, select};
use std::fmt;

/// Tokens from which on a whole row of logits is fetched from a device.
pub(super) const MOST_CHOSEN: usize = 1024;
/// Rows whose most likely tokens fit into the memory for as many tokens.
const MOST_ROWS: usize = 8 * MOST_CHOSEN / 12;

/// Logits of the positions requested of a pass, row by row, on the CPU or still on a device.
pub struct Logits<'a> {
    place: Place<'a>,
    rows: usize,
    vocabulary: usize,
}

enum Place<'a> {
    Cpu(Vec<f32>),
    /// With the most likely token of each row and its logit (none: the row is not finite), once one
    /// of them was asked for and as long as no penalty changes a row.
    Device(StagePass<'a>, Option<Vec<Option<(u32, f32)>>>),
}

/// Which tokens are asked for.
#[derive(Debug, Clone, Copy)]
pub struct Choice<'a> {
    /// How many of the most likely tokens.
    pub count: usize,
    /// Logits of tokens in `seen` are divided by it, negative ones multiplied; 1: not.
    pub penalty: f32,
    /// Tokens that were there, each as often as one likes.
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
    pub(super) fn on_device(pass: StagePass<'a>, rows: usize, vocabulary: usize) -> Self {
        Self {
            place: Place::Device(pass, None),
            rows,
            vocabulary,
        }
    }

    /// Number of rows: one for each position requested.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// All of them: f32 `[rows, V]`.
    ///
    /// # Errors
    /// [`DecoderError::Cuda`].
    pub fn into_vec(self) -> Result<Vec<f32>> {
        match self.place {
            Place::Cpu(logits) => Ok(logits),
            Place::Device(pass, _) => {
                let mut logits = vec![0f32; self.rows * self.vocabulary];
                pass.head()?.logits.all().read(&mut logits)?;
                Ok(logits)
            }
        }
    }

    /// The most likely tokens of a row with their logits, the most likely first, equal ones by
    /// their ids. The penalty changes the row: ask once for each.
    ///
    /// On a device only these tokens cross the bus. The most likely token of every row comes by one
    /// launch and one copy, when that of the first row is asked for.
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
    /// [`DecoderError::NonFiniteLogits`]; [`DecoderError::Cuda`]; [`DecoderError::Input`] for a row
    /// that is not there.
    pub fn choose(&mut self, row: usize, choice: &Choice<'_>) -> Result<Vec<(u32, f32)>> {
        let range = self.range(row)?;
        let shape = [self.rows, self.vocabulary];
        match &mut self.place {
            Place::Cpu(logits) => choose_on_cpu(&mut logits[range], choice),
            Place::Device(pass, largest)
                if choice.count == 1 && choice.penalty == 1.0 && self.rows <= MOST_ROWS =>
            {
                if largest.is_none() {
                    *largest = Some(largest_of_rows(pass.head()?, shape)?);
                }
                let of_row = largest.as_ref().and_then(|all| all[row]);
                of_row
                    .map(|found| vec![found])
                    .ok_or(DecoderError::NonFiniteLogits)
            }
            Place::Device(pass, largest) if choice.count.min(self.vocabulary) <= MOST_CHOSEN => {
                if choice.penalty != 1.0 {
                    *largest = None;
                }
                choose_on_device(pass.head()?, range, choice)
            }
            Place::Device(pass, _) => {
                let mut logits = vec![0f32; self.vocabulary];
                pass.head()?.logits.part(range)?.read(&mut logits)?;
                choose_on_cpu(&mut logits, choice)
            }
        }
    }

    /// A copy of one row: f32 `[V]`, whatever is in it. On a device it crosses the bus.
    ///
    /// # Errors
    /// [`DecoderError::Cuda`]; [`DecoderError::Input`] for a row that is not there.
    pub fn row(&self, row: usize) -> Result<Vec<f32>> {
        let range = self.range(row)?;
        match &self.place {
            Place::Cpu(logits) => Ok(logits[range].to_vec()),
            Place::Device(pass, _) => {
                let mut logits = vec![0f32; self.vocabulary];
                pass.head()?.logits.part(range)?.read(&mut logits)?;
                Ok(logits)
            }
        }
    }

    /// Where a row lies among all logits.
    fn range(&self, row: usize) -> Result<std::ops::Range<usize>> {
        if row >= self.rows {
            let reason = format!("there are logits of {} positions, not of {row}", self.rows);
            return Err(DecoderError::Input {
                model: "logits".into(),
                reason,
            });
        }
        Ok(row * self.vocabulary..(row + 1) * self.vocabulary)
    }

    /// Logits `[rows, vocabulary]` that were made elsewhere.
    pub fn from_vec(logits: Vec<f32>, vocabulary: usize) -> Logits<'static> {
        Logits {
            rows: logits.len() / vocabulary.max(1),
            place: Place::Cpu(logits),
            vocabulary,
        }
    }
}

/// Each token once, in order.
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

/// Equal logits go by id, so that the same seed gives the same text everywhere.
fn by_likelihood(a: &(u32, f32), b: &(u32, f32)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

fn choose_on_cpu(logits: &mut [f32], choice: &Choice<'_>) -> Result<Vec<(u32, f32)>> {
    // No early end: a loop over all is vectorised.
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

/// The `count` largest of a row of logits with their ids, in the order of [`Logits::choose`]. The
/// row may hold infinities, as a row does in which tokens are ruled out by -inf.
pub fn largest(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    if count == 1 {
        let id = most_likely(logits);
        return logits
            .get(id as usize)
            .map(|logit| (id, *logit))
            .into_iter()
            .collect();
    }
    let mut tokens: Vec<(u32, f32)> = (0u32..).zip(logits.iter().copied()).collect();
    if count < tokens.len() && count > 0 {
        tokens.select_nth_unstable_by(count - 1, by_likelihood);
    }
    tokens.truncate(count);
    tokens.sort_unstable_by(by_likelihood);
    tokens
}

/// The token of the largest logit, the first of equal ones (as `torch.argmax` on a CPU).
fn most_likely(logits: &[f32]) -> u32 {
    // Sixteen maxima side by side are vectorised, a search for the first is not.
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

/// The most likely token of each row `[rows, vocabulary]` with its logit; none where a logit is not
/// finite.
fn largest_of_rows(
    memory: &HeadMemory,
    [rows, vocabulary]: [usize; 2],
) -> Result<Vec<Option<(u32, f32)>>> {
    // Ids, logits and marks in one piece, so that one copy fetches them.
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
    let of_row = |row: usize| {
        let (id, value, is_bad) = (
            words[row],
            f32::from_bits(words[rows + row]),
            words[2 * rows + row] != 0,
        );
        (!is_bad).then_some((id, value))
    };
    Ok((0..rows).map(of_row).collect())
}

fn choose_on_device(
    memory: &HeadMemory,
    range: std::ops::Range<usize>,
    choice: &Choice<'_>,
) -> Result<Vec<(u32, f32)>> {
    let (vocabulary, row) = (range.len(), memory.logits.part(range)?);
    if choice.penalty != 1.0 {
        let seen = distinct(choice.seen, vocabulary);
        memory.seen.all().write(&seen)?;
        penalise(row, memory.seen.all(), seen.len(), choice.penalty)?;
    }
    let count = choice.count.min(vocabulary);
    if count == 0 {
        return Ok(Vec::new());
    }
    // Ids, logits and the mark in one piece, so that one copy fetches them.
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
    let mut tokens: Vec<(u32, f32)> = words[..count].iter().copied().zip(values).collect();
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
    fn the_most_likely_come_first_and_equal_ones_by_their_ids() {
        let logits = [1.0, 3.0, 3.0, -1.0];
        assert_eq!(choose(&logits, 1, 1.0, &[]).unwrap(), [1]);
        assert_eq!(choose(&logits, 3, 1.0, &[]).unwrap(), [1, 2, 0]);
        assert_eq!(choose(&logits, 9, 1.0, &[]).unwrap(), [1, 2, 0, 3]);
    }

    #[test]
    fn the_penalty_divides_positive_and_multiplies_negative_logits_once() {
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
    fn a_row_is_copied_as_it_is_and_its_largest_may_be_infinite() {
        let logits = Logits::from_vec(vec![1.0, f32::NEG_INFINITY, 2.0, f32::NAN], 2);
        assert_eq!(logits.row(0).unwrap(), [1.0, f32::NEG_INFINITY]);
        assert!(logits.row(1).unwrap()[1].is_nan() && logits.row(2).is_err());

        let inf = f32::NEG_INFINITY;
        assert_eq!(largest(&[inf, 1.0, inf], 2), [(1, 1.0), (0, inf)]);
        assert_eq!(
            largest(&[inf, inf], 1),
            [(0, inf)],
            "as torch.argmax where all are ruled out"
        );
        assert!(largest(&[], 1).is_empty());
    }

    #[test]
    fn what_is_not_finite_is_an_error() {
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
