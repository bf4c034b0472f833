//! The one place that maps a file into memory.

use crate::error::{NnError, Result};
use std::fs::File;
use std::ops::Deref;
use std::path::Path;

/// The bytes of a checkpoint file: mapped, or part of the program.
#[derive(Debug)]
pub(super) enum FileBytes {
    Mapped(memmap2::Mmap),
    Static(&'static [u8]),
}

impl FileBytes {
    /// Maps a file of weights, unless it only stands in for one.
    pub(super) fn map_checkpoint(path: &Path) -> Result<Self> {
        let bytes = Self::map(path)?;
        if bytes.starts_with(b"version https://git-lfs.github.com/spec/") {
            let reason = "it is a pointer of Git LFS and not the file itself; run `git lfs pull` in its folder";
            return Err(NnError::UnsupportedFile {
                file: path.display().to_string(),
                reason: reason.into(),
            });
        }
        Ok(bytes)
    }

    /// Maps a file read-only.
    #[expect(
        unsafe_code,
        reason = "mapping a file is unsafe: another process may truncate it"
    )]
    pub(super) fn map(path: &Path) -> Result<Self> {
        let error = |source| NnError::Read {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(error)?;
        if file.metadata().map_err(error)?.len() == 0 {
            return Ok(Self::Static(&[]));
        }
        // SAFETY: the map is read-only and private to this process; nothing here hands out
        // references that outlive it. If another process truncates the file, reads past its new end
        // raise a bus error: the same contract as every reader of mapped checkpoints has.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(error)?;
        Ok(Self::Mapped(map))
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Static(bytes) => bytes,
        }
    }
}
