//! One interface to the two kinds of devices. All `cfg` for the features is in this module.

#[cfg(feature = "driver")]
mod cuda;
#[cfg(emulated)]
mod emulated;
#[cfg(feature = "driver")]
mod ring;

use crate::error::{CudaError, Result};
use std::ffi::c_void;
use std::fmt;

/// A device's name and limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Properties {
    /// `cuda:0`.
    pub(crate) name: String,
    /// `NVIDIA H200`.
    pub(crate) model: String,
    pub(crate) multiprocessors: usize,
    /// Bytes of shared memory a block may opt in to.
    pub(crate) shared_bytes: usize,
    /// The compute capability: 90 for 9.0.
    pub(crate) capability: u32,
    /// Whether it supports `wgmma` and the build includes kernels that use it.
    pub(crate) has_wgmma: bool,
}

/// One kernel launch.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "driver"), allow(dead_code))]
pub(crate) struct Launch<'a> {
    pub(crate) kernel: &'static str,
    /// The bytes of its only argument, a struct of [`crate::args`].
    pub(crate) args: &'a [u8],
    pub(crate) grid: [u32; 3],
    pub(crate) threads: u32,
    pub(crate) shared_bytes: u32,
    /// Whether it may start before the previous kernel has finished.
    pub(crate) overlaps: bool,
}

/// A driver of one device with one stream: requests run in order.
pub(crate) enum Driver {
    #[cfg(feature = "driver")]
    Cuda(Box<cuda::CudaDriver>),
    #[cfg(emulated)]
    Emulated(emulated::EmulatedDriver),
    /// Keeps the enum inhabited in builds without a device; never constructed.
    #[allow(dead_code)]
    None,
}

/// A recorded sequence of launches.
pub(crate) enum Recorded {
    #[cfg(feature = "driver")]
    Cuda(cuda::CudaRecorded),
    #[cfg(emulated)]
    Emulated(emulated::Recording),
    #[allow(dead_code)]
    None,
}

/// Evaluates an expression for whichever driver this is.
macro_rules! dispatch {
    ($driver:expr, $name:ident => $body:expr) => {
        match $driver {
            #[cfg(feature = "driver")]
            Driver::Cuda($name) => $body,
            #[cfg(emulated)]
            Driver::Emulated($name) => $body,
            Driver::None => Err(CudaError::NotBuilt),
        }
    };
}

// Arguments are unused in builds without one of the drivers.
#[cfg_attr(not(all(feature = "driver", emulated)), allow(unused_variables))]
impl Driver {
    /// The GPU with this number.
    pub(crate) fn cuda(ordinal: usize) -> Result<Self> {
        #[cfg(feature = "driver")]
        return cuda::CudaDriver::new(ordinal).map(Box::new).map(Self::Cuda);
        #[cfg(not(feature = "driver"))]
        Err(CudaError::NotBuilt)
    }

    /// A GPU through somebody else's stream; see [`crate::Device::on_stream`].
    ///
    /// # Safety
    /// As there.
    #[expect(unsafe_code, reason = "a handle of another library")]
    pub(crate) unsafe fn on_stream(ordinal: usize, stream: *mut c_void) -> Result<Self> {
        #[cfg(feature = "driver")]
        // SAFETY: the caller's.
        return unsafe { cuda::CudaDriver::on_stream(ordinal, stream) }
            .map(Box::new)
            .map(Self::Cuda);
        #[cfg(not(feature = "driver"))]
        Err(CudaError::NotBuilt)
    }

    /// The number of GPUs; 0 without a driver or the feature.
    pub(crate) fn cuda_count() -> Result<usize> {
        #[cfg(feature = "driver")]
        return cuda::CudaDriver::count();
        #[cfg(not(feature = "driver"))]
        Ok(0)
    }

    /// An emulated device with `memory` bytes; see [`crate::Device::emulated`].
    pub(crate) fn emulated(ordinal: usize, memory: u64, order: u64) -> Result<Self> {
        #[cfg(emulated)]
        return Ok(Self::Emulated(emulated::EmulatedDriver::new(
            ordinal, memory, order,
        )));
        #[cfg(not(emulated))]
        Err(CudaError::NoEmulation)
    }

    pub(crate) fn properties(&self) -> Result<Properties> {
        dispatch!(self, driver => driver.properties())
    }

    /// Free and total bytes.
    pub(crate) fn memory(&self) -> Result<(u64, u64)> {
        dispatch!(self, driver => driver.memory())
    }

    /// Allocates memory; its address is a multiple of 256.
    pub(crate) fn allocate(&self, bytes: usize) -> Result<u64> {
        dispatch!(self, driver => driver.allocate(bytes))
    }

    /// Frees memory once the stream is idle.
    pub(crate) fn free(&self, address: u64) -> Result<()> {
        dispatch!(self, driver => driver.free(address))
    }

    /// Copies to the device; `from` may be reused as soon as this returns.
    pub(crate) fn write(&self, address: u64, from: &[u8]) -> Result<()> {
        dispatch!(self, driver => driver.write(address, from))
    }

    /// Copies to the host and waits for the copy.
    pub(crate) fn read(&self, address: u64, into: &mut [u8]) -> Result<()> {
        dispatch!(self, driver => driver.read(address, into))
    }

    /// Copies within the device.
    pub(crate) fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        dispatch!(self, driver => driver.copy(to, from, bytes))
    }

    /// Fills with zeros.
    pub(crate) fn zero(&self, address: u64, bytes: usize) -> Result<()> {
        dispatch!(self, driver => driver.zero(address, bytes))
    }

    pub(crate) fn launch(&self, launch: Launch<'_>) -> Result<()> {
        dispatch!(self, driver => driver.launch(launch))
    }

    pub(crate) fn synchronize(&self) -> Result<()> {
        dispatch!(self, driver => driver.synchronize())
    }

    /// Waits for all streams of the device's context.
    pub(crate) fn synchronize_all(&self) -> Result<()> {
        match self {
            #[cfg(feature = "driver")]
            Self::Cuda(driver) => driver.synchronize_all(),
            _ => self.synchronize(),
        }
    }

    /// From here on requests are recorded rather than run.
    pub(crate) fn begin_recording(&self) -> Result<()> {
        dispatch!(self, driver => driver.begin_recording())
    }

    /// Ends the recording and returns it.
    pub(crate) fn end_recording(&self) -> Result<Recorded> {
        match self {
            #[cfg(feature = "driver")]
            Self::Cuda(driver) => driver.end_recording().map(Recorded::Cuda),
            #[cfg(emulated)]
            Self::Emulated(driver) => driver.end_recording().map(Recorded::Emulated),
            Self::None => Err(CudaError::NotBuilt),
        }
    }

    pub(crate) fn replay(&self, recorded: &Recorded) -> Result<()> {
        match (self, recorded) {
            #[cfg(feature = "driver")]
            (Self::Cuda(driver), Recorded::Cuda(recorded)) => driver.replay(recorded),
            #[cfg(emulated)]
            (Self::Emulated(driver), Recorded::Emulated(recorded)) => driver.replay(recorded),
            _ => Err(CudaError::NotBuilt),
        }
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}

impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorded").finish_non_exhaustive()
    }
}
