//! The linear layers of a step on the CPU: matmuls, the updates of an adapter, activations.

use crate::error::{DecoderError, Result};
use crate::hook::{LinearHook, LinearInput};
use crate::plan::{Activated, Layer, LinearStep};
use crate::slot::{PartSlot, Parts};
use llm_int8_kernels::{Activation, Isa, QuantizedActivations, activation};
use llm_int8_nn::linear::{Linear, Projection, for_rows, project};

/// A part or rows that a step needs and the decoder does not have: the plan is wrong.
pub(super) fn missing<T>(what: &'static str) -> Result<T> {
    Err(DecoderError::Bug { what })
}

/// The buffer, resized to `count` rows of `width` values. Old values are not cleared.
pub(super) fn sized(buffer: &mut Vec<f32>, count: usize, width: usize) -> &mut [f32] {
    buffer.resize(count * width, 0.0);
    buffer
}

/// The layers of a step.
pub(super) fn linears<'a, S: PartSlot>(
    step: &LinearStep<S>,
    parts: &'a Parts<S>,
) -> Result<Vec<&'a Linear>> {
    step.layers
        .iter()
        .map(|layer| match parts.linear(layer.slot) {
            Some(linear) => Ok(linear),
            None => missing("a linear layer"),
        })
        .collect()
}

/// Runs the layers of a step on their input. Activations that cover a whole layer are fused into its
/// matmul, except where a hook computes it or an adapter adds its update first.
pub(super) fn project_layers<S: PartSlot>(
    isa: Isa,
    step: &LinearStep<S>,
    parts: &Parts<S>,
    input: &LinearInput<'_>,
    outputs: &mut [Vec<f32>],
    quantized: &mut QuantizedActivations,
    hook: Option<&mut dyn LinearHook>,
) -> Result<()> {
    let is_hooked = hook.is_some();
    let is_fused = |layer: &Layer<S>| !is_hooked && parts.update(layer.slot).is_none();

    match hook {
        None => {
            let layers = step.layers.iter().zip(&input.layers).zip(&mut *outputs);
            let projections = layers.map(|((layer, linear), out)| Projection {
                linear,
                activation: whole_activation(step, layer).filter(|_| is_fused(layer)),
                out: sized(out, input.rows, layer.out_features),
            });
            project(input.values, input.rows, projections.collect(), quantized)?;
        }
        Some(hook) => project_hooked(step, input, &mut *outputs, quantized, hook)?,
    }

    for (layer, out) in step.layers.iter().zip(outputs) {
        if is_fused(layer) {
            continue;
        }
        if let Some(update) = parts.update(layer.slot) {
            update.add_to(input.values, input.rows, out)?;
        }
        if let Some(function) = whole_activation(step, layer) {
            for_rows(out, layer.out_features, |_, row| {
                activation::apply(isa, function, row);
            });
        }
    }
    Ok(())
}

/// Runs the layers one by one, each by the hook if it wants to, without activation functions.
fn project_hooked<S: PartSlot>(
    step: &LinearStep<S>,
    input: &LinearInput<'_>,
    outputs: &mut [Vec<f32>],
    quantized: &mut QuantizedActivations,
    hook: &mut dyn LinearHook,
) -> Result<()> {
    hook.input(input)?;
    for ((layer, linear), out) in step.layers.iter().zip(&input.layers).zip(outputs) {
        let out = sized(out, input.rows, layer.out_features);
        if !hook.compute(linear, input.values, input.rows, out)? {
            let projection = Projection {
                linear,
                activation: None,
                out,
            };
            project(input.values, input.rows, vec![projection], quantized)?;
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
