//! A file that appears whole.

use crate::beside::{create_beside, folder_of, sweep, sync_folder};
use crate::temporary::Temporary;
use std::fs::File;
use std::io::{Error, ErrorKind, Result, Write};
use std::path::{Path, PathBuf};

/// A file that appears at its target by [`NewFile::commit`], and replaces what was there.
///
/// Dropped without a commit it leaves nothing behind; a program that a signal ends can call
/// [`remove_unfinished`](crate::remove_unfinished). A target that exists and is no regular file
/// (a pipe, a terminal, `/dev/null`) is written into at once and never replaced. A target that is a
/// link is the file that the link names.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Beside {
        temporary: Temporary,
        target: PathBuf,
    },
    Special,
}

impl NewFile {
    /// Starts a file that will be at `target`. The folder must exist.
    ///
    /// # Errors
    /// Those of the system: no such folder, no permission, a disk that is full.
    pub fn begin(target: &Path) -> Result<Self> {
        match target.metadata() {
            Ok(metadata) if metadata.is_dir() => return Err(ErrorKind::IsADirectory.into()),
            Ok(metadata) if !metadata.is_file() => {
                let file = File::options().write(true).open(target)?;
                return Ok(Self {
                    file,
                    place: Place::Special,
                });
            }
            _ => {}
        }

        let target = if target.is_symlink() {
            target.canonicalize()?
        } else {
            target.to_owned()
        };
        sweep(&target);
        let (temporary, file) = create_beside(&target, |path| File::create_new(path))?;
        Ok(Self {
            file,
            place: Place::Beside { temporary, target },
        })
    }

    /// Syncs the file and renames it to its target.
    ///
    /// # Errors
    /// Those of the system. Nothing is left behind then.
    pub fn commit(mut self) -> Result<()> {
        let Place::Beside { temporary, target } = self.place else {
            return self.file.flush();
        };

        self.file.sync_all()?;
        temporary.rename(&target)?;
        sync_folder(folder_of(&target));
        Ok(())
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> Result<()> {
        self.file.flush()
    }
}

/// Writes a whole file, as [`NewFile`] does.
///
/// # Errors
/// Those of the system.
pub fn write(target: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = NewFile::begin(target)?;
    file.write_all(bytes)?;
    file.commit()
}

/// Copies a file to a target, as [`NewFile`] writes it, and compares the lengths before the rename.
///
/// # Errors
/// Those of the system; one of kind `UnexpectedEof` if the copy is shorter or longer.
pub fn copy(source: &Path, target: &Path) -> Result<()> {
    let mut source = File::open(source)?;
    let length = source.metadata()?.len();
    let mut file = NewFile::begin(target)?;
    let copied = std::io::copy(&mut source, &mut file)?;
    if copied != length {
        let reason = format!("{copied} of {length} bytes were copied");
        return Err(Error::new(ErrorKind::UnexpectedEof, reason));
    }

    file.commit()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap().flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out.json");
        write(&target, b"old").unwrap();
        {
            let mut file = NewFile::begin(&target).unwrap();
            file.write_all(b"ne").unwrap();
        }
        assert_eq!(std::fs::read(&target).unwrap(), b"old");
        write(&target, b"new").unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["out.json"]);
    }

    /// In a container a process id comes again, and with it the name that a killed process used.
    #[test]
    fn leftovers_are_never_taken_over_and_old_ones_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        let old = format!(".out.{}.partial", std::process::id());
        for name in [&old, ".out.0123456789abcdef.partial", ".other.7.partial"] {
            std::fs::write(folder.path().join(name), "foreign").unwrap();
        }
        let two_days_ago = SystemTime::now() - Duration::from_secs(2 * 24 * 60 * 60);
        for name in [&old, ".other.7.partial"] {
            let file = File::options()
                .write(true)
                .open(folder.path().join(name))
                .unwrap();
            file.set_modified(two_days_ago).unwrap();
        }

        write(&target, b"mine").unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"mine");
        assert_eq!(
            names(folder.path()),
            [".other.7.partial", ".out.0123456789abcdef.partial", "out"]
        );
    }

    #[test]
    fn copies_are_whole() {
        let folder = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| folder.path().join(name));
        std::fs::write(&from, vec![7; 100_000]).unwrap();
        copy(&from, &to).unwrap();
        assert_eq!(std::fs::read(&to).unwrap(), vec![7; 100_000]);
        assert!(copy(&folder.path().join("none"), &to).is_err());
        assert_eq!(names(folder.path()), ["from", "to"]);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_special_files_written_into() {
        use std::os::unix::fs::{FileTypeExt, symlink};

        let folder = tempfile::tempdir().unwrap();
        let [file, link] = ["file", "link"].map(|name| folder.path().join(name));
        write(&file, b"old").unwrap();
        symlink("file", &link).unwrap();
        write(&link, b"new").unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&file).unwrap(), b"new");

        write(Path::new("/dev/null"), b"gone").unwrap();
        let device = Path::new("/dev/null").symlink_metadata().unwrap();
        assert!(device.file_type().is_char_device());
        let error = write(folder.path(), b"x").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::IsADirectory);
    }
}
