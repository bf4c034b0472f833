//! Lists a repository's files at a revision. The answer is hf-hub's [`ModelInfo`]; it is requested
//! here, because hf-hub reads an answer of any length, and drops a `Retry-After` that does not come
//! with a 429.

use crate::config::HubConfig;
use crate::error::HubError;
use crate::http::{Failure, Http, is_transient, malformed, transient};
use crate::rate::Floor;
use crate::retry::retry_after;
use crate::{names, small};
use hf_hub::repository::ModelInfo;
use reqwest::{Method, Response, StatusCode};
use std::collections::BTreeSet;

/// Upper bound of a listing in bytes: some hundred thousand files.
const LONGEST_LISTING: usize = 16 << 20;

/// A repository's commit and the names of its files.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) commit: String,
    pub(crate) names: BTreeSet<String>,
}

/// Requests the listing. `cached` are names of cached models, to suggest if there is no such
/// repository.
pub(crate) async fn listing(
    http: &Http,
    config: &HubConfig,
    repo: &str,
    revision: Option<&str>,
    cached: &[String],
) -> Result<Listing, Failure> {
    let url = http.listing_url(repo, revision)?;
    let mut response = http.send(Method::GET, url, None, |_| false).await?;
    if !response.status().is_success() {
        return Err(refusal(config, repo, revision, cached, &response));
    }

    let host = &config.shown_endpoint();
    let body = body(config, repo, &mut response).await?;
    let info: ModelInfo = serde_json::from_slice(&body)
        .map_err(|cause| malformed(host, repo, format!("it is no listing of files: {cause}")))?;
    let commit = info
        .sha
        .filter(|commit| crate::cache::is_commit(commit))
        .ok_or_else(|| malformed(host, repo, "it names no commit".into()))?;
    let siblings = info
        .siblings
        .ok_or_else(|| malformed(host, repo, "it lists no files".into()))?;

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

/// The body of a listing, up to its limit.
async fn body(config: &HubConfig, repo: &str, response: &mut Response) -> Result<Vec<u8>, Failure> {
    let mut floor = Floor::new(config);
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|cause| transient(&cause))? {
        floor.count(chunk.len())?;
        if body.len() + chunk.len() > LONGEST_LISTING {
            let reason = format!("its list of files has more than {LONGEST_LISTING} bytes");
            return Err(malformed(&config.shown_endpoint(), repo, reason).into());
        }

        body.extend_from_slice(&chunk);
    }

    Ok(body)
}

/// The failure that an error status stands for.
fn refusal(
    config: &HubConfig,
    repo: &str,
    revision: Option<&str>,
    cached: &[String],
    response: &Response,
) -> Failure {
    let endpoint = config.shown_endpoint();
    let code = response.headers().get("x-error-code");
    match (response.status(), revision) {
        (status, _) if is_transient(status) => Failure::Transient {
            reason: match status {
                StatusCode::TOO_MANY_REQUESTS => "the hub limits the rate of requests (429)".into(),
                _ => format!("the hub answered {status}"),
            },
            after: retry_after(response.headers()),
            unreachable: false,
        },
        (status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN), _) => {
            Failure::Final(HubError::Refused {
                repo: repo.to_owned(),
                endpoint,
                status: status.as_u16(),
                had_token: config.token.is_some(),
                hint: names::hint(repo, cached),
            })
        }
        (StatusCode::NOT_FOUND, Some(revision))
            if code.is_none_or(|code| code != "RepoNotFound") =>
        {
            Failure::Final(HubError::NoSuchRevision {
                repo: repo.to_owned(),
                revision: revision.to_owned(),
                endpoint,
            })
        }
        (StatusCode::NOT_FOUND, _) => Failure::Final(HubError::NoSuchModel {
            repo: repo.to_owned(),
            endpoint,
            hint: names::hint(repo, cached),
        }),
        (status, _) => malformed(&endpoint, repo, format!("status {status}")).into(),
    }
}
