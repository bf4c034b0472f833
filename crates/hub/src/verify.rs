//! Verifies downloaded files: by their length, and by their etag if that is a hash, else by their
//! format.

use crate::content;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// How a file differs from what the server announced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mismatch {
    pub(crate) reason: String,
    /// The file's hash, if that is what differs. Two downloads with the same hash were not damaged
    /// in transit.
    pub(crate) content: Option<String>,
}

/// Compares the file `name`, downloaded to `path`, with the length and etag that the server
/// announced; `None` if nothing differs.
///
/// An etag of 64 hexadecimal digits is the SHA-256 that the hub sends for large files. One of 40 is
/// the git SHA-1 of a blob, which the hub sends for small files, or a plain SHA-1, which mirrors
/// send. Other etags (MD5s, those of multipart uploads, dates) cannot be checked, so the content must
/// be of the kind that the name says.
pub(crate) fn mismatch(
    name: &str,
    path: &Path,
    etag: &str,
    size: Option<u64>,
) -> std::io::Result<Option<Mismatch>> {
    let length = std::fs::metadata(path)?.len();
    if let Some(size) = size
        && length != size
    {
        let reason = format!("it has {length} bytes instead of {size}");
        return Ok(Some(Mismatch {
            reason,
            content: None,
        }));
    }

    let is_hex = etag.bytes().all(|byte| byte.is_ascii_hexdigit());
    let (reason, found) = match etag.len() {
        64 if is_hex => {
            let [sha256] = hash([Sha256::new()], path)?;
            (format!("its SHA-256 is {sha256}"), vec![sha256])
        }
        40 if is_hex => {
            let blob = Sha1::new().chain_update(format!("blob {length}\0"));
            let [git, plain] = hash([blob, Sha1::new()], path)?;
            (
                format!("its git SHA-1 is {git} and its plain SHA-1 {plain}"),
                vec![git, plain],
            )
        }
        _ => {
            let fault = content::fault(name, path)?;
            return Ok(fault.map(|reason| Mismatch {
                reason,
                content: None,
            }));
        }
    };
    let is_same = found.iter().any(|hash| hash.eq_ignore_ascii_case(etag));
    let reason = format!("{reason} instead of {etag}");
    Ok((!is_same).then(|| Mismatch {
        reason,
        content: found.into_iter().next(),
    }))
}

/// Several hashes of a file, in one pass.
fn hash<D: Digest, const N: usize>(
    mut hashers: [D; N],
    path: &Path,
) -> std::io::Result<[String; N]> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0u8; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hashers
                .iter_mut()
                .for_each(|hasher| hasher.update(&buffer[..count])),
        }
    }

    Ok(hashers.map(|hasher| hex(&hasher.finalize())))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The blob name for an etag header: without `W/`, quotes and Nexus' `{SHA1{…}}`. An etag that is
/// not a safe file name is replaced by a hash of it.
pub(crate) fn plain_etag(raw: &str) -> String {
    let etag = raw.trim().trim_start_matches("W/").trim_matches('"');
    let etag = etag
        .strip_prefix("{SHA1{")
        .and_then(|inner| inner.strip_suffix("}}"))
        .unwrap_or(etag);
    if crate::model_ref::is_plain_name(etag) {
        etag.to_owned()
    } else {
        unverified_name(&format!("etag {raw}"))
    }
}

/// The blob name for a file whose server sends no etag.
pub(crate) fn without_etag(commit: &str, file: &str) -> String {
    unverified_name(&format!("file {commit}/{file}"))
}

/// A blob name that cannot be confused with an etag or a hash of the content.
fn unverified_name(what: &str) -> String {
    format!("unverified-{}", hex(&Sha256::digest(what)))
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
    fn hashes_are_those_of_sha256sum_sha1sum_and_git() {
        let hello = file(b"hello\n");
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        let git = "ce013625030ba8dba906f756967f9e9ca394464a"; // printf 'hello\n' | git hash-object --stdin
        let sha1 = "f572d396fae9206628714fb2ce00f72e94f2258f"; // printf 'hello\n' | sha1sum
        let md5 = "b1946ac92492d2347c6235b4d2611184"; // printf 'hello\n' | md5sum

        for etag in [
            sha256,
            git,
            sha1,
            md5,
            "something-else",
            &sha1.to_uppercase(),
        ] {
            assert_eq!(
                mismatch("merges.txt", hello.path(), etag, Some(6)).unwrap(),
                None,
                "{etag}"
            );
        }

        let wrong = file(b"hellO\n");
        for (etag, name) in [
            (sha256, "SHA-256"),
            (git, "git SHA-1"),
            (sha1, "plain SHA-1"),
        ] {
            let found = mismatch("merges.txt", wrong.path(), etag, Some(6))
                .unwrap()
                .unwrap();
            assert!(
                found.reason.contains(name) && found.content.is_some(),
                "{found:?}"
            );
        }

        assert_eq!(
            mismatch("merges.txt", wrong.path(), md5, Some(6)).unwrap(),
            None,
            "an etag that is no known hash is not checked"
        );

        let shorter = mismatch("merges.txt", hello.path(), git, Some(7))
            .unwrap()
            .unwrap();
        assert_eq!(
            (shorter.reason.as_str(), shorter.content),
            ("it has 6 bytes instead of 7", None)
        );
    }

    #[test]
    fn etags_become_plain_names() {
        let sha1 = "f572d396fae9206628714fb2ce00f72e94f2258f";
        for (raw, name) in [
            ("W/\"abc-1\"", "abc-1"),
            (
                "\"d41d8cd98f00b204e9800998ecf8427e-3\"",
                "d41d8cd98f00b204e9800998ecf8427e-3",
            ),
            ("\"{SHA1{f572d396fae9206628714fb2ce00f72e94f2258f}}\"", sha1),
            ("\"0x8D4BCC2E4835CD0\"", "0x8D4BCC2E4835CD0"),
        ] {
            assert_eq!(plain_etag(raw), name);
        }

        let odd = [
            "\"../../x\"",
            "a/b",
            "",
            "\"\"",
            "a\\b",
            ".hidden",
            "\"CJ+3i/a==\"",
        ];

        let names: std::collections::BTreeSet<String> =
            odd.iter().map(|raw| plain_etag(raw)).collect();
        assert_eq!(names.len(), odd.len());
        assert!(
            names.iter().all(
                |name| name.starts_with("unverified-") && crate::model_ref::is_plain_name(name)
            )
        );
        assert_ne!(without_etag("c", "a"), without_etag("c", "b"));
    }
}
