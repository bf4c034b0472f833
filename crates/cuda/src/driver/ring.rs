//! Copies from the host to a GPU through page-locked staging memory.

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result};
use std::sync::Arc;

/// The slots of a ring.
#[derive(Clone, Copy)]
pub(super) struct Slots {
    pub(super) count: usize,
    /// Bytes of each slot.
    pub(super) bytes: usize,
}

/// Slots for large copies: one is filled while the other is copied.
pub(super) const LARGE_SLOTS: Slots = Slots {
    count: 2,
    bytes: 16 << 20,
};
/// Slots for small copies, such as a pass's token ids and positions.
pub(super) const SMALL_SLOTS: Slots = Slots {
    count: 64,
    bytes: 4 << 10,
};

/// Results with the driver's own error.
type Driven<T> = std::result::Result<T, DriverError>;

/// A ring of equal slots in one allocation of page-locked memory.
///
/// Every copy from the host goes through a slot. For an asynchronous copy from pageable memory CUDA
/// says only that the memory *might* be staged before the call returns; if it is not, the caller
/// could free its buffer while the copy still reads it ("API synchronization behavior", CUDA driver
/// API).
pub(super) struct Ring {
    memory: *mut u8,
    slot_bytes: usize,
    /// For each slot, the event that marks the end of its last copy.
    done: Vec<CudaEvent>,
    next: usize,
}

#[expect(unsafe_code, reason = "the memory belongs to this value alone")]
// SAFETY: `memory` points to page-locked memory that only this value uses, and page-locked memory
// may be accessed and freed from any thread.
unsafe impl Send for Ring {}

impl Ring {
    pub(super) fn new(context: &Arc<CudaContext>, slots: Slots) -> Driven<Self> {
        let done = (0..slots.count)
            .map(|_| context.new_event(None))
            .collect::<Driven<_>>()?;

        #[expect(unsafe_code, reason = "page-locked memory")]
        // SAFETY: `new_event` bound the context to this thread. `copy` writes a slot before it
        // reads it.
        let memory = unsafe { result::malloc_host(slots.count * slots.bytes, 0) }?;
        Ok(Self {
            memory: memory.cast(),
            slot_bytes: slots.bytes,
            done,
            next: 0,
        })
    }

    /// Starts copying `bytes`, at most one slot of them, to `address`.
    ///
    /// # Panics
    /// If `bytes` is longer than a slot.
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
        // SAFETY: the slot has `slot_bytes` bytes, and `bytes` is no longer (asserted above). No
        // earlier copy still reads the slot: its event has completed. The memory lives until
        // `free`, which is called with the stream idle.
        unsafe {
            let memory = self.memory.add(slot * self.slot_bytes);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), memory, bytes.len());
            let staged = std::slice::from_raw_parts(memory, bytes.len());
            result::memcpy_htod_async(address, staged, stream.cu_stream())?;
        }
        self.done[slot].record(stream)
    }

    /// Frees the memory. The stream must be idle.
    pub(super) fn free(self) {
        #[expect(unsafe_code, reason = "page-locked memory")]
        // SAFETY: `memory` came from `malloc_host` in `new` and is freed once, as `self` is
        // consumed. The caller, `CudaDriver::drop`, has waited for the stream, so no copy reads it.
        // If freeing fails, the memory goes with the process.
        let _ = unsafe { result::free_host(self.memory.cast()) };
    }
}

/// The rings, created on first use.
#[derive(Default)]
pub(super) struct Rings {
    pub(super) small: Option<Ring>,
    pub(super) large: Option<Ring>,
}
