//! Linear layers under candle-nn's own names. Change the `use` line of a candle model, and its
//! linear layers are int8:
//!
//! ```text
//! - use candle_nn::{Linear, VarBuilder, linear, linear_no_bias};
//! + use candle_nn::VarBuilder;
//! + use llm_int8_nn::drop_in::{Linear, linear, linear_no_bias};
//! ```
//!
//! Each constructor reads one float tensor from the `VarBuilder`, quantises it and drops it, so a
//! model never exists in full precision in memory. Under a `VarBuilder` of
//! [`var_builder`](crate::var_builder) that holds 8-bit layers of bitsandbytes, their codes are
//! taken as they are.
//!
//! ```
//! use candle_core::{DType, Device, Module, Tensor};
//! use candle_nn::{VarBuilder, VarMap};
//! use llm_int8_nn::drop_in::{Linear, linear, with_int8};
//! use llm_int8_nn::{linear::Int8Config, module::SkipList};
//!
//! struct Mlp {
//!     up: Linear,
//!     down: Linear,
//! }
//!
//! impl Mlp {
//!     fn new(vb: VarBuilder) -> candle_core::Result<Self> {
//!         Ok(Self {
//!             up: linear(8, 32, vb.pp("up"))?,
//!             down: linear(32, 8, vb.pp("down"))?,
//!         })
//!     }
//! }
//!
//! let variables = VarMap::new();
//! let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
//! let skip = SkipList::new(["down"]);
//! let mlp = with_int8(Int8Config::default(), &skip, || Mlp::new(vb))?;
//! assert!(mlp.up.is_int8() && !mlp.down.is_int8());
//! let x = Tensor::ones((2, 8), DType::F32, &Device::Cpu)?;
//! assert_eq!(mlp.down.forward(&mlp.up.forward(&x)?.relu()?)?.dims(), [2, 8]);
//! # Ok::<(), candle_core::Error>(())
//! ```

mod scope;
pub mod with_tracing;

pub use scope::{BuiltLinear, with_int8, with_int8_report};

use crate::error::NnError;
use crate::linear::{FloatLinear, Int8Config, Int8Linear};
use crate::module::ModulePath;
use crate::var_builder::int8_weight;
use candle_core::{Device, Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};

/// A linear layer of a candle model: candle's own in float, or int8.
#[expect(
    clippy::large_enum_variant,
    reason = "a model has a few hundred of them, nearly all int8"
)]
#[derive(Debug, Clone)]
pub enum Linear {
    /// candle's layer, on any of its devices.
    Float(candle_nn::Linear),
    /// LLM.int8().
    Int8(Int8Linear),
}

impl Linear {
    /// A float layer of these tensors, as `candle_nn::Linear::new`. It stays float: a weight
    /// without a place in a checkpoint is often shared with the token embeddings (a tied head),
    /// which bitsandbytes never quantises.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self::Float(candle_nn::Linear::new(weight, bias))
    }

    /// [`Linear::new`] under its name in `candle_transformers::models::with_tracing`.
    pub fn from_weights(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self::new(weight, bias)
    }

    /// Whether the weight is int8.
    pub fn is_int8(&self) -> bool {
        matches!(self, Self::Int8(_))
    }
}

impl Module for Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Float(linear) => linear.forward(x),
            Self::Int8(linear) => Module::forward(linear, x),
        }
    }
}

/// `candle_nn::linear` in 8 bit, or float where [`with_int8`] says so: weight `[out_dim, in_dim]`
/// and bias `[out_dim]` of `vb`.
///
/// # Errors
/// What the `VarBuilder` gives; an error that names the layer's path for a weight that is not
/// finite in f16, for a saved 8-bit state that is not usable, and on a device without a kernel: other
/// than the CPU, and CUDA with the feature `candle-cuda`.
pub fn linear(in_dim: usize, out_dim: usize, vb: VarBuilder<'_>) -> Result<Linear> {
    linear_b(in_dim, out_dim, true, vb)
}

/// [`linear`] without a bias.
///
/// # Errors
/// As there.
pub fn linear_no_bias(in_dim: usize, out_dim: usize, vb: VarBuilder<'_>) -> Result<Linear> {
    linear_b(in_dim, out_dim, false, vb)
}

/// [`linear`], with a bias or without.
///
/// # Errors
/// As there.
pub fn linear_b(in_dim: usize, out_dim: usize, bias: bool, vb: VarBuilder<'_>) -> Result<Linear> {
    match scope::config_for(&ModulePath::from(vb.prefix().as_str())) {
        Some(config) => int8(in_dim, out_dim, bias, &vb, config).map(Linear::Int8),
        None => float(in_dim, out_dim, bias, vb).map(Linear::Float),
    }
}

fn float(
    in_dim: usize,
    out_dim: usize,
    bias: bool,
    vb: VarBuilder<'_>,
) -> Result<candle_nn::Linear> {
    let path = ModulePath::from(vb.prefix().as_str());
    let layer = candle_nn::linear_b(in_dim, out_dim, bias, vb)?;
    scope::record(BuiltLinear {
        path,
        shape: [out_dim, in_dim],
        is_int8: false,
        bytes: bytes(layer.weight()) + layer.bias().map_or(0, bytes),
    });
    Ok(layer)
}

/// Bytes of a tensor's elements.
fn bytes(tensor: &Tensor) -> usize {
    tensor.elem_count() * tensor.dtype().size_in_bytes()
}

/// An int8 layer, whatever [`with_int8`] says of its path; its configuration is that of the scope.
///
/// # Errors
/// As [`linear`].
pub fn linear8bit(in_dim: usize, out_dim: usize, vb: VarBuilder<'_>) -> Result<Int8Linear> {
    linear8bit_b(in_dim, out_dim, true, vb)
}

/// [`linear8bit`] without a bias.
///
/// # Errors
/// As [`linear`].
pub fn linear8bit_no_bias(in_dim: usize, out_dim: usize, vb: VarBuilder<'_>) -> Result<Int8Linear> {
    linear8bit_b(in_dim, out_dim, false, vb)
}

/// [`linear8bit`], with a bias or without.
///
/// # Errors
/// As [`linear`].
pub fn linear8bit_b(
    in_dim: usize,
    out_dim: usize,
    bias: bool,
    vb: VarBuilder<'_>,
) -> Result<Int8Linear> {
    int8(in_dim, out_dim, bias, &vb, scope::config())
}

fn int8(
    in_dim: usize,
    out_dim: usize,
    bias: bool,
    vb: &VarBuilder<'_>,
    config: Int8Config,
) -> Result<Int8Linear> {
    let path = ModulePath::from(vb.prefix().as_str());
    let has_kernel = match vb.device() {
        Device::Cpu => true,
        Device::Cuda(_) => cfg!(feature = "candle-cuda"),
        Device::Metal(_) => false,
    };
    if !has_kernel {
        return Err(NnError::UnsupportedDevice {
            layer: path.or("Linear8bitLt"),
            device: format!("{:?}", vb.device().location()),
        }
        .into_candle());
    }

    // Weights are quantised on the CPU, so only codes are copied to a GPU.
    let on_cpu = vb.clone().set_device(Device::Cpu);
    let mut layer = match int8_weight(&on_cpu, [out_dim, in_dim])? {
        Some(weight) => Int8Linear::new(weight, None, config).map_err(NnError::into_candle)?,
        None => quantized(in_dim, out_dim, &on_cpu, config)?,
    };
    let mut size = out_dim * (in_dim + size_of::<f32>());
    if bias {
        let bound = 1. / (in_dim as f64).sqrt();
        let init = Init::Uniform {
            lo: -bound,
            up: bound,
        };
        let bias = on_cpu.get_with_hints(out_dim, "bias", init)?;
        size += bytes(&bias);
        layer
            .set_bias(bias.detach().to_device(&Device::Cpu)?)
            .map_err(NnError::into_candle)?;
    }
    scope::record(BuiltLinear {
        path: path.clone(),
        shape: [out_dim, in_dim],
        is_int8: true,
        bytes: size,
    });
    layer.set_path(path);
    layer.to_device(vb.device()).map_err(NnError::into_candle)
}

/// A layer without a bias, of a float weight that is dropped at the end.
fn quantized(
    in_dim: usize,
    out_dim: usize,
    vb: &VarBuilder<'_>,
    config: Int8Config,
) -> Result<Int8Linear> {
    let init = candle_nn::init::DEFAULT_KAIMING_NORMAL;
    let weight = vb.get_with_hints((out_dim, in_dim), "weight", init)?;
    // A `VarMap` gives its variable as it is, on whatever device.
    let weight = weight.detach().to_device(&Device::Cpu)?;
    let layer =
        FloatLinear::new(weight, None).and_then(|float| Int8Linear::quantize(&float, config));
    layer.map_err(|cause| {
        let cause = match cause {
            NnError::Kernel(source) => NnError::Quantise {
                name: format!("{}.weight", vb.prefix()),
                file: "the VarBuilder".into(),
                source: Box::new(source),
            },
            other => other,
        };
        cause.into_candle()
    })
}
