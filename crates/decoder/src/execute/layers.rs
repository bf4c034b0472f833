//! The linear layers of a step on the CPU: matmuls, the updates of an adapter, activations.

use crate::error::{DecoderError, Result};
use crate::plan::{Activated, Layer, LinearStep};
use crate::slot::{PartSlot, Parts};
use llm_int8_kernels::{Activation, Isa, QuantizedActivations, activation};
use llm_int8_nn::linear::{Projection, for_rows, project};

/// A part or rows that a step needs and the decoder does not have: the plan is wrong.
pub(super) fn missing<T>(what: &'static str) -> Result<T> {
    Err(DecoderError::Bug { what })
}

/// The buffer, resized to `count` rows of `width` values. Old values are not cleared.
pub(super) fn sized(buffer: &mut Vec<f32>, count: usize, width: usize) -> &mut [f32] {
    buffer.resize(count * width, 0.0);
    buffer
}

/// Runs the layers of a step on the input `x` of `count` rows. Activations that cover a whole layer
/// are fused into its matmul, except where an adapter adds its update first.
pub(super) fn project_layers<S: PartSlot>(
    isa: Isa,
    step: &LinearStep<S>,
    parts: &Parts<S>,
    x: &[f32],
    count: usize,
    outputs: &mut [Vec<f32>],
    quantized: &mut QuantizedActivations,
) -> Result<()> {
    let mut projections = Vec::with_capacity(step.layers.len());
    for (layer, out) in step.layers.iter().zip(&mut *outputs) {
        let Some(linear) = parts.linear(layer.slot) else {
            return missing("a linear layer");
        };
        let is_fused = parts.update(layer.slot).is_none();
        projections.push(Projection {
            linear,
            activation: whole_activation(step, layer).filter(|_| is_fused),
            out: sized(out, count, layer.out_features),
        });
    }
    project(x, count, projections, quantized)?;

    for (layer, out) in step.layers.iter().zip(outputs) {
        let Some(update) = parts.update(layer.slot) else {
            continue;
        };
        update.add_to(x, count, out)?;
        if let Some(function) = whole_activation(step, layer) {
            for_rows(out, layer.out_features, |_, row| {
                activation::apply(isa, function, row);
            });
        }
    }
    Ok(())
}

/// The activation function that covers all outputs of a layer.
fn whole_activation<S>(step: &LinearStep<S>, layer: &Layer<S>) -> Option<Activation> {
    let end = layer.offset + layer.out_features;
    step.activation
        .filter(|activated| end <= activated.outputs)
        .map(|activated| activated.function.kernel())
}

/// Activates the gates of layers that compute gate and up at once: their activation covers only the
/// first part of a row.
pub(super) fn activate_gates<S>(isa: Isa, step: &LinearStep<S>, outputs: &mut [Vec<f32>]) {
    let Some(Activated {
        function,
        outputs: activated,
    }) = step.activation
    else {
        return;
    };
    for (layer, out) in step.layers.iter().zip(outputs) {
        let end = layer.offset + layer.out_features;
        if layer.offset < activated && activated < end {
            let gate = activated - layer.offset;
            for_rows(out, layer.out_features, |_, row| {
                activation::apply(isa, function.kernel(), &mut row[..gate]);
            });
        }
    }
}
