//! Lists a repository's files at a revision, through hf-hub.

use crate::config::HubConfig;
use crate::error::{HubError, Result};
use crate::http::{self, Failure, malformed};
use crate::{names, small};
use hf_hub::{HFClient, HFError, split_id};
use std::collections::BTreeSet;

/// A repository's commit and the names of its files.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) commit: String,
    pub(crate) names: BTreeSet<String>,
}

/// Requests the listing. `cached` are names of cached models, to suggest if there is no such
/// repository.
pub(crate) async fn listing(
    config: &HubConfig,
    repo: &str,
    revision: Option<&str>,
    cached: &[String],
) -> std::result::Result<Listing, Failure> {
    let client = client(config)?;
    let (owner, name) = split_id(repo);
    let model = client.model(owner, name);
    let answer = match revision {
        Some(revision) => model.info().revision(revision).send().await,
        None => model.info().send().await,
    };
    let info = answer.map_err(|cause| explain(config, repo, revision, cached, cause))?;
    let host = &config.shown_endpoint();
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

fn client(config: &HubConfig) -> Result<HFClient> {
    let mut builder = HFClient::builder()
        .endpoint(&config.endpoint)
        .cache_dir(&config.cache_dir)
        .client(http::client(
            config,
            reqwest::redirect::Policy::limited(10),
        )?)
        .retry_max_attempts(0);

    // Without a token, hf-hub would look for one in the environment. With one that is not a valid
    // header value (a line break), it sends none, which is what we want.
    builder = builder.token(config.token.as_deref().unwrap_or("\n"));
    builder
        .build()
        .map_err(|cause| malformed(&config.shown_endpoint(), "HF_ENDPOINT", cause.to_string()))
}

/// Maps hf-hub's error to ours, or to a transient failure.
fn explain(
    config: &HubConfig,
    repo: &str,
    revision: Option<&str>,
    cached: &[String],
    cause: HFError,
) -> Failure {
    let endpoint = config.shown_endpoint();
    let refused = |status| {
        Failure::Final(HubError::Refused {
            repo: repo.to_owned(),
            endpoint: endpoint.clone(),
            status,
            had_token: config.token.is_some(),
            hint: names::hint(repo, cached),
        })
    };

    match cause {
        HFError::AuthRequired { .. } => refused(401),
        HFError::Forbidden { .. } => refused(403),
        HFError::RepoNotFound { .. } => no_such_model(repo, &endpoint, cached),
        HFError::RevisionNotFound { context, .. } => {
            let code = context
                .and_then(|context| context.error_code)
                .unwrap_or_default();
            match revision {
                Some(revision) if code != "RepoNotFound" => {
                    Failure::Final(HubError::NoSuchRevision {
                        repo: repo.to_owned(),
                        revision: revision.to_owned(),
                        endpoint,
                    })
                }
                _ => no_such_model(repo, &endpoint, cached),
            }
        }
        HFError::RateLimited { retry_after, .. } => Failure::Transient {
            reason: "the hub limits the rate of requests (429)".into(),
            after: retry_after,
            unreachable: false,
        },
        HFError::Http { context } if http::is_transient(context.status) => Failure::Transient {
            reason: format!("the hub answered {}", context.status),
            after: None,
            unreachable: false,
        },
        HFError::Request { source, .. } => http::transient(&source),
        other => Failure::Final(malformed(&endpoint, repo, other.to_string())),
    }
}

fn no_such_model(repo: &str, endpoint: &str, cached: &[String]) -> Failure {
    Failure::Final(HubError::NoSuchModel {
        repo: repo.to_owned(),
        endpoint: endpoint.to_owned(),
        hint: names::hint(repo, cached),
    })
}
