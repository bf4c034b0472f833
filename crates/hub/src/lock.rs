//! One download of a file at a time, across processes: the lock files of huggingface_hub.

use crate::cache::create_parent;
use crate::error::{HubError, Result};
use crate::progress::{Progress, ProgressEvent};
use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

/// Held until dropped; the system frees it if the process dies.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// What to wait for.
pub(crate) struct Wait<'a> {
    /// The file, for messages.
    pub(crate) file: &'a str,
    /// The lock file.
    pub(crate) lock: &'a Path,
    /// The file the other process writes: as long as it grows, waiting makes sense.
    pub(crate) growing: &'a Path,
    /// The limit, if there is one.
    pub(crate) timeout: Option<Duration>,
    /// How long the other process may stand still.
    pub(crate) patience: Duration,
}

/// Takes the lock, waiting for another process' download.
pub(crate) async fn acquire(wait: &Wait<'_>, progress: &dyn Progress) -> Result<Lock> {
    create_parent(wait.lock)?;
    let error = |source| HubError::Io {
        path: wait.lock.to_owned(),
        source,
    };
    // Truncating does no harm: the lock is on the file, not in it.
    let file = File::create(wait.lock).map_err(error)?;
    let started = Instant::now();
    let mut told = false;
    let mut last = (length(wait.growing), Instant::now());
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Lock { _file: file }),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(cause)) => return Err(error(cause)),
        }
        if !told {
            progress.event(&ProgressEvent::WaitingForLock { file: wait.file });
            told = true;
        }
        let now = length(wait.growing);
        if now != last.0 {
            last = (now, Instant::now());
        }
        let waited = started.elapsed();
        if wait.timeout.is_some_and(|limit| waited > limit) || last.1.elapsed() > wait.patience {
            return Err(HubError::Locked {
                file: wait.file.to_owned(),
                waited,
                lock: wait.lock.to_owned(),
            });
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}
