//! Float linear layers: f16, bf16 or f32 weights, f32 arithmetic.
//!
//! - A block of 4 outputs is multiplied with all rows before the next one is read.
//! - With registers of 512 bits, weights are converted as they are loaded, again for every four rows:
//!   the sixteen multiplications after it take longer. So does one row (the output head while
//!   decoding) on every CPU.
//! - Otherwise the block is converted to f32 once, into L1, and rows pass over it in pairs, which
//!   keeps 8 sums in registers.
//! - One row is bound by memory. With registers of 512 bits it reads weights in order, one output
//!   after the other. With narrower ones an output is twice as many additions that wait for each
//!   other, so four are computed at a time.
//! - An output is summed over the lanes of a register in the same order for any number of rows, so
//!   a row's result does not depend on its batch.
//! - Instruction sets differ in the last bits: register widths differ, and only the vector versions
//!   fuse multiply and add.

mod dot;

use crate::matrix::expect;
use crate::tasks::{self, Patch};
use crate::{Element, Isa, KernelError, MatMut, MatRef};
use dot::dot;

/// Output features whose weights are converted together.
const BLOCK: usize = 4;

/// `out = a · wᵀ + bias`: `a` f32 `[M, K]`, `w` `[N, K]`, `out` f32 `[M, N]`.
///
/// ```
/// use llm_int8_kernels::{Isa, MatMut, MatRef, dense};
/// let (a, w) = ([1.0f32, 2.0], [half::f16::ONE, half::f16::ONE, half::f16::ZERO, half::f16::ONE]);
/// let mut y = [0f32; 2];
/// dense::linear(Isa::detect(), MatRef::new(&a, 1, 2)?, MatRef::new(&w, 2, 2)?, Some(&[0.5, 0.0]), MatMut::new(&mut y, 1, 2)?)?;
/// assert_eq!(y, [3.5, 2.0]);
/// # Ok::<(), llm_int8_kernels::KernelError>(())
/// ```
///
/// # Errors
/// [`KernelError::WrongDimension`].
pub fn linear<W: Element>(
    isa: Isa,
    a: MatRef<'_, f32>,
    w: MatRef<'_, W>,
    bias: Option<&[f32]>,
    out: MatMut<'_, f32>,
) -> Result<(), KernelError> {
    let (rows, outputs, columns) = (a.rows(), w.rows(), w.cols());
    expect("columns of the weight", a.cols(), columns)?;
    out.expect(
        rows,
        outputs,
        ["rows of the result", "columns of the result"],
    )?;
    if let Some(bias) = bias {
        expect("length of the bias", outputs, bias.len())?;
    }

    tasks::run(out, columns, BLOCK, |mut patch, floats: &mut Vec<f32>| {
        if patch.rows.len() == 1 && isa.has_wide_registers() {
            return one_row(isa, a, w, bias, &mut patch);
        }

        let first = patch.outputs.start;
        let width = patch.outputs.len();

        // The last block may have fewer outputs: the surplus weights repeat the last one, and their
        // results are not stored.
        if patch.rows.len() == 1 || isa.has_wide_registers() {
            let weights = std::array::from_fn(|i| w.row(first + i.min(width - 1)));
            return multiply::<W, 4>(isa, a, weights, bias, &mut patch);
        }

        floats.resize(BLOCK * columns, 0.0);
        for i in 0..width {
            W::to_f32_slice(w.row(first + i), &mut floats[i * columns..][..columns]);
        }
        let weights = std::array::from_fn(|i| &floats[i.min(width - 1) * columns..][..columns]);
        multiply::<f32, 2>(isa, a, weights, bias, &mut patch);
    });

    Ok(())
}

/// Multiplies the patch's only row by the weights of each output in turn, so that memory is read in
/// order.
fn one_row<W: Element>(
    isa: Isa,
    a: MatRef<'_, f32>,
    w: MatRef<'_, W>,
    bias: Option<&[f32]>,
    patch: &mut Patch<'_, f32>,
) {
    let row = a.row(patch.rows.start);
    let outputs = patch.outputs.clone();
    for (y, n) in patch.row_mut(0).iter_mut().zip(outputs) {
        let [[sum]] = dot(isa, [row], [w.row(n)]);
        *y = sum;
        if let Some(bias) = bias {
            *y += bias[n];
        }
    }
}

/// Multiplies all rows of the patch by the weights of one block, `M` rows at a time.
fn multiply<W: Element, const M: usize>(
    isa: Isa,
    a: MatRef<'_, f32>,
    weights: [&[W]; BLOCK],
    bias: Option<&[f32]>,
    patch: &mut Patch<'_, f32>,
) {
    let first = patch.rows.start;
    let rows = patch.rows.len();
    let whole = rows / M * M;

    for i in (0..whole).step_by(M) {
        let tile: [&[f32]; M] = std::array::from_fn(|m| a.row(first + i + m));
        store(dot(isa, tile, weights), i, bias, patch);
    }

    for i in whole..rows {
        store(dot(isa, [a.row(first + i)], weights), i, bias, patch);
    }
}

/// Writes sums, plus bias, to the rows of the patch from the `i`-th on.
fn store<const M: usize>(
    sums: [[f32; M]; BLOCK],
    i: usize,
    bias: Option<&[f32]>,
    patch: &mut Patch<'_, f32>,
) {
    let bias = bias.map(|bias| &bias[patch.outputs.clone()]);
    for m in 0..M {
        let y = patch.row_mut(i + m);
        y.iter_mut().zip(&sums).for_each(|(y, sums)| *y = sums[m]);
        if let Some(bias) = bias {
            y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
        }
    }
}
