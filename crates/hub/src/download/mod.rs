//! Downloads of single files over connections that may break: resumed, retried, verified.

mod metadata;
mod range;

use crate::cache::{RepoCache, create_parent};
use crate::config::HubConfig;
use crate::content;
use crate::encoding::{decode, encoding};
use crate::error::{HubError, Result};
use crate::http::{Failure, Http, is_transient, malformed, transient};
use crate::lock::{self, Wait};
use crate::progress::{Progress, ProgressEvent};
use crate::rate::Floor;
use crate::retry::{Retries, retry_after};
use crate::verify::mismatch;
use metadata::Metadata;
use range::continues;
use reqwest::{Method, Response, StatusCode};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What all downloads from one repository at one commit share.
pub(crate) struct Fetch<'a> {
    pub(crate) config: &'a HubConfig,
    pub(crate) http: &'a Http,
    pub(crate) cache: &'a RepoCache,
    pub(crate) repo: &'a str,
    pub(crate) commit: &'a str,
    pub(crate) progress: &'a dyn Progress,
}

/// Downloads of a file before a mismatch with its etag is an error, for the hub.
const HUB_DOWNLOADS: usize = 2;
/// The same for a mirror. Its etag may not be a hash at all; that is assumed if two downloads
/// agree.
const MIRROR_DOWNLOADS: usize = 3;

impl Fetch<'_> {
    /// Downloads a file unless it is cached. Returns its path in the snapshot.
    pub(crate) async fn file(&self, file: &str) -> Result<PathBuf> {
        let cached = self.cache.snapshot(self.commit).join(file);
        if cached.exists() {
            return Ok(cached);
        }

        let metadata = self.metadata(file).await?;
        let blob = self.cache.blob(&metadata.etag);
        if !blob.exists() {
            self.blob(file, &metadata).await?;
        }

        self.cache.link(self.commit, file, &metadata.etag)
    }

    /// Turns an error status into an error.
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
                endpoint: self.config.shown_endpoint(),
                status: status.as_u16(),
                had_token: self.http.has_token(),
                hint: String::new(),
            },
            _ => malformed(&self.http.host(), file, format!("status {status}")),
        }))
    }

    /// Waits before the next attempt, or gives up. `kept` is the number of bytes downloaded so far.
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
                attempts: retries.attempts(),
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

    /// Downloads a blob under a lock: resumes a partial file, verifies it, and renames it into
    /// place.
    async fn blob(&self, file: &str, metadata: &Metadata) -> Result<()> {
        let blob = self.cache.blob(&metadata.etag);
        let incomplete = self.cache.incomplete(&metadata.etag);
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
            return Ok(()); // another process has downloaded it meanwhile
        }

        self.verified_body(file, metadata, &incomplete).await?;
        File::open(&incomplete)
            .and_then(|file| file.sync_all())
            .and_then(|()| std::fs::rename(&incomplete, &blob))
            .map_err(|source| HubError::Io {
                path: incomplete,
                source,
            })?;
        self.progress.event(&ProgressEvent::Done { file });
        Ok(())
    }

    /// Completes the incomplete file and verifies it. If it is damaged, it is downloaded again, up
    /// to a limit.
    async fn verified_body(
        &self,
        file: &str,
        metadata: &Metadata,
        incomplete: &Path,
    ) -> Result<()> {
        let io = |source| HubError::Io {
            path: incomplete.to_owned(),
            source,
        };
        let max_downloads = if metadata.is_vouched {
            HUB_DOWNLOADS
        } else {
            MIRROR_DOWNLOADS
        };

        let mut downloads = 0;
        let mut previous_hash = None;
        loop {
            self.body(file, metadata, incomplete).await?;
            downloads += 1;
            let Some(found) =
                mismatch(file, incomplete, &metadata.etag, metadata.size).map_err(io)?
            else {
                return Ok(());
            };
            // If a mirror sends the same bytes twice, they are not damaged: its etag is not a hash
            // of them.
            if !metadata.is_vouched
                && found.content.is_some()
                && found.content == previous_hash
                && content::fault(file, incomplete).map_err(io)?.is_none()
            {
                return Ok(());
            }

            std::fs::remove_file(incomplete).map_err(io)?;
            if downloads == max_downloads {
                return Err(HubError::Damaged {
                    file: file.to_owned(),
                    repo: self.repo.to_owned(),
                    reason: found.reason,
                });
            }
            self.progress.event(&ProgressEvent::Restart {
                file,
                reason: found.reason,
            });
            previous_hash = found.content;
        }
    }

    /// Downloads the rest of the incomplete file, with as many requests as it takes.
    async fn body(&self, file: &str, metadata: &Metadata, incomplete: &Path) -> Result<()> {
        let io = |source| HubError::Io {
            path: incomplete.to_owned(),
            source,
        };
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

        let mut retries = Retries::new(self.config);
        while metadata.size != Some(have) {
            let (before, started) = (have, Instant::now());
            let outcome = self.part(file, metadata, &mut target, &mut have).await;
            if have > before && self.was_fast_enough(have - before, started.elapsed()) {
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

    /// Whether a request that took this long brought enough bytes to count as progress.
    fn was_fast_enough(&self, bytes: u64, elapsed: Duration) -> bool {
        elapsed < self.config.rate_window
            || bytes as f64 >= self.config.slowest_rate as f64 * elapsed.as_secs_f64()
    }

    /// One request for the missing bytes. `have` bytes are in `target`, and counted on as more
    /// arrive.
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
            *have = 0;
            self.restart(file, response.status(), metadata, target)?;
        }

        if is_encoded {
            return self
                .encoded(file, &mut response, metadata, target, have)
                .await;
        }

        let mut floor = Floor::new(self.config);
        while let Some(chunk) = response.chunk().await.map_err(|cause| transient(&cause))? {
            let room = metadata.size.map_or(u64::MAX, |size| size - *have);
            // Bytes past the announced size do not belong to the file.
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
            floor.count(chunk.len())?;
        }

        Ok(())
    }

    /// Empties `target`, because the server did not resume the download. Unless its answer is the
    /// whole file, it is a failure that leads to another request.
    fn restart(
        &self,
        file: &str,
        status: StatusCode,
        metadata: &Metadata,
        target: &File,
    ) -> std::result::Result<(), Failure> {
        self.progress.event(&ProgressEvent::Restart {
            file,
            reason: "the server cannot resume it".into(),
        });
        target
            .set_len(0)
            .map_err(|cause| self.write_error(file, cause, metadata, 0))?;
        if status == StatusCode::OK {
            return Ok(());
        }

        Err(Failure::Transient {
            reason: format!("the server answered {status} to a range"),
            after: Some(Duration::ZERO),
            unreachable: false,
        })
    }

    /// Decodes a compressed body into the empty `target`. It cannot be resumed: after a failure,
    /// `target` is empty again.
    async fn encoded(
        &self,
        file: &str,
        response: &mut Response,
        metadata: &Metadata,
        target: &mut File,
        have: &mut u64,
    ) -> std::result::Result<(), Failure> {
        let failed = |cause| self.write_error(file, cause, metadata, 0);
        let floor = Floor::new(self.config);
        let host = self.http.host();
        match decode(response, &host, target, metadata.size, floor, failed).await {
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
}
