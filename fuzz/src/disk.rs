//! Files in memory: entry points that take paths are fuzzed through them.

use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A temporary folder. `scripts/fuzz.sh` puts it into memory, and removes it: libFuzzer ends without
/// dropping anything.
#[derive(Debug)]
pub struct Folder(TempDir);

impl Default for Folder {
    fn default() -> Self {
        Self(tempfile::tempdir().expect("a folder for the inputs"))
    }
}

impl Folder {
    /// Its path.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Its path as text.
    pub fn name(&self) -> &str {
        self.path().to_str().expect("a folder whose name is text")
    }

    /// Writes a file and returns its path.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, bytes).expect("a file in memory");
        path
    }

    /// Writes a file, or removes it if there are no bytes for it.
    pub fn set(&self, name: &str, bytes: Option<Vec<u8>>) {
        match bytes {
            Some(bytes) => drop(self.write(name, &bytes)),
            None => drop(std::fs::remove_file(self.path().join(name))),
        }
    }

    /// Names of the files and folders in it, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path()).expect("the folder itself");
        let mut names: Vec<String> = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}
