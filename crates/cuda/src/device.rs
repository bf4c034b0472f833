//! A device and what it is asked to do.

use crate::buffer::Buffer;
use crate::driver::{Driver, Launch, Properties, Recorded};
use crate::error::Result;
use bytemuck::Pod;
use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// Memory of a device in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryInfo {
    /// What anyone on the machine may still allocate.
    pub free: u64,
    /// What it has.
    pub total: u64,
    /// What this program holds in [`Buffer`]s.
    pub allocated: u64,
    /// The most it has held.
    pub peak: u64,
}

/// A GPU, or the emulated device. Clones are the same device.
///
/// What is asked for happens in order, on one stream; only reading waits. Several threads may use
/// it.
#[derive(Clone)]
pub struct Device(Arc<Shared>);

struct Shared {
    driver: Driver,
    properties: Properties,
    allocated: AtomicU64,
    peak: AtomicU64,
    overlaps: AtomicBool,
    /// Held alone while launches are recorded, so that nothing of another thread gets among them.
    stream: RwLock<()>,
    /// The thread that records; 0: none.
    recorder: AtomicU64,
}

/// A sequence of launches, recorded once.
#[derive(Debug)]
pub struct Graph {
    device: Device,
    recorded: Recorded,
}

thread_local! {
    /// Whether this thread is within [`Device::without_overlap`]. Per thread, because threads that
    /// share a device would restore each other's setting.
    static APART: Cell<bool> = const { Cell::new(false) };
}

/// A number of this thread, from 1 on.
fn this_thread() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local! {
        static NUMBER: u64 = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    NUMBER.with(|number| *number)
}

impl Device {
    /// The GPU of that number.
    ///
    /// # Errors
    /// [`CudaError::NotBuilt`](crate::CudaError::NotBuilt),
    /// [`CudaError::NoDriver`](crate::CudaError::NoDriver),
    /// [`CudaError::NoDevice`](crate::CudaError::NoDevice),
    /// [`CudaError::Driver`](crate::CudaError::Driver).
    pub fn cuda(ordinal: usize) -> Result<Self> {
        Self::with_driver(Driver::cuda(ordinal)?)
    }

    /// How many GPUs this program can use; 0 without the feature, a driver or a GPU.
    ///
    /// # Errors
    /// [`CudaError::Driver`](crate::CudaError::Driver) where there is a driver and it does not
    /// work: `libcuda` and the kernel module are of different versions, or a toolkit's stub library
    /// was loaded in its place.
    pub fn cuda_count() -> Result<usize> {
        Driver::cuda_count()
    }

    /// The emulated device with `memory` bytes. `order` 0 runs blocks and threads of a kernel by
    /// number; other values seed a shuffling of both, which shows where a barrier is missing, and
    /// even ones also let background copies happen at once and not when they are waited for.
    ///
    /// # Errors
    /// [`CudaError::NoEmulation`](crate::CudaError::NoEmulation) in programs that are no tests.
    pub fn emulated(ordinal: usize, memory: u64, order: u64) -> Result<Self> {
        Self::with_driver(Driver::emulated(ordinal, memory, order)?)
    }

    fn with_driver(driver: Driver) -> Result<Self> {
        let properties = driver.properties()?;
        let (allocated, peak) = (AtomicU64::new(0), AtomicU64::new(0));
        let overlaps = AtomicBool::new(false);
        let (stream, recorder) = (RwLock::new(()), AtomicU64::new(0));
        Ok(Self(Arc::new(Shared {
            driver,
            properties,
            allocated,
            peak,
            overlaps,
            stream,
            recorder,
        })))
    }

    /// `cuda:0`.
    pub fn name(&self) -> &str {
        &self.0.properties.name
    }

    /// The product: `NVIDIA H200`.
    pub fn model(&self) -> &str {
        &self.0.properties.model
    }

    /// Multiprocessors.
    pub fn multiprocessors(&self) -> usize {
        self.0.properties.multiprocessors
    }

    /// Bytes of shared memory a block may have.
    pub fn shared_bytes(&self) -> usize {
        self.0.properties.shared_bytes
    }

    /// The compute capability: 90 for 9.0.
    pub fn capability(&self) -> u32 {
        self.0.properties.capability
    }

    /// Whether kernels with `wgmma` can run: on Hopper, where they were compiled for it.
    pub fn has_wgmma(&self) -> bool {
        self.0.properties.has_wgmma
    }

    /// Its memory.
    ///
    /// # Errors
    /// [`CudaError::Driver`](crate::CudaError::Driver).
    pub fn memory(&self) -> Result<MemoryInfo> {
        let (free, total) = self.ask(Driver::memory)?;
        let (allocated, peak) = (
            self.0.allocated.load(Ordering::Relaxed),
            self.0.peak.load(Ordering::Relaxed),
        );
        Ok(MemoryInfo {
            free,
            total,
            allocated,
            peak,
        })
    }

    /// Memory for `length` values, whatever was there.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`](crate::CudaError::OutOfMemory).
    pub fn allocate<T: Pod>(&self, length: usize) -> Result<Buffer<T>> {
        Buffer::new(self.clone(), length)
    }

    /// Memory of zeros.
    ///
    /// # Errors
    /// As [`Device::allocate`].
    pub fn zeros<T: Pod>(&self, length: usize) -> Result<Buffer<T>> {
        let buffer = self.allocate(length)?;
        buffer.all().fill_with_zeros()?;
        Ok(buffer)
    }

    /// Memory with these values.
    ///
    /// # Errors
    /// As [`Device::allocate`].
    pub fn upload<T: Pod>(&self, values: &[T]) -> Result<Buffer<T>> {
        let buffer = self.allocate(values.len())?;
        buffer.all().write(values)?;
        Ok(buffer)
    }

    /// Waits until everything asked for is done.
    ///
    /// # Errors
    /// [`CudaError::Driver`](crate::CudaError::Driver), also for what a kernel did wrong before.
    pub fn synchronize(&self) -> Result<()> {
        self.ask_now("waiting", Driver::synchronize)
    }

    /// Records what `steps` asks for, without doing it. Memory must be there already: nothing may
    /// be allocated, freed, written from or read to the host in it.
    ///
    /// # Errors
    /// Those of `steps`; [`CudaError::Driver`](crate::CudaError::Driver).
    pub fn record<E: From<crate::CudaError>>(
        &self,
        steps: impl FnOnce() -> std::result::Result<(), E>,
    ) -> std::result::Result<Graph, E> {
        let alone = self
            .0
            .stream
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        self.0.driver.begin_recording()?;
        self.0.recorder.store(this_thread(), Ordering::Relaxed);
        let done = steps();
        self.0.recorder.store(0, Ordering::Relaxed);
        let recorded = self.0.driver.end_recording();
        drop(alone);
        done?;
        Ok(Graph {
            device: self.clone(),
            recorded: recorded?,
        })
    }

    /// Lets kernels be started while the one before still runs (programmatic dependent launch, for
    /// GPUs of capability 9.0 and later): each first brings weights into L2 and then waits for
    /// those before it. Results are the same. Off until it is asked for.
    pub fn set_overlap(&self, overlaps: bool) {
        self.0.overlaps.store(overlaps, Ordering::Relaxed);
    }

    /// Whether kernels that this thread launches overlap: [`Device::set_overlap`] is on, and this
    /// is not within [`Device::without_overlap`].
    pub fn overlaps_kernels(&self) -> bool {
        self.0.overlaps.load(Ordering::Relaxed) && !APART.get()
    }

    /// Whether both are the same device.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Runs `steps` without [`Device::set_overlap`], whatever is set. Other threads are not
    /// affected.
    pub fn without_overlap<T>(&self, steps: impl FnOnce() -> T) -> T {
        let before = APART.replace(true);
        let result = steps();
        APART.set(before);
        result
    }

    fn is_recorder(&self) -> bool {
        self.0.recorder.load(Ordering::Relaxed) == this_thread()
    }

    /// Asks the driver for something, when no other thread records.
    pub(crate) fn ask<T>(&self, what: impl FnOnce(&Driver) -> Result<T>) -> Result<T> {
        let others = (!self.is_recorder()).then(|| self.0.stream.read());
        let _others = others.map(|guard| guard.unwrap_or_else(PoisonError::into_inner));
        what(&self.0.driver)
    }

    /// The same for what must happen at once and so cannot be recorded. Some of it the CUDA driver
    /// would take into the graph (a copy from a slot of page-locked memory, whose content is
    /// another by then), the rest would end the recording with an error that does not say why.
    pub(crate) fn ask_now<T>(
        &self,
        action: &'static str,
        what: impl FnOnce(&Driver) -> Result<T>,
    ) -> Result<T> {
        if self.is_recorder() {
            let (device, reason) = (
                self.name().to_owned(),
                "not while launches are recorded".to_owned(),
            );
            return Err(crate::CudaError::Driver {
                device,
                action,
                reason,
            });
        }
        self.ask(what)
    }

    pub(crate) fn count_allocation(&self, bytes: u64) {
        let now = self.0.allocated.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.0.peak.fetch_max(now, Ordering::Relaxed);
    }

    pub(crate) fn count_release(&self, bytes: u64) {
        self.0.allocated.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn launch(&self, launch: Launch<'_>) -> Result<()> {
        // Nothing to do is no launch: grids must not be empty.
        if launch.grid.contains(&0) {
            return Ok(());
        }
        self.ask(|driver| driver.launch(launch))
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Device").field(&self.name()).finish()
    }
}

impl Graph {
    /// Does it all again.
    ///
    /// # Errors
    /// [`CudaError::Driver`](crate::CudaError::Driver).
    pub fn launch(&self) -> Result<()> {
        self.device.ask(|driver| driver.replay(&self.recorded))
    }
}
