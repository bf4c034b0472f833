//! Runs the layers of a linear step on the CPU.

use super::cpu::{missing, sized};
use crate::error::Result;
use crate::hook::{LinearHook, LinearInput};
use crate::plan::{Activated, LinearStep};
use crate::slot::{PartSlot, Parts};
use llm_int8_kernels::{Activation, Isa, QuantizedActivations, activation};
use llm_int8_nn::linear::{Linear, Projection, for_rows, project};

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

/// Runs the layers of a step on the input `x` of `count` rows. Activations that cover a whole layer
/// are fused into its matmul.
pub(super) fn project_layers<S: PartSlot>(
    step: &LinearStep<S>,
    layers: &[&Linear],
    x: &[f32],
    count: usize,
    outputs: &mut [Vec<f32>],
    quantized: &mut QuantizedActivations,
) -> Result<()> {
    let mut projections = Vec::with_capacity(step.layers.len());
    for (i, (linear, out)) in layers.iter().zip(outputs).enumerate() {
        projections.push(Projection {
            linear,
            activation: whole_activation(step, i),
            out: sized(out, count, step.layers[i].out_features),
        });
    }
    Ok(project(x, count, projections, quantized)?)
}

/// The activation function of layer `i` of a step, if it covers the whole layer.
fn whole_activation<S>(step: &LinearStep<S>, i: usize) -> Option<Activation> {
    let layer = &step.layers[i];
    let end = layer.offset + layer.out_features;
    step.activation
        .filter(|activated| end <= activated.outputs)
        .map(|activated| activated.function.kernel())
}

/// [`project_layers`] one by one, each computed by the hook if it wants to.
pub(super) fn project_hooked<S: PartSlot>(
    step: &LinearStep<S>,
    input: &LinearInput<'_>,
    outputs: &mut [Vec<f32>],
    quantized: &mut QuantizedActivations,
    hook: &mut dyn LinearHook,
) -> Result<()> {
    hook.input(input)?;
    for (i, (linear, out)) in input.layers.iter().zip(outputs).enumerate() {
        let width = step.layers[i].out_features;
        let out = sized(out, input.rows, width);
        let activation = whole_activation(step, i);

        if !hook.compute(linear, input.values, input.rows, out)? {
            let projection = Projection {
                linear,
                activation,
                out,
            };
            project(input.values, input.rows, vec![projection], quantized)?;
        } else if let Some(function) = activation {
            for_rows(out, width, |_, row| {
                activation::apply(linear.isa(), function, row)
            });
        }
    }
    Ok(())
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
