//! Lists a repository's files at a revision.

use crate::config::HubConfig;
use crate::error::HubError;
use crate::http::{Failure, Http, is_transient, malformed, read_body};
use crate::retry::retry_after;
use crate::{names, small};
use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;
use std::collections::BTreeSet;

/// Upper bound of an answer in bytes. That of a repository with ten thousand files has one
/// megabyte.
const LONGEST_ANSWER: usize = 16 << 20;

/// A repository's commit and the names of its files.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) commit: String,
    pub(crate) names: BTreeSet<String>,
}

/// The part of the hub's answer that is used (`ModelInfo` of huggingface_hub).
#[derive(Deserialize)]
struct Info {
    sha: Option<String>,
    siblings: Option<Vec<Sibling>>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// Requests the listing. `cached` are names of cached models, to suggest if there is no such
/// repository.
pub(crate) async fn listing(
    config: &HubConfig,
    http: &Http,
    repo: &str,
    revision: Option<&str>,
    cached: &[String],
) -> Result<Listing, Failure> {
    let url = http.api_url(repo, revision);
    let mut response = http.send(Method::GET, url, None, |_| false).await?;
    if response.status() != StatusCode::OK {
        return Err(explain(config, http, repo, revision, cached, &response));
    }

    let host = http.host();
    let wrong = |reason: String| malformed(&host, repo, reason);
    let body = read_body(&mut response, config, LONGEST_ANSWER, &host, repo).await?;
    let info: Info = serde_json::from_slice(&body)
        .map_err(|cause| wrong(format!("it is no listing of files ({cause})")))?;
    let commit = info
        .sha
        .filter(|commit| crate::cache::is_commit(commit))
        .ok_or_else(|| wrong("it names no commit".into()))?;
    let siblings = info
        .siblings
        .ok_or_else(|| wrong("it lists no files".into()))?;

    // Ignore files in other folders, and names that would lead out of the cache.
    let names = siblings
        .into_iter()
        .map(|file| file.rfilename)
        .filter(|name| small::may_be_fetched(name));
    Ok(Listing {
        commit,
        names: names.collect(),
    })
}

/// The failure for an answer that is no listing.
fn explain(
    config: &HubConfig,
    http: &Http,
    repo: &str,
    revision: Option<&str>,
    cached: &[String],
    response: &Response,
) -> Failure {
    let status = response.status();
    if is_transient(status) {
        return Failure::Transient {
            reason: match status {
                StatusCode::TOO_MANY_REQUESTS => {
                    "the hub limits the rate of requests (429)".to_owned()
                }
                _ => format!("the hub answered {status}"),
            },
            after: retry_after(response.headers()),
            unreachable: false,
        };
    }

    let repo = repo.to_owned();
    let endpoint = config.shown_endpoint();
    let code = response.headers().get("x-error-code");
    let lacks_repo = code.is_some_and(|code| code == "RepoNotFound");
    Failure::Final(match (status, revision) {
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => HubError::Refused {
            hint: names::hint(&repo, cached),
            repo,
            endpoint,
            status: status.as_u16(),
            had_token: http.has_token(),
        },
        (StatusCode::NOT_FOUND, Some(revision)) if !lacks_repo => HubError::NoSuchRevision {
            repo,
            revision: revision.to_owned(),
            endpoint,
        },
        (StatusCode::NOT_FOUND, _) => HubError::NoSuchModel {
            hint: names::hint(&repo, cached),
            repo,
            endpoint,
        },
        _ => malformed(&http.host(), &repo, format!("status {status}")),
    })
}
