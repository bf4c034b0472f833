//! The product of float layers: f16, bf16 or f32 weights, f32 arithmetic.
//!
//! Ladder. A task owns some output features: it converts their weights to f32 once (in cache, by the
//! CPU's own instruction for f16) and lets all rows of activations pass over them in fours. One row
//! (the output head while decoding) reads each weight once, in order, at the speed of memory. The sum
//! of one output runs over 8 lanes in the same order for any number of rows, so that a row's result
//! does not depend on its batch.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod scalar;

use crate::isa::Kind;
use crate::matrix::expect;
use crate::{Element, Isa, KernelError, MatMut, MatRef};
use rayon::prelude::*;

/// Output features whose weights are converted together.
const BLOCK: usize = 4;
/// Rows of activations multiplied together.
const TILE_M: usize = 2;
/// Weights of a task, so that small layers are not split too far.
const TASK_ELEMENTS: usize = 64 * 1024;

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
    out.expect(rows, outputs, ["rows of the result", "columns of the result"])?;
    if let Some(bias) = bias {
        expect("length of the bias", outputs, bias.len())?;
    }
    if rows == 0 || outputs == 0 {
        return Ok(());
    }
    let task = |first: usize, block: &mut [f32], floats: &mut Vec<f32>| {
        let width = block.len() / rows;
        floats.resize(BLOCK * columns, 0.0);
        for i in 0..width {
            W::to_f32_slice(w.row(first + i), &mut floats[i * columns..][..columns]);
        }
        let weights: [&[f32]; BLOCK] =
            std::array::from_fn(|i| &floats[i.min(width - 1) * columns..][..columns]);
        multiply(isa, a, weights, block);
        if let Some(bias) = bias {
            for (y, bias) in block.chunks_mut(rows).zip(&bias[first..]) {
                y.iter_mut().for_each(|y| *y += bias);
            }
        }
    };
    let min_len = (TASK_ELEMENTS / (BLOCK * columns.max(1))).max(1);
    let run = |target: &mut [f32]| {
        target
            .par_chunks_mut(BLOCK * rows)
            .with_min_len(min_len)
            .enumerate()
            .for_each_init(Vec::new, |floats, (block, y)| task(block * BLOCK, y, floats));
    };
    if rows == 1 {
        run(out.into_data());
    } else {
        let out = out.into_data();
        let mut turned = vec![0f32; out.len()];
        run(&mut turned);
        out.par_chunks_mut(outputs).enumerate().for_each(|(m, y)| {
            y.iter_mut().zip(turned[m..].iter().step_by(rows)).for_each(|(y, x)| *y = *x);
        });
    }
    Ok(())
}

/// All rows against the weights of one block; the result of (m, n) goes to `block[n · M + m]`. Blocks
/// at the end hold fewer features: the surplus weights repeat the last one and are not stored.
fn multiply(isa: Isa, a: MatRef<'_, f32>, weights: [&[f32]; BLOCK], block: &mut [f32]) {
    let rows = a.rows();
    let mut m = 0;
    while m < rows {
        if m + TILE_M <= rows {
            store(dot(isa, [a.row(m), a.row(m + 1)], weights), m, rows, block);
            m += TILE_M;
        } else {
            store(dot(isa, [a.row(m)], weights), m, rows, block);
            m += 1;
        }
    }
}

fn store<const M: usize>(sums: [[f32; M]; BLOCK], m: usize, rows: usize, block: &mut [f32]) {
    for (sums, y) in sums.iter().zip(block.chunks_mut(rows)) {
        y[m..m + M].copy_from_slice(sums);
    }
}

fn dot<const M: usize>(isa: Isa, a: [&[f32]; M], w: [&[f32]; BLOCK]) -> [[f32; M]; BLOCK] {
    match isa.kind() {
        Kind::Scalar => scalar::dot(a, w),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => avx2::dot(isa, a, w),
    }
}
