//! The one entrance: from a model's name to its files.

use crate::api::{self, Listing};
use crate::cache::{self, RepoCache, is_commit};
use crate::config::{HubConfig, expand_home};
use crate::download::Fetch;
use crate::error::{HubError, Result};
use crate::files::{self, ModelFiles, ModelHeaders, SafetensorsHeader, SmallFiles, WeightFiles};
use crate::http::{Failure, Http};
use crate::model_ref::ModelRef;
use crate::progress::{Progress, ProgressEvent};
use crate::retry::Retries;
use crate::{hints, small};
use std::io::Read;
use std::path::{Path, PathBuf};

/// The model that is part of the program and needs no network.
const BUILT_IN: &str = "tiny-gpt2";
/// A header longer than this is no header (the limit of the safetensors crate).
const LONGEST_HEADER: u64 = 100_000_000;
/// Bytes asked for at first: most headers fit, so one request does.
const FIRST_BYTES: u64 = 1 << 17;

/// Finds and fetches models.
#[derive(Debug)]
pub struct Hub {
    config: HubConfig,
}

impl Hub {
    /// A hub with those settings. An endpoint that is no URL or certificates that cannot be read
    /// are an error of what needs the network, not of this.
    pub fn new(config: HubConfig) -> Self {
        Self { config }
    }

    /// The settings.
    pub fn config(&self) -> &HubConfig {
        &self.config
    }

    /// The files of a model; what is not on disk is downloaded.
    ///
    /// # Errors
    /// Each way it can fail is a variant of [`HubError`].
    pub fn resolve(&self, model: &ModelRef, progress: &dyn Progress) -> Result<ModelFiles> {
        match model {
            ModelRef::Local(folder) => files::local(&self.local_folder(folder)),
            ModelRef::Hub { repo, revision } => {
                block_on(|| self.resolve_repo(repo, revision.as_deref(), progress))
            }
        }
    }

    /// `config.json` and the headers of the safetensors files, without the weights: from disk where
    /// they are there, else by asking for the first bytes of each file.
    ///
    /// # Errors
    /// As [`Hub::resolve`]; [`HubError::NotAModel`] where there are no safetensors files.
    pub fn resolve_metadata(
        &self,
        model: &ModelRef,
        progress: &dyn Progress,
    ) -> Result<ModelHeaders> {
        match model {
            ModelRef::Local(folder) => headers_on_disk(&files::local(&self.local_folder(folder))?),
            ModelRef::Hub { repo, revision } => {
                block_on(|| self.repo_headers(repo, revision.as_deref(), progress))
            }
        }
    }

    /// The small files of a model, without its weights: `config.json` and what its tokenizer and
    /// its chat templates are made of. A folder or repository may lack any of them.
    ///
    /// # Errors
    /// As [`Hub::resolve`].
    pub fn resolve_small(&self, model: &ModelRef, progress: &dyn Progress) -> Result<SmallFiles> {
        match model {
            ModelRef::Local(folder) => files::local_small(&self.local_folder(folder)),
            ModelRef::Hub { repo, revision } => {
                block_on(|| self.repo_small(repo, revision.as_deref(), progress))
            }
        }
    }

    /// Models that are whole in the cache.
    pub fn cached_models(&self) -> Vec<String> {
        cache::models(&self.config.cache_dir)
    }

    fn local_folder(&self, folder: &Path) -> PathBuf {
        folder.to_str().map_or_else(
            || folder.to_owned(),
            |text| expand_home(text, self.config.home.as_deref()),
        )
    }

    async fn resolve_repo(
        &self,
        repo: &str,
        revision: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<ModelFiles> {
        let cache = RepoCache::new(&self.config.cache_dir, repo);
        let wanted = revision.unwrap_or("main");
        if self.config.offline {
            return self.offline(&cache, repo, wanted);
        }
        // A commit never changes: what is known of it stays true.
        if is_commit(wanted)
            && let Ok(model) = cache.model(wanted)
            && cache.knows_all(wanted)
        {
            return Ok(model);
        }
        let http = Http::new(&self.config)?;
        let listing = match self.listing(&http, repo, revision, progress).await {
            Ok(listing) => listing,
            Err(error) => {
                return or_cached(error, progress, || {
                    cache.model(&cache.commit_of(wanted)?).ok()
                });
            }
        };
        let fetch = self.fetch(&http, &cache, repo, &listing, progress);
        fetch_all(&fetch, &listing).await?;
        cache.note_absent(&listing.commit, &listing.names);
        cache.set_commit(wanted, &listing.commit)?;
        cache.model(&listing.commit)
    }

    async fn listing(
        &self,
        http: &Http,
        repo: &str,
        revision: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<Listing> {
        let cached = self.cached_models();
        let mut retries = Retries::new(&self.config);
        loop {
            let (reason, after, unreachable) =
                match api::listing(&self.config, repo, revision, &cached).await {
                    Ok(listing) => return Ok(listing),
                    Err(Failure::Final(error)) => return Err(error),
                    Err(Failure::Transient {
                        reason,
                        after,
                        unreachable,
                    }) => (reason, after, unreachable),
                };
            let delay = retries.next(after);
            // A host that cannot be reached twice will not be reached by patience.
            let Some(delay) = delay.filter(|_| !unreachable || retries.in_a_row() < 2) else {
                return Err(HubError::NoNetwork {
                    host: http.host(),
                    reason,
                    offline_models: offline_models(cached),
                });
            };
            progress.event(&ProgressEvent::Retry {
                file: repo,
                attempt: retries.in_a_row(),
                delay,
                reason,
            });
            tokio::time::sleep(delay).await;
        }
    }

    fn fetch<'a>(
        &'a self,
        http: &'a Http,
        cache: &'a RepoCache,
        repo: &'a str,
        listing: &'a Listing,
        progress: &'a dyn Progress,
    ) -> Fetch<'a> {
        Fetch {
            config: &self.config,
            http,
            cache,
            repo,
            commit: &listing.commit,
            progress,
        }
    }

    fn offline(&self, cache: &RepoCache, repo: &str, revision: &str) -> Result<ModelFiles> {
        match cache.commit_of(revision).map(|commit| cache.model(&commit)) {
            Some(Ok(model)) => Ok(model),
            _ => Err(HubError::Offline {
                model: if revision == "main" {
                    repo.to_owned()
                } else {
                    format!("{repo}@{revision}")
                },
                cache: self.config.cache_dir.clone(),
                offline_models: offline_models(self.cached_models()),
            }),
        }
    }

    async fn repo_small(
        &self,
        repo: &str,
        revision: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<SmallFiles> {
        let cache = RepoCache::new(&self.config.cache_dir, repo);
        let wanted = revision.unwrap_or("main");
        let cached = || {
            let commit = cache.commit_of(wanted)?;
            let names = cache.names(&commit);
            (!names.is_empty()).then(|| files::small_in(&cache.snapshot(&commit), &names))
        };
        if self.config.offline {
            return cached().map_or_else(
                || self.offline(&cache, repo, wanted).map(SmallFiles::from),
                Ok,
            );
        }

        let http = Http::new(&self.config)?;
        let listing = match self.listing(&http, repo, revision, progress).await {
            Ok(listing) => listing,
            Err(error) => return or_cached(error, progress, cached),
        };
        let fetch = self.fetch(&http, &cache, repo, &listing, progress);
        let config = listing
            .names
            .contains("config.json")
            .then_some("config.json");
        for file in config.into_iter().chain(small::chosen(&listing.names)) {
            fetch.file(file).await?;
        }
        cache.set_commit(wanted, &listing.commit)?;
        let folder = cache.snapshot(&listing.commit);
        Ok(files::small_in(&folder, &cache.names(&listing.commit)))
    }

    async fn repo_headers(
        &self,
        repo: &str,
        revision: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<ModelHeaders> {
        let cache = RepoCache::new(&self.config.cache_dir, repo);
        let wanted = revision.unwrap_or("main");
        if self.config.offline {
            return headers_on_disk(&self.offline(&cache, repo, wanted)?);
        }
        let http = Http::new(&self.config)?;
        let listing = match self.listing(&http, repo, revision, progress).await {
            Ok(listing) => listing,
            Err(error) => {
                let cached = || cache.model(&cache.commit_of(wanted)?).ok();
                return headers_on_disk(&or_cached(error, progress, cached)?);
            }
        };
        if let Ok(model) = cache.model(&listing.commit) {
            return headers_on_disk(&model);
        }
        let fetch = self.fetch(&http, &cache, repo, &listing, progress);
        let choice = files::choose_weights(&listing.names).filter(|choice| choice.is_safetensors);
        let choice = choice.ok_or_else(|| no_headers(repo))?;
        let config = fetch.file("config.json").await?;
        let names = match choice.is_index {
            true => files::shards_of(&fetch.file(choice.file).await?)?,
            false => vec![choice.file.to_owned()],
        };
        let mut headers = Vec::new();
        for file in names {
            headers.push(remote_header(&fetch, &file).await?);
        }
        Ok(ModelHeaders { config, headers })
    }
}

/// Every file of the model, the small ones first, so that a wrong repository is known early.
async fn fetch_all(fetch: &Fetch<'_>, listing: &Listing) -> Result<()> {
    let not_a_model = |lacks: &str| HubError::NotAModel {
        repo: fetch.repo.to_owned(),
        lacks: lacks.to_owned(),
        hint: hints::of_repository(&listing.names),
    };
    if !listing.names.contains("config.json") {
        return Err(not_a_model("config.json"));
    }
    let choice = files::choose_weights(&listing.names)
        .ok_or_else(|| not_a_model("model.safetensors and no pytorch_model.bin"))?;

    fetch.file("config.json").await?;
    for file in small::chosen(&listing.names) {
        fetch.file(file).await?;
    }
    let first = fetch.file(choice.file).await?;
    if choice.is_index {
        for shard in files::shards_of(&first)? {
            fetch.file(&shard).await?;
        }
    }
    Ok(())
}

/// What the cache has, if the hub cannot be reached or no longer answers for the repository: as
/// huggingface_hub, which goes on with the files it downloaded before. Other errors are returned,
/// and so is `error` where nothing is cached.
fn or_cached<T>(
    error: HubError,
    progress: &dyn Progress,
    cached: impl FnOnce() -> Option<T>,
) -> Result<T> {
    let reason = match &error {
        HubError::NoNetwork { reason, .. } => reason.clone(),
        HubError::Refused { status, .. } => {
            format!("access to the repository is refused, {status}")
        }
        HubError::NoSuchModel { .. } => "the hub has no such repository now".into(),
        HubError::MalformedAnswer { .. } => error.to_string(),
        _ => return Err(error),
    };
    let found = cached().ok_or(error)?;
    progress.event(&ProgressEvent::UsingCache { reason });
    Ok(found)
}

fn no_headers(repo: &str) -> HubError {
    HubError::NotAModel {
        repo: repo.to_owned(),
        lacks: "safetensors weights, whose headers could be read alone".into(),
        hint: String::new(),
    }
}

fn offline_models(cached: Vec<String>) -> Vec<String> {
    std::iter::once(BUILT_IN.to_owned()).chain(cached).collect()
}

/// Runs a future on a thread and runtime of its own, so that callers may have a runtime too.
fn block_on<T: Send, F: Future<Output = Result<T>>>(make: impl FnOnce() -> F + Send) -> Result<T> {
    let run = || {
        let io = |source| HubError::Io {
            path: PathBuf::from("(network runtime)"),
            source,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(io)?;
        runtime.block_on(make())
    };
    std::thread::scope(|scope| match scope.spawn(run).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// The header of a safetensors file on the hub.
async fn remote_header(fetch: &Fetch<'_>, file: &str) -> Result<SafetensorsHeader> {
    let malformed = |reason: String| HubError::MalformedFile {
        path: PathBuf::from(file),
        reason,
    };
    let (mut bytes, file_len) = fetch.beginning(file, FIRST_BYTES).await?;
    let length = header_length(&bytes).map_err(malformed)?;
    if (bytes.len() as u64) < 8 + length {
        bytes = fetch.beginning(file, 8 + length).await?.0;
    }
    let end = usize::try_from(8 + length).unwrap_or(usize::MAX);
    let json = bytes
        .get(8..end)
        .ok_or_else(|| malformed(format!("it ends inside its header of {length} bytes")))?;
    Ok(SafetensorsHeader {
        file_name: file.to_owned(),
        json: json.to_vec(),
        file_len,
    })
}

fn header_length(bytes: &[u8]) -> std::result::Result<u64, String> {
    match bytes.first_chunk().map(|first| u64::from_le_bytes(*first)) {
        Some(length) if length <= LONGEST_HEADER => Ok(length),
        Some(length) => Err(format!(
            "its header would have {length} bytes; it is not a safetensors file"
        )),
        None => Err("it has fewer than 8 bytes".into()),
    }
}

fn headers_on_disk(model: &ModelFiles) -> Result<ModelHeaders> {
    let WeightFiles::Safetensors { files, .. } = &model.weights else {
        return Err(no_headers(&model.root.display().to_string()));
    };
    let headers = files
        .iter()
        .map(|path| header_on_disk(path))
        .collect::<Result<_>>()?;
    Ok(ModelHeaders {
        config: model.config.clone(),
        headers,
    })
}

fn header_on_disk(path: &Path) -> Result<SafetensorsHeader> {
    let io = |source| HubError::Io {
        path: path.to_owned(),
        source,
    };
    let malformed = |reason| HubError::MalformedFile {
        path: path.to_owned(),
        reason,
    };
    let mut file = std::fs::File::open(path).map_err(io)?;
    let file_len = file.metadata().map_err(io)?.len();
    let mut first = Vec::new();
    (&mut file).take(8).read_to_end(&mut first).map_err(io)?;
    let length = header_length(&first).map_err(malformed)?;
    let mut json = Vec::new();
    file.take(length).read_to_end(&mut json).map_err(io)?;
    if json.len() as u64 != length {
        return Err(malformed(format!(
            "it ends inside its header of {length} bytes"
        )));
    }
    let file_name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    Ok(SafetensorsHeader {
        file_name,
        json,
        file_len,
    })
}
