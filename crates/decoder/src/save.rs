//! The tensors of a checkpoint that saves a decoder.

use crate::decoder::Decoder;
use crate::error::{DecoderError, Result};
use crate::slot::{ModelSlot, Part, Slot};
use candle_core::{Device, Tensor};
use llm_int8_nn::checkpoint::{NewTensor, float_bytes, float_state, linear_state};
use llm_int8_nn::dtype::FloatDtype;
use llm_int8_nn::linear::{Int8Linear, Linear, LinearClass};

/// How int8 layers are saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SavedLayers {
    /// As bitsandbytes saves them: codes and `SCB`.
    Int8,
    /// As floats, `code · absmax / 127`, rounded to the dtype of the other parameters
    /// (`dequantize()` of transformers).
    Dequantized,
}

impl Decoder {
    /// The model's tensors, in PyTorch's order and under transformers' names. A tied head is left
    /// out, as `save_pretrained` leaves it out.
    ///
    /// # Errors
    /// [`NnError::NotLoaded`](llm_int8_nn::NnError) for a model without values;
    /// [`DecoderError::Config`] for one whose head and token table are int8;
    /// [`DecoderError::SavedAdapter`] for one with an adapter.
    pub fn state(&self, layers: SavedLayers) -> Result<Vec<NewTensor<'_>>> {
        if self.has_adapter() {
            return Err(DecoderError::SavedAdapter);
        }
        if self.has_int8_head() {
            let reason = "the head and the token table are int8 (quantize_head), which transformers cannot read; \
                          load the model without that to save it";
            return Err(DecoderError::Config {
                reason: reason.into(),
            });
        }

        let mut tensors = Vec::new();
        for (path, slot) in self.paths() {
            let weight = path.join("weight").to_string();
            let bias = path.join("bias").to_string();
            match self.part(slot) {
                Some(Part::Embedding(embedding)) => {
                    tensors.push(float_state(embedding.weight(), weight, false))
                }
                Some(Part::Norm(norm)) => {
                    for (name, parameter) in norm.parameters() {
                        tensors.push(float_state(parameter, path.join(name).to_string(), false));
                    }
                }
                Some(Part::HeadNorms(norms)) => {
                    for (name, parameter) in norms.parameters() {
                        tensors.push(float_state(parameter, path.join(&name).to_string(), false));
                    }
                }
                Some(Part::Linear(Linear::Float(linear))) => {
                    let is_tied = self.spec().tied_head && slot == Slot::Model(ModelSlot::Head);
                    if !is_tied {
                        let transposed = linear.class() == LinearClass::Conv1D;
                        tensors.push(float_state(linear.weight(), weight, transposed));
                    }
                    tensors.extend(linear.bias().map(|values| float_state(values, bias, false)));
                }
                Some(Part::Linear(Linear::Int8(linear))) if layers == SavedLayers::Int8 => {
                    tensors.extend(linear_state(linear, path.as_str())?);
                }
                Some(Part::Linear(Linear::Int8(linear))) => {
                    tensors.push(dequantized(linear, weight, self.dtype()));
                    tensors.extend(linear.bias().map(|values| float_state(values, bias, false)));
                }
                None => {}
            }
        }
        Ok(tensors)
    }
}

/// The weight of an int8 layer as a float tensor, in the layout that its class is stored in.
fn dequantized(linear: &Int8Linear, name: String, dtype: FloatDtype) -> NewTensor<'_> {
    let out_features = linear.out_features();
    let in_features = linear.in_features();
    let transposed = linear.class() == LinearClass::Conv1D;
    let shape = if transposed {
        [in_features, out_features]
    } else {
        [out_features, in_features]
    };

    NewTensor::new(name, dtype.stored(), &shape, move || {
        let values = linear.weight()?.dequantize(linear.isa())?;
        let tensor = Tensor::from_vec(values, (out_features, in_features), &Device::Cpu)?;
        let tensor = tensor.to_dtype(dtype.candle())?;
        Ok(float_bytes(&tensor, transposed)?.into())
    })
}
