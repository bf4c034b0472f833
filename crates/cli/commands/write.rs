//! Writing a file atomically.

use std::path::Path;

/// Writes to a temporary file beside the target, syncs it and renames it, so that a partial file
/// never has the target's name.
pub(super) fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut name = path
        .file_name()
        .ok_or(std::io::ErrorKind::InvalidFilename)?
        .to_owned();
    name.push(format!(".{}.partial", std::process::id()));
    let beside = path.with_file_name(name);

    let written = std::fs::File::create(&beside)
        .and_then(|mut file| {
            std::io::Write::write_all(&mut file, bytes).and_then(|()| file.sync_all())
        })
        .and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() {
        // The first error is the one to report.
        let _ = std::fs::remove_file(&beside);
    }

    written
}
