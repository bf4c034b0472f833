//! The two kinds of devices behind one face. `cfg` of features stands here and nowhere else.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(emulated)]
mod emulated;
#[cfg(feature = "cuda")]
mod ring;

use crate::error::{CudaError, Result};
use std::fmt;

/// What a device is and has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Properties {
    /// `cuda:0`.
    pub(crate) name: String,
    /// The product's name.
    pub(crate) model: String,
    /// Multiprocessors.
    pub(crate) multiprocessors: usize,
    /// Bytes of shared memory a block may ask for.
    pub(crate) shared_bytes: usize,
    /// The compute capability: 90 for 9.0.
    pub(crate) capability: u32,
    /// Whether it has `wgmma` and the kernels were compiled for it.
    pub(crate) has_wgmma: bool,
}

/// A kernel to run.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
pub(crate) struct Launch<'a> {
    pub(crate) kernel: &'static str,
    /// Its one struct.
    pub(crate) args: &'a [u8],
    pub(crate) grid: [u32; 3],
    pub(crate) threads: u32,
    pub(crate) shared_bytes: u32,
    /// Whether it may be started before the kernel before it has ended.
    pub(crate) overlaps: bool,
}

/// A driver with one device and one stream: what is asked for happens in that order.
pub(crate) enum Driver {
    #[cfg(feature = "cuda")]
    Cuda(Box<cuda::CudaDriver>),
    #[cfg(emulated)]
    Emulated(emulated::EmulatedDriver),
    /// Keeps the enum inhabited in builds with no device; never made.
    #[allow(dead_code)]
    None,
}

/// A recorded sequence.
pub(crate) enum Recorded {
    #[cfg(feature = "cuda")]
    Cuda(cuda::CudaRecorded),
    #[cfg(emulated)]
    Emulated(emulated::Recording),
    #[allow(dead_code)]
    None,
}

/// Runs the same expression for whichever driver there is.
macro_rules! each {
    ($driver:expr, $name:ident => $body:expr) => {
        match $driver {
            #[cfg(feature = "cuda")]
            Driver::Cuda($name) => $body,
            #[cfg(emulated)]
            Driver::Emulated($name) => $body,
            Driver::None => Err(CudaError::NotBuilt),
        }
    };
}

// Where a driver is left out, nothing is done with what comes in.
#[cfg_attr(not(all(feature = "cuda", emulated)), allow(unused_variables))]
impl Driver {
    /// The GPU of that number.
    pub(crate) fn cuda(ordinal: usize) -> Result<Self> {
        #[cfg(feature = "cuda")]
        return cuda::CudaDriver::new(ordinal).map(Box::new).map(Self::Cuda);
        #[cfg(not(feature = "cuda"))]
        Err(CudaError::NotBuilt)
    }

    /// How many GPUs there are; none without a driver or the feature.
    pub(crate) fn cuda_count() -> Result<usize> {
        #[cfg(feature = "cuda")]
        return cuda::CudaDriver::count();
        #[cfg(not(feature = "cuda"))]
        Ok(0)
    }

    /// A device that the CPU plays, with so much memory; see [`crate::Device::emulated`].
    pub(crate) fn emulated(ordinal: usize, memory: u64, order: u64) -> Result<Self> {
        #[cfg(emulated)]
        return Ok(Self::Emulated(emulated::EmulatedDriver::new(
            ordinal, memory, order,
        )));
        #[cfg(not(emulated))]
        Err(CudaError::NoEmulation)
    }

    pub(crate) fn properties(&self) -> Result<Properties> {
        each!(self, driver => driver.properties())
    }

    /// Free and total bytes.
    pub(crate) fn memory(&self) -> Result<(u64, u64)> {
        each!(self, driver => driver.memory())
    }

    /// The address of new memory, a multiple of 256.
    pub(crate) fn allocate(&self, bytes: usize) -> Result<u64> {
        each!(self, driver => driver.allocate(bytes))
    }

    /// Gives memory back once the device is done with it.
    pub(crate) fn free(&self, address: u64) -> Result<()> {
        each!(self, driver => driver.free(address))
    }

    /// Copies to the device; `from` may be reused at once.
    pub(crate) fn write(&self, address: u64, from: &[u8]) -> Result<()> {
        each!(self, driver => driver.write(address, from))
    }

    /// Copies to the host and waits for it.
    pub(crate) fn read(&self, address: u64, into: &mut [u8]) -> Result<()> {
        each!(self, driver => driver.read(address, into))
    }

    /// Copies within the device.
    pub(crate) fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        each!(self, driver => driver.copy(to, from, bytes))
    }

    /// Fills with zeros.
    pub(crate) fn zero(&self, address: u64, bytes: usize) -> Result<()> {
        each!(self, driver => driver.zero(address, bytes))
    }

    pub(crate) fn launch(&self, launch: Launch<'_>) -> Result<()> {
        each!(self, driver => driver.launch(launch))
    }

    pub(crate) fn synchronize(&self) -> Result<()> {
        each!(self, driver => driver.synchronize())
    }

    /// From here on what is asked for is recorded and not done.
    pub(crate) fn begin_recording(&self) -> Result<()> {
        each!(self, driver => driver.begin_recording())
    }

    /// What was recorded.
    pub(crate) fn end_recording(&self) -> Result<Recorded> {
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(driver) => driver.end_recording().map(Recorded::Cuda),
            #[cfg(emulated)]
            Self::Emulated(driver) => driver.end_recording().map(Recorded::Emulated),
            Self::None => Err(CudaError::NotBuilt),
        }
    }

    pub(crate) fn replay(&self, recorded: &Recorded) -> Result<()> {
        match (self, recorded) {
            #[cfg(feature = "cuda")]
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
