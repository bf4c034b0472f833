//! Headers of safetensors files, validated before any of their offsets is used.

use super::Entry;
use crate::error::{NnError, Result};
use safetensors::SafeTensors;
use safetensors::tensor::{Metadata, SafeTensorError};

/// The tensors of a whole file.
pub(super) fn entries(file: &str, bytes: &[u8]) -> Result<Vec<(String, Entry)>> {
    let (header_len, metadata) = SafeTensors::read_metadata(bytes)
        .map_err(|cause| malformed(file, &cause, bytes.len() as u64, bytes))?;
    // The 8 bytes before the header hold its length.
    Ok(from_metadata(&metadata, header_len + 8))
}

/// The tensors described by a header, without the data that follows it.
pub(super) fn entries_of_header(
    file: &str,
    json: &[u8],
    file_len: u64,
) -> Result<Vec<(String, Entry)>> {
    let error = |reason: String| NnError::MalformedFile {
        file: file.to_owned(),
        reason,
    };
    let metadata: Metadata =
        serde_json::from_slice(json).map_err(|cause| error(cause.to_string()))?;
    let expected = metadata.data_len() as u64 + json.len() as u64 + 8;

    if expected != file_len {
        return Err(error(format!(
            "its header describes {expected} bytes, the file has {file_len}"
        )));
    }

    Ok(from_metadata(&metadata, json.len() + 8))
}

/// The tensors sorted by name, as the safetensors library lists them. `data_start` is the file
/// offset to which the header's offsets are relative.
fn from_metadata(metadata: &Metadata, data_start: usize) -> Vec<(String, Entry)> {
    let mut entries: Vec<_> = metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| {
            let (start, end) = info.data_offsets;
            let entry = Entry {
                file: 0,
                dtype: info.dtype,
                shape: info.shape.clone(),
                range: (data_start + start, data_start + end),
            };
            (name, entry)
        })
        .collect();

    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    entries
}

/// The safetensors library's error in terms of the user's file.
fn malformed(file: &str, cause: &SafeTensorError, length: u64, bytes: &[u8]) -> NnError {
    let reason = match cause {
        SafeTensorError::HeaderTooSmall => format!("it has {length} bytes, too few for a header"),
        SafeTensorError::InvalidHeaderLength => format!(
            "its header should have {} bytes, but the file ends after {length}: it is truncated or not safetensors",
            bytes
                .first_chunk()
                .map_or(0, |first| u64::from_le_bytes(*first))
        ),
        SafeTensorError::MetadataIncompleteBuffer => {
            format!(
                "its header describes another length than the {length} bytes it has: it is truncated or damaged"
            )
        }
        SafeTensorError::InvalidOffset(tensor) => {
            format!(
                "the offsets of tensor `{tensor}` in its header overlap another tensor or are out of order"
            )
        }
        other => format!("{other}: it is damaged or not safetensors"),
    };

    NnError::MalformedFile {
        file: file.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use crate::checkpoint::Checkpoint;

    /// Found by fuzzing: a look at its rows asked for 64 GiB.
    #[test]
    fn tensors_without_elements_have_no_huge_dimensions() {
        let open = |shape: &str, with_index: bool| {
            let folder = tempfile::tempdir().unwrap();
            let header =
                format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}}}"#);
            let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
            let path = folder.path().join("x.safetensors");
            std::fs::write(&path, &bytes).unwrap();
            let index = folder.path().join("index.json");
            std::fs::write(&index, r#"{"weight_map": {"a": "x.safetensors"}}"#).unwrap();

            let headers =
                Checkpoint::from_headers([("x", header.as_bytes(), bytes.len() as u64)]).map(drop);
            let index = with_index.then_some(index.as_path());
            let opened = Checkpoint::open_safetensors(&[path], index).map(drop);
            assert_eq!(opened.is_ok(), headers.is_ok(), "{shape}");
            opened
        };
        for with_index in [false, true] {
            for shape in ["[0]", "[0,4096]", "[4096,0]", "[2,3,0]"] {
                assert!(open(shape, with_index).is_ok(), "{shape}");
            }
            for shape in ["[0,8589934592]", "[8589934592,0]", "[1048576,1048576,0]"] {
                let error = open(shape, with_index).unwrap_err().to_string();
                assert!(error.contains("has no elements"), "{error}");
            }
        }
    }
}
