//! LLM.int8() on candle: linear layers, module trees, checkpoints and decoders.
//!
//! The parts, each of which knows only those below it:
//!
//! | module | holds |
//! |---|---|
//! | [`models`] | the one [`models::Decoder`] and the families that describe themselves to it |
//! | [`layers`] | normalisation, embedding, activation, attention over a key/value cache |
//! | [`checkpoint`] | safetensors, `pytorch_model.bin`, GGUF and bitsandbytes' int8 layers, read and written tensor by tensor |
//! | [`linear`] | [`linear::Linear`]: float or int8, and the product itself as a candle operation |
//! | [`config`] | `config.json`, which families and rotations read, and the classes that fill in what it lacks |
//! | [`json`] | JSON as Python reads and writes it |
//! | [`module`] | a model's tree as data: paths, PyTorch's text, parameters, footprint, replacing |
//!
//! Every tensor is computed in f32, on the CPU or on devices ([`models::Placement`]); what is
//! stored is int8 codes with an f32 `absmax` a row, and f16, bf16 or f32 for everything else. The
//! library prints nothing and reads no environment.

pub mod checkpoint;
pub mod config;
pub mod dtype;
pub mod error;
pub mod json;
pub mod layers;
pub mod linear;
pub mod models;
pub mod module;
pub mod parameter;

pub use dtype::{FloatDtype, ParameterDtype};
pub use error::{NnError, Result};
pub use llm_int8_cuda as cuda;
pub use llm_int8_kernels::{Isa, limits};
