//! LLM.int8() on candle: linear layers, the layers around them, checkpoints and module trees.
//!
//! ```text
//! y = x · Wᵀ + b,   W[o][i] ≈ codes[o][i] · absmax[o] / 127,   x: rows of int8 codes, and outlier columns in float
//! ```
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use llm_int8_nn::linear::{FloatLinear, Int8Config, Int8Linear};
//!
//! let weight = Tensor::randn(0f32, 0.05, (64, 128), &Device::Cpu)?; // [out, in]
//! let float = FloatLinear::new(weight, None)?;
//! let int8 = Int8Linear::quantize(&float, Int8Config::default())?;
//!
//! let x = Tensor::randn(0f32, 1., (2, 10, 128), &Device::Cpu)?; // any rank
//! assert_eq!(int8.forward(&x)?.dims(), [2, 10, 64]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Modules:
//!
//! | module | holds |
//! |---|---|
//! | [`layers`] | norms, embeddings, rotary positions, activations, attention over a key/value cache |
//! | [`checkpoint`] | safetensors, `pytorch_model.bin`, GGUF and bitsandbytes' int8 layers, read and written tensor by tensor |
//! | [`linear`] | [`linear::Linear`]: float or int8, with its matmul as a candle operation |
//! | [`drop_in`], [`var_builder`] | 8 bit for candle models: candle-nn's own constructors, a `VarBuilder` over any checkpoint |
//! | [`lora`], [`gradients`] | training an update over frozen int8 layers |
//! | [`config`] | `config.json`, and the configuration classes that supply its defaults |
//! | [`json`] | JSON as Python reads and writes it |
//! | [`module`] | a model's module tree as data: paths, PyTorch's `repr`, parameters, footprint |
//!
//! Layers compute in f32 on the CPU; [`linear::Int8Linear`] also on candle's CUDA device, with the
//! feature `candle-cuda`. Weights are either int8 codes with one f32 `absmax` for each
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

pub use dtype::{CacheDtype, FloatDtype, ParameterDtype};
pub use error::{NnError, Result};
pub use llm_int8_kernels::{Isa, limits};
