//! Activation functions under the names `config.json` gives them (`ACT2FN` of transformers).

use crate::error::{NnError, Result};

/// The function between the two products of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// `gelu_new`: `0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`, GPT-2's.
    GeluNew,
    /// `gelu`: `x·Φ(x)` with the error function.
    Gelu,
    /// `gelu_pytorch_tanh`: the formula of `gelu_new`, by PyTorch's own function.
    GeluTanh,
    /// `relu`: `max(x, 0)`.
    Relu,
    /// `silu` or `swish`: `x·σ(x)`.
    Silu,
    /// `tanh`.
    Tanh,
    /// `gelu_fast`: the formula of `gelu_new` with a rounded constant.
    GeluFast,
    /// `quick_gelu`: `x·σ(1.702·x)`.
    QuickGelu,
    /// `relu2`: `max(x, 0)²`.
    ReluSquared,
    /// Bloom's own class of the formula of `gelu_new`.
    BloomGelu,
    /// MPT's `nn.GELU(approximate="none")`.
    TorchGelu,
}

impl Activation {
    /// The function of a name in `config.json`.
    ///
    /// # Errors
    /// [`NnError::Config`] for a name that is not known, with those that are.
    pub fn from_name(name: &str) -> Result<Self> {
        Ok(match name {
            "gelu_new" => Self::GeluNew,
            "gelu" => Self::Gelu,
            "gelu_pytorch_tanh" => Self::GeluTanh,
            "relu" => Self::Relu,
            "silu" | "swish" => Self::Silu,
            "tanh" => Self::Tanh,
            "gelu_fast" => Self::GeluFast,
            "quick_gelu" => Self::QuickGelu,
            "relu2" => Self::ReluSquared,
            other => {
                return Err(NnError::Config {
                    reason: format!(
                        "activation function `{other}` is not known; known are gelu_new, gelu, \
                         gelu_pytorch_tanh, gelu_fast, quick_gelu, relu, relu2, silu, swish and tanh"
                    ),
                });
            }
        })
    }

    /// The class transformers prints.
    pub fn class(self) -> &'static str {
        match self {
            Self::GeluNew => "NewGELUActivation",
            Self::Gelu => "GELUActivation",
            Self::GeluTanh => "GELUTanh",
            Self::Relu => "ReLU",
            Self::Silu => "SiLUActivation",
            Self::Tanh => "Tanh",
            Self::GeluFast => "FastGELUActivation",
            Self::QuickGelu => "QuickGELUActivation",
            Self::ReluSquared => "ReLUSquaredActivation",
            Self::BloomGelu => "BloomGelu",
            Self::TorchGelu => "GELU",
        }
    }

    /// What transformers prints between its brackets.
    pub fn arguments(self) -> &'static str {
        if self == Self::TorchGelu { "approximate='none'" } else { "" }
    }

    /// The function itself.
    pub fn kernel(self) -> llm_int8_kernels::Activation {
        use llm_int8_kernels::Activation as Kernel;
        match self {
            Self::GeluNew | Self::GeluTanh | Self::GeluFast | Self::BloomGelu => Kernel::GeluTanh,
            Self::Gelu | Self::TorchGelu => Kernel::Gelu,
            Self::QuickGelu => Kernel::QuickGelu,
            Self::ReluSquared => Kernel::ReluSquared,
            Self::Relu => Kernel::Relu,
            Self::Silu => Kernel::Silu,
            Self::Tanh => Kernel::Tanh,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_have_their_values_at_one() {
        let at_one = |a: Activation| {
            let mut x = [1f32];
            llm_int8_kernels::activation::apply(llm_int8_kernels::Isa::detect(), a.kernel(), &mut x);
            x[0]
        };
        for (activation, expected) in [
            (Activation::GeluNew, 0.841_192),
            (Activation::GeluTanh, 0.841_192),
            (Activation::Gelu, 0.841_345),
            (Activation::Relu, 1.0),
            (Activation::Silu, 0.731_059),
            (Activation::Tanh, 0.761_594),
            (Activation::GeluFast, 0.841_192),
            (Activation::QuickGelu, 0.845_795),
            (Activation::ReluSquared, 1.0),
            (Activation::BloomGelu, 0.841_192),
            (Activation::TorchGelu, 0.841_345),
        ] {
            assert!((at_one(activation) - expected).abs() < 2e-6, "{activation:?}: {}", at_one(activation));
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = Activation::from_name("mish").unwrap_err().to_string();
        assert!(error.contains("`mish` is not known") && error.contains("gelu_new"), "{error}");
    }
}
