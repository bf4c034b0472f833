//! GPUs, through the driver alone: no CUDA runtime, no cuBLAS. The library `libcuda` is looked for
//! when a device is asked for, so that a program with this feature starts on machines without it.

use super::ring::{LARGE_SLOTS, Ring, Rings, SMALL_SLOTS};
use super::{Launch, Properties};
use crate::error::{CudaError, Result};
use cudarc::driver::sys::{
    self, CUdevice_attribute, CUfunction_attribute_enum as FunctionAttribute,
};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, DriverError, result};
use cudarc::nvrtc::Ptx;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

static KERNELS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// Dynamic shared memory in bytes that a block may use without opting in.
const SHARED_BY_DEFAULT: u32 = 48 << 10;

pub(crate) struct CudaDriver {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
    functions: Mutex<HashMap<&'static str, (CudaFunction, u32)>>,
    rings: Mutex<Rings>,
    name: String,
    /// The compute capability: 90 for 9.0.
    capability: u32,
}

/// A captured graph.
pub(crate) struct CudaRecorded(Mutex<cudarc::driver::CudaGraph>);

#[expect(
    unsafe_code,
    reason = "the driver's graphs may be used from any thread, one at a time"
)]
// SAFETY: the CUDA programming guide: "Graph objects are not threadsafe. It is the responsibility
// of the user to ensure that multiple threads do not concurrently access the same cudaGraph_t": the
// lock does, and every use binds the context to the calling thread.
unsafe impl Send for CudaRecorded {}
#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above.
unsafe impl Sync for CudaRecorded {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether libcuda can be loaded.
#[cfg(not(feature = "linked"))]
fn has_driver() -> bool {
    #[expect(unsafe_code, reason = "loads the library")]
    // SAFETY: loads libcuda, whose initialisers have no preconditions.
    unsafe {
        sys::is_culib_present()
    }
}

/// A program that is linked against libcuda does not start without it.
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
            reason = "events between streams cost time at every launch"
        )]
        // SAFETY: there is one stream, and what is freed is waited for.
        unsafe {
            context.disable_event_tracking();
        }
        let stream = context.new_stream().map_err(error("making a stream"))?;
        let module = context
            .load_module(Ptx::from_binary(KERNELS.to_vec()))
            .map_err(error("loading the kernels"))?;
        let (major, minor) = context
            .compute_capability()
            .map_err(error("asking for its capability"))?;
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
                .map_err(self.error("asking for its properties"))?;
            Ok(usize::try_from(value).unwrap_or(0))
        };
        Ok(Properties {
            name: self.name.clone(),
            model: self
                .context
                .name()
                .map_err(self.error("asking for its name"))?,
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
            .map_err(self.error("asking for its memory"))?;
        Ok((free as u64, total as u64))
    }

    pub(crate) fn allocate(&self, bytes: usize) -> Result<u64> {
        self.bind()?;
        #[expect(unsafe_code, reason = "device memory")]
        // SAFETY: a context is bound; the memory is written before kernels read it, which is the
        // callers' matter.
        let allocated = unsafe { result::malloc_sync(bytes.max(1)) };
        match allocated {
            Ok(address) => Ok(address),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let (free, total) = self.memory()?;
                Err(CudaError::OutOfMemory {
                    device: self.name.clone(),
                    wanted: bytes as u64,
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
        // SAFETY: a buffer frees its own address once, and the stream is idle.
        unsafe { result::free_sync(address) }.map_err(self.error("freeing"))
    }

    pub(crate) fn write(&self, address: u64, from: &[u8]) -> Result<()> {
        self.bind()?;
        let mut rings = lock(&self.rings);
        let is_small = from.len() <= SMALL_SLOTS.1;
        let (ring, size) = match is_small {
            true => (&mut rings.small, SMALL_SLOTS),
            false => (&mut rings.large, LARGE_SLOTS),
        };
        if ring.is_none() {
            *ring = Some(Ring::new(&self.context, size).map_err(self.error("locking memory"))?);
        }
        let Some(ring) = ring else { return Ok(()) };

        let mut to = address;
        for part in from.chunks(size.1) {
            ring.copy(&self.stream, to, part)
                .map_err(self.error("copying from the host"))?;
            to += part.len() as u64;
        }
        Ok(())
    }

    pub(crate) fn read(&self, address: u64, into: &mut [u8]) -> Result<()> {
        self.bind()?;
        #[expect(unsafe_code, reason = "device memory")]
        // SAFETY: the caller checked that the memory is as long as the slice, which outlives the
        // copy, as it is waited for.
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
            let function = self
                .module
                .load_function(launch.kernel)
                .map_err(self.error(launch.kernel))?;
            // The same for all kernels: a multiprocessor must be idle before it divides its memory
            // otherwise, so kernels that want different shares do not overlap.
            let attribute = FunctionAttribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
            function
                .set_attribute(attribute, 100)
                .map_err(self.error(launch.kernel))?;
            functions.insert(launch.kernel, (function, SHARED_BY_DEFAULT));
        }
        let Some((function, allowed)) = functions.get_mut(launch.kernel) else {
            return Err(self.error(launch.kernel)(DriverError(
                sys::CUresult::CUDA_ERROR_NOT_FOUND,
            )));
        };
        if launch.shared_bytes > *allowed {
            let bytes = i32::try_from(launch.shared_bytes).unwrap_or(i32::MAX);
            let attribute = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function
                .set_attribute(attribute, bytes)
                .map_err(self.error(launch.kernel))?;
            *allowed = launch.shared_bytes;
        }
        Ok(function.clone())
    }

    pub(crate) fn launch(&self, launch: Launch<'_>) -> Result<()> {
        self.bind()?;
        let function = self.function(&launch)?;
        // Structs of kernels hold pointers: aligned as those are.
        let mut args = [0u64; 32];
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
        // SAFETY: the kernel takes one struct, whose layout args.rs mirrors, and copies it at the
        // call; what it touches was checked by the functions of `ops`; attributes and parameters
        // outlive the call.
        unsafe { sys::cuLaunchKernelEx(&config, function, parameters.as_mut_ptr(), nothing) }
            .result()
            .map_err(self.error(launch.kernel))
    }

    /// What lets a kernel start before the one before has ended; nothing where that is not asked
    /// for or not known.
    fn early_start(&self, overlaps: bool) -> Vec<sys::CUlaunchAttribute> {
        if !overlaps || self.capability < 90 {
            return Vec::new();
        }
        #[expect(unsafe_code, reason = "an attribute is a union of C")]
        // SAFETY: every member of the union is plain data, for which zeros are a value.
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
        // An error here is one of a kernel before; memory is the process's own either way.
        let _ = self.stream.synchronize();
        let rings = std::mem::take(&mut *lock(&self.rings));
        [rings.small, rings.large]
            .into_iter()
            .flatten()
            .for_each(Ring::free);
    }
}

/// What only the driver can answer; run where there is one, the emulated one among them.
#[cfg(test)]
mod tests {
    use super::*;

    fn driver() -> Option<CudaDriver> {
        let is_tested = !crate::testing::gpus().is_empty();
        is_tested.then(|| CudaDriver::new(0).unwrap())
    }

    #[test]
    fn what_a_capture_refuses_ends_it_and_the_next_one_is_whole() {
        let Some(driver) = driver() else { return };
        let address = driver.allocate(64).unwrap();
        driver.write(address, &[7; 64]).unwrap();
        for refused in [
            &|| driver.allocate(64).map(drop) as Result<()>,
            &|| driver.free(address),
            &|| driver.synchronize(),
            &|| driver.read(address, &mut [0; 64]),
        ] as [&dyn Fn() -> Result<()>; 4]
        {
            driver.begin_recording().unwrap();
            assert!(refused().is_err());
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
    fn slots_are_not_filled_while_they_are_read() {
        let Some(driver) = driver() else { return };
        let count = 3 * SMALL_SLOTS.0;
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
