//! What [`crate::team`] is made of: threads, atomics and ways to wait. The model checker in `loom/`
//! compiles the team with a module of its own in this place.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
pub(crate) use std::sync::{Mutex, MutexGuard};
pub(crate) use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long [`spin`] spins: longer than sampling a token takes.
pub(crate) const SPIN_TIME: Duration = Duration::from_micros(400);
/// Spins between two reads of the clock.
const SPINS_PER_CLOCK: usize = 64;

/// Calls `check` until it returns something, but no longer than [`SPIN_TIME`].
pub(crate) fn spin<T>(check: impl Fn() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    while started.elapsed() < SPIN_TIME {
        for _ in 0..SPINS_PER_CLOCK {
            if let Some(found) = check() {
                return Some(found);
            }

            std::hint::spin_loop();
        }
    }

    None
}

/// Spins until `is_over`, which is soon unless a thread was preempted.
pub(crate) fn wait(is_over: impl Fn() -> bool) {
    let mut spins = 0;
    while !is_over() {
        spins += 1;
        if spins % 1024 == 0 {
            thread::yield_now()
        } else {
            std::hint::spin_loop()
        }
    }
}
