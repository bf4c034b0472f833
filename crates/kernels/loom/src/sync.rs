//! loom's threads, mutexes and atomics, in the place of `crates/kernels/src/sync.rs`.

use loom::sync::atomic::fence;
pub(crate) use loom::sync::{Mutex, MutexGuard};
pub(crate) use loom::thread::{self, Thread};
pub(crate) use std::sync::atomic::Ordering::{self, SeqCst};

/// An atomic of loom whose sequentially consistent writes are that: loom takes `SeqCst` for `AcqRel`,
/// except in fences, and puts such a fence after each write here. That is how x86 does it, and
/// allows a little more than the real ordering does.
macro_rules! atomic {
    ($name:ident, $of:ty) => {
        pub(crate) struct $name(loom::sync::atomic::$name);

        #[allow(dead_code, reason = "not each of them is used of each")]
        impl $name {
            pub(crate) fn new(value: $of) -> Self {
                Self(loom::sync::atomic::$name::new(value))
            }

            pub(crate) fn load(&self, ordering: Ordering) -> $of {
                self.0.load(ordering)
            }

            pub(crate) fn store(&self, value: $of, ordering: Ordering) {
                fenced(ordering, || self.0.store(value, ordering))
            }
        }
    };
}

atomic!(AtomicBool, bool);
atomic!(AtomicUsize, usize);

impl AtomicUsize {
    pub(crate) fn fetch_add(&self, value: usize, ordering: Ordering) -> usize {
        fenced(ordering, || self.0.fetch_add(value, ordering))
    }

    pub(crate) fn fetch_sub(&self, value: usize, ordering: Ordering) -> usize {
        fenced(ordering, || self.0.fetch_sub(value, ordering))
    }
}

fn fenced<T>(ordering: Ordering, write: impl FnOnce() -> T) -> T {
    let result = write();
    if ordering == SeqCst {
        fence(SeqCst);
    }
    result
}

/// Spinning longer leads to no other states.
pub(crate) fn spin<T>(check: impl Fn() -> Option<T>) -> Option<T> {
    check()
}

pub(crate) fn wait(is_over: impl Fn() -> bool) {
    while !is_over() {
        thread::yield_now();
    }
}
