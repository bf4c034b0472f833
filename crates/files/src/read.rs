//! Reads that end: of regular files, up to a size.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

/// Opens a regular file, or a link to one. Anything else (a pipe, which would wait for its writer;
/// a device, which may never end) is an error.
///
/// # Errors
/// Those of the system; one of kind `InvalidInput` if it is no regular file.
pub fn open(path: &Path) -> Result<File> {
    // Before it is opened, because that waits for a pipe's writer.
    check(std::fs::metadata(path)?.is_file())?;
    let file = File::open(path)?;
    check(file.metadata()?.is_file())?;
    Ok(file)
}

fn check(is_file: bool) -> Result<()> {
    if is_file {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidInput,
        "it is not a regular file",
    ))
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// As [`open`]; one of kind `FileTooLarge` if it is longer.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = open(path)?;
    let length = file.metadata()?.len();
    let mut bytes = Vec::new();
    if length <= limit {
        bytes.reserve(usize::try_from(length).unwrap_or(0));
        file.take(limit + 1).read_to_end(&mut bytes)?;
    }

    if length > limit || bytes.len() as u64 > limit {
        let reason = format!("it has more than {limit} bytes, which are too many for such a file");
        return Err(Error::new(ErrorKind::FileTooLarge, reason));
    }

    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_up_to_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("five");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        assert_eq!(read(&path, 4).unwrap_err().kind(), ErrorKind::FileTooLarge);
        let missing = read(&folder.path().join("none"), 4).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        let error = read(folder.path(), 4).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn devices_are_not_read() {
        let error = read(Path::new("/dev/zero"), 4).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
    }
}
