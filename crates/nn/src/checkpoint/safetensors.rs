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
