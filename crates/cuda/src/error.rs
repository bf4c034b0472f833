//! The error type.

use thiserror::Error;

/// Results of this crate.
pub type Result<T> = std::result::Result<T, CudaError>;

/// A device failed, or was asked for something it cannot do.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CudaError {
    /// The program was built without the feature `cuda`.
    #[error(
        "this program was built without CUDA; build it with the feature `cuda`, or compute on the CPU"
    )]
    NotBuilt,
    /// `libcuda.so.1` cannot be loaded.
    #[error(
        "there is no CUDA driver (libcuda.so.1) on this machine; install NVIDIA's driver, or compute on the CPU"
    )]
    NoDriver,
    /// No GPU has this number.
    #[error("there is no device cuda:{ordinal}: this machine has {count} GPU(s), numbered from 0")]
    NoDevice {
        /// The requested number.
        ordinal: usize,
        /// GPUs on this machine.
        count: usize,
    },
    /// The program was built without the emulated device.
    #[error(
        "this program has no emulated device: it exists only in tests, built where there is a C++ compiler"
    )]
    NoEmulation,
    /// The driver returned an error.
    #[error("{device}: {action} failed: {reason}")]
    Driver {
        /// The device, such as `cuda:0`.
        device: String,
        /// What was attempted.
        action: &'static str,
        /// The driver's message.
        reason: String,
    },
    /// The device is out of memory.
    #[error(
        "{device} is out of memory: {requested} more bytes were requested, {free} of {total} are free; \
         leave layers on the CPU (a device map), or use a smaller model or context"
    )]
    OutOfMemory {
        /// The device, such as `cuda:0`.
        device: String,
        /// Requested bytes.
        requested: u64,
        /// Free bytes.
        free: u64,
        /// Total bytes of the device.
        total: u64,
    },
    /// A buffer is too short for the launch or copy.
    #[error("{kernel}: {what} has {found} elements, at least {needed} are needed")]
    TooShort {
        /// The kernel or copy.
        kernel: &'static str,
        /// The argument that is too short.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The required length.
        needed: usize,
    },
    /// The kernel does not support this shape.
    #[error("{kernel}: {reason}")]
    Shape {
        /// The kernel.
        kernel: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// An argument is on another device than the launch.
    #[error("{kernel}: {what} is not on {device}")]
    WrongDevice {
        /// The kernel or copy.
        kernel: &'static str,
        /// The argument on another device.
        what: &'static str,
        /// Where it should be.
        device: String,
    },
}
