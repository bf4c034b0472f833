//! A device: allocation, recording of graphs, launches.

use crate::buffer::{Buffer, View};
use crate::driver::{Driver, Launch, Properties, Recorded};
use crate::error::Result;
use bytemuck::Pod;
use std::cell::Cell;
use std::ffi::c_void;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

/// A device's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Free for any process on the machine.
    pub free: u64,
    /// All the device has.
    pub total: u64,
    /// Held by this program in [`Buffer`]s.
    pub allocated: u64,
    /// The maximum of `allocated` so far.
    pub peak: u64,
}

/// A GPU, or the emulated device. Clones are handles to the same device.
///
/// Launches and copies run in order on one stream. Copies to the host, freeing memory and
/// [`Device::synchronize`] wait for it; nothing else does. Several threads may use it.
#[derive(Clone)]
pub struct Device(Arc<Shared>);

struct Shared {
    driver: Driver,
    properties: Properties,
    allocated: AtomicU64,
    peak: AtomicU64,
    overlaps: AtomicBool,
    /// Write-locked while launches are recorded, so that other threads cannot add theirs.
    stream: RwLock<()>,
    /// The thread that is recording; 0 for none.
    recorder: AtomicU64,
}

/// A recorded sequence of launches; a CUDA graph on a GPU.
#[derive(Debug)]
pub struct Graph {
    device: Device,
    recorded: Recorded,
}

thread_local! {
    /// Whether this thread is inside [`Device::without_overlap`]. Per thread: with a flag in the
    /// device, threads that share it would restore each other's setting.
    static OVERLAP_DISABLED: Cell<bool> = const { Cell::new(false) };
}

/// A nonzero number unique to this thread.
fn this_thread() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local! {
        static NUMBER: u64 = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    NUMBER.with(|number| *number)
}

impl Device {
    /// The GPU with this number, as the driver counts them.
    ///
    /// # Errors
    /// [`CudaError::NotBuilt`](crate::CudaError::NotBuilt),
    /// [`CudaError::NoDriver`](crate::CudaError::NoDriver),
    /// [`CudaError::NoDevice`](crate::CudaError::NoDevice),
    /// [`CudaError::Driver`](crate::CudaError::Driver).
    pub fn cuda(ordinal: usize) -> Result<Self> {
        Self::with_driver(Driver::cuda(ordinal)?)
    }

    /// A GPU through a stream of another library, for its memory ([`Device::view`]). While such a
    /// device is alive, the same ordinal and stream give the same device.
    ///
    /// Memory is allocated and freed in the order of the stream; freeing does not wait. A stream
    /// handle that means another stream in each thread (`CU_STREAM_PER_THREAD`, 0x2) works if a
    /// buffer is used by other threads only after [`Device::synchronize`] on the thread that wrote
    /// it, and freed after [`Device::synchronize_all`].
    ///
    /// # Errors
    /// Like [`Device::cuda`].
    ///
    /// # Safety
    /// `stream` is a stream of the device's primary context that lives as long as the device and
    /// all its buffers. Its owner orders accesses to the memory of views against other streams.
    #[expect(unsafe_code, reason = "a handle of another library")]
    pub unsafe fn on_stream(ordinal: usize, stream: *mut c_void) -> Result<Self> {
        static OPEN: Mutex<Vec<(usize, usize, Weak<Shared>)>> = Mutex::new(Vec::new());
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(.., device)| device.strong_count() > 0);

        let handle = stream.addr();
        let found = open
            .iter()
            .find(|(of, on, _)| (*of, *on) == (ordinal, handle));
        if let Some(shared) = found.and_then(|(.., device)| device.upgrade()) {
            return Ok(Self(shared));
        }

        // SAFETY: the caller's.
        let device = Self::with_driver(unsafe { Driver::on_stream(ordinal, stream) }?)?;
        open.push((ordinal, handle, Arc::downgrade(&device.0)));
        Ok(device)
    }

    /// A view of memory that another library allocated.
    ///
    /// # Safety
    /// `length` values at `address` are allocated on this device, aligned for `T`, until everything
    /// that was launched with the view has run; no other stream writes them meanwhile, nor reads
    /// them if a launch writes them.
    #[expect(unsafe_code, reason = "an address of another library")]
    pub unsafe fn view<T: Pod>(&self, address: u64, length: usize) -> View<'_, T> {
        View::new(self, address, length)
    }

    /// The number of GPUs this program can use; 0 without the feature `cuda`, a driver or a GPU.
    ///
    /// # Errors
    /// [`CudaError::Driver`](crate::CudaError::Driver) if there is a driver but it does not work:
    /// `libcuda` and the kernel module have different versions, or the toolkit's stub library was
    /// loaded instead.
    pub fn cuda_count() -> Result<usize> {
        Driver::cuda_count()
    }

    /// An emulated device with `memory` bytes.
    ///
    /// With `order` 0 it runs blocks and threads by number. Any other value seeds a shuffle of
    /// both, which exposes missing barriers; with even seeds asynchronous copies also complete
    /// immediately rather than when the kernel waits for them.
    ///
    /// # Errors
    /// [`CudaError::NoEmulation`](crate::CudaError::NoEmulation) in programs other than tests.
    pub fn emulated(ordinal: usize, memory: u64, order: u64) -> Result<Self> {
        Self::with_driver(Driver::emulated(ordinal, memory, order)?)
    }

    fn with_driver(driver: Driver) -> Result<Self> {
        let properties = driver.properties()?;
        Ok(Self(Arc::new(Shared {
            driver,
            properties,
            allocated: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            overlaps: AtomicBool::new(false),
            stream: RwLock::new(()),
            recorder: AtomicU64::new(0),
        })))
    }

    /// The device's name, such as `cuda:0`.
    pub fn name(&self) -> &str {
        &self.0.properties.name
    }

    /// The model name, such as `NVIDIA H200`.
    pub fn model(&self) -> &str {
        &self.0.properties.model
    }

    /// Number of streaming multiprocessors (SMs).
    pub fn multiprocessors(&self) -> usize {
        self.0.properties.multiprocessors
    }

    /// Bytes of shared memory a block may use, opting in to more than the default 48 KB.
    pub fn shared_bytes(&self) -> usize {
        self.0.properties.shared_bytes
    }

    /// The compute capability: 90 for 9.0.
    pub fn capability(&self) -> u32 {
        self.0.properties.capability
    }

    /// Whether `wgmma` kernels can run: the GPU is Hopper and the build includes code for it.
    pub fn has_wgmma(&self) -> bool {
        self.0.properties.has_wgmma
    }

    /// Free and used memory.
    ///
    /// # Errors
    /// [`CudaError::Driver`](crate::CudaError::Driver).
    pub fn memory(&self) -> Result<MemoryInfo> {
        let (free, total) = self.call(Driver::memory)?;
        Ok(MemoryInfo {
            free,
            total,
            allocated: self.0.allocated.load(Ordering::Relaxed),
            peak: self.0.peak.load(Ordering::Relaxed),
        })
    }

    /// Allocates memory for `length` values, whose contents are unspecified.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`](crate::CudaError::OutOfMemory).
    pub fn allocate<T: Pod>(&self, length: usize) -> Result<Buffer<T>> {
        Buffer::new(self.clone(), length)
    }

    /// Allocates `length` zeros.
    ///
    /// # Errors
    /// Like [`Device::allocate`]; [`CudaError::Driver`](crate::CudaError::Driver).
    pub fn zeros<T: Pod>(&self, length: usize) -> Result<Buffer<T>> {
        let buffer = self.allocate(length)?;
        buffer.all().fill_with_zeros()?;
        Ok(buffer)
    }

    /// Allocates memory and copies `values` to it.
    ///
    /// # Errors
    /// Like [`Device::allocate`]; [`CudaError::Driver`](crate::CudaError::Driver).
    pub fn upload<T: Pod>(&self, values: &[T]) -> Result<Buffer<T>> {
        let buffer = self.allocate(values.len())?;
        buffer.all().write(values)?;
        Ok(buffer)
    }

    /// Waits until all launches and copies have finished.
    ///
    /// # Errors
    /// [`CudaError::Driver`](crate::CudaError::Driver), including the error of an earlier launch.
    pub fn synchronize(&self) -> Result<()> {
        self.call_now("waiting", Driver::synchronize)
    }

    /// Waits for all streams of all threads and libraries on the device.
    ///
    /// # Errors
    /// As [`Device::synchronize`].
    pub fn synchronize_all(&self) -> Result<()> {
        self.call_now("waiting", Driver::synchronize_all)
    }

    /// Records the launches, device copies and fills of `steps` without running them. `steps` must
    /// not allocate or free memory, nor copy from or to the host. Other threads that use the device
    /// wait until it returns.
    ///
    /// # Errors
    /// Those of `steps`; [`CudaError::Driver`](crate::CudaError::Driver).
    pub fn record<E: From<crate::CudaError>>(
        &self,
        steps: impl FnOnce() -> std::result::Result<(), E>,
    ) -> std::result::Result<Graph, E> {
        let exclusive = self
            .0
            .stream
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        self.0.driver.begin_recording()?;

        self.0.recorder.store(this_thread(), Ordering::Relaxed);
        let done = steps();
        self.0.recorder.store(0, Ordering::Relaxed);

        // The recording must end even if `steps` failed.
        let recorded = self.0.driver.end_recording();
        drop(exclusive);

        done?;
        Ok(Graph {
            device: self.clone(),
            recorded: recorded?,
        })
    }

    /// Lets a kernel start while the previous one still runs (programmatic dependent launch,
    /// capability 9.0 and later): it prefetches weights, then waits for the previous kernel.
    /// Results do not change. Off by default.
    pub fn set_overlap(&self, overlaps: bool) {
        self.0.overlaps.store(overlaps, Ordering::Relaxed);
    }

    /// Whether kernels launched by this thread overlap: [`Device::set_overlap`] is on, and the call
    /// is not inside [`Device::without_overlap`].
    pub fn overlaps_kernels(&self) -> bool {
        self.0.overlaps.load(Ordering::Relaxed) && !OVERLAP_DISABLED.get()
    }

    /// Whether both are handles to the same device.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Runs `steps` as if [`Device::set_overlap`] were off. Other threads are not affected.
    pub fn without_overlap<T>(&self, steps: impl FnOnce() -> T) -> T {
        let before = OVERLAP_DISABLED.replace(true);
        let result = steps();
        OVERLAP_DISABLED.set(before);
        result
    }

    fn is_recorder(&self) -> bool {
        self.0.recorder.load(Ordering::Relaxed) == this_thread()
    }

    /// Calls the driver, waiting while another thread is recording.
    pub(crate) fn call<T>(&self, request: impl FnOnce(&Driver) -> Result<T>) -> Result<T> {
        // The recording thread already holds the write lock.
        let guard = (!self.is_recorder()).then(|| self.0.stream.read());
        let _guard = guard.map(|guard| guard.unwrap_or_else(PoisonError::into_inner));
        request(&self.0.driver)
    }

    /// [`Device::call`] for requests that cannot be recorded, because they must complete at once.
    ///
    /// A copy from the host would be captured, with the address of a page-locked slot that holds
    /// other bytes by the time the graph runs. The others would invalidate the capture with an
    /// error that does not say why.
    pub(crate) fn call_now<T>(
        &self,
        action: &'static str,
        request: impl FnOnce(&Driver) -> Result<T>,
    ) -> Result<T> {
        if self.is_recorder() {
            return Err(crate::CudaError::Driver {
                device: self.name().to_owned(),
                action,
                reason: "not while launches are recorded".to_owned(),
            });
        }
        self.call(request)
    }

    pub(crate) fn count_allocation(&self, bytes: u64) {
        let now = self.0.allocated.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.0.peak.fetch_max(now, Ordering::Relaxed);
    }

    pub(crate) fn count_release(&self, bytes: u64) {
        self.0.allocated.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn launch(&self, launch: Launch<'_>) -> Result<()> {
        // The driver rejects an empty grid; there is nothing to compute.
        if launch.grid.contains(&0) {
            return Ok(());
        }
        self.call(|driver| driver.launch(launch))
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Device").field(&self.name()).finish()
    }
}

impl Graph {
    /// Replays the recorded launches.
    ///
    /// # Errors
    /// [`CudaError::Driver`](crate::CudaError::Driver).
    pub fn launch(&self) -> Result<()> {
        self.device.call(|driver| driver.replay(&self.recorded))
    }
}
