//! Linear layers over plain f32 rows, as the decoder calls them: no tensors in between, and layers
//! with the same input quantise it once.

use super::op::FloatMatmul;
use super::original::OutlierColumns;
use super::{FloatLinear, Int8Linear, Linear};
use crate::error::Result;
use llm_int8_kernels::{
    Activation, MatMut, MatRef, QuantizedActivations, activation, linears, team,
};
use std::sync::Arc;

/// A layer and the buffer for its output.
pub struct Projection<'a> {
    /// The layer.
    pub linear: &'a Linear,
    /// Activation function applied to the output.
    pub activation: Option<Activation>,
    /// `[rows, out_features]`.
    pub out: &'a mut [f32],
}

/// Applies several layers to the same input `x` `[rows, in_features]`. The int8 layers quantise it
/// once and, for a single row, are split over the threads as if they were one layer. `quantized` is
/// scratch memory for the quantised input.
///
/// # Errors
/// [`NnError::NotLoaded`](crate::NnError::NotLoaded) for a layer without values,
/// [`NnError::NoOriginalWeights`](crate::NnError::NoOriginalWeights), and
/// [`NnError::Kernel`](crate::NnError::Kernel) for slices of the wrong length.
pub fn project(
    x: &[f32],
    rows: usize,
    projections: Vec<Projection<'_>>,
    quantized: &mut QuantizedActivations,
) -> Result<()> {
    let mut group: Vec<Int8Projection<'_>> = Vec::new();
    for Projection {
        linear,
        activation,
        out,
    } in projections
    {
        match linear {
            Linear::Float(layer) => project_float(layer, x, rows, activation, out)?,
            Linear::Int8(layer) => {
                // Layers can be configured one by one. A different configuration needs its own
                // quantised input, and so do other kept columns.
                if group.first().is_some_and(|first| {
                    first.layer.config() != layer.config()
                        || first.layer.kept_indices() != layer.kept_indices()
                }) {
                    project_int8(x, rows, std::mem::take(&mut group), quantized)?;
                }
                group.push(Int8Projection {
                    layer,
                    activation,
                    out,
                });
            }
        }
    }

    project_int8(x, rows, group, quantized)
}

/// A [`Projection`] of an int8 layer.
struct Int8Projection<'a> {
    layer: &'a Int8Linear,
    activation: Option<Activation>,
    out: &'a mut [f32],
}

fn project_float(
    layer: &FloatLinear,
    x: &[f32],
    rows: usize,
    function: Option<Activation>,
    out: &mut [f32],
) -> Result<()> {
    let isa = layer.isa();
    let out_features = layer.out_features();
    let matmul = FloatMatmul {
        weight: layer.weight().tensor()?,
        bias: layer.bias_values()?,
        isa,
    };

    matmul.rows(
        MatRef::new(x, rows, layer.in_features())?,
        MatMut::new(out, rows, out_features)?,
    )?;

    if let Some(function) = function {
        for_rows(out, out_features, |_, row| {
            activation::apply(isa, function, row)
        });
    }

    Ok(())
}

/// Applies int8 layers of the same configuration.
fn project_int8(
    x: &[f32],
    rows: usize,
    group: Vec<Int8Projection<'_>>,
    quantized: &mut QuantizedActivations,
) -> Result<()> {
    let Some(first) = group.first() else {
        return Ok(());
    };
    let isa = first.layer.isa();
    let config = first.layer.config();
    let x = MatRef::new(x, rows, first.layer.in_features())?;
    quantized.refill(isa, x, config.outliers, first.layer.kept_indices());

    // The kernel borrows these, so all are collected first.
    let columns: Vec<Option<Arc<OutlierColumns>>> = group
        .iter()
        .map(|projection| projection.layer.outlier_columns(quantized.outliers()))
        .collect::<Result<_>>()?;
    let jobs = group
        .into_iter()
        .zip(&columns)
        .map(|(projection, columns)| {
            let layer = projection.layer;
            let form = layer.kernel_form(rows, columns.as_deref(), projection.activation)?;
            let out = MatMut::new(projection.out, rows, layer.out_features())?;
            Ok((form, out))
        });

    linears(isa, quantized, jobs.collect::<Result<_>>()?)?;
    Ok(())
}

/// From this many values on, rows are split over threads.
const PARALLEL_VALUES: usize = 1 << 15;

/// Calls `f` with the index and the values of each row of `x` `[rows, width]`.
pub fn for_rows(x: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    if x.len() < PARALLEL_VALUES {
        x.chunks_mut(width)
            .enumerate()
            .for_each(|(i, row)| f(i, row));
    } else {
        let rows = (PARALLEL_VALUES / 4 / width).max(1);
        team::for_each_chunk(x, rows * width, |_: &mut (), group, x| {
            x.chunks_mut(width)
                .enumerate()
                .for_each(|(i, row)| f(group * rows + i, row));
        });
    }
}
