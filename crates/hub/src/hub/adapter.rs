//! The files of a LoRA adapter: `adapter_config.json` and its weights, without a model.

use super::{Hub, block_on, or_cached};
use crate::cache::{RepoCache, is_commit};
use crate::error::{HubError, Result};
use crate::files;
use crate::http::Http;
use crate::model_ref::ModelRef;
use crate::progress::Progress;
use std::collections::BTreeSet;
use std::path::PathBuf;

const CONFIG: &str = "adapter_config.json";

/// Names of the weights, as PEFT looks for them.
const WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

/// The weight file of an adapter, if these are the files of one.
fn weights_among(names: &BTreeSet<String>) -> Option<&'static str> {
    let weights = WEIGHTS.into_iter().find(|name| names.contains(*name))?;
    names.contains(CONFIG).then_some(weights)
}

impl Hub {
    /// The folder with an adapter's files: `adapter_config.json`, and `adapter_model.safetensors`
    /// or `.bin`. Files of the hub are downloaded if they are missing; what a local folder holds is
    /// not checked.
    ///
    /// # Errors
    /// As [`Hub::resolve`].
    pub fn resolve_adapter(&self, adapter: &ModelRef, progress: &dyn Progress) -> Result<PathBuf> {
        match adapter {
            ModelRef::Local(folder) => {
                let folder = self.local_folder(folder);
                files::names_of_folder(&folder)?;
                Ok(folder)
            }
            ModelRef::Hub { repo, revision } => {
                block_on(|| self.repo_adapter(repo, revision.as_deref(), progress))
            }
        }
    }

    async fn repo_adapter(
        &self,
        repo: &str,
        revision: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<PathBuf> {
        let cache = RepoCache::new(&self.config.cache_dir, repo);
        let requested = revision.unwrap_or("main");
        let cached = || {
            let commit = cache.commit_of(requested)?;
            weights_among(&cache.names(&commit)).map(|_| cache.snapshot(&commit))
        };
        if self.config.offline {
            return cached().ok_or_else(|| self.not_cached(repo, requested));
        }
        // A commit never changes, so a complete one needs no request.
        if is_commit(requested)
            && let Some(folder) = cached()
        {
            return Ok(folder);
        }

        let http = Http::new(&self.config)?;
        let listing = match self.listing(&http, repo, revision, progress).await {
            Ok(listing) => listing,
            Err(error) => return or_cached(error, progress, cached),
        };
        let weights = weights_among(&listing.names).ok_or_else(|| HubError::NotAnAdapter {
            repo: repo.to_owned(),
            weights: WEIGHTS[0],
        })?;

        let fetch = self.fetch(&http, &cache, repo, &listing, progress);
        fetch.file(CONFIG).await?;
        fetch.file(weights).await?;
        cache.set_commit(requested, &listing.commit)?;
        Ok(cache.snapshot(&listing.commit))
    }
}
