//! One file, over a line that breaks.

use crate::cache::{RepoCache, create_parent};
use crate::config::HubConfig;
use crate::encoding::{decode, encoding};
use crate::error::{HubError, Result};
use crate::http::{Failure, Http, is_transient, malformed, transient};
use crate::lock::{self, Wait};
use crate::progress::{Progress, ProgressEvent};
use crate::retry::{Retries, retry_after};
use crate::verify::{mismatch, plain_etag, without_etag};
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap};
use reqwest::{Method, Response, StatusCode};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Everything downloads of one repository at one commit share.
pub(crate) struct Fetch<'a> {
    pub(crate) config: &'a HubConfig,
    pub(crate) http: &'a Http,
    pub(crate) cache: &'a RepoCache,
    pub(crate) repo: &'a str,
    pub(crate) commit: &'a str,
    pub(crate) progress: &'a dyn Progress,
}

/// What the hub says of a file before it is downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Metadata {
    /// The name of the blob, and its hash where it looks like one.
    pub(crate) etag: String,
    pub(crate) size: Option<u64>,
    /// The hub itself says so, whose etags are hashes. Those of a mirror may be anything.
    pub(crate) is_vouched: bool,
}

/// Downloads of a file until its etag counts as wrong: from the hub, and from a mirror, whose etag
/// is no hash if two downloads agree.
const DOWNLOADS: [usize; 2] = [2, 3];

impl Fetch<'_> {
    /// The file in the snapshot; downloaded unless it is there.
    pub(crate) async fn file(&self, file: &str) -> Result<PathBuf> {
        let there = self.cache.snapshot(self.commit).join(file);
        if there.exists() {
            return Ok(there);
        }
        let metadata = self.metadata(file).await?;
        let blob = self.cache.blob(&metadata.etag);
        if !blob.exists() {
            self.blob(file, &metadata).await?;
        }
        self.cache.link(self.commit, file, &metadata.etag)
    }

    /// Length and etag of a file.
    pub(crate) async fn metadata(&self, file: &str) -> Result<Metadata> {
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

    /// Whether the place of a body does not let itself be asked about it: an address that is signed
    /// for GET alone.
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
        let etag = linked.or_else(|| text(ETAG.as_str())).map(plain_etag);
        let number = |name: &str| text(name).and_then(|value| value.trim().parse().ok());
        // Neither a redirect's own length nor a compressed one says anything of the file's.
        let is_other = headers.contains_key("location") || encoding(headers).is_some();
        let size = number("x-linked-size").or_else(|| {
            if is_other {
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

    /// An answer's status as an error, where it is one.
    fn check(&self, file: &str, response: &Response) -> std::result::Result<(), Failure> {
        let status = response.status();
        if status.is_success()
            || status.is_redirection()
            || status == StatusCode::RANGE_NOT_SATISFIABLE
        {
            return Ok(());
        }
        if is_transient(status) {
            let after = retry_after(response.headers());
            return Err(Failure::Transient {
                reason: format!("the server answered {status}"),
                after,
                unreachable: false,
            });
        }
        let repo = self.repo.to_owned();
        Err(Failure::Final(match status {
            StatusCode::NOT_FOUND => HubError::NoSuchFile {
                repo,
                file: file.to_owned(),
            },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => HubError::Refused {
                repo,
                endpoint: self.config.endpoint.clone(),
                status: status.as_u16(),
                had_token: self.http.has_token(),
                hint: String::new(),
            },
            _ => malformed(&self.http.host(), file, format!("status {status}")),
        }))
    }

    /// Waits before another try, or gives up.
    async fn pause(
        &self,
        file: &str,
        failure: Failure,
        retries: &mut Retries,
        kept: u64,
    ) -> Result<()> {
        let (reason, after) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Transient { reason, after, .. } => (reason, after),
        };
        let Some(delay) = retries.next(after) else {
            return Err(HubError::GaveUp {
                file: file.to_owned(),
                attempts: retries.in_a_row(),
                reason,
                kept,
            });
        };
        self.progress.event(&ProgressEvent::Retry {
            file,
            attempt: retries.in_a_row(),
            delay,
            reason,
        });
        tokio::time::sleep(delay).await;
        Ok(())
    }

    /// Downloads a blob: alone among processes, continued where it stopped, checked before it is
    /// renamed.
    async fn blob(&self, file: &str, metadata: &Metadata) -> Result<()> {
        let (blob, incomplete) = (
            self.cache.blob(&metadata.etag),
            self.cache.incomplete(&metadata.etag),
        );
        create_parent(&incomplete)?;
        let wait = Wait {
            file,
            lock: &self.cache.lock(&metadata.etag),
            growing: &incomplete,
            timeout: self.config.lock_timeout,
            patience: self.config.read_timeout * 10,
        };
        let _lock = lock::acquire(&wait, self.progress).await?;
        if blob.exists() {
            return Ok(());
        }
        let io = |source| HubError::Io {
            path: incomplete.clone(),
            source,
        };
        let mut before = None;
        for left in (0..DOWNLOADS[usize::from(!metadata.is_vouched)]).rev() {
            self.body(file, metadata, &incomplete).await?;
            let found = mismatch(&incomplete, &metadata.etag, metadata.size).map_err(io)?;
            // The same bytes twice were not damaged on their way: a mirror's etag is no hash of
            // them.
            let found = found.filter(|found| {
                metadata.is_vouched || found.content.is_none() || found.content != before
            });

            let Some(found) = found else {
                File::open(&incomplete)
                    .and_then(|file| file.sync_all())
                    .map_err(io)?;
                std::fs::rename(&incomplete, &blob).map_err(io)?;
                self.progress.event(&ProgressEvent::Done { file });
                return Ok(());
            };
            std::fs::remove_file(&incomplete).map_err(io)?;
            if left == 0 {
                let (file, repo) = (file.to_owned(), self.repo.to_owned());
                return Err(HubError::Damaged {
                    file,
                    repo,
                    reason: found.reason,
                });
            }
            self.progress.event(&ProgressEvent::Restart {
                file,
                reason: found.reason,
            });
            before = found.content;
        }
        Ok(())
    }

    /// Brings the incomplete file to its full length.
    async fn body(&self, file: &str, metadata: &Metadata, incomplete: &Path) -> Result<()> {
        let io = |source| HubError::Io {
            path: incomplete.to_owned(),
            source,
        };
        let mut retries = Retries::new(self.config);
        let mut target = OpenOptions::new()
            .create(true)
            .append(true)
            .open(incomplete)
            .map_err(io)?;
        let mut have = target.metadata().map_err(io)?.len();
        if metadata.size.is_some_and(|size| have > size) {
            target.set_len(0).map_err(io)?;
            have = 0;
        }
        self.progress.event(&ProgressEvent::Start {
            file,
            total: metadata.size,
            resumed_from: have,
        });
        while metadata.size != Some(have) {
            let before = have;
            let outcome = self.part(file, metadata, &mut target, &mut have).await;
            if have > before {
                retries.progressed();
            }
            match outcome {
                Ok(()) if metadata.size.is_none_or(|size| have == size) => break,
                Ok(()) => {
                    let reason = format!("the connection ended after {have} bytes");
                    let failure = Failure::Transient {
                        reason,
                        after: None,
                        unreachable: false,
                    };
                    self.pause(file, failure, &mut retries, have).await?;
                }
                Err(failure) => self.pause(file, failure, &mut retries, have).await?,
            }
        }
        Ok(())
    }

    /// One request for what is missing, and its body.
    async fn part(
        &self,
        file: &str,
        metadata: &Metadata,
        target: &mut File,
        have: &mut u64,
    ) -> std::result::Result<(), Failure> {
        let range = (*have > 0).then(|| format!("bytes={have}-"));
        let url = self.http.file_url(self.repo, self.commit, file)?;
        let mut response = self.http.send(Method::GET, url, range, |_| false).await?;
        self.check(file, &response)?;
        let is_encoded = encoding(response.headers()).is_some();
        if *have > 0 && (is_encoded || !continues(&response, *have, metadata.size)) {
            self.progress.event(&ProgressEvent::Restart {
                file,
                reason: "the server cannot continue it".into(),
            });
            target
                .set_len(0)
                .map_err(|cause| self.write_error(file, cause, metadata, 0))?;
            *have = 0;
            if response.status() != StatusCode::OK {
                // Not the beginning of the file: ask again, for all of it.
                let reason = format!("the server answered {} to a range", response.status());
                return Err(Failure::Transient {
                    reason,
                    after: Some(Duration::ZERO),
                    unreachable: false,
                });
            }
        }
        if is_encoded {
            return self
                .encoded(file, &mut response, metadata, target, have)
                .await;
        }
        while let Some(chunk) = response.chunk().await.map_err(|cause| transient(&cause))? {
            let room = metadata.size.map_or(u64::MAX, |size| size - *have);
            // A server that sends more than it said: the rest is not the file's.
            let chunk = &chunk[..chunk.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
            if chunk.is_empty() {
                break;
            }
            target
                .write_all(chunk)
                .map_err(|cause| self.write_error(file, cause, metadata, *have))?;
            *have += chunk.len() as u64;
            self.progress.event(&ProgressEvent::Advance {
                file,
                bytes: chunk.len() as u64,
            });
        }
        Ok(())
    }

    /// A compressed body: all of it, or nothing.
    async fn encoded(
        &self,
        file: &str,
        response: &mut Response,
        metadata: &Metadata,
        target: &mut File,
        have: &mut u64,
    ) -> std::result::Result<(), Failure> {
        let failed = |cause| self.write_error(file, cause, metadata, 0);
        match decode(response, &self.http.host(), target, metadata.size, failed).await {
            Ok(length) => *have = length,
            Err(failure) => {
                target.set_len(0).map_err(failed)?;
                return Err(failure);
            }
        }
        self.progress
            .event(&ProgressEvent::Advance { file, bytes: *have });
        Ok(())
    }

    fn write_error(
        &self,
        file: &str,
        cause: std::io::Error,
        metadata: &Metadata,
        have: u64,
    ) -> HubError {
        let path = self.cache.incomplete(&metadata.etag);
        match cause.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                HubError::DiskFull {
                    file: file.to_owned(),
                    needed: metadata.size.unwrap_or(have).saturating_sub(have),
                    folder: path.parent().unwrap_or(&path).to_owned(),
                }
            }
            _ => HubError::Io {
                path,
                source: cause,
            },
        }
    }

    /// The first `length` bytes of a file, and the length of all of it.
    pub(crate) async fn beginning(&self, file: &str, length: u64) -> Result<(Vec<u8>, u64)> {
        let mut retries = Retries::new(self.config);
        loop {
            match self.try_beginning(file, length).await {
                Ok((bytes, Some(total))) => return Ok((bytes, total)),
                Ok((bytes, None)) => {
                    let size = self.metadata(file).await?.size;
                    let reason =
                        || malformed(&self.http.host(), file, "its length is not told".into());
                    return Ok((bytes, size.ok_or_else(reason)?));
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
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|cause| transient(&cause))? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 >= length {
                // A server without ranges sends everything; the connection is dropped here.
                bytes.truncate(usize::try_from(length).unwrap_or(usize::MAX));
                break;
            }
        }
        Ok((bytes, total))
    }
}

/// Whether an answer goes on from byte `have`. Some mirrors leave `Content-Range` out; then the
/// length must tally.
fn continues(response: &Response, have: u64, size: Option<u64>) -> bool {
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
