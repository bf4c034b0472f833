//! Whether the bytes on disk are the ones the hub has: length, and the hash the etag is.

use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Why a file is not the one that was asked for, or nothing.
pub(crate) fn mismatch(path: &Path, etag: &str, size: Option<u64>) -> std::io::Result<Option<String>> {
    let length = std::fs::metadata(path)?.len();
    if let Some(size) = size
        && length != size
    {
        return Ok(Some(format!("it has {length} bytes instead of {size}")));
    }
    let is_hex = etag.bytes().all(|byte| byte.is_ascii_hexdigit());
    // LFS files have their SHA-256 as etag, small ones git's SHA-1 of `blob LENGTH\0` and the content.
    let (name, found) = match etag.len() {
        64 if is_hex => ("SHA-256", hash(Sha256::new(), path)?),
        40 if is_hex => ("git SHA-1", hash(Sha1::new().chain_update(format!("blob {length}\0")), path)?),
        _ => return Ok(None),
    };
    let same = found.eq_ignore_ascii_case(etag);
    Ok((!same).then(|| format!("its {name} is {found} instead of {etag}")))
}

fn hash(mut hasher: impl Digest, path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0u8; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hasher.update(&buffer[..count]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The etag of an answer as the name of a blob: without `W/` and quotes, and nothing but a plain name.
pub(crate) fn plain_etag(raw: &str) -> Option<String> {
    let etag = raw.trim().trim_start_matches("W/").trim_matches('"');
    crate::model_ref::is_plain_name(etag).then(|| etag.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        file
    }

    #[test]
    fn hashes_are_those_of_sha256sum_and_git() {
        let hello = file(b"hello\n");
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        let git = "ce013625030ba8dba906f756967f9e9ca394464a"; // printf 'hello\n' | git hash-object --stdin
        for etag in [sha256, git, "something-else"] {
            assert_eq!(mismatch(hello.path(), etag, Some(6)).unwrap(), None, "{etag}");
        }
        let wrong = file(b"hellO\n");
        for (etag, name) in [(sha256, "SHA-256"), (git, "git SHA-1")] {
            assert!(mismatch(wrong.path(), etag, Some(6)).unwrap().unwrap().contains(name));
        }
        assert_eq!(mismatch(hello.path(), git, Some(7)).unwrap().unwrap(), "it has 6 bytes instead of 7");
    }

    #[test]
    fn etags_become_plain_names_or_nothing() {
        assert_eq!(plain_etag("W/\"abc-1\"").as_deref(), Some("abc-1"));
        for hostile in ["\"../../x\"", "a/b", "", "\"\"", "a\\b", ".hidden"] {
            assert_eq!(plain_etag(hostile), None, "{hostile}");
        }
    }
}
