//! GPUs through the CUDA driver API: no CUDA runtime, no cuBLAS. `libcuda` is loaded when the first
//! device is opened, so a program with this feature also starts on machines without it.

use super::ring::{LARGE_SLOTS, Ring, Rings, SMALL_SLOTS};
use super::{Launch, Properties};
use crate::error::{CudaError, Result};
use cudarc::driver::sys::{
    self, CUdevice_attribute, CUfunction_attribute_enum as FunctionAttribute,
};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, DriverError, result};
use cudarc::nvrtc::Ptx;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

static KERNELS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// Bytes of dynamic shared memory that a block may use without opting in.
const DEFAULT_SHARED_BYTES: u32 = 48 << 10;

/// Bytes that [`CudaDriver::launch`] has room for in a kernel's argument struct.
const MAX_ARGS_BYTES: usize = 256;

pub(crate) struct CudaDriver {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
    functions: Mutex<HashMap<&'static str, LoadedFunction>>,
    rings: Mutex<Rings>,
    name: String,
    /// The compute capability: 90 for 9.0.
    capability: u32,
}

/// A kernel loaded from the module.
struct LoadedFunction {
    function: CudaFunction,
    /// Bytes of dynamic shared memory that it may use so far.
    allowed_shared_bytes: u32,
}

/// A captured graph.
pub(crate) struct CudaRecorded(Mutex<cudarc::driver::CudaGraph>);

#[expect(
    unsafe_code,
    reason = "graphs may be used from any thread, by one thread at a time"
)]
// SAFETY: a graph is not tied to the thread that captured it: every use binds the context to the
// calling thread.
unsafe impl Send for CudaRecorded {}
#[expect(unsafe_code, reason = "the mutex serialises all access to the graph")]
// SAFETY: the CUDA programming guide: "Graph objects are not threadsafe. It is the responsibility
// of the user to ensure that multiple threads do not concurrently access the same cudaGraph_t". The
// mutex ensures that.
unsafe impl Sync for CudaRecorded {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether `libcuda` can be loaded.
#[cfg(not(feature = "linked"))]
fn has_driver() -> bool {
    #[expect(unsafe_code, reason = "loads a library")]
    // SAFETY: this loads libcuda, whose initialisers have no preconditions.
    unsafe {
        sys::is_culib_present()
    }
}

/// Always true: a program linked against `libcuda` does not start without it.
#[cfg(feature = "linked")]
fn has_driver() -> bool {
    true
}

impl CudaDriver {
    pub(crate) fn count() -> Result<usize> {
        if !has_driver() {
            return Ok(0);
        }
        match CudaContext::device_count() {
            Ok(count) => Ok(usize::try_from(count).unwrap_or(0)),
            Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(0),
            Err(error) => Err(CudaError::Driver {
                device: "cuda".into(),
                action: "counting the devices",
                reason: error.to_string(),
            }),
        }
    }

    pub(crate) fn new(ordinal: usize) -> Result<Self> {
        if !has_driver() {
            return Err(CudaError::NoDriver);
        }
        let count = Self::count()?;
        if ordinal >= count {
            return Err(CudaError::NoDevice { ordinal, count });
        }

        let name = format!("cuda:{ordinal}");
        let error = |action| {
            let device = name.clone();
            move |error: DriverError| CudaError::Driver {
                device,
                action,
                reason: error.to_string(),
            }
        };

        let context = CudaContext::new(ordinal).map_err(error("opening it"))?;
        #[expect(
            unsafe_code,
            reason = "cudarc's events between streams cost time at every launch"
        )]
        // SAFETY: the events would order accesses from several streams. This driver has one stream,
        // and `free` waits for it.
        unsafe {
            context.disable_event_tracking();
        }

        let stream = context.new_stream().map_err(error("creating a stream"))?;
        let module = context
            .load_module(Ptx::from_binary(KERNELS.to_vec()))
            .map_err(error("loading the kernels"))?;
        let (major, minor) = context
            .compute_capability()
            .map_err(error("reading its compute capability"))?;
        let capability = u32::try_from(10 * major + minor).unwrap_or(0);

        Ok(Self {
            capability,
            context,
            stream,
            module,
            functions: Mutex::default(),
            rings: Mutex::default(),
            name,
        })
    }

    fn error(&self, action: &'static str) -> impl FnOnce(DriverError) -> CudaError {
        let device = self.name.clone();
        move |error| CudaError::Driver {
            device,
            action,
            reason: error.to_string(),
        }
    }

    fn bind(&self) -> Result<()> {
        self.context
            .bind_to_thread()
            .map_err(self.error("binding it to a thread"))
    }

    pub(crate) fn properties(&self) -> Result<Properties> {
        let attribute = |which| {
            let value = self
                .context
                .attribute(which)
                .map_err(self.error("reading its properties"))?;
            Ok(usize::try_from(value).unwrap_or(0))
        };

        Ok(Properties {
            name: self.name.clone(),
            model: self
                .context
                .name()
                .map_err(self.error("reading its name"))?,
            multiprocessors: attribute(
                CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
            )?,
            shared_bytes: attribute(
                CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )?,
            capability: self.capability,
            has_wgmma: cfg!(wgmma) && self.capability == 90,
        })
    }

    pub(crate) fn memory(&self) -> Result<(u64, u64)> {
        let (free, total) = self
            .context
            .mem_get_info()
            .map_err(self.error("reading its free memory"))?;
        Ok((free as u64, total as u64))
    }

    pub(crate) fn allocate(&self, bytes: usize) -> Result<u64> {
        self.bind()?;

        #[expect(unsafe_code, reason = "device memory")]
        // SAFETY: `bind` bound the context to this thread. The memory is uninitialised, but only
        // device code and copies read it, for which any bytes are valid values.
        let allocated = unsafe { result::malloc_sync(bytes.max(1)) };

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

    /// The kernel's function, loaded on first use and allowed to use the launch's shared memory.
    fn function(&self, launch: &Launch<'_>) -> Result<CudaFunction> {
        let mut functions = lock(&self.functions);
        let loaded = match functions.entry(launch.kernel) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(self.load_function(launch.kernel)?),
        };

        if launch.shared_bytes > loaded.allowed_shared_bytes {
            let bytes = i32::try_from(launch.shared_bytes).unwrap_or(i32::MAX);
            let attribute = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            loaded
                .function
                .set_attribute(attribute, bytes)
                .map_err(self.error(launch.kernel))?;
            loaded.allowed_shared_bytes = launch.shared_bytes;
        }

        Ok(loaded.function.clone())
    }

    fn load_function(&self, kernel: &'static str) -> Result<LoadedFunction> {
        let function = self
            .module
            .load_function(kernel)
            .map_err(self.error(kernel))?;

        // All kernels ask for the same split between L1 and shared memory: a multiprocessor must be
        // idle before it changes the split, so kernels with different ones could not overlap.
        let attribute = FunctionAttribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        function
            .set_attribute(attribute, 100)
            .map_err(self.error(kernel))?;

        Ok(LoadedFunction {
            function,
            allowed_shared_bytes: DEFAULT_SHARED_BYTES,
        })
    }

    pub(crate) fn launch(&self, launch: Launch<'_>) -> Result<()> {
        self.bind()?;
        let function = self.function(&launch)?;

        // Argument structs hold pointers, so they are copied to memory aligned for u64.
        let mut args = [0u64; MAX_ARGS_BYTES / 8];
        let Some(bytes) =
            bytemuck::cast_slice_mut::<u64, u8>(&mut args).get_mut(..launch.args.len())
        else {
            let reason = format!("{} bytes of arguments", launch.args.len());
            return Err(CudaError::Shape {
                kernel: launch.kernel,
                reason,
            });
        };
        bytes.copy_from_slice(launch.args);

        let mut parameters = [args.as_mut_ptr().cast::<c_void>()];
        let mut attributes = self.launch_attributes(launch.overlaps);
        let config = sys::CUlaunchConfig {
            gridDimX: launch.grid[0],
            gridDimY: launch.grid[1],
            gridDimZ: launch.grid[2],
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared_bytes,
            hStream: self.stream.cu_stream(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        let function = function.cu_function();
        let extra = std::ptr::null_mut();
        #[expect(unsafe_code, reason = "kernels are C++")]
        // SAFETY: the kernel takes one struct with the layout that args.rs mirrors, and the driver
        // copies it during the call; `config`, `attributes` and `parameters` outlive the call. The
        // functions of `ops` checked that the memory the kernel touches lies within live buffers.
        unsafe { sys::cuLaunchKernelEx(&config, function, parameters.as_mut_ptr(), extra) }
            .result()
            .map_err(self.error(launch.kernel))
    }

    /// The attribute that lets a kernel start before the previous one has finished (programmatic
    /// dependent launch); empty if `overlaps` is false or the GPU does not support it.
    fn launch_attributes(&self, overlaps: bool) -> Vec<sys::CUlaunchAttribute> {
        if !overlaps || self.capability < 90 {
            return Vec::new();
        }

        #[expect(unsafe_code, reason = "an attribute is a C union")]
        // SAFETY: every member of the struct and its union is plain data, for which zero is valid.
        let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
        attribute.id =
            sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        attribute.value.programmaticStreamSerializationAllowed = 1;
        vec![attribute]
    }

    pub(crate) fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(self.error("waiting"))
    }

    pub(crate) fn begin_recording(&self) -> Result<()> {
        self.stream
            .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .map_err(self.error("capturing a graph"))
    }

    pub(crate) fn end_recording(&self) -> Result<CudaRecorded> {
        let graph = self
            .stream
            .end_capture(sys::CUgraphInstantiate_flags(0))
            .map_err(self.error("ending a graph"))?;
        let graph = graph.ok_or_else(|| {
            self.error("ending a graph")(DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND))
        })?;
        graph.upload().map_err(self.error("uploading a graph"))?;
        Ok(CudaRecorded(Mutex::new(graph)))
    }

    pub(crate) fn replay(&self, recorded: &CudaRecorded) -> Result<()> {
        lock(&recorded.0)
            .launch()
            .map_err(self.error("launching a graph"))
    }
}

impl Drop for CudaDriver {
    fn drop(&mut self) {
        // An error here comes from an earlier launch. The page-locked memory is the process's own
        // and can be freed either way.
        let _ = self.stream.synchronize();

        let rings = std::mem::take(&mut *lock(&self.rings));
        [rings.small, rings.large]
            .into_iter()
            .flatten()
            .for_each(Ring::free);
    }
}

/// What depends on the driver itself. Runs on a GPU, or over the emulated `libcuda.so.1` of
/// `scripts/test_cuda_driver.sh`.
#[cfg(test)]
mod tests {
    use super::*;

    fn driver() -> Option<CudaDriver> {
        let is_tested = !crate::testing::gpus().is_empty();
        is_tested.then(|| CudaDriver::new(0).unwrap())
    }

    #[test]
    fn a_forbidden_call_invalidates_a_capture_but_not_the_next_one() {
        let Some(driver) = driver() else { return };
        let address = driver.allocate(64).unwrap();
        driver.write(address, &[7; 64]).unwrap();

        for forbidden in [
            &|| driver.allocate(64).map(drop) as Result<()>,
            &|| driver.free(address),
            &|| driver.synchronize(),
            &|| driver.read(address, &mut [0; 64]),
        ] as [&dyn Fn() -> Result<()>; 4]
        {
            driver.begin_recording().unwrap();
            assert!(forbidden().is_err());
            assert!(driver.end_recording().is_err());
        }

        driver.begin_recording().unwrap();
        driver.zero(address, 32).unwrap();
        driver.copy(address + 48, address, 8).unwrap();
        let graph = driver.end_recording().unwrap();
        driver.replay(&graph).unwrap();

        let mut bytes = [0; 64];
        driver.read(address, &mut bytes).unwrap();
        assert_eq!(
            (bytes[31], bytes[32], bytes[47], bytes[48], bytes[56]),
            (0, 7, 7, 0, 7)
        );
        driver.free(address).unwrap();
    }

    #[test]
    fn a_slot_is_not_refilled_while_a_copy_reads_it() {
        let Some(driver) = driver() else { return };
        let count = 3 * SMALL_SLOTS.count;
        let address = driver.allocate(count * 16).unwrap();

        for i in 0..count {
            driver
                .write(address + 16 * i as u64, &[i as u8; 16])
                .unwrap();
        }

        let mut bytes = vec![0; count * 16];
        driver.read(address, &mut bytes).unwrap();
        assert!(
            bytes
                .chunks(16)
                .enumerate()
                .all(|(i, slot)| slot.iter().all(|byte| *byte == i as u8))
        );
        driver.free(address).unwrap();
    }
}
