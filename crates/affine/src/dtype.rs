//! The dtypes of codes, and the schemes that scales and zero points follow.

use std::fmt;

/// `torch.qint8` or `torch.quint8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuantizedDtype {
    /// Codes -128..=127.
    Qint8,
    /// Codes 0..=255.
    Quint8,
}

impl QuantizedDtype {
    /// The smallest and the largest code.
    ///
    /// ```
    /// use llm_int8_affine::QuantizedDtype;
    /// assert_eq!(QuantizedDtype::Quint8.range(), (0, 255));
    /// ```
    pub fn range(self) -> (i32, i32) {
        match self {
            Self::Qint8 => (-128, 127),
            Self::Quint8 => (0, 255),
        }
    }

    /// Half of the codes, as `reduce_range` requests: on machines without VNNI, fbgemm adds pairs
    /// of products in 16 bits, and then they cannot saturate.
    ///
    /// ```
    /// use llm_int8_affine::QuantizedDtype;
    /// assert_eq!(QuantizedDtype::Qint8.reduced_range(), (-64, 63));
    /// ```
    pub fn reduced_range(self) -> (i32, i32) {
        match self {
            Self::Qint8 => (-64, 63),
            Self::Quint8 => (0, 127),
        }
    }

    /// The dtype of `int_repr()`: `torch.int8` or `torch.uint8`.
    pub fn int_repr_name(self) -> &'static str {
        match self {
            Self::Qint8 => "torch.int8",
            Self::Quint8 => "torch.uint8",
        }
    }
}

impl fmt::Display for QuantizedDtype {
    /// As in torch: `torch.qint8`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Qint8 => "torch.qint8",
            Self::Quint8 => "torch.quint8",
        })
    }
}

/// `torch.qscheme`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QScheme {
    /// One scale and one zero point for the tensor; the range is min..max.
    PerTensorAffine,
    /// One scale for the tensor; the range is -absmax..absmax, with zero in the middle of the
    /// codes.
    PerTensorSymmetric,
    /// A scale and a zero point for each slice along an axis.
    PerChannelAffine,
    /// A scale for each slice along an axis.
    PerChannelSymmetric,
}

impl QScheme {
    /// Whether zero is in the middle of the codes.
    pub fn is_symmetric(self) -> bool {
        matches!(self, Self::PerTensorSymmetric | Self::PerChannelSymmetric)
    }

    /// Whether every channel has its own parameters.
    pub fn is_per_channel(self) -> bool {
        matches!(self, Self::PerChannelAffine | Self::PerChannelSymmetric)
    }
}

impl fmt::Display for QScheme {
    /// As in torch: `torch.per_tensor_affine`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PerTensorAffine => "torch.per_tensor_affine",
            Self::PerTensorSymmetric => "torch.per_tensor_symmetric",
            Self::PerChannelAffine => "torch.per_channel_affine",
            Self::PerChannelSymmetric => "torch.per_channel_symmetric",
        })
    }
}
