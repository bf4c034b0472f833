//! A folder that appears whole.

use crate::beside::{create_beside, folder_of, sweep, sync_folder};
use std::io::Result;
use std::path::{Path, PathBuf};

/// A folder that appears at its target by [`NewFolder::commit`].
///
/// Dropped without a commit it leaves nothing behind. If the process is killed, a hidden folder
/// ending in `.partial` stays, which a later write to the same target removes.
#[derive(Debug)]
pub struct NewFolder {
    partial: PathBuf,
    target: PathBuf,
    is_committed: bool,
}

impl NewFolder {
    /// Starts a folder that will be at `target`. The folders above it are created.
    ///
    /// # Errors
    /// Those of the system.
    pub fn begin(target: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder_of(target))?;
        sweep(target);
        let (partial, ()) = create_beside(target, |path| std::fs::create_dir(path))?;
        Ok(Self {
            partial,
            target: target.to_owned(),
            is_committed: false,
        })
    }

    /// Where to write the files, which must be synced before the commit.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Syncs the folder and renames it to its target, which must not exist or be an empty folder.
    ///
    /// # Errors
    /// Those of the system. Nothing is left behind then.
    pub fn commit(mut self) -> Result<()> {
        // Some systems cannot rename onto an empty folder.
        if self.target.is_dir() {
            std::fs::remove_dir(&self.target)?;
        }

        sync_folder(&self.partial);
        std::fs::rename(&self.partial, &self.target)?;
        sync_folder(folder_of(&self.target));
        self.is_committed = true;
        Ok(())
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        if !self.is_committed {
            drop(std::fs::remove_dir_all(&self.partial));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a/b/model");
        let new = NewFolder::begin(&target).unwrap();
        std::fs::write(new.path().join("x"), "x").unwrap();
        drop(new);
        let above = folder.path().join("a/b");
        assert_eq!(std::fs::read_dir(&above).unwrap().count(), 0);

        std::fs::create_dir(&target).unwrap();
        let new = NewFolder::begin(&target).unwrap();
        std::fs::write(new.path().join("x"), "x").unwrap();
        new.commit().unwrap();
        assert_eq!(std::fs::read(target.join("x")).unwrap(), b"x");
        assert_eq!(std::fs::read_dir(&above).unwrap().count(), 1);
    }

    /// The name that a killed process with the same id would have used is not even looked at.
    #[test]
    fn a_leftover_folder_is_not_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let leftover = format!(".model.{}.partial", std::process::id());
        let leftover = folder.path().join(leftover);
        std::fs::create_dir(&leftover).unwrap();
        std::fs::write(leftover.join("model.safetensors"), "foreign").unwrap();

        let target = folder.path().join("model");
        NewFolder::begin(&target).unwrap().commit().unwrap();
        assert_eq!(std::fs::read_dir(&target).unwrap().count(), 0);
        assert!(leftover.is_dir());
    }
}
