//! How a product `[M, N]` is cut into tasks.
//!
//! One row (decode): tasks own output features and write them in place. Few rows: tasks own output
//! features for all rows; their results lie block by block and are copied into rows at the end (at
//! most 64 rows a thread, so this is small). Many rows (prefill): tasks own rows, pass over all
//! weights block by block and write in place; a weight is then read once for hundreds of rows,
//! whose activations stay in L2. The cut never changes a sum, so it cannot change a bit of the
//! result.

use crate::{MatMut, team};
use rayon::prelude::*;
use std::ops::Range;

/// Rows for each thread from which tasks own rows.
const ROWS_PER_THREAD: usize = 64;
/// Values of activations of a task that owns rows: they stay in L2.
const TASK_ACTIVATIONS: usize = 3 << 19;
/// Rows of such a task are a multiple of this, where there are as many.
const ROWS: usize = 16;
/// Values of weights below which splitting further costs more than it gives.
const TASK_WEIGHTS: usize = 96 * 1024;

/// The part of the result that a task writes: some rows × some columns.
pub(crate) struct Patch<'a, T> {
    data: &'a mut [T],
    /// Distance of two rows in `data`, and of the first value from its beginning.
    stride: usize,
    offset: usize,
    /// Rows of the result (activations).
    pub(crate) rows: Range<usize>,
    /// Columns of the result (output features).
    pub(crate) outputs: Range<usize>,
}

impl<T> Patch<'_, T> {
    /// The `i`-th row of the patch.
    pub(crate) fn row_mut(&mut self, i: usize) -> &mut [T] {
        &mut self.data[i * self.stride + self.offset..][..self.outputs.len()]
    }
}

/// Calls `task` for patches that cover `out`, each at most `block` output features wide. `columns`
/// is K, which says what a patch costs. `S` is memory that a thread reuses from task to task.
pub(crate) fn run<T, S>(
    out: MatMut<'_, T>,
    columns: usize,
    block: usize,
    task: impl Fn(Patch<'_, T>, &mut S) + Sync,
) where
    T: Copy + Default + Send + Sync,
    S: Default + Send,
{
    let rows = out.rows();
    let outputs = out.cols();
    let out = out.into_data();
    let threads = rayon::current_num_threads();

    if out.is_empty() {
        return;
    }
    if rows >= ROWS_PER_THREAD * threads {
        let most = (TASK_ACTIVATIONS / columns.max(1)).max(ROWS_PER_THREAD);
        let tasks = rows.div_ceil(most).next_multiple_of(threads);
        let height = rows.div_ceil(tasks).next_multiple_of(ROWS);
        let chunks = out.par_chunks_mut(height * outputs).enumerate();
        return chunks.for_each_init(S::default, |scratch, (i, data)| {
            let rows = i * height..i * height + data.len() / outputs;
            for first in (0..outputs).step_by(block) {
                let outputs_here = first..outputs.min(first + block);
                let rows = rows.clone();
                let data = &mut *data;
                task(
                    Patch {
                        data,
                        stride: outputs,
                        offset: first,
                        rows,
                        outputs: outputs_here,
                    },
                    scratch,
                );
            }
        });
    }

    // Blocks of few weights are computed several at a time.
    let blocks = (TASK_WEIGHTS / (block * columns).max(1)).max(1);
    let by_outputs = |target: &mut [T]| {
        let tasks = target
            .chunks_mut(blocks * block * rows)
            .enumerate()
            .collect();
        team::for_each(tasks, |scratch: &mut S, (i, data): (usize, &mut [T])| {
            for (j, data) in data.chunks_mut(block * rows).enumerate() {
                let stride = data.len() / rows;
                let first = (i * blocks + j) * block;
                task(
                    Patch {
                        data,
                        stride,
                        offset: 0,
                        rows: 0..rows,
                        outputs: first..first + stride,
                    },
                    scratch,
                );
            }
        });
    };

    if rows == 1 {
        return by_outputs(out);
    }
    let mut blocks = vec![T::default(); out.len()];
    by_outputs(&mut blocks);
    let rows_in_order = |(m, row): (usize, &mut [T])| {
        for (patch, source) in row.chunks_mut(block).zip(blocks.chunks(block * rows)) {
            patch.copy_from_slice(&source[m * patch.len()..][..patch.len()]);
        }
    };

    out.par_chunks_mut(outputs)
        .enumerate()
        .with_min_len(ROWS)
        .for_each(rows_in_order);
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
