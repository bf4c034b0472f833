//! LLM.int8() on candle: linear layers, the layers around them, checkpoints and module trees.
//!
//! Modules:
//!
//! | module | holds |
//! |---|---|
//! | [`layers`] | norms, embeddings, rotary positions, activations, attention over a key/value cache |
//! | [`checkpoint`] | safetensors, `pytorch_model.bin`, GGUF and bitsandbytes' int8 layers, read and written tensor by tensor |
//! | [`linear`] | [`linear::Linear`]: float or int8, with its matmul as a candle operation |
//! | [`config`] | `config.json`, and the configuration classes that supply its defaults |
//! | [`json`] | JSON as Python reads and writes it |
//! | [`module`] | a model's module tree as data: paths, PyTorch's `repr`, parameters, footprint |
//!
//! Layers compute in f32 on the CPU. Weights are either int8 codes with one f32 `absmax` for each
//! row, or f16, bf16 or f32. The library prints nothing and does not read the environment.

pub mod checkpoint;
pub mod config;
pub mod drop_in;
pub mod dtype;
pub mod error;
pub mod gradients;
pub mod json;
pub mod layers;
pub mod linear;
pub mod lora;
pub mod module;
pub mod near_names;
pub mod parameter;
pub mod var_builder;

pub use dtype::{FloatDtype, ParameterDtype};
pub use error::{NnError, Result};
pub use llm_int8_kernels::{Isa, limits};
