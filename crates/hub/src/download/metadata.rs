//! A file's length and etag, which the server announces before the download.

use super::Fetch;
use crate::encoding::encoding;
use crate::error::Result;
use crate::retry::Retries;
use crate::verify::{plain_etag, without_etag};
use reqwest::header::{CONTENT_LENGTH, ETAG, HeaderMap};
use reqwest::{Method, Response, StatusCode};

/// What the server says about a file before it is downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Metadata {
    /// The name of the blob in the cache. If it looks like a hash, it is checked as one.
    pub(super) etag: String,
    /// Length in bytes, if the server says it.
    pub(super) size: Option<u64>,
    /// The etag is from the hub, so it is a hash. A mirror's etag may be anything.
    pub(super) is_vouched: bool,
}

impl Fetch<'_> {
    /// Length and etag of a file, by a HEAD request.
    pub(super) async fn metadata(&self, file: &str) -> Result<Metadata> {
        let mut retries = Retries::new(self.config);
        loop {
            let url = self.http.file_url(self.repo, self.commit, file)?;
            let answer = self.http.send(Method::HEAD, url, None, |headers| {
                headers.contains_key("x-linked-etag")
            });
            let failure = match answer.await {
                Ok(response) if self.answers_no_head(&response) => {
                    return Ok(self.read_metadata(file, &HeaderMap::new()));
                }
                Ok(response) => match self.check(file, &response) {
                    Ok(()) => return Ok(self.read_metadata(file, response.headers())),
                    Err(failure) => failure,
                },
                Err(failure) => failure,
            };

            self.pause(file, failure, &mut retries, 0).await?;
        }
    }

    /// Whether the server rejects the method HEAD. A storage host may answer 403, if its URL is
    /// signed for GET alone; from the hub itself, 403 means what it says.
    fn answers_no_head(&self, response: &Response) -> bool {
        let refused = [
            StatusCode::FORBIDDEN,
            StatusCode::METHOD_NOT_ALLOWED,
            StatusCode::NOT_IMPLEMENTED,
        ];
        let allowed = if self.http.is_endpoint(response.url()) {
            &refused[1..]
        } else {
            &refused[..]
        };

        allowed.contains(&response.status())
    }

    fn read_metadata(&self, file: &str, headers: &HeaderMap) -> Metadata {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let linked = text("x-linked-etag");
        // An empty etag is none: it would be the same for all files.
        let etag = linked
            .or_else(|| text(ETAG.as_str()))
            .filter(|etag| !etag.trim_matches(['W', '/', '"', ' ']).is_empty())
            .map(plain_etag);
        let number = |name: &str| text(name).and_then(|value| value.trim().parse().ok());
        let size = number("x-linked-size").or_else(|| {
            // The length of a redirect's own body or of a compressed one is not the file's.
            if headers.contains_key("location") || encoding(headers).is_some() {
                None
            } else {
                number(CONTENT_LENGTH.as_str())
            }
        });

        Metadata {
            etag: etag.unwrap_or_else(|| without_etag(self.commit, file)),
            size,
            is_vouched: linked.is_some() || headers.contains_key("x-repo-commit"),
        }
    }
}
