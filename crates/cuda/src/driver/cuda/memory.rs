//! Memory of a GPU: allocation and copies.

use super::{CudaDriver, lock};
use crate::driver::ring::{LARGE_SLOTS, Ring, SMALL_SLOTS};
use crate::error::{CudaError, Result};
use cudarc::driver::{DriverError, result, sys};

/// How device memory is allocated and freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    /// At once; freeing waits for the stream.
    Synchronous,
    /// In the order of the stream (`cuMemAllocAsync`): nothing waits.
    StreamOrdered,
}

impl CudaDriver {
    pub(crate) fn memory(&self) -> Result<(u64, u64)> {
        let (free, total) = self
            .context
            .mem_get_info()
            .map_err(self.error("reading its free memory"))?;
        Ok((free as u64, total as u64))
    }

    pub(crate) fn allocate(&self, bytes: usize) -> Result<u64> {
        self.bind()?;
        let bytes_or_one = bytes.max(1);

        #[expect(unsafe_code, reason = "device memory")]
        // SAFETY: `bind` bound the context to this thread. The memory is uninitialised, but only
        // device code and copies read it, for which any bytes are valid values.
        let allocated = unsafe {
            match self.memory {
                Memory::Synchronous => result::malloc_sync(bytes_or_one),
                Memory::StreamOrdered => {
                    result::malloc_async(self.stream.cu_stream(), bytes_or_one)
                }
            }
        };

        match allocated {
            Ok(address) => Ok(address),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let (free, total) = self.memory()?;
                Err(CudaError::OutOfMemory {
                    device: self.name.clone(),
                    requested: bytes as u64,
                    free,
                    total,
                })
            }
            Err(error) => Err(self.error("allocating")(error)),
        }
    }

    pub(crate) fn free(&self, address: u64) -> Result<()> {
        if self.memory == Memory::StreamOrdered {
            self.bind()?;
            #[expect(unsafe_code, reason = "device memory")]
            // SAFETY: the address came from `allocate`, and `Buffer::drop`, the only caller outside
            // of tests, frees it once, after what this stream was given before. Whoever used the
            // memory on other streams has waited for those (`Device::on_stream`).
            return unsafe { result::free_async(address, self.stream.cu_stream()) }
                .map_err(self.error("freeing"));
        }

        self.synchronize()?;
        #[expect(unsafe_code, reason = "device memory")]
        // SAFETY: the address came from `allocate`, and `Buffer::drop`, the only caller outside of
        // tests, frees it once. The stream is idle, so nothing uses the memory.
        unsafe { result::free_sync(address) }.map_err(self.error("freeing"))
    }

    pub(crate) fn write(&self, address: u64, from: &[u8]) -> Result<()> {
        self.bind()?;
        let mut rings = lock(&self.rings);
        let is_small = from.len() <= SMALL_SLOTS.bytes;
        let (ring, slots) = if is_small {
            (&mut rings.small, SMALL_SLOTS)
        } else {
            (&mut rings.large, LARGE_SLOTS)
        };
        if ring.is_none() {
            *ring = Some(Ring::new(&self.context, slots).map_err(self.error("locking memory"))?);
        }
        let Some(ring) = ring else { return Ok(()) };

        let mut to = address;
        for part in from.chunks(slots.bytes) {
            ring.copy(&self.stream, to, part)
                .map_err(self.error("copying from the host"))?;
            to += part.len() as u64;
        }
        Ok(())
    }

    pub(crate) fn read(&self, address: u64, into: &mut [u8]) -> Result<()> {
        self.bind()?;
        #[expect(unsafe_code, reason = "device memory")]
        // SAFETY: `View::read` checked that the memory at `address` is at least as long as `into`.
        // `into` outlives the copy: `synchronize` waits for it below.
        unsafe { result::memcpy_dtoh_async(into, address, self.stream.cu_stream()) }
            .map_err(self.error("copying to the host"))?;
        self.synchronize()
    }

    pub(crate) fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.bind()?;
        #[expect(unsafe_code, reason = "device memory")]
        // SAFETY: `View::copy_from` checked that both ranges lie within live buffers of this
        // device; freeing either waits for the stream.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }
            .map_err(self.error("copying"))
    }

    pub(crate) fn zero(&self, address: u64, bytes: usize) -> Result<()> {
        self.bind()?;
        #[expect(unsafe_code, reason = "device memory")]
        // SAFETY: `View::fill_with_zeros` passes the range of a view, which lies within a live
        // buffer; freeing it waits for the stream.
        unsafe { result::memset_d8_async(address, 0, bytes, self.stream.cu_stream()) }
            .map_err(self.error("filling with zeros"))
    }
}
