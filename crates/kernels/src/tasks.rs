//! How a result `[M, N]` is cut into tasks.
//!
//! - A task owns some output features of some rows and writes them in place.
//! - While the activations of all rows fit L2, a task has all rows, and each weight is read once.
//!   Otherwise rows are split into groups, and weights are read once a group.
//! - Tasks of a group follow each other, so that a thread stays with its activations, and are small
//!   enough for a thread that is done early to help the others.
//!
//! The cut never changes a sum, so it never changes a bit of the result.

#![expect(
    unsafe_code,
    reason = "several threads write interleaved parts of one slice"
)]

use crate::{MatMut, team};
use std::marker::PhantomData;
use std::ops::Range;

/// Most activations of a group of rows in bytes of int8: they stay in L2.
const GROUP_ACTIVATIONS: usize = 1 << 20;
/// Rows of a group are a multiple of this if there are several groups: whole panels, as many at a
/// time as every instruction set takes.
const GROUP_ROWS: usize = 96;
/// A task has at least this many weights, divided by its rows or by [`COUNTED_ROWS`] if it has more:
/// splitting further costs more than it gains.
const TASK_WORK: usize = 96 * 1024;
/// Rows beyond which a task still needs as many weights: see [`TASK_WORK`].
const COUNTED_ROWS: usize = 16;

/// The part of a result that a task writes: some rows × some output features.
pub(crate) struct Patch<'a, T> {
    /// The first value of the first row.
    first: *mut T,
    /// Distance between two rows.
    stride: usize,
    /// Rows of the result.
    pub(crate) rows: Range<usize>,
    /// Output features, the columns of the result.
    pub(crate) outputs: Range<usize>,
    result: PhantomData<&'a mut [T]>,
}

impl<T> Patch<'_, T> {
    /// The `i`-th row of the patch.
    #[inline]
    pub(crate) fn row_mut(&mut self, i: usize) -> &mut [T] {
        assert!(i < self.rows.len());

        // SAFETY: `Whole::patch` checked that these rows and outputs are inside the result, and its
        // caller that no other patch has any of them.
        unsafe {
            std::slice::from_raw_parts_mut(self.first.add(i * self.stride), self.outputs.len())
        }
    }
}

/// A result whose patches are written by several threads.
pub(crate) struct Whole<'a, T> {
    data: *mut T,
    rows: usize,
    outputs: usize,
    result: PhantomData<&'a mut [T]>,
}

// SAFETY: threads only take disjoint patches from it (`Whole::patch`), and may write values of `T`
// as they could if the slice had been split between them.
unsafe impl<T: Send> Sync for Whole<'_, T> {}

impl<'a, T> Whole<'a, T> {
    pub(crate) fn new(out: MatMut<'a, T>) -> Self {
        let (rows, outputs) = (out.rows(), out.cols());
        Self {
            data: out.into_data().as_mut_ptr(),
            rows,
            outputs,
            result: PhantomData,
        }
    }

    /// Columns of the result.
    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Some rows × some outputs.
    ///
    /// # Safety
    /// No other patch with any of these values is in use.
    pub(crate) unsafe fn patch(&self, rows: Range<usize>, outputs: Range<usize>) -> Patch<'a, T> {
        assert!(rows.start < rows.end && rows.end <= self.rows);
        assert!(outputs.start < outputs.end && outputs.end <= self.outputs);

        Patch {
            // SAFETY: the first value of the patch is inside the result.
            first: unsafe { self.data.add(rows.start * self.outputs + outputs.start) },
            stride: self.outputs,
            rows,
            outputs,
            result: PhantomData,
        }
    }
}

/// Calls `task` for patches that cover `out`, each at most `block` output features wide. `columns`
/// is K, from which the cost of a patch follows. `S` is scratch memory that a thread reuses from
/// task to task.
pub(crate) fn run<T, S>(
    out: MatMut<'_, T>,
    columns: usize,
    block: usize,
    task: impl Fn(Patch<'_, T>, &mut S) + Sync,
) where
    T: Send,
    S: Default,
{
    if out.rows() == 0 || out.cols() == 0 {
        return;
    }

    let height = group_height(out.rows(), columns);
    let width = block * blocks_of_task(height, block * columns);
    let out = Whole::new(out);
    let tasks_of_group = out.outputs.div_ceil(width);
    let groups = out.rows.div_ceil(height);

    team::for_each_number(groups * tasks_of_group, |scratch: &mut S, i| {
        let row = i / tasks_of_group * height;
        let rows = row..out.rows.min(row + height);
        let start = i % tasks_of_group * width;
        let end = out.outputs.min(start + width);
        for first in (start..end).step_by(block) {
            let outputs = first..end.min(first + block);
            // SAFETY: every number comes once; tasks do not overlap, and neither do the blocks of a
            // task.
            let patch = unsafe { out.patch(rows.clone(), outputs) };
            task(patch, scratch);
        }
    });
}

/// Rows of a group: all, if their activations fit L2.
fn group_height(rows: usize, columns: usize) -> usize {
    let most = (GROUP_ACTIVATIONS / columns.max(1)).max(GROUP_ROWS);
    if rows <= most {
        return rows;
    }

    let groups = rows.div_ceil(most);
    rows.div_ceil(groups).next_multiple_of(GROUP_ROWS)
}

/// Blocks of a task with `height` rows, each block with `weights` weights.
fn blocks_of_task(height: usize, weights: usize) -> usize {
    let fewest_weights = TASK_WORK / height.min(COUNTED_ROWS);
    (fewest_weights / weights.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_written_once_by_the_patch_that_owns_it() {
        let write = |mut patch: Patch<'_, usize>, outputs: usize| {
            for (i, m) in patch.rows.clone().enumerate() {
                let first = patch.outputs.start;
                for (j, y) in patch.row_mut(i).iter_mut().enumerate() {
                    *y += 1 + m * outputs + first + j;
                }
            }
        };

        // With few columns a task has many blocks, with many a group has few rows.
        for columns in [3, 20_000] {
            for rows in [0, 1, 2, 7, 40, 131, 300] {
                for outputs in [0, 1, 7, 8, 9, 50] {
                    let mut out = vec![0usize; rows * outputs];
                    let target = MatMut::new(&mut out, rows, outputs).unwrap();
                    run(target, columns, 8, |patch, _: &mut ()| {
                        write(patch, outputs)
                    });

                    assert!(
                        out.iter().enumerate().all(|(i, &y)| y == i + 1),
                        "{rows} × {outputs}, {columns} columns"
                    );
                }
            }
        }
    }
}
