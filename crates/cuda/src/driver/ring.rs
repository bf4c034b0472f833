//! Copies from the host to a GPU, by way of page-locked memory.

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result};
use std::sync::Arc;

/// Number and size in bytes of the slots for large copies: while one is copied, the other is
/// filled.
pub(super) const LARGE_SLOTS: (usize, usize) = (2, 16 << 20);
/// Number and size in bytes of the slots for small copies, such as what a pass is told of its rows.
pub(super) const SMALL_SLOTS: (usize, usize) = (64, 4 << 10);

/// What the driver itself answers.
type Driven<T> = std::result::Result<T, DriverError>;

/// A ring of equal slots in one piece of page-locked memory.
///
/// Every copy from the host goes through such a slot. Of an asynchronous copy from pageable memory
/// CUDA only says that the memory *might* be staged before the call returns; without that, a
/// caller's buffer could be freed while it is still read ("API synchronization behavior", CUDA
/// driver API).
pub(super) struct Ring {
    memory: *mut u8,
    slot_bytes: usize,
    /// Of each slot the end of its last copy.
    done: Vec<CudaEvent>,
    next: usize,
}

#[expect(unsafe_code, reason = "the memory belongs to this value alone")]
// SAFETY: the pointer is to page-locked memory that this value owns, and it is used under a lock.
unsafe impl Send for Ring {}

impl Ring {
    pub(super) fn new(
        context: &Arc<CudaContext>,
        (slots, slot_bytes): (usize, usize),
    ) -> Driven<Self> {
        let done = (0..slots)
            .map(|_| context.new_event(None))
            .collect::<Driven<_>>()?;
        #[expect(unsafe_code, reason = "page-locked memory")]
        // SAFETY: `new_event` bound the context to this thread; the memory is written before it is
        // read.
        let memory = unsafe { result::malloc_host(slots * slot_bytes, 0) }?;
        Ok(Self {
            memory: memory.cast(),
            slot_bytes,
            done,
            next: 0,
        })
    }

    /// Starts copying at most a slot of bytes to the address.
    pub(super) fn copy(
        &mut self,
        stream: &Arc<CudaStream>,
        address: u64,
        bytes: &[u8],
    ) -> Driven<()> {
        assert!(bytes.len() <= self.slot_bytes, "a copy fits into its slot");
        let slot = self.next;
        self.next = (slot + 1) % self.done.len();
        self.done[slot].synchronize()?;
        #[expect(unsafe_code, reason = "page-locked memory")]
        // SAFETY: slot `slot` is `slot_bytes` long, which `bytes` does not exceed; the event says
        // that no copy reads it any more, and it lives until `free`, which waits for the stream.
        unsafe {
            let memory = self.memory.add(slot * self.slot_bytes);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), memory, bytes.len());
            let staged = std::slice::from_raw_parts(memory, bytes.len());
            result::memcpy_htod_async(address, staged, stream.cu_stream())?;
        }
        self.done[slot].record(stream)
    }

    /// Gives the memory back; no copy may be under way.
    pub(super) fn free(self) {
        #[expect(unsafe_code, reason = "page-locked memory")]
        // SAFETY: `new` locked it, and the caller waited for the stream. What cannot be given back
        // now is given back with the process.
        let _ = unsafe { result::free_host(self.memory.cast()) };
    }
}

/// The rings, made when they are first needed.
#[derive(Default)]
pub(super) struct Rings {
    pub(super) small: Option<Ring>,
    pub(super) large: Option<Ring>,
}
