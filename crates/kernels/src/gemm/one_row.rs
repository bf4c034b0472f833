//! Linear layers of one row, as in decoding: bound by reading the weights. Layers with the same input
//! run as one parallel section.

#![expect(
    unsafe_code,
    reason = "threads write disjoint parts of the results of several layers"
)]

use super::outliers::Gathered;
use super::rows::Rows;
use super::{Epilogue, Layer, MAX_BLOCK, Part};
use crate::outlier::QuantizedActivations;
use crate::simd::prefetch;
use crate::tasks::Whole;
use crate::{Isa, KernelError, MatMut, team};
use std::ops::Range;

/// Weights of a task in bytes, unless sixteen outputs have more: a few microseconds of one thread.
const TASK_BYTES: usize = 64 * 1024;
/// If there are outliers, weights are read twice, for the sums and for the outliers: this many bytes
/// at a time, which stay in L1, or those of sixteen outputs if K is above 1536.
const L1_BYTES: usize = 24 * 1024;
/// Outputs of a task are a multiple of this, except in the last: the values of the widest register.
const OUTPUTS: usize = 16;

/// A layer and its result.
struct Job<'a> {
    epilogue: Epilogue<'a>,
    out: Whole<'a, f32>,
    /// Tasks that its outputs are cut into.
    tasks: usize,
}

/// [`super::linears`] for one row.
pub(super) fn linears(
    isa: Isa,
    a: &QuantizedActivations,
    layers: Vec<(Layer<'_>, MatMut<'_, f32>)>,
) -> Result<(), KernelError> {
    let block = outputs_of(TASK_BYTES, a.cols()).min(MAX_BLOCK);
    let mut jobs = Vec::with_capacity(layers.len());
    for (layer, out) in layers {
        layer.check(a, &out)?;
        jobs.push(Job {
            epilogue: Epilogue::new(isa, a, &layer)?,
            out: Whole::new(out),
            tasks: layer.outputs().div_ceil(block),
        });
    }

    let input = Rows::new(isa, a.codes());
    let tasks = jobs.iter().map(|job| job.tasks).sum();
    team::for_each_number(tasks, |_: &mut (), mut task| {
        for job in &jobs {
            if task < job.tasks {
                let first = task * block;
                return job.run(&input, first..job.out.outputs().min(first + block));
            }
            task -= job.tasks;
        }
    });

    Ok(())
}

/// Outputs of about `bytes` of weights with K `columns`.
fn outputs_of(bytes: usize, columns: usize) -> usize {
    (bytes / columns.max(1) / OUTPUTS * OUTPUTS).max(OUTPUTS)
}

impl Job<'_> {
    /// Computes some outputs. No other thread computes any of them.
    fn run(&self, input: &Rows<'_>, outputs: Range<usize>) {
        let Epilogue {
            isa, weight, bias, ..
        } = self.epilogue;
        prefetch(bytemuck::cast_slice(&weight.absmax[outputs.clone()]));
        if let Some(bias) = bias {
            prefetch(bytemuck::cast_slice(&bias[outputs.clone()]));
        }

        // Outliers read the weights again.
        let width = match self.epilogue.outliers.is_empty() {
            true => outputs.len(),
            false => outputs_of(L1_BYTES, weight.codes.cols()),
        };

        let mut sums = [0; MAX_BLOCK];
        for first in outputs.clone().step_by(width) {
            let outputs = first..outputs.end.min(first + width);
            let sums = &mut sums[..outputs.len()];
            let part = Part {
                rows: &(0..1),
                outputs: &outputs,
            };
            input.multiply(isa, weight.codes, part, sums);

            // SAFETY: tasks do not overlap, and neither do the parts of a task.
            let patch = unsafe { self.out.patch(0..1, outputs) };
            self.epilogue.run(patch, sums, &Gathered::default());
        }
    }
}
