//! The names of `candle_transformers::models::with_tracing`, from which most of its models take
//! their layers: copy such a model and change this one line.
//!
//! ```text
//! - use super::with_tracing::{linear_no_bias as linear, Linear, RmsNorm};
//! + use llm_int8_nn::drop_in::with_tracing::{linear_no_bias as linear, Linear, RmsNorm};
//! ```
//!
//! Linear layers are int8 as in [`drop_in`](super); the others are candle-nn's. Nothing is traced.

pub use super::{Linear, linear, linear_b, linear_no_bias};
pub use candle_nn::{Conv2d, LayerNorm, conv2d, layer_norm};

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

/// candle-nn's embedding, made as `with_tracing` makes it.
#[derive(Debug, Clone)]
pub struct Embedding(candle_nn::Embedding);

impl Embedding {
    /// A table `[rows, width]`: `weight` of the `VarBuilder`.
    ///
    /// # Errors
    /// What the `VarBuilder` gives.
    pub fn new(rows: usize, width: usize, vb: VarBuilder<'_>) -> Result<Self> {
        candle_nn::embedding(rows, width, vb).map(Self)
    }

    /// A table of these weights `[rows, width]`.
    ///
    /// # Errors
    /// A candle error where they are no matrix.
    pub fn from_weights(weights: Tensor) -> Result<Self> {
        let (_, width) = weights.dims2()?;
        Ok(Self(candle_nn::Embedding::new(weights, width)))
    }

    /// The table.
    pub fn embeddings(&self) -> &Tensor {
        self.0.embeddings()
    }
}

impl Module for Embedding {
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        self.0.forward(ids)
    }
}

/// candle-nn's RMS norm, made as `with_tracing` makes it.
#[derive(Debug, Clone)]
pub struct RmsNorm(candle_nn::RmsNorm);

impl RmsNorm {
    /// A norm of rows of `size` values: `weight` of the `VarBuilder`.
    ///
    /// # Errors
    /// What the `VarBuilder` gives.
    pub fn new(size: usize, eps: f64, vb: VarBuilder<'_>) -> Result<Self> {
        candle_nn::rms_norm(size, eps, vb).map(Self)
    }

    /// The norm by operations that gradients pass through, which [`forward`](Module::forward) does
    /// not guarantee.
    ///
    /// # Errors
    /// What candle's operations give.
    pub fn forward_diff(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward_diff(x)
    }
}

impl Module for RmsNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(x)
    }
}
