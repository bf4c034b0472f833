//! What happens while files are fetched, for whoever shows it.

use std::time::Duration;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ProgressEvent<'a> {
    /// A download begins, or goes on from `resumed_from` bytes of an earlier one.
    Start {
        /// The file in its repository.
        file: &'a str,
        /// Its length in bytes, where the server tells.
        total: Option<u64>,
        /// Bytes that are there already.
        resumed_from: u64,
    },
    /// Bytes have arrived.
    Advance {
        /// The file.
        file: &'a str,
        /// How many.
        bytes: u64,
    },
    /// A try failed; another follows after `delay`.
    Retry {
        /// The file or request.
        file: &'a str,
        /// Number of the next try, from 1.
        attempt: u32,
        /// Time until then.
        delay: Duration,
        /// What went wrong.
        reason: String,
    },
    /// The download starts over: what was there cannot be continued.
    Restart {
        /// The file.
        file: &'a str,
        /// Why.
        reason: String,
    },
    /// Another process downloads the same file; this one waits.
    WaitingForLock {
        /// The file.
        file: &'a str,
    },
    /// A file is there, whole and checked.
    Done {
        /// The file.
        file: &'a str,
    },
    /// The network failed, and the cache has everything.
    UsingCache {
        /// What went wrong.
        reason: String,
    },
}

/// Whoever wants to know.
pub trait Progress: Sync {
    /// Called for every event, from the thread that downloads.
    fn event(&self, event: &ProgressEvent<'_>);
}

/// Nobody wants to know.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn event(&self, _: &ProgressEvent<'_>) {}
}
