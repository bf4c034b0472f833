//! From logits to tokens.

use super::Check;
use crate::args::{PenaliseArgs, SelectArgs};
use crate::buffer::View;
use crate::error::Result;

/// Where the tokens chosen go.
#[derive(Debug, Clone, Copy)]
pub struct Selected<'a> {
    /// Ids `[rows, k]`.
    pub ids: View<'a, u32>,
    /// Their logits `[rows, k]`.
    pub values: View<'a, f32>,
    /// Not 0 where a logit of the row is not finite: `[rows]`.
    pub is_bad: View<'a, u32>,
}

/// Logits of these ids, each there once and below the length of `logits`, are divided by the
/// penalty, negative ones multiplied.
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

/// The `k` largest logits of each row `[rows, vocabulary]`: the first of equal ones. With `k` above
/// 1 they come in the order of their ids, those equal to the smallest last.
///
/// # Errors
/// [`CudaError::Shape`](crate::CudaError::Shape) where `k` is 0 or above the vocabulary; as
/// [`penalise`].
pub fn select(
    logits: View<'_, f32>,
    [rows, vocabulary]: [usize; 2],
    k: usize,
    into: &Selected<'_>,
) -> Result<()> {
    let kernel = if k == 1 {
        "select_largest"
    } else {
        "select_top"
    };
    let check = Check {
        kernel,
        device: logits.device(),
    };
    if k == 0 || k > vocabulary {
        return Err(check.shape(format!("{k} of {vocabulary} logits cannot be chosen")));
    }
    let args = SelectArgs {
        logits: check.view("the logits", logits, rows * vocabulary)?,
        ids: check.view("the ids", into.ids, rows * k)?,
        values: check.view("their logits", into.values, rows * k)?,
        is_bad: check.view("the marks", into.is_bad, rows)?,
        vocabulary: check.size("the vocabulary", vocabulary)?,
        k: check.size("the choice", k)?,
    };
    check.launch(&args, [rows, 1, 1], 1024, 0)
}
