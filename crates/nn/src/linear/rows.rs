//! Layers over rows of f32, as the decoder calls them: without tensors between them, and what
//! layers with the same input share is done once.

use super::op::FloatMatmul;
use super::original::OutlierColumns;
use super::{FloatLinear, Int8Linear, Linear};
use crate::error::Result;
use crate::parameter::FloatParameter;
use llm_int8_kernels::{Activation, MatMut, MatRef, QuantizedActivations, activation, linears};
use rayon::prelude::*;
use std::sync::Arc;

/// A layer and where its result goes.
pub struct Projection<'a> {
    /// The layer.
    pub linear: &'a Linear,
    /// What is applied to its result.
    pub activation: Option<Activation>,
    /// `[rows, out_features]`.
    pub out: &'a mut [f32],
}

/// Computes layers with the same input `x` `[rows, in_features]`: int8 ones quantise it once and,
/// with one row, share their threads' work as if they were one layer. `quantized` is memory to work
/// in.
///
/// # Errors
/// [`NnError::NotLoaded`](crate::NnError::NotLoaded), [`NnError::Kernel`](crate::NnError::Kernel),
/// [`NnError::NoOriginalWeights`](crate::NnError::NoOriginalWeights).
pub fn project(
    x: &[f32],
    rows: usize,
    projections: Vec<Projection<'_>>,
    quantized: &mut QuantizedActivations,
) -> Result<()> {
    let mut int8: Vec<(&Int8Linear, Option<Activation>, &mut [f32])> = Vec::new();
    for Projection {
        linear,
        activation,
        out,
    } in projections
    {
        match linear {
            Linear::Float(linear) => dense(linear, x, rows, activation, out)?,
            Linear::Int8(linear) => {
                // Layers may be configured one by one; those that differ quantise for themselves.
                if int8
                    .first()
                    .is_some_and(|(first, ..)| first.config() != linear.config())
                {
                    quantised(x, rows, std::mem::take(&mut int8), quantized)?;
                }
                int8.push((linear, activation, out));
            }
        }
    }
    quantised(x, rows, int8, quantized)
}

fn dense(
    linear: &FloatLinear,
    x: &[f32],
    rows: usize,
    function: Option<Activation>,
    out: &mut [f32],
) -> Result<()> {
    let (isa, width) = (linear.isa(), linear.out_features());
    let bias = linear.bias().map(FloatParameter::f32_values).transpose()?;
    let product = FloatMatmul {
        weight: linear.weight().tensor()?,
        bias,
        isa,
    };
    product.rows(
        MatRef::new(x, rows, linear.in_features())?,
        MatMut::new(out, rows, width)?,
    )?;
    if let Some(function) = function {
        for_rows(out, width, |_, row| activation::apply(isa, function, row));
    }
    Ok(())
}

fn quantised(
    x: &[f32],
    rows: usize,
    layers: Vec<(&Int8Linear, Option<Activation>, &mut [f32])>,
    quantized: &mut QuantizedActivations,
) -> Result<()> {
    let Some((first, ..)) = layers.first() else {
        return Ok(());
    };
    let (isa, config) = (first.isa(), first.config());
    let x = MatRef::new(x, rows, first.in_features())?;
    quantized.refill(isa, x, config.threshold, config.outlier_scope);
    let columns: Vec<Option<Arc<OutlierColumns>>> = (layers.iter())
        .map(|(layer, ..)| layer.outlier_columns(quantized.outliers()))
        .collect::<Result<_>>()?;
    let jobs = layers
        .into_iter()
        .zip(&columns)
        .map(|((layer, activation, out), columns)| {
            let form = layer.kernel_form(columns.as_deref(), activation)?;
            Ok((form, MatMut::new(out, rows, layer.out_features())?))
        });
    linears(isa, quantized, jobs.collect::<Result<_>>()?)?;
    Ok(())
}

/// Values from which rows are shared between threads.
const PARALLEL_VALUES: usize = 1 << 15;

/// Calls `f` with the number of each row and its values.
pub fn for_rows(x: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    if x.len() < PARALLEL_VALUES {
        x.chunks_mut(width)
            .enumerate()
            .for_each(|(i, row)| f(i, row));
    } else {
        let min_len = (PARALLEL_VALUES / 4 / width).max(1);
        x.par_chunks_mut(width)
            .enumerate()
            .with_min_len(min_len)
            .for_each(|(i, row)| f(i, row));
    }
}
