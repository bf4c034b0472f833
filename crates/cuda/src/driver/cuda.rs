//! GPUs through the CUDA driver API: no CUDA runtime, no cuBLAS. `libcuda` is loaded when the first
//! device is opened, so a program with this feature also starts on machines without it.

mod memory;

use super::ring::{Ring, Rings};
use super::{Launch, Properties};
use crate::error::{CudaError, Result};
use cudarc::driver::sys::{
    self, CUdevice_attribute, CUfunction_attribute_enum as FunctionAttribute,
};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, DriverError};
use cudarc::nvrtc::Ptx;
use memory::Memory;
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
    memory: Memory,
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

fn error_of(ordinal: usize, action: &'static str) -> impl FnOnce(DriverError) -> CudaError {
    move |error| CudaError::Driver {
        device: format!("cuda:{ordinal}"),
        action,
        reason: error.to_string(),
    }
}

/// The primary context of a device.
fn open(ordinal: usize) -> Result<Arc<CudaContext>> {
    if !has_driver() {
        return Err(CudaError::NoDriver);
    }
    let count = CudaDriver::count()?;
    if ordinal >= count {
        return Err(CudaError::NoDevice { ordinal, count });
    }

    let context = CudaContext::new(ordinal).map_err(error_of(ordinal, "opening it"))?;
    #[expect(
        unsafe_code,
        reason = "cudarc's events between streams cost time at every launch"
    )]
    // SAFETY: the events would order accesses to cudarc's slices from several streams. A driver has
    // one stream and allocates no slices.
    unsafe {
        context.disable_event_tracking();
    }
    Ok(context)
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
        let context = open(ordinal)?;
        let stream = context
            .new_stream()
            .map_err(error_of(ordinal, "creating a stream"))?;
        Self::over(context, stream, Memory::Synchronous)
    }

    /// A driver of somebody else's stream, whose memory is allocated in the stream's order.
    ///
    /// # Safety
    /// As [`crate::Device::on_stream`].
    #[expect(unsafe_code, reason = "a handle of another library")]
    pub(crate) unsafe fn on_stream(ordinal: usize, stream: *mut c_void) -> Result<Self> {
        let context = open(ordinal)?;
        // SAFETY: the caller says that the stream belongs to the device's primary context, which
        // `open` retained, that it outlives the driver, and orders other work on it.
        let stream = unsafe { context.wrap_borrowed_stream(stream.cast()) };
        let memory = match context.has_async_alloc() {
            true => Memory::StreamOrdered,
            false => Memory::Synchronous,
        };
        Self::over(context, stream, memory)
    }

    fn over(context: Arc<CudaContext>, stream: Arc<CudaStream>, memory: Memory) -> Result<Self> {
        let ordinal = context.ordinal();
        let module = context
            .load_module(Ptx::from_binary(KERNELS.to_vec()))
            .map_err(error_of(ordinal, "loading the kernels"))?;
        let (major, minor) = context
            .compute_capability()
            .map_err(error_of(ordinal, "reading its compute capability"))?;
        let capability = u32::try_from(10 * major + minor).unwrap_or(0);

        Ok(Self {
            capability,
            context,
            stream,
            memory,
            module,
            functions: Mutex::default(),
            rings: Mutex::default(),
            name: format!("cuda:{ordinal}"),
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

    /// Waits for all streams of the context.
    pub(crate) fn synchronize_all(&self) -> Result<()> {
        self.context.synchronize().map_err(self.error("waiting"))
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
        // All streams, as a borrowed one may be another for each thread. An error here comes from an
        // earlier launch. The page-locked memory is the process's own and can be freed either way.
        let _ = self.synchronize_all();

        let rings = std::mem::take(&mut *lock(&self.rings));
        [rings.small, rings.large]
            .into_iter()
            .flatten()
            .for_each(Ring::free);
    }
}

#[cfg(test)]
mod tests;
