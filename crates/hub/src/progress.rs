//! Progress events of downloads, for callers that show them.

use std::time::Duration;

/// An event of a download.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ProgressEvent<'a> {
    /// A download begins, or resumes an earlier one.
    Start {
        /// The file's name in its repository.
        file: &'a str,
        /// Its length in bytes, if the server says it.
        total: Option<u64>,
        /// Bytes that an earlier download has left; 0 for a new one.
        resumed_from: u64,
    },
    /// Bytes have arrived.
    Advance {
        /// The file.
        file: &'a str,
        /// How many since the last event.
        bytes: u64,
    },
    /// An attempt failed. The next one follows after `delay`.
    Retry {
        /// The file or request.
        file: &'a str,
        /// Number of consecutive failures so far, from 1.
        attempt: u32,
        /// Time until the next attempt.
        delay: Duration,
        /// What went wrong.
        reason: String,
    },
    /// The download starts over: its bytes were damaged, or the server cannot resume it.
    Restart {
        /// The file.
        file: &'a str,
        /// Why.
        reason: String,
    },
    /// Another process is downloading the same file, and this one waits for it.
    WaitingForLock {
        /// The file.
        file: &'a str,
    },
    /// A file is complete and verified.
    Done {
        /// The file.
        file: &'a str,
    },
    /// The hub cannot be used; the files in the cache are used instead.
    UsingCache {
        /// What went wrong.
        reason: String,
    },
}

/// A receiver of progress events.
pub trait Progress: Sync {
    /// Called for every event, on the thread that downloads.
    fn event(&self, event: &ProgressEvent<'_>);
}

/// Ignores all events.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn event(&self, _: &ProgressEvent<'_>) {}
}
