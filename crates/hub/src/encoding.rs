//! Decodes compressed bodies. Some mirrors compress small files although they are asked not to.

use crate::error::HubError;
use crate::http::{Failure, malformed, transient};
use crate::rate::Floor;
use flate2::write::GzDecoder;
use reqwest::Response;
use reqwest::header::{CONTENT_ENCODING, HeaderMap};
use std::io::{Seek, SeekFrom, Write};

/// Upper bound of a decoded body of unknown length: far more than any small file.
const LARGEST: u64 = 1 << 30;

/// The compression of a body, in lower case; `None` if it is not compressed.
pub(crate) fn encoding(headers: &HeaderMap) -> Option<String> {
    let value = headers
        .get(CONTENT_ENCODING)?
        .to_str()
        .unwrap_or("?")
        .trim()
        .to_ascii_lowercase();
    (!value.is_empty() && value != "identity").then_some(value)
}

/// Writes the decoded body to `target`, which must be empty, and returns its length. Such a body
/// cannot be resumed.
pub(crate) async fn decode(
    response: &mut Response,
    host: &str,
    target: &mut std::fs::File,
    size: Option<u64>,
    mut floor: Floor,
    write_error: impl Fn(std::io::Error) -> HubError,
) -> Result<u64, Failure> {
    let known = encoding(response.headers()).unwrap_or_default();
    if known != "gzip" && known != "x-gzip" {
        let reason = format!("it is compressed ({known}), though the server was asked not to");
        return Err(malformed(host, "a file", reason).into());
    }

    let most = size.unwrap_or(LARGEST);
    let mut decoder = GzDecoder::new(target);
    let damaged = |cause: std::io::Error| match cause.kind() {
        std::io::ErrorKind::InvalidInput
        | std::io::ErrorKind::InvalidData
        | std::io::ErrorKind::UnexpectedEof => {
            let reason = format!("its compressed body is damaged: {cause}");
            Failure::Transient {
                reason,
                after: None,
                unreachable: false,
            }
        }
        _ => write_error(cause).into(),
    };

    while let Some(chunk) = response.chunk().await.map_err(|cause| transient(&cause))? {
        floor.count(chunk.len())?;
        decoder.write_all(&chunk).map_err(damaged)?;
        if decoder.get_mut().stream_position().map_err(&write_error)? > most {
            return Err(
                malformed(host, "a file", format!("it is longer than {most} bytes")).into(),
            );
        }
    }

    let target = decoder.finish().map_err(damaged)?;
    Ok(target.seek(SeekFrom::End(0)).map_err(write_error)?)
}
