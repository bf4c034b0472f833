//! Byte ranges: checking that an answer resumes a download, and reading the beginning of a file.

use super::Fetch;
use crate::encoding::encoding;
use crate::error::Result;
use crate::http::{Failure, malformed, transient};
use crate::rate::Floor;
use crate::retry::Retries;
use reqwest::header::{CONTENT_RANGE, HeaderMap};
use reqwest::{Method, Response, StatusCode};

impl Fetch<'_> {
    /// The first `length` bytes of a file (all of it if it is shorter), and its total length.
    pub(crate) async fn beginning(&self, file: &str, length: u64) -> Result<(Vec<u8>, u64)> {
        let mut retries = Retries::new(self.config);
        loop {
            match self.try_beginning(file, length).await {
                Ok((bytes, Some(total))) => return Ok((bytes, total)),
                Ok((bytes, None)) => {
                    let size = self.metadata(file).await?.size;
                    let unknown = || {
                        let reason = "the server does not say how long it is".into();
                        malformed(&self.http.host(), file, reason)
                    };
                    return Ok((bytes, size.ok_or_else(unknown)?));
                }
                Err(failure) => self.pause(file, failure, &mut retries, 0).await?,
            }
        }
    }

    async fn try_beginning(
        &self,
        file: &str,
        length: u64,
    ) -> std::result::Result<(Vec<u8>, Option<u64>), Failure> {
        let url = self.http.file_url(self.repo, self.commit, file)?;
        let range = format!("bytes=0-{}", length.saturating_sub(1));
        let mut response = self
            .http
            .send(Method::GET, url, Some(range), |_| false)
            .await?;
        self.check(file, &response)?;

        if let Some(encoding) = encoding(response.headers()) {
            let reason =
                format!("it is compressed ({encoding}), so its beginning cannot be read alone");
            return Err(malformed(&self.http.host(), file, reason).into());
        }

        let total = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                content_range(response.headers()).and_then(|(_, total)| total)
            }
            _ => response.content_length(),
        };

        let mut floor = Floor::new(self.config);
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|cause| transient(&cause))? {
            floor.count(chunk.len())?;
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 >= length {
                // A server without ranges sends the whole file; returning drops the connection.
                bytes.truncate(usize::try_from(length).unwrap_or(usize::MAX));
                break;
            }
        }

        Ok((bytes, total))
    }
}

/// Whether an answer resumes at byte `have`. Some mirrors omit `Content-Range`; then the length
/// must match.
pub(super) fn continues(response: &Response, have: u64, size: Option<u64>) -> bool {
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return false;
    }

    match content_range(response.headers()) {
        Some((start, total)) => {
            start == have && total.is_none_or(|total| size.is_none_or(|size| size == total))
        }
        None => size.is_some() && response.content_length().map(|length| length + have) == size,
    }
}

/// First byte and total length of a `Content-Range: bytes 5-9/10`.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let value = headers
        .get(CONTENT_RANGE)?
        .to_str()
        .ok()?
        .trim()
        .strip_prefix("bytes")?
        .trim_start();

    let (range, total) = value.split_once('/')?;
    let start = range.split_once('-')?.0.trim().parse().ok()?;

    Some((start, total.trim().parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_RANGE, value.parse().unwrap());
            content_range(&headers)
        };

        assert_eq!(read("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(read("bytes 5-9/*"), Some((5, None)));
        assert_eq!(read("bytes */10"), None);
        assert_eq!(read("lines 5-9/10"), None);
    }
}
