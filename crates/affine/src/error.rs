//! The one error of this crate: what was wrong, where, and what to do.

use crate::{QScheme, QuantizedDtype};

/// The result of everything in this crate that can fail.
pub type Result<T, E = AffineError> = std::result::Result<T, E>;

/// What can go wrong between numbers and their codes.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AffineError {
    /// A value that has no code.
    #[error(
        "value {index} is {value}: only finite numbers can be quantised; remove it or replace it first"
    )]
    NotFinite {
        /// Its place, counted from 0 in row-major order.
        index: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// There is nothing to look at.
    #[error("the tensor is empty: give at least one number")]
    Empty,
    /// The numbers do not fill the shape.
    #[error("{count} numbers do not have the shape {shape:?}")]
    WrongShape {
        /// How many there are.
        count: usize,
        /// The shape that was claimed.
        shape: Vec<usize>,
    },
    /// An axis the tensor does not have.
    #[error(
        "axis {axis} is out of range: the tensor has {dimensions} dimension(s), counted from 0"
    )]
    AxisOutOfRange {
        /// The axis asked for.
        axis: usize,
        /// How many there are.
        dimensions: usize,
    },
    /// Two batches with different numbers of channels.
    #[error(
        "the observer has seen {seen} channels and now gets {now}; make a new observer or fix the batch"
    )]
    ChannelsChanged {
        /// Before.
        seen: usize,
        /// In this batch.
        now: usize,
    },
    /// A scheme that the observer cannot work in.
    #[error("{observer} does not support {scheme}; it takes {takes}")]
    UnsupportedScheme {
        /// The observer.
        observer: &'static str,
        /// What was asked for.
        scheme: QScheme,
        /// What it supports.
        takes: &'static str,
    },
    /// `reduce_range` with symmetric quint8, which torch refuses too: the zero point 128 would be
    /// outside of 0..=127.
    #[error("reduce_range cannot be combined with symmetric quint8; use qint8 or an affine scheme")]
    SymmetricReducedQuint8,
    /// A number of codes that is not between 2 and 256.
    #[error("the codes {min}..={max} are no range of 2 to 256 codes within {dtype}")]
    WrongRange {
        /// Smallest code.
        min: i32,
        /// Largest code.
        max: i32,
        /// The type the codes are stored in.
        dtype: QuantizedDtype,
    },
    /// A setting that is not a usable number.
    #[error("{setting} is {value}: it must be {expected}")]
    WrongSetting {
        /// Which.
        setting: &'static str,
        /// What it was.
        value: f64,
        /// What it can be.
        expected: &'static str,
    },
    /// A scale or zero point that no code could be made with.
    #[error("scale {scale} with zero point {zero_point} cannot quantise to {dtype}: {reason}")]
    WrongQParams {
        /// The step between two codes.
        scale: f64,
        /// The code of zero.
        zero_point: i32,
        /// The type the codes are stored in.
        dtype: QuantizedDtype,
        /// What does not hold.
        reason: &'static str,
    },
    /// Per-channel parameters that do not fit the tensor.
    #[error("{count} scales and zero points do not fit axis {axis} of the shape {shape:?}")]
    WrongChannels {
        /// How many there are.
        count: usize,
        /// The axis they run along.
        axis: usize,
        /// The tensor's shape.
        shape: Vec<usize>,
    },
    /// Matrices that do not fit together.
    #[error("{what}: expected {expected}, found {found}")]
    WrongDimension {
        /// Which.
        what: &'static str,
        /// By the layer.
        expected: usize,
        /// In what was given.
        found: usize,
    },
    /// Parameters a layer does not take.
    #[error("{what} must be {expected}, not {found}")]
    Unsupported {
        /// Which.
        what: &'static str,
        /// What the layer takes.
        expected: &'static str,
        /// What was given.
        found: String,
    },
    /// The integer product failed.
    #[error(transparent)]
    Kernel(#[from] llm_int8_kernels::KernelError),
}
