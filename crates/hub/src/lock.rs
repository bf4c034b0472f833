//! Lock files, compatible with huggingface_hub's: only one process downloads a file at a time.

use crate::cache::create_parent;
use crate::error::{HubError, Result};
use crate::progress::{Progress, ProgressEvent};
use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

/// A held lock. It is released when dropped, or by the system if the process dies.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// Which lock to wait for, and how long.
pub(crate) struct Wait<'a> {
    /// The file to download, for messages.
    pub(crate) file: &'a str,
    /// The lock file.
    pub(crate) lock: &'a Path,
    /// The file that the other process writes. While it grows, waiting makes sense.
    pub(crate) growing: &'a Path,
    /// Limit of the whole wait, if there is one.
    pub(crate) timeout: Option<Duration>,
    /// How long `growing` may stay the same.
    pub(crate) patience: Duration,
}

/// Takes the lock. Waits while another process holds it.
pub(crate) async fn acquire(wait: &Wait<'_>, progress: &dyn Progress) -> Result<Lock> {
    create_parent(wait.lock)?;
    let error = |source| HubError::Io {
        path: wait.lock.to_owned(),
        source,
    };
    // Truncating does no harm: the lock is a property of the file, not its content.
    let file = File::create(wait.lock).map_err(error)?;

    let started = Instant::now();
    let mut is_reported = false;
    let mut last_length = length(wait.growing);
    let mut last_growth = started;

    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Lock { _file: file }),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(cause)) => return Err(error(cause)),
        }

        if !is_reported {
            progress.event(&ProgressEvent::WaitingForLock { file: wait.file });
            is_reported = true;
        }

        let length = length(wait.growing);
        if length != last_length {
            last_length = length;
            last_growth = Instant::now();
        }

        let waited = started.elapsed();
        let is_stalled = last_growth.elapsed() > wait.patience;
        if wait.timeout.is_some_and(|limit| waited > limit) || is_stalled {
            return Err(HubError::Locked {
                file: wait.file.to_owned(),
                waited,
                lock: wait.lock.to_owned(),
            });
        }

        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Length of a file in bytes; 0 if it does not exist.
fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}
