//! The float weights of a layer that was loaded in 8 bit, read from the checkpoint once more.

use super::HEAD;
use super::tensors::Keys;
use crate::decoder::Decoder;
use crate::error::Result;
use crate::slot::{ModelSlot, Slot};
use llm_int8_nn::NnError;
use llm_int8_nn::checkpoint::{Checkpoint, float_tensor, is_float};
use llm_int8_nn::dtype::FloatDtype;
use llm_int8_nn::linear::{FloatLinear, Linear, LinearClass};
use llm_int8_nn::module::ModulePath;

impl Decoder {
    /// A linear layer of this model in f32, with the weights that `checkpoint` has for it and the layer's
    /// own bias. `None` if the checkpoint has them in 8 bit only.
    ///
    /// # Errors
    /// [`NnError`] if the checkpoint has no such tensor, or one of another shape, or it cannot be
    /// read.
    pub fn float_linear(
        &self,
        layer: &Linear,
        checkpoint: &Checkpoint,
    ) -> Result<Option<FloatLinear>> {
        let keys = Keys {
            checkpoint,
            prefix: self.spec().optional_prefix,
        };
        let key = keys.key(&self.stored_at(layer.path()), "weight");
        if checkpoint
            .entry(&key)
            .is_some_and(|entry| !is_float(entry.dtype))
        {
            return Ok(None);
        }

        let view = checkpoint.tensor(&key)?;
        let is_transposed = layer.class() == LinearClass::Conv1D;
        let mut expected = [layer.out_features(), layer.in_features()];
        if is_transposed {
            expected.reverse();
        }
        if view.shape != expected {
            return Err(NnError::WrongShape {
                file: checkpoint.file_of(&key).unwrap_or_default().to_owned(),
                found: view.shape.to_vec(),
                expected: expected.to_vec(),
                name: key,
            }
            .into());
        }

        let weight = float_tensor(&view, FloatDtype::F32, is_transposed)?;
        let bias = match layer {
            Linear::Float(linear) => linear.bias(),
            Linear::Int8(linear) => linear.bias(),
        };
        let bias = bias.map(|bias| bias.tensor().cloned()).transpose()?;
        Ok(Some(FloatLinear::new(weight, bias)?))
    }

    /// The module whose tensor holds the weight of the layer at `path`: for a tied head the token
    /// table.
    fn stored_at(&self, path: &ModulePath) -> ModulePath {
        let paths = self.paths();
        let path_of = |slot| paths.iter().find(|(_, other)| *other == slot);
        let tokens = path_of(Slot::Model(ModelSlot::Tokens));
        let is_tied_head =
            self.spec().tied_head && path_of(HEAD).is_some_and(|(head, _)| head == path);
        match tokens.filter(|_| is_tied_head) {
            Some((tokens, _)) => tokens.clone(),
            None => path.clone(),
        }
    }
}
