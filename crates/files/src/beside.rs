//! Temporary names beside a target, and what killed processes left under such names.

use crate::temporary::{Temporary, remove};
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::hash::{BuildHasher, RandomState};
use std::io::{Error, ErrorKind, Result};
use std::path::Path;
use std::time::{Duration, SystemTime};

const ENDING: &str = ".partial";

/// A leftover is removed when nothing in it was written for this long: no live process waits so
/// long between two writes.
const STALE: Duration = Duration::from_secs(24 * 60 * 60);

/// Names tried before giving up.
const ATTEMPTS: usize = 16;

/// Calls `create` with names beside `target` (`.NAME.RANDOM.partial`) until one is new. Returns the
/// name, and what `create` made.
pub(crate) fn create_beside<T>(
    target: &Path,
    create: impl Fn(&Path) -> Result<T>,
) -> Result<(Temporary, T)> {
    let start = hidden_start(target)?;
    for _ in 0..ATTEMPTS {
        // A hasher without input is keyed by 128 random bits.
        let random = RandomState::new().hash_one(0);
        let mut name = start.clone();
        name.push(format!("{random:016x}{ENDING}"));
        match Temporary::create(target.with_file_name(name), &create) {
            Err(cause) if cause.kind() == ErrorKind::AlreadyExists => {}
            made => return made,
        }
    }

    Err(ErrorKind::AlreadyExists.into())
}

/// `.NAME.`, with which the temporary names for this target begin.
fn hidden_start(target: &Path) -> Result<OsString> {
    let name = target
        .file_name()
        .ok_or_else(|| Error::from(ErrorKind::InvalidFilename))?;
    let mut start = OsString::from(".");
    start.push(name);
    start.push(".");
    Ok(start)
}

/// Removes what killed processes left beside `target` more than a day ago. One that cannot be
/// removed stays, which is no error: it takes room and nothing reads it.
pub(crate) fn sweep(target: &Path) {
    let Ok(start) = hidden_start(target) else {
        return;
    };
    let folder = folder_of(target);
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if is_leftover(&entry.file_name(), &start) && is_stale(&path, SystemTime::now()) {
            drop(remove(&path));
        }
    }
}

/// Whether a name is `start`, letters and digits, `.partial`.
fn is_leftover(name: &OsStr, start: &OsStr) -> bool {
    name.as_encoded_bytes()
        .strip_prefix(start.as_encoded_bytes())
        .and_then(|rest| rest.strip_suffix(ENDING.as_bytes()))
        .is_some_and(|middle| !middle.is_empty() && middle.iter().all(u8::is_ascii_alphanumeric))
}

/// Whether neither the file or folder nor what lies in the folder was changed for a day.
fn is_stale(path: &Path, now: SystemTime) -> bool {
    let age = |metadata: Metadata| {
        now.duration_since(metadata.modified()?)
            .map_err(Error::other)
    };
    let inside = std::fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.metadata().and_then(age));

    std::iter::once(path.symlink_metadata().and_then(age))
        .chain(inside)
        .all(|age| age.is_ok_and(|age| age > STALE))
}

/// The folder that a target lies in.
pub(crate) fn folder_of(target: &Path) -> &Path {
    match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Syncs a folder, so that a rename in it survives a power failure. Systems that cannot sync
/// folders are ignored; the files themselves are synced separately.
pub(crate) fn sync_folder(folder: &Path) {
    drop(File::open(folder).and_then(|folder| folder.sync_all()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_temporary_names_of_the_target_are_leftovers() {
        let start = OsStr::new(".model.");
        for name in [".model.0123456789abcdef.partial", ".model.4711.partial"] {
            assert!(is_leftover(OsStr::new(name), start), "{name}");
        }
        for name in [
            "model.4711.partial",
            ".model.partial",
            ".model..partial",
            ".model.a.b.partial",
            ".model.4711.partial.txt",
            ".other.4711.partial",
        ] {
            assert!(!is_leftover(OsStr::new(name), start), "{name}");
        }
    }

    #[test]
    fn a_leftover_is_stale_when_nothing_in_it_was_written_for_a_day() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.safetensors");
        std::fs::write(&file, "x").unwrap();
        let now = SystemTime::now();
        let later = now + STALE + Duration::from_secs(60);
        assert!(!is_stale(folder.path(), now));
        assert!(is_stale(folder.path(), later));

        let written = File::options().write(true).open(&file).unwrap();
        written.set_modified(later).unwrap();
        assert!(!is_stale(folder.path(), later));
        assert!(!is_stale(&folder.path().join("none"), later));
    }
}
