//! The error type of this crate.

use crate::{QScheme, QuantizedDtype};

/// A result with this crate's error.
pub type Result<T, E = AffineError> = std::result::Result<T, E>;

/// Why a tensor, a setting or a layer is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AffineError {
    /// A value that is NaN or infinite.
    #[error(
        "value {index} is {value}: only finite numbers can be quantised; remove it or replace it first"
    )]
    NotFinite {
        /// Its row-major index.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A tensor without values, where at least one is needed.
    #[error("the tensor is empty: give at least one number")]
    Empty,
    /// A number of values that does not match the shape.
    #[error("{count} numbers do not fill the shape {shape:?}")]
    WrongShape {
        /// The number of values.
        count: usize,
        /// The shape given.
        shape: Vec<usize>,
    },
    /// An axis the tensor does not have.
    #[error(
        "axis {axis} is out of range: the tensor has {dimensions} dimension(s), counted from 0"
    )]
    AxisOutOfRange {
        /// The requested axis.
        axis: usize,
        /// The tensor's number of dimensions.
        dimensions: usize,
    },
    /// Two batches with different numbers of channels.
    #[error(
        "the observer has seen {seen} channels and now gets {now}; make a new observer or fix the batch"
    )]
    ChannelsChanged {
        /// Channels of earlier batches.
        seen: usize,
        /// Channels of this batch.
        now: usize,
    },
    /// A scheme that the observer does not support.
    #[error("{observer} does not support {scheme}; it supports {takes}")]
    UnsupportedScheme {
        /// The observer's class name.
        observer: &'static str,
        /// The requested scheme.
        scheme: QScheme,
        /// The schemes it supports.
        takes: &'static str,
    },
    /// `reduce_range` with symmetric quint8. torch refuses it too: the zero point 128 would be
    /// outside 0..=127.
    #[error("reduce_range cannot be combined with symmetric quint8; use qint8 or an affine scheme")]
    SymmetricReducedQuint8,
    /// A range of codes that has fewer than 2, or is not within the dtype.
    #[error("the codes {min}..={max} are not a range of 2 to 256 codes within {dtype}")]
    WrongRange {
        /// Smallest code.
        min: i32,
        /// Largest code.
        max: i32,
        /// The dtype of the codes.
        dtype: QuantizedDtype,
    },
    /// A setting whose value is out of range.
    #[error("{setting} is {value}: it must be {expected}")]
    WrongSetting {
        /// The setting's name.
        setting: &'static str,
        /// The value given.
        value: f64,
        /// The values allowed.
        expected: &'static str,
    },
    /// A scale or zero point that cannot quantise.
    #[error("scale {scale} with zero point {zero_point} cannot quantise to {dtype}: {reason}")]
    WrongQParams {
        /// The step between two codes.
        scale: f64,
        /// The code that stands for zero.
        zero_point: i32,
        /// The dtype of the codes.
        dtype: QuantizedDtype,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// Per-channel parameters whose number does not match the tensor's axis.
    #[error("{count} scales and zero points do not fit axis {axis} of the shape {shape:?}")]
    WrongChannels {
        /// The number of scales and zero points.
        count: usize,
        /// The axis they apply along.
        axis: usize,
        /// The tensor's shape.
        shape: Vec<usize>,
    },
    /// Arguments whose dimensions do not match.
    #[error("{what}: expected {expected}, found {found}")]
    WrongDimension {
        /// Which dimension of which argument.
        what: &'static str,
        /// What the layer requires.
        expected: usize,
        /// What it is.
        found: usize,
    },
    /// A dtype or quantisation parameters that a layer does not support.
    #[error("{what} must be {expected}, not {found}")]
    Unsupported {
        /// Which property of which argument.
        what: &'static str,
        /// What the layer supports.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// The int8 matmul failed.
    #[error(transparent)]
    Kernel(#[from] llm_int8_kernels::KernelError),
}
