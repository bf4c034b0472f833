//! One decoder for every family of causal language models. A family is data; a plan is built from
//! that data; two executors, for the CPU and for GPUs, follow the plan.
//!
//! ```text
//! config.json ──▶ families ──▶ DecoderSpec ──▶ Plan ──▶ execute/cpu
//!                               (spec, template)   └──▶ execute/gpu
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`families`] | for each family its keys of `config.json`, its tensor names, and what its blocks are made of |
//! | [`spec`], [`template`], [`slot`] | the description of a model: sizes and rules, PyTorch's module tree, the parts that have weights |
//! | [`plan`] | the steps of a model, in one vocabulary for both executors |
//! | `load`, `gguf`, `save` | from a checkpoint to a decoder and back, one tensor at a time |
//! | `values` | the values of parameters, to look at |
//! | `pass`, `execute`, [`Logits`] | one forward pass of a batch of sequences, step by step |
//! | [`placement`] | which part lies on which device |
//!
//! Activations between layers are f32. Weights are int8 codes with one f32 `absmax` per row, or
//! f16, bf16 or f32. The library prints nothing and reads no environment variables.

mod decoder;
pub mod error;
mod execute;
pub mod families;
mod gguf;
mod hook;
mod kept;
mod load;
mod logits;
mod pass;
pub mod placement;
pub mod plan;
mod save;
pub mod slot;
pub mod spec;
pub mod template;
mod tree;
mod values;

pub use decoder::{Decoder, KvCache, LogitPositions, SequenceInput};
pub use error::{DecoderError, Result};
pub use families::FAMILIES;
pub use gguf::open_gguf;
pub use hook::{LinearHook, LinearInput};
pub use load::{
    LoadEvent, LoadOptions, LoadOutcome, LoadWarning, ModelTensor, ModelTensors, TensorRole,
    WeightDtype,
};
pub use logits::{Choice, Logits, largest};
pub use placement::{DeviceBudget, DeviceMap, Place, PlacedPart, Placement};
pub use plan::Plan;
pub use save::SavedLayers;
pub use spec::DecoderSpec;
pub use values::ParameterValues;

pub use llm_int8_cuda as cuda;
pub use llm_int8_nn::config::ModelConfig;
