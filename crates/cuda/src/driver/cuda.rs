//! GPUs, through the driver alone: no CUDA runtime, no cuBLAS. The library `libcuda` is looked for when a
//! device is asked for, so that a program with this feature starts on machines without it.

use super::{Launch, Properties};
use crate::error::{CudaError, Result};
use cudarc::driver::sys::{self, CUdevice_attribute, CUfunction_attribute_enum as FunctionAttribute};
use cudarc::driver::{CudaContext, CudaEvent, CudaFunction, CudaModule, CudaStream, DriverError, result};
use cudarc::nvrtc::Ptx;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

static KERNELS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// Bytes copied at once: while one buffer travels, the other is filled.
const STAGED: usize = 16 << 20;
/// Smaller copies go as they are: the driver stages them itself.
const STAGED_FROM: usize = 1 << 20;
/// What a block may use without being asked.
const SHARED_BY_DEFAULT: u32 = 48 << 10;

/// Page-locked memory that a copy may still be reading.
struct Staging {
    memory: *mut u8,
    done: CudaEvent,
}

#[expect(unsafe_code, reason = "the memory belongs to this value alone")]
// SAFETY: the pointer is to memory of the process, owned by this value and used under a lock.
unsafe impl Send for Staging {}

pub(crate) struct CudaDriver {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
    functions: Mutex<HashMap<&'static str, (CudaFunction, u32)>>,
    staging: Mutex<Vec<Staging>>,
    name: String,
    /// The first number of the compute capability.
    capability: i32,
}

/// A captured graph.
pub(crate) struct CudaRecorded(Mutex<cudarc::driver::CudaGraph>);

#[expect(unsafe_code, reason = "the driver's graphs may be used from any thread, one at a time")]
// SAFETY: the CUDA programming guide: "Graph objects are not threadsafe. It is the responsibility of the user to
// ensure that multiple threads do not concurrently access the same cudaGraph_t": the lock does, and every use
// binds the context to the calling thread.
unsafe impl Send for CudaRecorded {}
#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above.
unsafe impl Sync for CudaRecorded {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn has_driver() -> bool {
    #[expect(unsafe_code, reason = "looks for the library")]
    // SAFETY: opens libcuda, whose initialisation has no preconditions.
    unsafe {
        sys::is_culib_present()
    }
}

impl CudaDriver {
    pub(crate) fn count() -> usize {
        if !has_driver() {
            return 0;
        }
        CudaContext::device_count().ok().and_then(|count| usize::try_from(count).ok()).unwrap_or(0)
    }

    pub(crate) fn new(ordinal: usize) -> Result<Self> {
        if !has_driver() {
            return Err(CudaError::NoDriver);
        }
        let count = Self::count();
        if ordinal >= count {
            return Err(CudaError::NoDevice { ordinal, count });
        }
        let name = format!("cuda:{ordinal}");
        let error = |action| {
            let device = name.clone();
            move |error: DriverError| CudaError::Driver { device, action, reason: error.to_string() }
        };
        let context = CudaContext::new(ordinal).map_err(error("opening it"))?;
        #[expect(unsafe_code, reason = "events between streams cost time at every launch")]
        // SAFETY: there is one stream, and what is freed is waited for.
        unsafe {
            context.disable_event_tracking();
        }
        let stream = context.new_stream().map_err(error("making a stream"))?;
        let module =
            context.load_module(Ptx::from_binary(KERNELS.to_vec())).map_err(error("loading the kernels"))?;
        let (capability, _) = context.compute_capability().map_err(error("asking for its capability"))?;
        Ok(Self {
            capability,
            context,
            stream,
            module,
            functions: Mutex::default(),
            staging: Mutex::default(),
            name,
        })
    }

    fn error(&self, action: &'static str) -> impl FnOnce(DriverError) -> CudaError {
        let device = self.name.clone();
        move |error| CudaError::Driver { device, action, reason: error.to_string() }
    }

    fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(self.error("binding it to a thread"))
    }

    pub(crate) fn properties(&self) -> Result<Properties> {
        let attribute = |which| {
            let value = self.context.attribute(which).map_err(self.error("asking for its properties"))?;
            Ok(usize::try_from(value).unwrap_or(0))
        };
        Ok(Properties {
            name: self.name.clone(),
            model: self.context.name().map_err(self.error("asking for its name"))?,
            multiprocessors: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_bytes: attribute(
                CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )?,
        })
    }

    pub(crate) fn memory(&self) -> Result<(u64, u64)> {
        let (free, total) = self.context.mem_get_info().map_err(self.error("asking for its memory"))?;
        Ok((free as u64, total as u64))
    }

    pub(crate) fn allocate(&self, bytes: usize) -> Result<u64> {
        self.bind()?;
        #[expect(unsafe_code, reason = "device memory")]
        // SAFETY: a context is bound; the memory is written before kernels read it, which is the callers' matter.
        let allocated = unsafe { result::malloc_sync(bytes.max(1)) };
        match allocated {
            Ok(address) => Ok(address),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let (free, total) = self.memory()?;
                Err(CudaError::OutOfMemory { device: self.name.clone(), wanted: bytes as u64, free, total })
            }
            Err(error) => Err(self.error("allocating")(error)),
        }
    }

    pub(crate) fn free(&self, address: u64) -> Result<()> {
        self.synchronize()?;
        #[expect(unsafe_code, reason = "device memory")]
        // SAFETY: a buffer frees its own address once, and the stream is idle.
        unsafe { result::free_sync(address) }.map_err(self.error("freeing"))
    }

    pub(crate) fn write(&self, address: u64, from: &[u8]) -> Result<()> {
        self.bind()?;
        if from.len() < STAGED_FROM {
            #[expect(unsafe_code, reason = "device memory")]
            // SAFETY: the caller checked that the memory is as long as the slice; from pageable memory the call
            // returns when the driver has taken a copy.
            return unsafe { result::memcpy_htod_async(address, from, self.stream.cu_stream()) }
                .map_err(self.error("copying from the host"));
        }
        let mut staging = lock(&self.staging);
        while staging.len() < 2 {
            let staged = self.staging()?;
            staging.push(staged);
        }
        for (i, part) in from.chunks(STAGED).enumerate() {
            let buffer = &staging[i % 2];
            buffer.done.synchronize().map_err(self.error("waiting for a copy"))?;
            #[expect(unsafe_code, reason = "page-locked memory")]
            // SAFETY: the buffer is STAGED bytes long and no copy reads it any more; the copy that is started
            // reads what was written, and the buffer lives as long as the driver.
            unsafe {
                std::ptr::copy_nonoverlapping(part.as_ptr(), buffer.memory, part.len());
                let staged = std::slice::from_raw_parts(buffer.memory, part.len());
                result::memcpy_htod_async(address + (i * STAGED) as u64, staged, self.stream.cu_stream())
            }
            .map_err(self.error("copying from the host"))?;
            buffer.done.record(&self.stream).map_err(self.error("recording an event"))?;
        }
        Ok(())
    }

    fn staging(&self) -> Result<Staging> {
        let done = self.context.new_event(None).map_err(self.error("making an event"))?;
        #[expect(unsafe_code, reason = "page-locked memory")]
        // SAFETY: a context is bound; the memory is written before it is read.
        let memory = unsafe { result::malloc_host(STAGED, 0) }.map_err(self.error("locking memory"))?;
        Ok(Staging { memory: memory.cast(), done })
    }

    pub(crate) fn read(&self, address: u64, into: &mut [u8]) -> Result<()> {
        self.bind()?;
        #[expect(unsafe_code, reason = "device memory")]
        // SAFETY: the caller checked that the memory is as long as the slice, which outlives the copy, as it is
        // waited for.
        unsafe { result::memcpy_dtoh_async(into, address, self.stream.cu_stream()) }
            .map_err(self.error("copying to the host"))?;
        self.synchronize()
    }

    pub(crate) fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.bind()?;
        #[expect(unsafe_code, reason = "device memory")]
        // SAFETY: the caller checked both ends.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }
            .map_err(self.error("copying"))
    }

    pub(crate) fn zero(&self, address: u64, bytes: usize) -> Result<()> {
        self.bind()?;
        #[expect(unsafe_code, reason = "device memory")]
        // SAFETY: the caller checked the end.
        unsafe { result::memset_d8_async(address, 0, bytes, self.stream.cu_stream()) }
            .map_err(self.error("filling with zeros"))
    }

    /// The function, allowed to use so much shared memory.
    fn function(&self, launch: &Launch<'_>) -> Result<CudaFunction> {
        let mut functions = lock(&self.functions);
        if !functions.contains_key(launch.kernel) {
            let function = self.module.load_function(launch.kernel).map_err(self.error(launch.kernel))?;
            functions.insert(launch.kernel, (function, SHARED_BY_DEFAULT));
        }
        let Some((function, allowed)) = functions.get_mut(launch.kernel) else {
            return Err(self.error(launch.kernel)(DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND)));
        };
        if launch.shared_bytes > *allowed {
            let bytes = i32::try_from(launch.shared_bytes).unwrap_or(i32::MAX);
            let attribute = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(attribute, bytes).map_err(self.error(launch.kernel))?;
            *allowed = launch.shared_bytes;
        }
        Ok(function.clone())
    }

    pub(crate) fn launch(&self, launch: Launch<'_>) -> Result<()> {
        self.bind()?;
        let function = self.function(&launch)?;
        // Structs of kernels hold pointers: aligned as those are.
        let mut args = [0u64; 32];
        let Some(bytes) = bytemuck::cast_slice_mut::<u64, u8>(&mut args).get_mut(..launch.args.len()) else {
            let reason = format!("{} bytes of arguments", launch.args.len());
            return Err(CudaError::Shape { kernel: launch.kernel, reason });
        };
        bytes.copy_from_slice(launch.args);
        let mut parameters = [args.as_mut_ptr().cast::<c_void>()];
        let mut attributes = self.early_start(launch.overlaps);
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
        let (function, nothing) = (function.cu_function(), std::ptr::null_mut());
        #[expect(unsafe_code, reason = "kernels are C++")]
        // SAFETY: the kernel takes one struct, whose layout args.rs mirrors, and copies it at the call; what it
        // touches was checked by the functions of `ops`; attributes and parameters outlive the call.
        unsafe { sys::cuLaunchKernelEx(&config, function, parameters.as_mut_ptr(), nothing) }
            .result()
            .map_err(self.error(launch.kernel))
    }

    /// What lets a kernel start before the one before has ended; nothing where that is not asked for or not known.
    fn early_start(&self, overlaps: bool) -> Vec<sys::CUlaunchAttribute> {
        if !overlaps || self.capability < 9 {
            return Vec::new();
        }
        #[expect(unsafe_code, reason = "an attribute is a union of C")]
        // SAFETY: every member of the union is plain data, for which zeros are a value.
        let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
        attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
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
        // Without flags: nothing is allocated within the graph. The enum has no name for that.
        let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = self.stream.end_capture(flags).map_err(self.error("ending a graph"))?;
        let graph = graph
            .ok_or_else(|| self.error("ending a graph")(DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND)))?;
        graph.upload().map_err(self.error("uploading a graph"))?;
        Ok(CudaRecorded(Mutex::new(graph)))
    }

    pub(crate) fn replay(&self, recorded: &CudaRecorded) -> Result<()> {
        lock(&recorded.0).launch().map_err(self.error("launching a graph"))
    }
}

impl Drop for CudaDriver {
    fn drop(&mut self) {
        // What cannot be given back at the end is given back by the driver with the process.
        let _ = self.stream.synchronize();
        for staging in lock(&self.staging).drain(..) {
            #[expect(unsafe_code, reason = "page-locked memory")]
            // SAFETY: it was locked by `staging`, and no copy is under way.
            let _ = unsafe { result::free_host(staging.memory.cast()) };
        }
    }
}
