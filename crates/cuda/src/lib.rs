//! LLM.int8() on GPUs: kernels, what launches them, and an emulated device that runs them on the
//! CPU.
//!
//! - [`Device`]: a GPU (feature `cuda`), or the emulated device (feature `emulation`, for tests);
//!   with neither feature there is none, and all of this compiles all the same.
//! - [`Buffer`] is its memory, [`Graph`] a sequence of launches recorded once and run again.
//! - [`ops`] has a safe function for each kernel, which checks that everything the kernel touches
//!   is there.
//! - [`plan`] decides shapes of launches, and can be tested without any device.
//!
//! This crate knows tensors of no library, and none of ours. Letters: M rows of activations, N
//! `out_features`, K `in_features`.
//!
//! ```
//! use llm_int8_cuda::{CudaError, Device};
//! match Device::cuda(0) {
//!     Ok(device) => println!("{}", device.name()),
//!     Err(error) => println!("{error}"), // says whether the binary, the driver or the GPU is missing
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
