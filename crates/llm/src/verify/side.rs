//! One of the models of a verification: its files, and which tensors it needs.

use super::Fault;
use super::report::{Report, list_names};
use crate::error::{LlmError, Result};
use crate::load::Source;
use llm_int8_decoder::{Decoder, DecoderError, ModelConfig, ModelTensor, ModelTensors, TensorRole};
use llm_int8_hub::{HubConfig, Progress};
use llm_int8_nn::NnError;
use llm_int8_nn::checkpoint::{Checkpoint, is_float};
use llm_int8_nn::dtype::FloatDtype;
use safetensors::Dtype;
use std::collections::HashMap;

/// A model's files and its view of them.
pub(super) struct Side {
    config: ModelConfig,
    pub(super) checkpoint: Checkpoint,
    pub(super) tensors: ModelTensors,
    /// Full name → index in `tensors.needed`.
    by_name: HashMap<String, usize>,
    basis: Basis,
}

/// What the list of needed tensors is made from.
enum Basis {
    /// The module tree of the model's family.
    Tree,
    /// The names in the checkpoint, as the family is not known.
    Family(DecoderError),
    /// The names in the checkpoint, as the state of this int8 layer contradicts itself.
    BrokenLayer { layer: String, reason: String },
    /// The names in the checkpoint, as those of the other model are all that is known of it.
    Other,
}

impl Side {
    pub(super) fn open(name: &str, hub: &HubConfig, download: &dyn Progress) -> Result<Self> {
        let source = Source::find(name, hub, download)?;
        let found = Decoder::tensors_in(&source.config, &source.checkpoint);
        let (basis, tensors) = match found {
            Ok(tensors) => (Basis::Tree, tensors),
            Err(error @ DecoderError::UnsupportedFamily { .. }) => {
                (Basis::Family(error), named_tensors(&source.checkpoint))
            }
            Err(DecoderError::Nn(NnError::QuantisationState { layer, reason })) => (
                Basis::BrokenLayer { layer, reason },
                named_tensors(&source.checkpoint),
            ),
            Err(error) => return Err(LlmError::from(error)),
        };

        Ok(Self {
            by_name: index(&tensors),
            config: source.config,
            checkpoint: source.checkpoint,
            tensors,
            basis,
        })
    }

    pub(super) fn is_prequantized(&self) -> bool {
        Decoder::is_prequantized(&self.checkpoint)
    }

    /// Whether the tensors are those named in the checkpoint, for want of a known family.
    pub(super) fn is_by_name(&self) -> bool {
        !matches!(self.basis, Basis::Tree)
    }

    /// Whether an int8 layer contradicts itself, so that the tree of the model is not known.
    pub(super) fn is_broken(&self) -> bool {
        matches!(self.basis, Basis::BrokenLayer { .. })
    }

    /// Lists the tensors by their names in the checkpoint.
    pub(super) fn use_names(&mut self) {
        if !self.is_by_name() {
            self.tensors = named_tensors(&self.checkpoint);
            self.by_name = index(&self.tensors);
            self.basis = Basis::Other;
        }
    }

    /// The needed tensor of this full name.
    pub(super) fn tensor(&self, name: &str) -> Option<&ModelTensor> {
        self.tensors.needed.get(*self.by_name.get(name)?)
    }

    /// Size of the needed tensors in bytes, absmax included.
    pub(super) fn bytes(&self) -> u64 {
        let size = |key: &str| self.checkpoint.entry(key).map_or(0, |entry| entry.bytes());
        let of = |tensor: &ModelTensor| match tensor.key.strip_suffix(".weight") {
            Some(module) if tensor.role == TensorRole::Codes => {
                size(&tensor.key) + size(&format!("{module}.SCB"))
            }
            _ => size(&tensor.key),
        };
        self.tensors.needed.iter().map(of).sum()
    }

    /// The dtype that the model was loaded as before it was quantised: that of `config.json`,
    /// otherwise that of its first float tensor beside the absmax.
    pub(super) fn dtype(&self) -> FloatDtype {
        let stored = || {
            let floats = self.tensors.needed.iter().filter_map(|tensor| {
                let entry = self.checkpoint.entry(&tensor.key)?;
                is_float(entry.dtype).then_some(entry.dtype)
            });
            match floats.into_iter().next() {
                Some(Dtype::BF16) => FloatDtype::BF16,
                Some(Dtype::F32 | Dtype::F64) => FloatDtype::F32,
                _ => FloatDtype::F16,
            }
        };
        self.config.stored_dtype().unwrap_or_else(stored)
    }

    /// Adds what is known before a tensor is read.
    pub(super) fn explain(&self, report: &mut Report) {
        match &self.basis {
            Basis::Tree => {}
            Basis::Family(error) => report.note(
                None,
                format!("{error}; tensors are taken by their names, so none can be missing"),
            ),
            Basis::BrokenLayer { layer, reason } => {
                report.add(layer, Fault::State, reason.clone());
            }
            Basis::Other => report.note(
                None,
                "the family of the source is not known; tensors are compared by their names".into(),
            ),
        }

        let unused = &self.tensors.unused;
        if !unused.is_empty() {
            let detail = format!(
                "{} tensors that the model does not use were not checked: {}",
                unused.len(),
                list_names(unused)
            );
            report.note(None, detail);
        }
        let copies = self.checkpoint.copies();
        if !copies.is_empty() {
            let detail = format!(
                "several shards hold {}; the copy that the index names was checked",
                list_names(copies)
            );
            report.note(None, detail);
        }
    }
}

fn index(tensors: &ModelTensors) -> HashMap<String, usize> {
    let names = tensors.needed.iter().enumerate();
    names.map(|(i, tensor)| (tensor.name.clone(), i)).collect()
}

/// The tensors of a checkpoint by their names alone. Int8 codes are those with an absmax beside
/// them; what is neither codes nor a float is unused.
fn named_tensors(checkpoint: &Checkpoint) -> ModelTensors {
    let mut tensors = ModelTensors::default();
    for (name, entry) in checkpoint.entries() {
        let module = name.strip_suffix(".weight");
        let is_codes = entry.dtype == Dtype::I8
            && module.is_some_and(|module| checkpoint.entry(&format!("{module}.SCB")).is_some());
        let is_state = [".SCB", ".weight_format"].iter().any(|suffix| {
            let module = name.strip_suffix(suffix);
            module.is_some_and(|module| checkpoint.entry(&format!("{module}.weight")).is_some())
        });
        if is_state {
            continue;
        }
        if !is_codes && !is_float(entry.dtype) {
            tensors.unused.push(name.to_owned());
            continue;
        }
        tensors.needed.push(ModelTensor {
            name: name.to_owned(),
            key: name.to_owned(),
            shape: entry.shape.clone(),
            role: if is_codes {
                TensorRole::Codes
            } else {
                TensorRole::Float
            },
            transposed: false,
        });
    }
    tensors
}
