//! LayerNorm and RMSNorm over the last dimension, in f32.

use crate::dtype::FloatDtype;
use crate::error::Result;
use crate::linear::for_rows;
use crate::module::{Module, Node};
use crate::parameter::FloatParameter;
use llm_int8_kernels::{Isa, norm};
use std::sync::OnceLock;

/// The formula of a norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `(x - mean) / √(variance + eps) · weight + bias` (Ba et al. 2016).
    Layer,
    /// The same without a bias.
    LayerWithoutBias,
    /// `x / √(mean of x² + eps) · weight` (Zhang and Sennrich 2019).
    Rms,
    /// The same with `1 + weight` (Gemma).
    RmsPlusOne,
}

/// A norm over the last dimension.
#[derive(Debug, Clone)]
pub struct Norm {
    class: String,
    kind: NormKind,
    weight: FloatParameter,
    bias: Option<FloatParameter>,
    eps: f64,
    /// `1 + weight`, for [`NormKind::RmsPlusOne`].
    weight_plus_one: OnceLock<Vec<f32>>,
}

impl Norm {
    /// A layer without values; `class` is what PyTorch prints.
    pub fn declared(
        class: &str,
        kind: NormKind,
        width: usize,
        eps: f64,
        dtype: FloatDtype,
    ) -> Self {
        let bias = (kind == NormKind::Layer).then(|| FloatParameter::declared([width], dtype));
        let weight = FloatParameter::declared([width], dtype);
        Self {
            class: class.to_owned(),
            kind,
            weight,
            bias,
            eps,
            weight_plus_one: OnceLock::new(),
        }
    }

    /// Normalises `x` `[rows, width]` in place, row by row.
    ///
    /// # Errors
    /// [`NnError::NotLoaded`](crate::NnError::NotLoaded).
    pub fn forward_rows(&self, isa: Isa, x: &mut [f32]) -> Result<()> {
        let weight = self.weight_values()?;
        let bias = self.bias_values()?;
        for_rows(x, self.width(), |_, row| {
            self.normalise(isa, row, weight, bias)
        });
        Ok(())
    }

    /// [`Norm::forward_rows`] out of place: normalises `source` into `out`, both `[rows, width]`.
    ///
    /// # Errors
    /// As there.
    pub fn forward_from(&self, isa: Isa, source: &[f32], out: &mut [f32]) -> Result<()> {
        let weight = self.weight_values()?;
        let bias = self.bias_values()?;
        let width = self.width();
        for_rows(out, width, |i, row| {
            row.copy_from_slice(&source[i * width..][..width]);
            self.normalise(isa, row, weight, bias);
        });

        Ok(())
    }

    /// The formula.
    pub fn kind(&self) -> NormKind {
        self.kind
    }

    /// The term added to the variance to avoid a division by zero.
    pub fn eps(&self) -> f64 {
        self.eps
    }

    /// The bias `[width]` in f32; empty for a norm without one.
    ///
    /// # Errors
    /// [`NnError::NotLoaded`](crate::NnError::NotLoaded).
    pub fn bias_values(&self) -> Result<&[f32]> {
        match &self.bias {
            Some(bias) => bias.f32_values(),
            None => Ok(&[]),
        }
    }

    /// What normalised rows are multiplied by, `[width]` in f32: the weight, or `1 + weight`.
    ///
    /// # Errors
    /// [`NnError::NotLoaded`](crate::NnError::NotLoaded).
    pub fn weight_values(&self) -> Result<&[f32]> {
        let weight = self.weight.f32_values()?;
        Ok(match self.kind {
            NormKind::RmsPlusOne => self
                .weight_plus_one
                .get_or_init(|| weight.iter().map(|w| w + 1.0).collect()),
            _ => weight,
        })
    }

    fn normalise(&self, isa: Isa, row: &mut [f32], weight: &[f32], bias: &[f32]) {
        match self.kind {
            NormKind::Layer | NormKind::LayerWithoutBias => {
                norm::layer(isa, row, weight, bias, self.eps as f32)
            }
            NormKind::Rms | NormKind::RmsPlusOne => norm::rms(isa, row, weight, self.eps as f32),
        }
    }

    /// Length of a row.
    pub fn width(&self) -> usize {
        self.weight.shape()[0]
    }

    /// Weight and bias with their names.
    pub fn parameters(&self) -> impl Iterator<Item = (&'static str, &FloatParameter)> {
        std::iter::once(("weight", &self.weight)).chain(self.bias.iter().map(|bias| ("bias", bias)))
    }

    /// Weight and bias with their names, for filling them.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut FloatParameter)> {
        self.weight_plus_one = OnceLock::new();
        let bias = self.bias.iter_mut().map(|bias| ("bias", bias));
        std::iter::once(("weight", &mut self.weight)).chain(bias)
    }
}

/// One norm for each head, with its own weights (StableLM 2 12B): a `ModuleList` of [`Norm`]s.
#[derive(Debug, Clone)]
pub struct HeadNorms(Vec<Norm>);

impl HeadNorms {
    /// `heads` copies of a norm.
    pub fn declared(norm: &Norm, heads: usize) -> Self {
        Self(vec![norm.clone(); heads])
    }

    /// The norms, in the order of the heads.
    pub fn norms(&self) -> impl Iterator<Item = &Norm> {
        self.0.iter()
    }

    /// Normalises `x` `[rows, heads · width]` in place, each head by its own norm.
    ///
    /// # Errors
    /// As [`Norm::forward_rows`].
    pub fn forward_rows(&self, isa: Isa, x: &mut [f32]) -> Result<()> {
        let Some(width) = self.0.first().map(Norm::width) else {
            return Ok(());
        };

        for row in x.chunks_mut(width * self.0.len()) {
            for (norm, head) in self.0.iter().zip(row.chunks_mut(width)) {
                norm.forward_rows(isa, head)?;
            }
        }

        Ok(())
    }

    /// Weights and biases with their names: `0.weight`, `1.weight`, …
    pub fn parameters(&self) -> impl Iterator<Item = (String, &FloatParameter)> {
        let named = |(head, norm)| {
            Norm::parameters(norm)
                .map(move |(name, parameter)| (format!("{head}.{name}"), parameter))
        };
        self.0.iter().enumerate().flat_map(named)
    }

    /// Weights and biases with their names, for filling them.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = (String, &mut FloatParameter)> {
        let named = |(head, norm)| {
            Norm::parameters_mut(norm)
                .map(move |(name, parameter)| (format!("{head}.{name}"), parameter))
        };
        self.0.iter_mut().enumerate().flat_map(named)
    }
}

impl Module for HeadNorms {
    fn describe(&self) -> Node {
        Node::list(self.0.iter().map(Norm::describe))
    }
}

impl Module for Norm {
    fn describe(&self) -> Node {
        let width = self.width();
        let eps = python_float(self.eps);
        let affine = match self.kind {
            NormKind::Layer | NormKind::LayerWithoutBias => ", elementwise_affine=True",
            NormKind::Rms | NormKind::RmsPlusOne => "",
        };
        let node = Node::leaf(&self.class, format!("({width},), eps={eps}{affine}"));
        let node = node.with_parameter(self.weight.describe("weight"));

        self.bias.iter().fold(node, |node, bias| {
            node.with_parameter(bias.describe("bias"))
        })
    }
}

/// A float as Python's `repr` prints it: `1e-05`, `0.001`, `1e-12`.
pub fn python_float(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-4 {
        let text = format!("{value:e}");
        return match text.split_once("e-") {
            Some((digits, exponent)) if exponent.len() == 1 => format!("{digits}e-0{exponent}"),
            _ => text,
        };
    }

    if value == value.trunc() {
        format!("{value:.1}")
    } else {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Tensor;

    #[test]
    fn every_kind_computes_its_formula() {
        let norm = |kind| {
            let mut norm = Norm::declared("N", kind, 2, 0.0, FloatDtype::F32);
            for (name, parameter) in norm.parameters_mut() {
                let value = if name == "weight" {
                    [2f32, 3.0]
                } else {
                    [10f32, 10.0]
                };
                parameter
                    .fill(Tensor::new(&value, &candle_core::Device::Cpu).unwrap())
                    .unwrap();
            }

            let mut x = vec![1f32, 7.0, 1.0, 7.0];
            norm.forward_rows(Isa::detect(), &mut x).unwrap();

            x
        };

        assert_eq!(norm(NormKind::Layer), [8.0, 13.0, 8.0, 13.0]);
        assert_eq!(norm(NormKind::LayerWithoutBias), [-2.0, 3.0, -2.0, 3.0]);

        let near = |a: Vec<f32>, b: [f32; 2]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(near(norm(NormKind::Rms), [0.4, 4.2]));
        assert!(near(norm(NormKind::RmsPlusOne), [0.6, 5.6]));
    }

    #[test]
    fn floats_are_printed_as_in_python() {
        for (value, text) in [
            (1e-5, "1e-05"),
            (1e-12, "1e-12"),
            (1.5e-6, "1.5e-06"),
            (0.001, "0.001"),
            (0.0001, "0.0001"),
            (1.0, "1.0"),
        ] {
            assert_eq!(python_float(value), text);
        }
    }
}
