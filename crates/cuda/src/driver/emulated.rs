//! The emulated device: host memory, and the kernels compiled by a C++ compiler.
//!
//! It is asynchronous, like a GPU: launches, device copies and fills are queued, and run when the
//! host reads, writes, frees or waits. That call, and every later one, returns the first error.
//!
//! It is stricter than a GPU, to find bugs: new memory is filled with NaN, and the guard bytes
//! around each allocation must not change.

use super::{Launch, Properties};
use crate::error::{CudaError, Result};
use std::collections::{BTreeMap, VecDeque};
use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[expect(unsafe_code, reason = "the kernels are C++")]
// SAFETY: the signature matches the definition in emulation/emulation.cc.
unsafe extern "C" {
    fn llm_int8_emulate(
        name: *const c_char,
        args: *const c_void,
        args_bytes: u32,
        grid: *const u32,
        threads: u32,
        shared_bytes: u32,
        order: u64,
    ) -> *const c_char;
}

/// Bytes before and after each allocation that must not be written.
const GUARD: usize = 256;
const GUARD_BYTE: u8 = 0xa5;
const ALIGNMENT: usize = 256;

/// Shared memory of a block, as on Hopper.
const SHARED_BYTES: usize = 227 << 10;

/// Memory between two guards.
struct Allocation {
    bytes: Vec<u8>,
    /// Where the front guard begins; it is aligned.
    offset: usize,
    length: usize,
}

impl Allocation {
    fn new(length: usize) -> Self {
        let mut bytes = vec![GUARD_BYTE; length + 2 * GUARD + ALIGNMENT];
        let offset = bytes.as_ptr().align_offset(ALIGNMENT);

        // All ones are a NaN in f16, bf16 and f32.
        bytes[offset + GUARD..offset + GUARD + length].fill(0xff);
        Self {
            bytes,
            offset,
            length,
        }
    }

    fn address(&self) -> u64 {
        self.bytes.as_ptr() as u64 + (self.offset + GUARD) as u64
    }

    fn is_intact(&self) -> bool {
        let front = &self.bytes[self.offset..self.offset + GUARD];
        let back = &self.bytes[self.offset + GUARD + self.length..];
        front.iter().chain(back).all(|byte| *byte == GUARD_BYTE)
    }
}

enum Step {
    Launch {
        kernel: &'static str,
        args: Vec<u8>,
        grid: [u32; 3],
        threads: u32,
        shared_bytes: u32,
    },
    Copy {
        to: u64,
        from: u64,
        bytes: usize,
    },
    Zero {
        address: u64,
        bytes: usize,
    },
    Replay(Arc<Vec<Step>>),
}

/// Recorded steps.
pub(crate) struct Recording(Arc<Vec<Step>>);

#[derive(Default)]
struct State {
    allocations: BTreeMap<u64, Allocation>,
    used: u64,
    /// Steps that have not run yet, in order.
    queue: VecDeque<Step>,
    recording: Option<Vec<Step>>,
    /// The first error of a step. As on a GPU, it is sticky: every later call returns it.
    failed: Option<CudaError>,
}

pub(crate) struct EmulatedDriver {
    ordinal: usize,
    memory: u64,
    order: u64,
    state: Mutex<State>,
}

impl EmulatedDriver {
    pub(crate) fn new(ordinal: usize, memory: u64, order: u64) -> Self {
        Self {
            ordinal,
            memory,
            order,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self) -> String {
        format!("emulated:{}", self.ordinal)
    }

    fn error(&self, action: &'static str, reason: impl Into<String>) -> CudaError {
        CudaError::Driver {
            device: self.name(),
            action,
            reason: reason.into(),
        }
    }

    pub(crate) fn properties(&self) -> Result<Properties> {
        Ok(Properties {
            name: self.name(),
            model: "emulated on the CPU".into(),
            multiprocessors: 4,
            shared_bytes: SHARED_BYTES,
            capability: 90,
            has_wgmma: true,
        })
    }

    pub(crate) fn memory(&self) -> Result<(u64, u64)> {
        Ok((self.memory.saturating_sub(self.state().used), self.memory))
    }

    pub(crate) fn allocate(&self, bytes: usize) -> Result<u64> {
        let mut state = self.state();
        if state.used + bytes as u64 > self.memory {
            return Err(CudaError::OutOfMemory {
                device: self.name(),
                requested: bytes as u64,
                free: self.memory.saturating_sub(state.used),
                total: self.memory,
            });
        }

        let allocation = Allocation::new(bytes);
        let address = allocation.address();
        state.used += bytes as u64;
        state.allocations.insert(address, allocation);
        Ok(address)
    }

    pub(crate) fn free(&self, address: u64) -> Result<()> {
        let mut state = self.state();
        let finished = self.finish(&mut state);
        let Some(allocation) = state.allocations.remove(&address) else {
            return Err(self.error("freeing", "no allocation has this address"));
        };
        state.used -= allocation.length as u64;
        finished?;
        if allocation.is_intact() {
            Ok(())
        } else {
            Err(self.error("freeing", "a kernel wrote outside of the allocation"))
        }
    }

    /// The memory `address..address + length`, which must lie within one allocation.
    fn bytes<'a>(&self, state: &'a mut State, address: u64, length: usize) -> Result<&'a mut [u8]> {
        let found = state.allocations.range_mut(..=address).next_back();
        match found {
            Some((start, allocation))
                if address + length as u64 <= start + allocation.length as u64 =>
            {
                let first = allocation.offset + GUARD + (address - start) as usize;
                Ok(&mut allocation.bytes[first..first + length])
            }
            _ => Err(self.error("a copy", "it reaches past the end of its allocation")),
        }
    }

    pub(crate) fn write(&self, address: u64, from: &[u8]) -> Result<()> {
        let mut state = self.state();
        self.finish(&mut state)?;
        self.bytes(&mut state, address, from.len())?
            .copy_from_slice(from);
        Ok(())
    }

    pub(crate) fn read(&self, address: u64, into: &mut [u8]) -> Result<()> {
        let mut state = self.state();
        self.finish(&mut state)?;
        into.copy_from_slice(self.bytes(&mut state, address, into.len())?);
        Ok(())
    }

    pub(crate) fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.step(Step::Copy { to, from, bytes })
    }

    pub(crate) fn zero(&self, address: u64, bytes: usize) -> Result<()> {
        self.step(Step::Zero { address, bytes })
    }

    pub(crate) fn launch(&self, launch: Launch<'_>) -> Result<()> {
        let Launch {
            kernel,
            args,
            grid,
            threads,
            shared_bytes,
            ..
        } = launch;
        self.step(Step::Launch {
            kernel,
            args: args.to_vec(),
            grid,
            threads,
            shared_bytes,
        })
    }

    fn step(&self, step: Step) -> Result<()> {
        let mut state = self.state();
        match &mut state.recording {
            Some(steps) => steps.push(step),
            None => state.queue.push_back(step),
        }
        Ok(())
    }

    /// Runs the queue.
    fn finish(&self, state: &mut State) -> Result<()> {
        while let Some(step) = state.queue.pop_front() {
            let result = self.run(state, &step);
            state.failed = state.failed.take().or(result.err());
        }
        match &state.failed {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    fn run(&self, state: &mut State, step: &Step) -> Result<()> {
        match step {
            Step::Copy { to, from, bytes } => {
                let copied = self.bytes(state, *from, *bytes)?.to_vec();
                self.bytes(state, *to, *bytes)?.copy_from_slice(&copied);
                Ok(())
            }
            Step::Zero { address, bytes } => {
                self.bytes(state, *address, *bytes)?.fill(0);
                Ok(())
            }
            Step::Launch {
                kernel,
                args,
                grid,
                threads,
                shared_bytes,
            } => self.run_kernel(kernel, args, *grid, *threads, *shared_bytes),
            Step::Replay(steps) => steps.iter().try_for_each(|step| self.run(state, step)),
        }
    }

    fn run_kernel(
        &self,
        kernel: &'static str,
        args: &[u8],
        grid: [u32; 3],
        threads: u32,
        shared: u32,
    ) -> Result<()> {
        if shared as usize > SHARED_BYTES {
            return Err(self.error(
                kernel,
                format!("{shared} bytes of shared memory are too many"),
            ));
        }
        let name = CString::new(kernel).map_err(|_| self.error(kernel, "not a kernel name"))?;

        // Argument structs hold pointers, so they are copied to memory aligned for u64.
        let mut aligned = vec![0u64; args.len().div_ceil(8)];
        bytemuck::cast_slice_mut::<u64, u8>(&mut aligned)[..args.len()].copy_from_slice(args);

        #[expect(unsafe_code, reason = "the kernels are C++")]
        // SAFETY: `name`, `aligned` and `grid` outlive the call. The kernel touches only memory
        // that the functions of `ops` checked to lie within buffers. Those are allocations of the
        // state, which the caller has locked, so none is freed meanwhile.
        let message = unsafe {
            llm_int8_emulate(
                name.as_ptr(),
                aligned.as_ptr().cast(),
                args.len() as u32,
                grid.as_ptr(),
                threads,
                shared,
                self.order,
            )
        };
        if message.is_null() {
            return Ok(());
        }

        #[expect(unsafe_code, reason = "the message is a C string")]
        // SAFETY: the message is not null (checked above) and is a string literal of emulation.cc.
        let text = unsafe { CStr::from_ptr(message) };
        Err(self.error(kernel, text.to_string_lossy()))
    }

    pub(crate) fn synchronize(&self) -> Result<()> {
        let mut state = self.state();
        self.finish(&mut state)?;
        if state.allocations.values().all(Allocation::is_intact) {
            Ok(())
        } else {
            Err(self.error("waiting", "a kernel wrote outside of an allocation"))
        }
    }

    pub(crate) fn begin_recording(&self) -> Result<()> {
        let mut state = self.state();
        if state.recording.is_some() {
            return Err(self.error("recording", "a recording is already in progress"));
        }
        state.recording = Some(Vec::new());
        Ok(())
    }

    pub(crate) fn end_recording(&self) -> Result<Recording> {
        let steps = self.state().recording.take();
        let steps = steps.ok_or_else(|| self.error("recording", "no recording is in progress"))?;
        Ok(Recording(Arc::new(steps)))
    }

    pub(crate) fn replay(&self, recording: &Recording) -> Result<()> {
        self.step(Step::Replay(Arc::clone(&recording.0)))
    }
}
