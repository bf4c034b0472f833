//! Norms over the last dimension, in f32.

use super::with_f32;
use crate::dtype::FloatDtype;
use crate::error::{NnError, Result};
use crate::module::{Module, Node};
use crate::parameter::FloatParameter;
use candle_core::Tensor;

/// Which norm.
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
}

impl Norm {
    /// A layer without values; `class` is what PyTorch prints.
    pub fn declared(class: &str, kind: NormKind, width: usize, eps: f64, dtype: FloatDtype) -> Self {
        let bias = (kind == NormKind::Layer).then(|| FloatParameter::declared([width], dtype));
        Self { class: class.to_owned(), kind, weight: FloatParameter::declared([width], dtype), bias, eps }
    }

    /// `x` f32 `[…, n · width]`, every `width` values normalised by themselves.
    ///
    /// # Errors
    /// [`NnError::NotLoaded`]; [`NnError::Input`] where shapes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut weight = self.weight.to_f32_vec()?;
        if let NormKind::RmsPlusOne = self.kind {
            weight.iter_mut().for_each(|w| *w += 1.0);
        }
        let bias = self.bias.as_ref().map(FloatParameter::to_f32_vec).transpose()?;
        let width = weight.len();
        if !x.dims().last().is_some_and(|last| last.is_multiple_of(width)) {
            let reason = format!("the input's shape is {:?}; its last dimension must be {width}", x.dims());
            return Err(NnError::Input { layer: "norm".into(), reason });
        }
        let out = with_f32(x, |x| {
            let mut out = x.to_vec();
            for row in out.chunks_exact_mut(width) {
                self.normalise(row, &weight, bias.as_deref());
            }
            Ok(out)
        })?;
        Ok(Tensor::from_vec(out, x.shape(), x.device())?)
    }

    fn normalise(&self, row: &mut [f32], weight: &[f32], bias: Option<&[f32]>) {
        let count = row.len() as f32;
        if let NormKind::Layer | NormKind::LayerWithoutBias = self.kind {
            let mean = sum(row, |x| x) / count;
            row.iter_mut().for_each(|x| *x -= mean);
        }
        let inverse = (sum(row, |x| x * x) / count + self.eps as f32).sqrt().recip();
        row.iter_mut().zip(weight).for_each(|(x, w)| *x = *x * inverse * w);
        if let Some(bias) = bias {
            row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
        }
    }

    /// Length of a normalised row.
    pub fn width(&self) -> usize {
        self.weight.shape()[0]
    }

    /// Weight and bias, under their names.
    pub fn parameters(&self) -> impl Iterator<Item = (&'static str, &FloatParameter)> {
        std::iter::once(("weight", &self.weight)).chain(self.bias.iter().map(|bias| ("bias", bias)))
    }

    /// Weight and bias, to be filled, under their names.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut FloatParameter)> {
        let bias = self.bias.iter_mut().map(|bias| ("bias", bias));
        std::iter::once(("weight", &mut self.weight)).chain(bias)
    }
}

/// Norms of the heads of a row, each with weights of its own (StableLM 2 12B): `ModuleList` of [`Norm`]s.
#[derive(Debug, Clone)]
pub struct HeadNorms(Vec<Norm>);

impl HeadNorms {
    /// So many copies of a norm, of one head each.
    pub fn declared(norm: &Norm, heads: usize) -> Self {
        Self(vec![norm.clone(); heads])
    }

    /// `x` f32 `[…, heads · width]`, every head normalised by itself.
    ///
    /// # Errors
    /// As [`Norm::forward`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let heads = x.chunk(self.0.len(), candle_core::D::Minus1)?;
        let normed = self.0.iter().zip(heads).map(|(norm, head)| norm.forward(&head));
        Ok(Tensor::cat(&normed.collect::<Result<Vec<_>>>()?, candle_core::D::Minus1)?)
    }

    /// Weights and biases, under their names: `0.weight`, `1.weight`, …
    pub fn parameters(&self) -> impl Iterator<Item = (String, &FloatParameter)> {
        let named =
            |(head, norm)| Norm::parameters(norm).map(move |(name, of)| (format!("{head}.{name}"), of));
        self.0.iter().enumerate().flat_map(named)
    }

    /// Weights and biases, to be filled, under their names.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = (String, &mut FloatParameter)> {
        let named =
            |(head, norm)| Norm::parameters_mut(norm).map(move |(name, of)| (format!("{head}.{name}"), of));
        self.0.iter_mut().enumerate().flat_map(named)
    }
}

impl Module for HeadNorms {
    fn describe(&self) -> Node {
        Node::list(self.0.iter().map(Norm::describe))
    }
}

/// A sum in sixteen parts, which keeps it exact enough for long rows and lets the compiler vectorise it.
fn sum(row: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0f32; 16];
    let (chunks, rest) = row.as_chunks::<16>();
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += of(*x));
    }
    sums.iter().sum::<f32>() + rest.iter().map(|x| of(*x)).sum::<f32>()
}

impl Module for Norm {
    fn describe(&self) -> Node {
        let (width, eps) = (self.width(), python_float(self.eps));
        let affine = match self.kind {
            NormKind::Layer | NormKind::LayerWithoutBias => ", elementwise_affine=True",
            NormKind::Rms | NormKind::RmsPlusOne => "",
        };
        let node = Node::leaf(&self.class, format!("({width},), eps={eps}{affine}"));
        let node = node.with_parameter(self.weight.describe("weight"));
        self.bias.iter().fold(node, |node, bias| node.with_parameter(bias.describe("bias")))
    }
}

/// A float as Python prints it: `1e-05`, `0.001`, `1e-12`.
fn python_float(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-4 {
        let text = format!("{value:e}");
        return match text.split_once("e-") {
            Some((digits, exponent)) if exponent.len() == 1 => format!("{digits}e-0{exponent}"),
            _ => text,
        };
    }
    if value == value.trunc() { format!("{value:.1}") } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_values() {
        let norm = |kind| {
            let mut norm = Norm::declared("N", kind, 2, 0.0, FloatDtype::F32);
            for (name, parameter) in norm.parameters_mut() {
                let value = if name == "weight" { [2f32, 3.0] } else { [10f32, 10.0] };
                parameter.fill(Tensor::new(&value, &candle_core::Device::Cpu).unwrap()).unwrap();
            }
            let x = Tensor::new(&[[1f32, 7.0, 1.0, 7.0]], &candle_core::Device::Cpu).unwrap();
            norm.forward(&x).unwrap().to_vec2::<f32>().unwrap().remove(0)
        };
        assert_eq!(norm(NormKind::Layer), [8.0, 13.0, 8.0, 13.0]);
        assert_eq!(norm(NormKind::LayerWithoutBias), [-2.0, 3.0, -2.0, 3.0]);
        let near = |a: Vec<f32>, b: [f32; 2]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(near(norm(NormKind::Rms), [0.4, 4.2]));
        assert!(near(norm(NormKind::RmsPlusOne), [0.6, 5.6]));
    }

    #[test]
    fn floats_are_printed_as_python_does() {
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
