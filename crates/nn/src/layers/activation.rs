//! Activation functions under the names `config.json` gives them (`ACT2FN` of transformers).

use crate::error::{NnError, Result};

/// The activation function between the linear layers of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// `gelu_new`: `0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`, GPT-2's.
    GeluNew,
    /// `gelu` and `gelu_python`: `x·Φ(x)` with the error function.
    Gelu,
    /// `gelu_10`: the same, clipped to -10..=10.
    GeluClipped,
    /// `gelu_pytorch_tanh` and `gelu_python_tanh`: the formula of `gelu_new`.
    GeluTanh,
    /// `gelu_accurate`: the formula of `gelu_new`.
    GeluAccurate,
    /// `gelu_fast`: the formula of `gelu_new` with a rounded constant.
    GeluFast,
    /// `quick_gelu`: `x·σ(1.702·x)`.
    QuickGelu,
    /// `laplace`: `½·(1 + erf((x − 0.707107) / (0.282095·√2)))`.
    Laplace,
    /// `leaky_relu`: `x`, or `0.01·x` below 0.
    LeakyRelu,
    /// `linear`: `x`.
    Linear,
    /// `mish`: `x·tanh(ln(1 + eˣ))`.
    Mish,
    /// `relu`: `max(x, 0)`.
    Relu,
    /// `relu2`: `max(x, 0)²`.
    ReluSquared,
    /// `relu6`: `min(max(x, 0), 6)`.
    Relu6,
    /// `sigmoid`: `σ(x)`.
    Sigmoid,
    /// `silu`: `x·σ(x)`.
    Silu,
    /// `swish`: `silu` in PyTorch's own class.
    Swish,
    /// `tanh`.
    Tanh,
    /// The formula of `gelu_new` in Bloom's own class.
    BloomGelu,
    /// MPT's `nn.GELU(approximate="none")`.
    TorchGelu,
}

/// Their names in `config.json`.
const NAMES: &[(&str, Activation)] = &[
    ("gelu", Activation::Gelu),
    ("gelu_10", Activation::GeluClipped),
    ("gelu_accurate", Activation::GeluAccurate),
    ("gelu_fast", Activation::GeluFast),
    ("gelu_new", Activation::GeluNew),
    ("gelu_python", Activation::Gelu),
    ("gelu_python_tanh", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("laplace", Activation::Laplace),
    ("leaky_relu", Activation::LeakyRelu),
    ("linear", Activation::Linear),
    ("mish", Activation::Mish),
    ("quick_gelu", Activation::QuickGelu),
    ("relu", Activation::Relu),
    ("relu2", Activation::ReluSquared),
    ("relu6", Activation::Relu6),
    ("sigmoid", Activation::Sigmoid),
    ("silu", Activation::Silu),
    ("swish", Activation::Swish),
    ("tanh", Activation::Tanh),
];

impl Activation {
    /// Parses a name of `config.json`.
    ///
    /// # Errors
    /// [`NnError::Config`] for an unknown name, with a list of the known ones, and for functions
    /// with trained parameters.
    pub fn from_name(name: &str) -> Result<Self> {
        if let Some((_, activation)) = NAMES.iter().find(|(known, _)| *known == name) {
            return Ok(*activation);
        }

        let reason = match name {
            "prelu" | "xielu" => {
                format!(
                    "activation function `{name}` has trained parameters, which are not supported"
                )
            }
            _ => {
                let known: Vec<&str> = NAMES.iter().map(|(known, _)| *known).collect();
                format!(
                    "activation function `{name}` is not known; known are {}",
                    known.join(", ")
                )
            }
        };

        Err(NnError::Config { reason })
    }

    /// The name of the class, as transformers prints it.
    pub fn class(self) -> &'static str {
        match self {
            Self::GeluNew => "NewGELUActivation",
            Self::Gelu => "GELUActivation",
            Self::GeluClipped => "ClippedGELUActivation",
            Self::GeluTanh => "GELUTanh",
            Self::GeluAccurate => "AccurateGELUActivation",
            Self::GeluFast => "FastGELUActivation",
            Self::QuickGelu => "QuickGELUActivation",
            Self::Laplace => "LaplaceActivation",
            Self::LeakyRelu => "LeakyReLU",
            Self::Linear => "LinearActivation",
            Self::Mish => "MishActivation",
            Self::Relu => "ReLU",
            Self::ReluSquared => "ReLUSquaredActivation",
            Self::Relu6 => "ReLU6",
            Self::Sigmoid => "Sigmoid",
            Self::Silu => "SiLUActivation",
            Self::Swish => "SiLU",
            Self::Tanh => "Tanh",
            Self::BloomGelu => "BloomGelu",
            Self::TorchGelu => "GELU",
        }
    }

    /// The class's `extra_repr`, which is printed in parentheses.
    pub fn arguments(self) -> &'static str {
        match self {
            Self::TorchGelu => "approximate='none'",
            Self::LeakyRelu => "negative_slope=0.01",
            _ => "",
        }
    }

    /// The kernel that computes it.
    pub fn kernel(self) -> llm_int8_kernels::Activation {
        use llm_int8_kernels::Activation as Kernel;
        match self {
            Self::GeluNew
            | Self::GeluTanh
            | Self::GeluAccurate
            | Self::GeluFast
            | Self::BloomGelu => Kernel::GeluTanh,
            Self::Gelu | Self::TorchGelu => Kernel::Gelu,
            Self::GeluClipped => Kernel::GeluClipped,
            Self::QuickGelu => Kernel::QuickGelu,
            Self::Laplace => Kernel::Laplace,
            Self::LeakyRelu => Kernel::LeakyRelu,
            Self::Linear => Kernel::Linear,
            Self::Mish => Kernel::Mish,
            Self::Relu => Kernel::Relu,
            Self::ReluSquared => Kernel::ReluSquared,
            Self::Relu6 => Kernel::Relu6,
            Self::Sigmoid => Kernel::Sigmoid,
            Self::Silu | Self::Swish => Kernel::Silu,
            Self::Tanh => Kernel::Tanh,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, class, and values at -1.5, 1 and 12, from PyTorch 2.8 and transformers 4.57.1.
    const EXPECTED: &[(&str, &str, [f32; 3])] = &[
        ("gelu", "GELUActivation()", [-0.1002109, 0.8413447, 12.0]),
        (
            "gelu_10",
            "ClippedGELUActivation()",
            [-0.1002109, 0.8413447, 10.0],
        ),
        (
            "gelu_accurate",
            "AccurateGELUActivation()",
            [-0.1004284, 0.841192, 12.0],
        ),
        (
            "gelu_fast",
            "FastGELUActivation()",
            [-0.1004284, 0.841192, 12.0],
        ),
        (
            "gelu_new",
            "NewGELUActivation()",
            [-0.1004284, 0.841192, 12.0],
        ),
        (
            "gelu_python",
            "GELUActivation()",
            [-0.1002108, 0.8413447, 12.0],
        ),
        (
            "gelu_python_tanh",
            "GELUTanh()",
            [-0.1004284, 0.841192, 12.0],
        ),
        (
            "gelu_pytorch_tanh",
            "GELUTanh()",
            [-0.1004284, 0.841192, 12.0],
        ),
        ("laplace", "LaplaceActivation()", [0.0, 0.8504297, 1.0]),
        (
            "leaky_relu",
            "LeakyReLU(negative_slope=0.01)",
            [-0.015, 1.0, 12.0],
        ),
        ("linear", "LinearActivation()", [-1.5, 1.0, 12.0]),
        ("mish", "MishActivation()", [-0.2980998, 0.8650984, 12.0]),
        (
            "quick_gelu",
            "QuickGELUActivation()",
            [-0.1083378, 0.8457958, 12.0],
        ),
        ("relu", "ReLU()", [0.0, 1.0, 12.0]),
        ("relu2", "ReLUSquaredActivation()", [0.0, 1.0, 144.0]),
        ("relu6", "ReLU6()", [0.0, 1.0, 6.0]),
        ("sigmoid", "Sigmoid()", [0.1824255, 0.7310586, 0.9999938]),
        (
            "silu",
            "SiLUActivation()",
            [-0.2736383, 0.7310586, 11.999_926],
        ),
        ("swish", "SiLU()", [-0.2736383, 0.7310586, 11.999_926]),
        ("tanh", "Tanh()", [-0.9051483, 0.7615942, 1.0]),
    ];

    #[test]
    fn every_name_has_the_class_and_values_of_transformers() {
        assert_eq!(EXPECTED.len(), NAMES.len());
        for (name, class, expected) in EXPECTED {
            let activation = Activation::from_name(name).unwrap();
            assert_eq!(
                format!("{}({})", activation.class(), activation.arguments()),
                *class,
                "{name}"
            );
            let mut x = [-1.5f32, 1.0, 12.0];
            llm_int8_kernels::activation::apply(
                llm_int8_kernels::Isa::detect(),
                activation.kernel(),
                &mut x,
            );

            for (x, expected) in x.iter().zip(expected) {
                assert!((x - expected).abs() < 2e-6, "{name}: {x}, not {expected}");
            }
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = Activation::from_name("mush").unwrap_err().to_string();
        assert!(
            error.contains("`mush` is not known") && error.contains("gelu_new"),
            "{error}"
        );
        let error = Activation::from_name("prelu").unwrap_err().to_string();
        assert!(error.contains("`prelu` has trained parameters"), "{error}");
    }
}
