//! Whether a downloaded file can be what its name says. Asked where the server announces no hash:
//! without one, the login page of a network or the first half of a file would become the model.

use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Result, Seek, SeekFrom};
use std::path::Path;

/// Upper bound of a safetensors header in bytes, as in the safetensors crate.
pub(crate) const LONGEST_HEADER: u64 = 100_000_000;

/// Bytes at the end of a zip archive in which its directory ends (APPNOTE 4.3.16).
const ZIP_TAIL: u64 = 22 + 65_535;

/// Why the content cannot be that of a file called `name`; `None` if it can be.
pub(crate) fn fault(name: &str, path: &Path) -> Result<Option<String>> {
    let mut file = File::open(path)?;
    let mut start = Vec::new();
    (&mut file).take(512).read_to_end(&mut start)?;
    if is_web_page(&start) {
        return Ok(Some("it is a web page and not the file".into()));
    }

    file.rewind()?;
    if name.ends_with(".json") {
        return Ok(json_fault(file));
    }
    if name.ends_with(".safetensors") {
        return safetensors_fault(file);
    }
    if name.ends_with(".bin") && start.starts_with(b"PK") {
        return zip_fault(file);
    }

    Ok(None)
}

fn is_web_page(start: &[u8]) -> bool {
    let text = String::from_utf8_lossy(start).to_ascii_lowercase();
    let text = text.trim_start_matches('\u{feff}').trim_start();
    ["<!doctype html", "<html", "<head", "<?xml"]
        .iter()
        .any(|tag| text.starts_with(tag))
}

/// Python's JSON knows `NaN` and `Infinity`, so only what is no JSON from the start, or ends too
/// early, is a fault.
fn json_fault(file: File) -> Option<String> {
    let mut bytes = BufReader::new(file)
        .bytes()
        .map_while(std::result::Result::ok);
    let first = bytes.find(|byte| !byte.is_ascii_whitespace());
    if !matches!(first, Some(b'{' | b'[')) {
        return Some("it is not JSON".into());
    }

    // How deep the brackets are at the end, outside of strings.
    let mut depth = 1_i64;
    let mut is_text = false;
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' if is_text => drop(bytes.next()),
            b'"' => is_text = !is_text,
            b'{' | b'[' if !is_text => depth += 1,
            b'}' | b']' if !is_text => depth -= 1,
            _ => {}
        }
    }

    (depth != 0 || is_text).then(|| "its JSON ends too early".into())
}

/// Checks that the header is whole and describes a file of this length.
fn safetensors_fault(mut file: File) -> Result<Option<String>> {
    #[derive(Deserialize)]
    struct Info {
        data_offsets: (u64, u64),
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Entry {
        Tensor(Info),
        Metadata(IgnoredAny),
    }

    let file_len = file.metadata()?.len();
    let mut first = [0; 8];
    if file_len < 8 {
        return Ok(Some("it has fewer than 8 bytes".into()));
    }
    file.read_exact(&mut first)?;
    let length = u64::from_le_bytes(first);
    if length > LONGEST_HEADER || length > file_len - 8 {
        let reason =
            format!("its header would have {length} bytes; it is cut off, or something else");
        return Ok(Some(reason));
    }

    let header = BufReader::new(file.take(length));
    let entries: BTreeMap<String, Entry> = match serde_json::from_reader(header) {
        Ok(entries) => entries,
        Err(cause) => return Ok(Some(format!("its header is not JSON: {cause}"))),
    };
    let data = entries
        .values()
        .filter_map(|entry| match entry {
            Entry::Tensor(info) => Some(info.data_offsets.1),
            Entry::Metadata(_) => None,
        })
        .max()
        .unwrap_or(0);
    let expected = data.saturating_add(8 + length);

    Ok((file_len != expected)
        .then(|| format!("it has {file_len} bytes and its header describes {expected}")))
}

fn zip_fault(mut file: File) -> Result<Option<String>> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(ZIP_TAIL)))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    let is_whole = tail.windows(4).any(|window| window == b"PK\x05\x06");
    Ok((!is_whole).then(|| "its zip archive has no end".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, content: &[u8]) -> Option<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        fault(name, file.path()).unwrap()
    }

    fn safetensors(header: &str, data: usize) -> Vec<u8> {
        let length = (header.len() as u64).to_le_bytes();
        [&length[..], header.as_bytes(), &vec![0; data]].concat()
    }

    #[test]
    fn json_is_whole_or_refused() {
        for good in ["{}", " [1, \"]\"]\n", r#"{"a": NaN, "b": "\"}"}"#] {
            assert_eq!(of("config.json", good.as_bytes()), None, "{good}");
        }
        for bad in ["", "x", r#"{"a": 1"#, r#"{"a": "}"#, r#"{"a": {}"#] {
            assert!(of("config.json", bad.as_bytes()).is_some(), "{bad}");
        }
    }

    #[test]
    fn safetensors_are_as_long_as_their_header_says() {
        let header = r#"{"__metadata__": {"format": "pt"}, "a": {"dtype": "U8", "shape": [5], "data_offsets": [0, 5]}}"#;
        let whole = safetensors(header, 5);
        assert_eq!(of("model.safetensors", &whole), None);
        assert_eq!(of("model.safetensors", &safetensors("{}", 0)), None);
        for length in 0..whole.len() {
            assert!(
                of("model.safetensors", &whole[..length]).is_some(),
                "{length}"
            );
        }
        assert!(of("model.safetensors", &safetensors(header, 6)).is_some());
        assert!(of("model.safetensors", &safetensors("not JSON", 0)).is_some());
    }

    #[test]
    fn web_pages_and_cut_archives_are_refused() {
        for name in [
            "merges.txt",
            "tokenizer.model",
            "config.json",
            "model.safetensors",
        ] {
            let reason = of(name, b"\n<!DOCTYPE html><html>Log in</html>").unwrap();
            assert!(reason.contains("web page"), "{reason}");
        }
        assert_eq!(of("merges.txt", b"#version: 0.2\na b\n"), None);

        let archive = [&b"PK\x03\x04data"[..], b"PK\x05\x06", &[0; 18]].concat();
        assert_eq!(of("pytorch_model.bin", &archive), None);
        assert!(of("pytorch_model.bin", &archive[..10]).is_some());
        assert_eq!(of("pytorch_model.bin", b"\x80\x02legacy"), None);
    }
}
