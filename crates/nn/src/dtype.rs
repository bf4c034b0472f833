//! The dtypes a parameter can be stored in, under the names PyTorch prints.

use candle_core::DType;
use std::fmt;

/// Dtype of a parameter or buffer: a float, or one of the two that candle lacks (int8 and bool).
///
/// ```
/// use llm_int8_nn::ParameterDtype;
/// assert_eq!(ParameterDtype::I8.to_string(), "torch.int8");
/// assert_eq!(ParameterDtype::F16.size_in_bytes(), 2);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ParameterDtype {
    /// `torch.int8`: codes in -127..=127.
    I8,
    /// `torch.bool`: the causal masks that transformers keeps as buffers. They are only described,
    /// never allocated.
    Bool,
    /// `torch.float16`.
    F16,
    /// `torch.bfloat16`.
    BF16,
    /// `torch.float32`.
    F32,
}

impl ParameterDtype {
    /// Bytes per element.
    pub fn size_in_bytes(self) -> usize {
        match self {
            Self::I8 | Self::Bool => 1,
            Self::F16 | Self::BF16 => 2,
            Self::F32 => 4,
        }
    }

    /// The name without PyTorch's prefix: `int8`, `float16`, …
    pub fn name(self) -> &'static str {
        match self {
            Self::I8 => "int8",
            Self::Bool => "bool",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
            Self::F32 => "float32",
        }
    }
}

impl fmt::Display for ParameterDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "torch.{}", self.name())
    }
}

/// A float dtype that parameters outside the int8 layers can be stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum FloatDtype {
    /// IEEE half precision: the dtype transformers 4.x uses beside int8, and the default here.
    #[default]
    F16,
    /// bfloat16.
    BF16,
    /// Single precision.
    F32,
}

impl FloatDtype {
    /// The candle dtype.
    pub fn candle(self) -> DType {
        match self {
            Self::F16 => DType::F16,
            Self::BF16 => DType::BF16,
            Self::F32 => DType::F32,
        }
    }

    /// The safetensors dtype.
    pub fn stored(self) -> safetensors::Dtype {
        match self {
            Self::F16 => safetensors::Dtype::F16,
            Self::BF16 => safetensors::Dtype::BF16,
            Self::F32 => safetensors::Dtype::F32,
        }
    }

    /// The counterpart of a candle dtype; `None` if it is not one of the three.
    pub fn from_candle(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F16 => Some(Self::F16),
            DType::BF16 => Some(Self::BF16),
            DType::F32 => Some(Self::F32),
            _ => None,
        }
    }

    /// Parses a dtype name of `config.json` (`float16`, `torch.bfloat16`, …).
    pub fn from_name(name: &str) -> Option<Self> {
        match name.strip_prefix("torch.").unwrap_or(name) {
            "float16" | "half" => Some(Self::F16),
            "bfloat16" => Some(Self::BF16),
            "float32" | "float" => Some(Self::F32),
            _ => None,
        }
    }
}

impl From<FloatDtype> for ParameterDtype {
    fn from(dtype: FloatDtype) -> Self {
        match dtype {
            FloatDtype::F16 => Self::F16,
            FloatDtype::BF16 => Self::BF16,
            FloatDtype::F32 => Self::F32,
        }
    }
}

/// What the keys and values of attention are stored as.
///
/// ```
/// use llm_int8_nn::{CacheDtype, FloatDtype};
/// assert_eq!(CacheDtype::from(FloatDtype::F16).name(), "float16");
/// assert_eq!(CacheDtype::Int8.to_string(), "int8");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CacheDtype {
    /// As floats.
    Float(FloatDtype),
    /// As codes in -127..=127, with an f32 scale for each head and position: absmax / 127.
    Int8,
}

impl CacheDtype {
    /// Bytes of one component of a key or a value, without its share of the scale.
    pub fn size_in_bytes(self) -> usize {
        ParameterDtype::from(self).size_in_bytes()
    }

    /// Bytes of the scale of a key or a value of one head: 0 for floats.
    pub fn scale_bytes(self) -> usize {
        match self {
            Self::Float(_) => 0,
            Self::Int8 => size_of::<f32>(),
        }
    }

    /// The name, as in [`ParameterDtype::name`].
    pub fn name(self) -> &'static str {
        ParameterDtype::from(self).name()
    }
}

impl From<FloatDtype> for CacheDtype {
    fn from(dtype: FloatDtype) -> Self {
        Self::Float(dtype)
    }
}

impl From<CacheDtype> for ParameterDtype {
    fn from(dtype: CacheDtype) -> Self {
        match dtype {
            CacheDtype::Float(dtype) => dtype.into(),
            CacheDtype::Int8 => Self::I8,
        }
    }
}

impl fmt::Display for CacheDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
