//! Limits on what one input may cost. libFuzzer's own look at the whole process, once a second.

use cpu_time::ProcessTime;
use peak_alloc::PeakAlloc;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// What one input may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Processor time of all threads.
    pub time: Duration,
    /// Bytes allocated at once.
    pub memory: usize,
}

impl Limits {
    /// These many seconds and MiB.
    pub const fn new(seconds: u64, mebibytes: usize) -> Self {
        Self {
            time: Duration::from_secs(seconds),
            memory: mebibytes << 20,
        }
    }
}

/// Runs `call`. Exceeding a limit is a panic, which libFuzzer reports with the input.
pub fn bounded<T>(limits: Limits, call: impl FnOnce() -> T) -> T {
    ALLOCATOR.reset_peak_usage();
    let before = ALLOCATOR.current_usage();
    let started = ProcessTime::now();

    let value = call();

    let time = started.elapsed();
    let memory = ALLOCATOR.peak_usage().saturating_sub(before);
    assert!(
        time <= limits.time,
        "it took {time:?}, more than {:?}",
        limits.time
    );
    assert!(
        memory <= limits.memory,
        "it allocated {memory} bytes at once, more than {}",
        limits.memory
    );

    value
}
