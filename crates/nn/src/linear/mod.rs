//! Linear layers: `y = x · Wᵀ + b`, with float or int8 weights.
//!
//! Shapes: `x` is `[…, in_features]` of any rank, `W` `[out_features, in_features]`, `b`
//! `[out_features]`, and `y` `[…, out_features]`.

mod codes;
pub mod config;
#[cfg(feature = "candle-cuda")]
mod cuda;
pub mod float;
pub mod int8;
pub mod kept;

mod op;
pub mod original;
mod place;
pub mod replace;
mod rows;
mod weight;

pub use config::{
    Int8Config, OutlierRule, OutlierScope, OutlierWeights, row_rms, smallest_outlier,
};
pub use float::{FloatLinear, LinearClass};
pub use int8::Int8Linear;
pub use kept::KeptColumns;
pub use original::OriginalWeights;
pub use weight::Int8Weight;

pub use codes::CodeMemory;
pub use llm_int8_kernels::QuantizedActivations;
pub use replace::{HasLinears, KeptLinear, ReplaceReport, replace_linear};
pub use rows::{Projection, for_rows, project};

use crate::error::Result;
use crate::module::{Module, ModulePath, Node};
use candle_core::Tensor;
use llm_int8_kernels::Isa;

/// A linear layer, float or int8.
#[derive(Debug, Clone)]
pub enum Linear {
    /// Weights in f16, bf16 or f32.
    Float(FloatLinear),
    /// Weights in int8, activations quantised row by row (LLM.int8()).
    Int8(Int8Linear),
}

impl Linear {
    /// `x · Wᵀ + b`.
    ///
    /// # Shapes
    /// `x` `[…, in_features]` in f16, bf16 or f32; the result `[…, out_features]` in the same
    /// dtype.
    ///
    /// # Errors
    /// [`NnError::Input`](crate::NnError::Input) if the last dimension is not `in_features` or the
    /// dtype is none of the three; [`NnError::NotLoaded`](crate::NnError::NotLoaded) if the layer
    /// has no weights yet.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Float(linear) => linear.forward(x),
            Self::Int8(linear) => linear.forward(x),
        }
    }

    /// Length of an input row.
    pub fn in_features(&self) -> usize {
        match self {
            Self::Float(linear) => linear.in_features(),
            Self::Int8(linear) => linear.in_features(),
        }
    }

    /// The bias in f32.
    ///
    /// # Errors
    /// [`NnError::NotLoaded`](crate::NnError::NotLoaded) if it has not been filled.
    pub fn bias_values(&self) -> Result<Option<&[f32]>> {
        match self {
            Linear::Float(linear) => linear.bias_values(),
            Linear::Int8(linear) => linear.bias_values(),
        }
    }

    /// The instruction set its matmul uses.
    pub fn isa(&self) -> Isa {
        match self {
            Linear::Float(linear) => linear.isa(),
            Linear::Int8(linear) => linear.isa(),
        }
    }

    /// The layer's path in its model; empty for a standalone layer.
    pub fn path(&self) -> &ModulePath {
        match self {
            Linear::Float(linear) => linear.path(),
            Linear::Int8(linear) => linear.path(),
        }
    }

    /// Sets the layer's path in its model, which its errors name.
    pub fn set_path(&mut self, path: ModulePath) {
        match self {
            Self::Float(linear) => linear.set_path(path),
            Self::Int8(linear) => linear.set_path(path),
        }
    }

    /// Length of an output row.
    pub fn out_features(&self) -> usize {
        match self {
            Self::Float(linear) => linear.out_features(),
            Self::Int8(linear) => linear.out_features(),
        }
    }

    /// The PyTorch class of the layer, or of the float layer that it replaced.
    pub fn class(&self) -> LinearClass {
        match self {
            Self::Float(linear) => linear.class(),
            Self::Int8(linear) => linear.class(),
        }
    }

    /// Whether there is a bias.
    pub fn has_bias(&self) -> bool {
        match self {
            Self::Float(linear) => linear.bias().is_some(),
            Self::Int8(linear) => linear.bias().is_some(),
        }
    }

    /// Whether the weights are int8.
    pub fn is_int8(&self) -> bool {
        matches!(self, Self::Int8(_))
    }
}

impl Module for Linear {
    fn describe(&self) -> Node {
        match self {
            Self::Float(linear) => linear.describe(),
            Self::Int8(linear) => linear.describe(),
        }
    }
}

/// Lets the layers stand wherever candle takes a layer: `x.apply(&layer)`, `candle_nn::seq()`. The
/// inherent `forward` does the same with this crate's error.
macro_rules! candle_module {
    ($($layer:ty),*) => {$(
        impl candle_core::Module for $layer {
            fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
                Ok(<$layer>::forward(self, x)?)
            }
        }
    )*};
}

candle_module!(FloatLinear, Int8Linear, Linear);
