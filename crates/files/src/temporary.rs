//! The temporary files and folders of this process.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

type Paths = BTreeSet<PathBuf>;

/// All that exist now. Locked while one is created, renamed or removed.
static UNFINISHED: Mutex<Paths> = Mutex::new(BTreeSet::new());

/// Removals of a folder before giving up, as another thread may create files in it meanwhile.
const ATTEMPTS: usize = 100;

fn unfinished() -> MutexGuard<'static, Paths> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file or folder under a temporary name, which is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Temporary {
    path: PathBuf,
}

impl Temporary {
    /// Creates a file or folder at `path` by calling `create`.
    pub(crate) fn create<T>(
        path: PathBuf,
        create: impl Fn(&Path) -> Result<T>,
    ) -> Result<(Self, T)> {
        let mut unfinished = unfinished();
        let made = create(&path)?;
        unfinished.insert(path.clone());
        Ok((Self { path }, made))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Renames it to its final name, so that it is temporary no more.
    pub(crate) fn rename(self, target: &Path) -> Result<()> {
        let mut unfinished = unfinished();
        std::fs::rename(&self.path, target)?;
        unfinished.remove(&self.path);
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let mut unfinished = unfinished();
        if unfinished.remove(&self.path) {
            // If this fails, a hidden file stays, which the sweep of a later write removes.
            drop(remove(&self.path));
        }
    }
}

/// Removes a file, or a folder with all that is in it.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match path.symlink_metadata()?.is_dir() {
        true => std::fs::remove_dir_all(path),
        false => std::fs::remove_file(path),
    }
}

/// What [`remove_unfinished`] returns. While it exists, no temporary file or folder of this process
/// is created, renamed or removed: a thread that tries waits.
#[derive(Debug)]
#[must_use = "when it is dropped, other threads begin new temporary files"]
pub struct Unfinished {
    _paths: MutexGuard<'static, Paths>,
}

/// Removes the temporary files and folders of this process, for a program that is about to end
/// before they are committed. It takes a lock and memory, so it may be called on a thread that waits
/// for signals, but not in a signal handler.
pub fn remove_unfinished() -> Unfinished {
    let mut paths = unfinished();
    for path in std::mem::take(&mut *paths) {
        let is_gone = |_| match remove(&path) {
            Ok(()) => true,
            Err(cause) => cause.kind() == ErrorKind::NotFound,
        };
        (0..ATTEMPTS).any(is_gone);
    }

    Unfinished { _paths: paths }
}
