//! A folder that appears whole.

use crate::beside::{create_beside, folder_of, sweep, sync_folder};
use crate::temporary::Temporary;
use std::io::Result;
use std::path::{Path, PathBuf};

/// A folder that appears at its target by [`NewFolder::commit`].
///
/// Dropped without a commit it leaves nothing behind. If the process is killed, a hidden folder
/// ending in `.partial` stays, which a write to the same target removes after a day; a program that
/// a signal ends can call [`remove_unfinished`](crate::remove_unfinished).
#[derive(Debug)]
pub struct NewFolder {
    temporary: Temporary,
    target: PathBuf,
}

impl NewFolder {
    /// Starts a folder that will be at `target`. The folders above it are created.
    ///
    /// # Errors
    /// Those of the system.
    pub fn begin(target: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder_of(target))?;
        sweep(target);
        let (temporary, ()) = create_beside(target, |path| std::fs::create_dir(path))?;
        Ok(Self {
            temporary,
            target: target.to_owned(),
        })
    }

    /// Where to write the files, which must be synced before the commit.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Syncs the folder and renames it to its target, which must not exist or be an empty folder.
    ///
    /// # Errors
    /// Those of the system. Nothing is left behind then.
    pub fn commit(self) -> Result<()> {
        // Some systems cannot rename onto an empty folder.
        if self.target.is_dir() {
            std::fs::remove_dir(&self.target)?;
        }

        sync_folder(self.temporary.path());
        self.temporary.rename(&self.target)?;
        sync_folder(folder_of(&self.target));
        Ok(())
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
