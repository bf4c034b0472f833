//! The files of an adapter: `adapter_config.json` and `adapter_model.safetensors` (or `.bin`).

use super::config::AdapterConfig;
use super::update::LoraUpdate;
use crate::checkpoint::{Checkpoint, float_tensor};
use crate::dtype::FloatDtype;
use crate::error::{NnError, Result};
use crate::near_names::near_names;
use candle_core::Tensor;
use llm_int8_kernels::Isa;
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::path::Path;

const CONFIG: &str = "adapter_config.json";
const SAFETENSORS: &str = "adapter_model.safetensors";
const PICKLE: &str = "adapter_model.bin";

/// What PEFT puts in front of a layer's path. transformers' `load_adapter` also reads names without
/// it.
const PREFIX: &str = "base_model.model.";
const SUFFIXES: [&str; 2] = [".lora_A.weight", ".lora_B.weight"];

/// A LoRA adapter as PEFT saves it, opened: for each layer that it changes, the names of its two
/// matrices.
#[derive(Debug)]
pub struct Adapter {
    config: AdapterConfig,
    checkpoint: Checkpoint,
    /// By the layer's path: the names of A and B.
    layers: BTreeMap<String, [String; 2]>,
}

impl Adapter {
    /// Opens the adapter in a folder. Reads the configuration and the tensors' names.
    ///
    /// # Errors
    /// - [`NnError::NoAdapter`] for a folder without the files of an adapter, [`NnError::Read`];
    /// - [`NnError::Adapter`] for a configuration that is not supported;
    /// - [`NnError::AdapterTensor`] for tensors other than the matrices of linear layers, and for
    ///   one without the other;
    /// - those of [`Checkpoint::open_safetensors`].
    pub fn open(folder: &Path) -> Result<Self> {
        let config = folder.join(CONFIG);
        if !config.is_file() {
            return Err(no_adapter(folder, CONFIG));
        }
        let bytes = std::fs::read(&config).map_err(|source| NnError::Read {
            path: config,
            source,
        })?;
        let config = AdapterConfig::parse(&bytes)?;

        let [safetensors, pickle] = [SAFETENSORS, PICKLE].map(|name| folder.join(name));
        let checkpoint = if safetensors.exists() {
            Checkpoint::open_safetensors(&[safetensors], None)?
        } else if pickle.exists() {
            Checkpoint::open_pickle(&[pickle], None)?
        } else {
            return Err(no_adapter(folder, SAFETENSORS));
        };

        let layers = pairs(&checkpoint)?;
        if layers.is_empty() {
            let reason = format!("{} holds no tensors", checkpoint.description());
            return Err(NnError::Adapter { reason });
        }
        Ok(Self {
            config,
            checkpoint,
            layers,
        })
    }

    /// The layers that it changes, by path.
    pub fn layers(&self) -> impl Iterator<Item = AdapterLayer<'_>> {
        self.layers.iter().map(|(path, [a, b])| AdapterLayer {
            adapter: self,
            path,
            a,
            b,
        })
    }
}

/// What an adapter holds for one layer.
#[derive(Debug, Clone, Copy)]
pub struct AdapterLayer<'a> {
    adapter: &'a Adapter,
    path: &'a str,
    /// Names of the matrices.
    a: &'a str,
    b: &'a str,
}

impl AdapterLayer<'_> {
    /// The layer's path in the model: `model.layers.0.self_attn.q_proj`.
    pub fn path(&self) -> &str {
        self.path
    }

    /// Reads the update for a layer whose weight is `[out, in]`.
    ///
    /// # Errors
    /// [`NnError::AdapterTensor`] for matrices that fit neither the layer nor the configuration;
    /// [`NnError::WrongDtype`] for some that are no floats.
    pub fn update(&self, [outputs, inputs]: [usize; 2], isa: Isa) -> Result<LoraUpdate> {
        let config = self.adapter.config.layer(self.path);
        let a = self.matrix(self.a, [config.rank, inputs], config.rank)?;
        let b = self.matrix(self.b, [outputs, config.rank], config.rank)?;
        LoraUpdate::new(a, b, config.scale(), isa)
    }

    fn matrix(&self, name: &str, expected: [usize; 2], rank: usize) -> Result<Tensor> {
        let checkpoint = &self.adapter.checkpoint;
        let view = checkpoint.tensor(name)?;
        if view.shape != expected {
            let reason = format!(
                "its shape is {:?}; the layer and the rank {rank} of {CONFIG} need {expected:?}",
                view.shape
            );
            return Err(tensor_error(checkpoint, name, reason));
        }

        let dtype = match view.dtype {
            Dtype::F16 => FloatDtype::F16,
            Dtype::BF16 => FloatDtype::BF16,
            _ => FloatDtype::F32,
        };
        float_tensor(&view, dtype, false)
    }

    /// The error for a model without this layer, whose linear layers are at the paths `known`.
    pub fn unknown<'a>(&self, known: impl Iterator<Item = &'a str>) -> NnError {
        let path = self.path;
        let hint = near_names(path, known);
        let reason = format!(
            "the model has no linear layer `{path}`{hint}; is the adapter for another model?"
        );
        tensor_error(&self.adapter.checkpoint, self.a, reason)
    }
}

/// The names of both matrices of each layer.
fn pairs(checkpoint: &Checkpoint) -> Result<BTreeMap<String, [String; 2]>> {
    let mut found: BTreeMap<&str, [Option<&str>; 2]> = BTreeMap::new();
    let names = checkpoint.entries().map(|(name, _)| name);
    for name in names.chain(checkpoint.other_names()) {
        let short = name.strip_prefix(PREFIX).unwrap_or(name);
        let matrix = (0..).zip(SUFFIXES).find_map(|(number, suffix)| {
            let path = short.strip_suffix(suffix)?;
            Some((number, path))
        });
        let Some((number, path)) = matrix else {
            let reason = "it is neither lora_A.weight nor lora_B.weight of a linear layer, and nothing else is \
                          supported; save the adapter without it (embeddings: `save_embedding_layers=False` of PEFT)";
            return Err(tensor_error(checkpoint, name, reason.into()));
        };
        let pair: &mut [Option<&str>; 2] = found.entry(path).or_default();
        if let Some(other) = pair[number].replace(name) {
            let reason = format!("`{other}` is there for the same layer");
            return Err(tensor_error(checkpoint, name, reason));
        }
    }

    let whole = |(path, pair): (&str, [Option<&str>; 2])| match pair {
        [Some(a), Some(b)] => Ok((path.to_owned(), [a.to_owned(), b.to_owned()])),
        [a, b] => {
            let missing = if a.is_some() { "lora_B" } else { "lora_A" };
            let reason = format!("the layer has no {missing}.weight");
            let name = a.or(b).unwrap_or(path);
            Err(tensor_error(checkpoint, name, reason))
        }
    };
    found.into_iter().map(whole).collect()
}

fn tensor_error(checkpoint: &Checkpoint, name: &str, reason: String) -> NnError {
    NnError::AdapterTensor {
        name: name.to_owned(),
        file: checkpoint.description(),
        reason,
    }
}

fn no_adapter(folder: &Path, lacks: &'static str) -> NnError {
    NnError::NoAdapter {
        folder: folder.to_owned(),
        lacks,
    }
}
