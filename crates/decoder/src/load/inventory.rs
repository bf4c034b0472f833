//! Which tensors a model takes from a checkpoint and what each is there, to check a checkpoint
//! without loading it.

use super::quantization::{StoredQuantization, declare};
use super::tensors::{Keys, expected, unused_names};
use super::{HEAD, LoadOptions};
use crate::decoder::Decoder;
use crate::error::Result;
use crate::slot::Part;
use crate::spec::DecoderSpec;
use llm_int8_kernels::Isa;
use llm_int8_nn::checkpoint::Checkpoint;
use llm_int8_nn::config::ModelConfig;
use llm_int8_nn::dtype::FloatDtype;
use llm_int8_nn::linear::{Int8Config, LinearClass};
use std::collections::BTreeSet;

/// What a tensor is to the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorRole {
    /// A parameter that stays a float.
    Float,
    /// A float weight that becomes int8 when the model is loaded in 8 bit.
    Quantized,
    /// The codes of an int8 layer. Its absmax is the tensor `SCB` beside it.
    Codes,
}

/// A tensor that a model needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelTensor {
    /// Its full name in the module tree: `transformer.h.0.attn.c_attn.weight`.
    pub name: String,
    /// Its name in the checkpoint, which may lack the family's prefix.
    pub key: String,
    /// The shape that it must have in the checkpoint.
    pub shape: Vec<usize>,
    /// What it is.
    pub role: TensorRole,
    /// Whether it is stored as `[in, out]` (GPT-2's `Conv1D`).
    pub transposed: bool,
}

/// The tensors of a checkpoint from the point of view of a model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModelTensors {
    /// Those that the model needs, in PyTorch's order; they may be missing from the checkpoint. A
    /// tied head is left out.
    pub needed: Vec<ModelTensor>,
    /// Names in the checkpoint that the model has no place for, without buffers that transformers
    /// ignores silently.
    pub unused: Vec<String>,
}

impl Decoder {
    /// The tensors that a model takes from a checkpoint when it is loaded in 8 bit. Reads only
    /// `config.json` and headers, and checks neither that the tensors exist nor their shapes.
    ///
    /// # Errors
    /// [`DecoderError::UnsupportedFamily`](crate::DecoderError),
    /// [`DecoderError::Config`](crate::DecoderError);
    /// [`NnError::QuantisationState`](llm_int8_nn::NnError) for a float weight with an absmax
    /// beside it.
    pub fn tensors_in(config: &ModelConfig, checkpoint: &Checkpoint) -> Result<ModelTensors> {
        let stored = StoredQuantization::of(config)?;
        let spec = DecoderSpec::from_config(config)?;
        let mut decoder = Self::declared(spec, FloatDtype::F16, Isa::detect())?;
        let keys = Keys {
            checkpoint,
            prefix: decoder.spec().optional_prefix,
        };
        let options = LoadOptions::default();
        declare(
            &mut decoder,
            &keys,
            &options,
            &stored,
            Int8Config::default(),
        )?;

        let needed = decoder.needed(&keys);
        let mut known: BTreeSet<String> = needed.iter().map(|tensor| tensor.key.clone()).collect();
        if decoder.spec().tied_head {
            let head = decoder.paths().into_iter().find(|(_, slot)| *slot == HEAD);
            known.extend(head.map(|(path, _)| keys.key(&path, "weight")));
        }
        let unused = unused_names(&decoder, &keys, &known, &stored, std::iter::empty())
            .into_iter()
            .map(str::to_owned)
            .collect();

        Ok(ModelTensors { needed, unused })
    }

    fn needed(&self, keys: &Keys<'_>) -> Vec<ModelTensor> {
        let mut found = Vec::new();
        for (path, slot) in self.paths() {
            let Some(part) = self.part(slot) else {
                continue;
            };
            let linear = match part {
                Part::Linear(linear) => Some(linear),
                _ => None,
            };
            let is_int8 = linear.is_some_and(|linear| linear.is_int8());
            let is_codes = is_int8 && keys.is_quantised(&path);
            let is_conv = linear.is_some_and(|linear| linear.class() == LinearClass::Conv1D);

            for (name, shape) in expected(part, is_codes) {
                let is_weight = name == "weight";
                if is_weight && slot == HEAD && self.spec().tied_head {
                    continue;
                }
                found.push(ModelTensor {
                    name: path.join(&name).to_string(),
                    key: keys.key(&path, &name),
                    shape,
                    role: match (is_weight, is_codes, is_int8) {
                        (true, true, _) => TensorRole::Codes,
                        (true, false, true) => TensorRole::Quantized,
                        _ => TensorRole::Float,
                    },
                    transposed: is_weight && is_conv && !is_codes,
                });
            }
        }
        found
    }
}
