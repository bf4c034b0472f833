//! Read access to the values of a model's parameters, without copies.

use crate::decoder::Decoder;
use crate::slot::{ModelSlot, Part, Slot};
use llm_int8_nn::linear::{Int8Weight, Linear, LinearClass};
use llm_int8_nn::parameter::FloatParameter;

/// The values of a parameter that lies in the memory of the CPU.
#[derive(Debug, Clone, Copy)]
pub enum ParameterValues<'a> {
    /// The codes of an int8 weight, with the absmax of its rows.
    Int8(&'a Int8Weight),
    /// Values in f16, bf16 or f32.
    Float {
        /// The values.
        values: &'a FloatParameter,
        /// Whether they lie as `[out, in]` while PyTorch has `[in, out]`: the weight of a `Conv1D`.
        is_transposed: bool,
    },
}

impl Decoder {
    /// The values of every parameter under its full name, in PyTorch's order. Parameters on a GPU are
    /// left out, and so is a tied head, whose values are the token table's.
    pub fn parameter_values(&self) -> Vec<(String, ParameterValues<'_>)> {
        let mut found = Vec::new();
        for (path, slot) in self.paths() {
            let name = |last: &str| path.join(last).to_string();
            match self.part(slot) {
                Some(Part::Embedding(table)) => found.push((
                    name("weight"),
                    match table.int8_weight() {
                        Some(weight) => ParameterValues::Int8(weight),
                        None => float(table.weight()),
                    },
                )),
                Some(Part::Norm(norm)) => {
                    let values = norm.parameters();
                    found.extend(values.map(|(last, values)| (name(last), float(values))));
                }
                Some(Part::HeadNorms(norms)) => {
                    let values = norms.parameters();
                    found.extend(values.map(|(last, values)| (name(&last), float(values))));
                }
                Some(Part::Linear(linear)) => {
                    let is_tied = self.spec().tied_head && slot == Slot::Model(ModelSlot::Head);
                    let weight = (!is_tied).then(|| weight(linear)).flatten();
                    found.extend(weight.map(|values| (name("weight"), values)));
                    let bias = match linear {
                        Linear::Float(linear) => linear.bias(),
                        Linear::Int8(linear) => linear.bias(),
                    };
                    found.extend(bias.map(|values| (name("bias"), float(values))));
                }
                None => {}
            }
        }

        found.retain(|(_, values)| match values {
            ParameterValues::Float { values, .. } => values.is_loaded(),
            ParameterValues::Int8(_) => true,
        });
        found
    }
}

fn float(values: &FloatParameter) -> ParameterValues<'_> {
    ParameterValues::Float {
        values,
        is_transposed: false,
    }
}

/// The weight of a layer; `None` if it is on a GPU or not loaded.
fn weight(linear: &Linear) -> Option<ParameterValues<'_>> {
    match linear {
        Linear::Int8(linear) => linear.weight().ok().map(ParameterValues::Int8),
        Linear::Float(linear) => Some(ParameterValues::Float {
            values: linear.weight(),
            is_transposed: linear.class() == LinearClass::Conv1D,
        }),
    }
}
