//! What can go wrong.

use thiserror::Error;

/// Results of this crate.
pub type Result<T> = std::result::Result<T, CudaError>;

/// An error of a device or of what was asked of it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CudaError {
    /// The program was built without the feature `cuda`.
    #[error(
        "this program was built without CUDA; build it with the feature `cuda`, or compute on the CPU"
    )]
    NotBuilt,
    /// There is no driver.
    #[error(
        "there is no CUDA driver (libcuda.so.1) on this machine; install NVIDIA's driver, or compute on the CPU"
    )]
    NoDriver,
    /// There is no such device.
    #[error("there is no device cuda:{ordinal}; this machine has {count}, counted from 0")]
    NoDevice {
        /// The number asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// There is no emulated device.
    #[error(
        "this program has no emulated device; it is for tests, which build it where there is a C++ compiler"
    )]
    NoEmulation,
    /// The driver refused something.
    #[error("{device}: {action} failed: {reason}")]
    Driver {
        /// The device.
        device: String,
        /// What was tried.
        action: &'static str,
        /// The driver's words.
        reason: String,
    },
    /// Memory ran out.
    #[error(
        "{device} has no room for {wanted} more bytes ({free} of {total} are free); \
         leave layers on the CPU (a device map), or use a smaller model or context"
    )]
    OutOfMemory {
        /// The device.
        device: String,
        /// Bytes asked for.
        wanted: u64,
        /// Bytes free.
        free: u64,
        /// Bytes it has.
        total: u64,
    },
    /// Something to be launched does not fit together.
    #[error("{kernel}: {what} holds {found} elements, at least {needed} are needed")]
    TooShort {
        /// The kernel.
        kernel: &'static str,
        /// What was too short.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length needed.
        needed: usize,
    },
    /// A shape that a kernel cannot take.
    #[error("{kernel}: {reason}")]
    Shape {
        /// The kernel.
        kernel: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Two parts of a launch lie on different devices.
    #[error("{kernel}: {what} is not on {device}")]
    WrongDevice {
        /// The kernel.
        kernel: &'static str,
        /// What lies elsewhere.
        what: &'static str,
        /// Where it should be.
        device: String,
    },
}
