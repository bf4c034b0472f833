//! From logits to tokens: repetition penalty, the largest logits.

use super::Check;
use crate::args::{PenaliseArgs, SelectArgs};
use crate::buffer::View;
use crate::error::Result;

/// Logits `[rows, vocabulary]`, contiguous.
#[derive(Debug, Clone, Copy)]
pub struct Logits<'a> {
    /// The values.
    pub values: View<'a, f32>,
    /// Number of rows.
    pub rows: usize,
    /// Logits of a row.
    pub vocabulary: usize,
}

/// Where [`select`] writes its results.
#[derive(Debug, Clone, Copy)]
pub struct Selected<'a> {
    /// Token ids `[rows, k]`.
    pub ids: View<'a, u32>,
    /// Their logits `[rows, k]`.
    pub values: View<'a, f32>,
    /// Nonzero for rows with a logit that is not finite: `[rows]`.
    pub is_bad: View<'a, u32>,
}

/// Applies the repetition penalty to the logits of the first `count` of `ids`: positive ones are
/// divided by `penalty`, negative ones multiplied (as transformers does).
///
/// The ids are not checked: the caller ensures that they are distinct and below `logits.len()`.
///
/// # Errors
/// [`CudaError::TooShort`](crate::CudaError::TooShort),
/// [`CudaError::WrongDevice`](crate::CudaError::WrongDevice).
pub fn penalise(
    logits: View<'_, f32>,
    ids: View<'_, u32>,
    count: usize,
    penalty: f32,
) -> Result<()> {
    let check = Check {
        kernel: "penalise",
        device: logits.device(),
    };
    let args = PenaliseArgs {
        logits: logits.address(),
        ids: check.view("the ids", ids, count)?,
        count: check.size("the ids", count)?,
        penalty,
    };
    check.launch(&args, [count.div_ceil(256), 1, 1], 256, 0)
}

/// Finds the `k` largest logits of each row; of equal ones, those with the lowest ids. With `k`
/// above 1 they are ordered by id, except that those equal to the smallest come last.
///
/// # Errors
/// [`CudaError::Shape`](crate::CudaError::Shape) if `k` is 0 or above the vocabulary;
/// [`CudaError::TooShort`](crate::CudaError::TooShort),
/// [`CudaError::WrongDevice`](crate::CudaError::WrongDevice).
pub fn select(logits: &Logits<'_>, k: usize, into: &Selected<'_>) -> Result<()> {
    let &Logits {
        values,
        rows,
        vocabulary,
    } = logits;
    let kernel = if k == 1 {
        "select_largest"
    } else {
        "select_top"
    };
    let check = Check {
        kernel,
        device: values.device(),
    };
    if k == 0 || k > vocabulary {
        return Err(check.shape(format!("cannot select {k} of {vocabulary} logits")));
    }

    let args = SelectArgs {
        logits: check.view("the logits", values, rows * vocabulary)?,
        ids: check.view("the ids", into.ids, rows * k)?,
        values: check.view("their logits", into.values, rows * k)?,
        is_bad: check.view("the flags", into.is_bad, rows)?,
        vocabulary: check.size("the vocabulary", vocabulary)?,
        k: check.size("k", k)?,
    };
    check.launch(&args, [rows, 1, 1], 1024, 0)
}
