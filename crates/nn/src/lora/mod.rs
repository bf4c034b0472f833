//! LoRA (Hu et al. 2021): a frozen linear layer and a trained update of low rank, in the form and
//! under the names of PEFT.
//!
//! `y = x · Wᵀ + b + (x · Aᵀ · Bᵀ) · scale`, with `A` `[rank, in]`, `B` `[out, rank]` and `scale =
//! alpha / rank`. The base may be int8: gradients reach `A`, `B` and `x` (bitsandbytes' QLoRA
//! recipe in 8 bit), never the base.
//!
//! [`LoraLinear`] trains. [`Adapter`] is a trained adapter in files, and [`LoraUpdate`] what it adds
//! to one layer of the decoder.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{VarBuilder, VarMap};
//! use llm_int8_nn::linear::{FloatLinear, Int8Config, Int8Linear, Linear};
//! use llm_int8_nn::lora::{LoraConfig, LoraLinear};
//!
//! let weight = Tensor::randn(0f32, 1., (4, 6), &Device::Cpu)?;
//! let base = Int8Linear::quantize(&FloatLinear::new(weight, None)?, Int8Config::default())?;
//! let variables = VarMap::new();
//! let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
//! let layer = LoraLinear::new(Linear::Int8(base), &LoraConfig::new(2, 4.0), vb.pp("fc"))?;
//!
//! let x = Tensor::ones((3, 6), DType::F32, &Device::Cpu)?;
//! let grads = layer.forward(&x)?.sum_all()?.backward()?;
//! assert_eq!(variables.all_vars().len(), 2); // lora_A and lora_B
//! assert!(grads.get(layer.b()).is_some());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod adapter;
mod config;
mod update;

pub use adapter::{Adapter, AdapterLayer};
pub use config::{AdapterConfig, LoraConfig};
pub use update::LoraUpdate;

use crate::error::{NnError, Result};
use crate::linear::Linear;
use candle_core::{DType, Module, Tensor};
use candle_nn::{Init, VarBuilder};

/// A frozen layer with an update of low rank.
#[derive(Debug, Clone)]
pub struct LoraLinear {
    base: Linear,
    a: Tensor,
    b: Tensor,
    scale: f64,
}

impl LoraLinear {
    /// An update for `base`, of `lora_A.weight` `[rank, in]` and `lora_B.weight` `[out, rank]` of
    /// the `VarBuilder`. Where they are new (a `VarMap`), `A` begins as in PEFT (Kaiming uniform
    /// with a = √5: ±1/√in) and `B` at 0, so the layer begins as its base.
    ///
    /// # Errors
    /// What the `VarBuilder` gives.
    pub fn new(base: Linear, config: &LoraConfig, vb: VarBuilder<'_>) -> candle_core::Result<Self> {
        let (in_features, out_features) = (base.in_features(), base.out_features());
        let bound = 1. / (in_features as f64).sqrt();
        let uniform = Init::Uniform {
            lo: -bound,
            up: bound,
        };
        let a = vb
            .pp("lora_A")
            .get_with_hints((config.rank, in_features), "weight", uniform)?;
        let b = vb.pp("lora_B").get_with_hints(
            (out_features, config.rank),
            "weight",
            Init::Const(0.),
        )?;
        Ok(Self {
            base,
            a,
            b,
            scale: config.scale(),
        })
    }

    /// An update of these tensors: `a` `[rank, in]`, `b` `[out, rank]`.
    ///
    /// # Errors
    /// [`NnError::Input`] where their shapes do not fit.
    pub fn from_tensors(base: Linear, a: Tensor, b: Tensor, scale: f64) -> Result<Self> {
        let rank = a.dims().first().copied().unwrap_or(0);
        let (in_features, out_features) = (base.in_features(), base.out_features());
        if a.dims() != [rank, in_features] || b.dims() != [out_features, rank] {
            return Err(NnError::Input {
                layer: "LoraLinear".into(),
                reason: format!(
                    "lora_A is {:?} and lora_B {:?}; [rank, {in_features}] and [{out_features}, rank] are needed",
                    a.dims(),
                    b.dims()
                ),
            });
        }
        Ok(Self { base, a, b, scale })
    }

    /// `x · Wᵀ + b + (x · Aᵀ · Bᵀ) · scale`: `x` `[…, in]` in f16, bf16 or f32, the result `[…,
    /// out]` in the same dtype. The update is computed in the dtype of `A`, as PEFT does.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let base = self.base.forward(x)?;
        let rows = x.elem_count() / self.base.in_features().max(1);

        let x = x
            .reshape((rows, self.base.in_features()))?
            .to_dtype(self.a.dtype())?;
        let update = x.matmul(&self.a.t()?)?.matmul(&self.b.t()?)?;
        let update = (update * self.scale)?
            .to_dtype(base.dtype())?
            .reshape(base.shape())?;

        Ok((base + update)?)
    }

    /// The frozen layer.
    pub fn base(&self) -> &Linear {
        &self.base
    }

    /// `lora_A.weight` `[rank, in]`.
    pub fn a(&self) -> &Tensor {
        &self.a
    }

    /// `lora_B.weight` `[out, rank]`.
    pub fn b(&self) -> &Tensor {
        &self.b
    }

    /// What the update is multiplied by.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// The update as a weight `[out, in]`, f32: `B · A · scale`, what merging would add.
    ///
    /// # Errors
    /// What candle's operations give.
    pub fn delta(&self) -> Result<Tensor> {
        let a = self.a.to_dtype(DType::F32)?;
        let b = self.b.to_dtype(DType::F32)?;
        Ok((b.matmul(&a)? * self.scale)?)
    }
}

impl Module for LoraLinear {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        Ok(Self::forward(self, x)?)
    }
}
