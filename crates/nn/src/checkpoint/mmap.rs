//! The one place that maps a file into memory.

use crate::error::{NnError, Result};
use std::ops::Deref;
use std::path::Path;

/// The bytes of a checkpoint file: mapped, or embedded in the program.
#[derive(Debug)]
pub(super) enum FileBytes {
    Mapped(memmap2::Mmap),
    Static(&'static [u8]),
}

impl FileBytes {
    /// Maps a file of weights. A Git LFS pointer in its place is an error.
    pub(super) fn map_checkpoint(path: &Path) -> Result<Self> {
        let bytes = Self::map(path)?;
        if bytes.starts_with(b"version https://git-lfs.github.com/spec/") {
            let reason =
                "it is a Git LFS pointer and not the file itself; run `git lfs pull` in its folder";
            return Err(NnError::UnsupportedFile {
                file: path.display().to_string(),
                reason: reason.into(),
            });
        }

        Ok(bytes)
    }

    /// Maps a regular file read-only.
    #[expect(
        unsafe_code,
        reason = "mapping a file is unsafe: another process may truncate it"
    )]
    pub(super) fn map(path: &Path) -> Result<Self> {
        let error = |source| NnError::Read {
            path: path.to_owned(),
            source,
        };
        let file = llm_int8_files::open(path).map_err(error)?;
        if file.metadata().map_err(error)?.len() == 0 {
            return Ok(Self::Static(&[]));
        }

        // SAFETY: the map is read-only, and every slice of it borrows from the `FileBytes` that
        // owns it, so none outlives the map. What cannot be enforced is that no other process
        // changes the file: if one truncates it, reading past the new end raises SIGBUS. Every
        // reader of mapped checkpoints relies on that.
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
