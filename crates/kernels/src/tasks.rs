//! How a result `[M, N]` is cut into tasks.
//!
//! - One row (decode): each task owns some output features and writes them in place.
//! - Few rows: each task owns some output features of all rows. Results are written block by block
//!   to a temporary and copied into rows at the end; that is at most 64 rows per thread, so the
//!   copy is small.
//! - Many rows (prefill): each task owns some rows, passes over all weights block by block and
//!   writes in place. A weight is then read once for hundreds of rows, whose activations stay in
//!   L2.
//!
//! The cut never changes a sum, so it never changes a bit of the result.

use crate::{MatMut, team};
use rayon::prelude::*;
use std::ops::Range;

/// Tasks own rows from this many rows per thread on.
const ROWS_PER_THREAD: usize = 64;
/// Most activations of a task that owns rows: they stay in L2.
const TASK_ACTIVATIONS: usize = 3 << 19;
/// Rows of such a task are a multiple of this: whole panels.
const ROWS: usize = 16;
/// Fewest weights of a task: below this, splitting further costs more than it gains.
const TASK_WEIGHTS: usize = 96 * 1024;

/// The part of a result that a task writes: some rows × some output features.
pub(crate) struct Patch<'a, T> {
    data: &'a mut [T],
    /// Distance between two rows in `data`.
    stride: usize,
    /// Index of the first value in `data`.
    offset: usize,
    /// Rows of the result.
    pub(crate) rows: Range<usize>,
    /// Output features, the columns of the result.
    pub(crate) outputs: Range<usize>,
}

impl<T> Patch<'_, T> {
    /// The `i`-th row of the patch.
    pub(crate) fn row_mut(&mut self, i: usize) -> &mut [T] {
        &mut self.data[i * self.stride + self.offset..][..self.outputs.len()]
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
    T: Copy + Default + Send + Sync,
    S: Default + Send,
{
    if out.rows() == 0 || out.cols() == 0 {
        return;
    }

    if out.rows() >= ROWS_PER_THREAD * rayon::current_num_threads() {
        by_rows(out, columns, block, &task);
    } else {
        by_outputs(out, columns, block, &task);
    }
}

/// Tasks that own rows, and write their patches in place.
fn by_rows<T, S>(
    out: MatMut<'_, T>,
    columns: usize,
    block: usize,
    task: &(impl Fn(Patch<'_, T>, &mut S) + Sync),
) where
    T: Send,
    S: Default + Send,
{
    let rows = out.rows();
    let outputs = out.cols();

    let most = (TASK_ACTIVATIONS / columns.max(1)).max(ROWS_PER_THREAD);
    let tasks = rows
        .div_ceil(most)
        .next_multiple_of(rayon::current_num_threads());
    let height = rows.div_ceil(tasks).next_multiple_of(ROWS);

    out.into_data()
        .par_chunks_mut(height * outputs)
        .enumerate()
        .for_each_init(S::default, |scratch, (i, data)| {
            let rows = i * height..i * height + data.len() / outputs;
            for first in (0..outputs).step_by(block) {
                let patch = Patch {
                    data: &mut *data,
                    stride: outputs,
                    offset: first,
                    rows: rows.clone(),
                    outputs: first..outputs.min(first + block),
                };
                task(patch, scratch);
            }
        });
}

/// Tasks that own output features of all rows.
fn by_outputs<T, S>(
    out: MatMut<'_, T>,
    columns: usize,
    block: usize,
    task: &(impl Fn(Patch<'_, T>, &mut S) + Sync),
) where
    T: Copy + Default + Send + Sync,
    S: Default + Send,
{
    let rows = out.rows();
    let outputs = out.cols();
    let out = out.into_data();

    // Blocks with few weights are grouped into one task.
    let blocks_per_task = (TASK_WEIGHTS / (block * columns).max(1)).max(1);
    let fill_blocks = |target: &mut [T]| {
        let tasks = target
            .chunks_mut(blocks_per_task * block * rows)
            .enumerate()
            .collect();
        team::for_each(tasks, |scratch: &mut S, (i, data): (usize, &mut [T])| {
            for (j, data) in data.chunks_mut(block * rows).enumerate() {
                let width = data.len() / rows;
                let first = (i * blocks_per_task + j) * block;
                let patch = Patch {
                    data,
                    stride: width,
                    offset: 0,
                    rows: 0..rows,
                    outputs: first..first + width,
                };
                task(patch, scratch);
            }
        });
    };

    // The blocks of one row already are the row.
    if rows == 1 {
        return fill_blocks(out);
    }

    let mut blocks = vec![T::default(); out.len()];
    fill_blocks(&mut blocks);

    let copy_row = |(m, row): (usize, &mut [T])| {
        for (patch, source) in row.chunks_mut(block).zip(blocks.chunks(block * rows)) {
            patch.copy_from_slice(&source[m * patch.len()..][..patch.len()]);
        }
    };
    out.par_chunks_mut(outputs)
        .enumerate()
        .with_min_len(ROWS)
        .for_each(copy_row);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_written_once_by_the_patch_that_owns_it() {
        for rows in [0, 1, 2, 7, 40, 64, 65, 131, 300] {
            for outputs in [0, 1, 7, 8, 9, 50] {
                let mut out = vec![0usize; rows * outputs];
                let target = MatMut::new(&mut out, rows, outputs).unwrap();
                run(target, 3, 8, |mut patch: Patch<'_, usize>, _: &mut ()| {
                    for (i, m) in patch.rows.clone().enumerate() {
                        let first = patch.outputs.start;
                        for (j, y) in patch.row_mut(i).iter_mut().enumerate() {
                            *y += 1 + m * outputs + first + j;
                        }
                    }
                });

                assert!(
                    out.iter().enumerate().all(|(i, &y)| y == i + 1),
                    "{rows} × {outputs}"
                );
            }
        }
    }
}
