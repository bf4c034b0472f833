//! Layer normalisation (Ba et al. 2016): `(x - mean) / √(variance + eps) · weight + bias`.

use crate::dtype::FloatDtype;
use crate::error::Result;
use crate::module::{Module, Node};
use crate::parameter::FloatParameter;
use candle_core::Tensor;

/// `torch.nn.LayerNorm` over the last dimension, in f32.
#[derive(Debug, Clone)]
pub struct Norm {
    weight: FloatParameter,
    bias: FloatParameter,
    eps: f64,
}

impl Norm {
    /// A layer without values.
    pub fn declared(width: usize, eps: f64, dtype: FloatDtype) -> Self {
        Self {
            weight: FloatParameter::declared([width], dtype),
            bias: FloatParameter::declared([width], dtype),
            eps,
        }
    }

    /// `x` f32 `[…, width]`, normalised.
    ///
    /// # Errors
    /// [`NnError::NotLoaded`](crate::NnError::NotLoaded); [`NnError::Candle`](crate::NnError::Candle)
    /// where shapes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (self.weight.to_f32()?, self.bias.to_f32()?);
        Ok(candle_nn::ops::layer_norm(&x.contiguous()?, &weight, &bias, self.eps as f32)?)
    }

    /// Weight and bias, to be filled, under their names.
    pub fn parameters_mut(&mut self) -> [(&'static str, &mut FloatParameter); 2] {
        [("weight", &mut self.weight), ("bias", &mut self.bias)]
    }
}

impl Module for Norm {
    fn describe(&self) -> Node {
        let arguments =
            format!("({},), eps={}, elementwise_affine=True", self.weight.shape()[0], python_float(self.eps));
        Node::leaf("LayerNorm", arguments)
            .with_parameter(self.weight.describe("weight"))
            .with_parameter(self.bias.describe("bias"))
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
