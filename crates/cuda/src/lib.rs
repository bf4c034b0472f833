//! LLM.int8() on GPUs: the kernels, safe functions that launch them, and an emulated device that
//! runs the same kernels on the CPU.
//!
//! - [`Device`]: a GPU (feature `cuda`) or the emulated device (feature `emulation`, for tests).
//!   Without either feature the crate still compiles; it just finds no device.
//! - [`Buffer`]: device memory. [`Graph`]: launches recorded once and replayed.
//! - [`ops`]: a safe function for each kernel. It checks that all memory the kernel touches exists.
//! - [`plan`]: how work is split into blocks: pure functions, tested without a device.
//!
//! The crate has no tensor type. Letters: M rows of activations, N `out_features`, K `in_features`.
//!
//! ```
//! use llm_int8_cuda::{CudaError, Device};
//! match Device::cuda(0) {
//!     Ok(device) => println!("{}", device.name()),
//!     Err(error) => println!("{error}"), // no CUDA in this build, no driver, or no GPU
//! }
//! # Ok::<(), CudaError>(())
//! ```

pub mod args;
mod buffer;
mod device;
mod driver;
mod error;
pub mod ops;
pub mod plan;
#[cfg(feature = "emulation")]
pub mod testing;

pub use buffer::{Buffer, View};
pub use device::{Device, Graph, MemoryInfo};
pub use error::{CudaError, Result};
