//! [`Hub`]: from a model's name to its files.

mod adapter;

use crate::api::{self, Listing};
use crate::cache::{self, RepoCache, is_commit};
use crate::config::{HubConfig, expand_home};
use crate::content::LONGEST_HEADER;
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

/// The model embedded in the program, which needs no network.
const BUILT_IN: &str = "tiny-gpt2";
/// Bytes requested at first to read a header. Most headers fit, so one request suffices.
const FIRST_BYTES: u64 = 1 << 17;

/// Finds and fetches models.
#[derive(Debug)]
pub struct Hub {
    config: HubConfig,
}

impl Hub {
    /// A hub with these settings. An invalid endpoint or unreadable certificates are reported by
    /// the first call that needs the network, not here.
    pub fn new(config: HubConfig) -> Self {
        Self { config }
    }

    /// The settings.
    pub fn config(&self) -> &HubConfig {
        &self.config
    }

    /// The files of a model. Missing files are downloaded.
    ///
    /// # Errors
    /// [`HubError`], with one variant for each way this can fail.
    pub fn resolve(&self, model: &ModelRef, progress: &dyn Progress) -> Result<ModelFiles> {
        match model {
            ModelRef::Local(folder) => files::local(&self.local_folder(folder)),
            ModelRef::Hub { repo, revision } => {
                block_on(|| self.resolve_repo(repo, revision.as_deref(), progress))
            }
        }
    }

    /// `config.json` and the headers of the safetensors files, without the weights. Files that are
    /// not on disk are not downloaded; only their first bytes are requested.
    ///
    /// # Errors
    /// As [`Hub::resolve`]; [`HubError::NotAModel`] if there are no safetensors files.
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

    /// The small files of a model, without its weights: `config.json`, and the files of the
    /// tokenizer and the chat templates. Any of them may be missing.
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

    /// Models that are complete in the cache, by name.
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
        let requested = revision.unwrap_or("main");
        if self.config.offline {
            return self.offline(&cache, repo, requested);
        }
        // A commit never changes, so a complete one needs no request.
        if is_commit(requested)
            && let Ok(model) = cache.model(requested)
            && cache.knows_all(requested)
        {
            return Ok(model);
        }

        let http = Http::new(&self.config)?;
        let listing = match self.listing(&http, repo, revision, progress).await {
            Ok(listing) => listing,
            Err(error) => {
                return or_cached(error, progress, || {
                    cache.model(&cache.commit_of(requested)?).ok()
                });
            }
        };

        let fetch = self.fetch(&http, &cache, repo, &listing, progress);
        fetch_all(&fetch, &listing).await?;
        cache.note_absent(&listing.commit, &listing.names);
        cache.set_commit(requested, &listing.commit)?;
        cache.model(&listing.commit)
    }

    /// Asks the hub for the commit and the file names, with retries.
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
                match api::listing(http, &self.config, repo, revision, &cached).await {
                    Ok(listing) => return Ok(listing),
                    Err(Failure::Final(error)) => return Err(error),
                    Err(Failure::Transient {
                        reason,
                        after,
                        unreachable,
                    }) => (reason, after, unreachable),
                };

            let delay = retries.next(after);
            // A host that was unreachable twice will stay so: more retries only cost time.
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

    /// The model from the cache, without a request.
    fn offline(&self, cache: &RepoCache, repo: &str, revision: &str) -> Result<ModelFiles> {
        match cache.commit_of(revision).map(|commit| cache.model(&commit)) {
            Some(Ok(model)) => Ok(model),
            _ => Err(self.not_cached(repo, revision)),
        }
    }

    fn not_cached(&self, repo: &str, revision: &str) -> HubError {
        HubError::Offline {
            model: if revision == "main" {
                repo.to_owned()
            } else {
                format!("{repo}@{revision}")
            },
            cache: self.config.cache_dir.clone(),
            offline_models: offline_models(self.cached_models()),
        }
    }

    async fn repo_small(
        &self,
        repo: &str,
        revision: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<SmallFiles> {
        let cache = RepoCache::new(&self.config.cache_dir, repo);
        let requested = revision.unwrap_or("main");
        let cached = || {
            let commit = cache.commit_of(requested)?;
            let names = cache.names(&commit);
            (!names.is_empty()).then(|| files::small_in(&cache.snapshot(&commit), &names))
        };

        if self.config.offline {
            return match cached() {
                Some(files) => Ok(files),
                None => self.offline(&cache, repo, requested).map(SmallFiles::from),
            };
        }

        let http = Http::new(&self.config)?;
        let listing = match self.listing(&http, repo, revision, progress).await {
            Ok(listing) => listing,
            Err(error) => return or_cached(error, progress, cached),
        };
        let fetch = self.fetch(&http, &cache, repo, &listing, progress);
        if listing.names.contains("config.json") {
            fetch.file("config.json").await?;
        }

        for file in small::chosen(&listing.names) {
            fetch.file(file).await?;
        }

        cache.set_commit(requested, &listing.commit)?;
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
        let requested = revision.unwrap_or("main");
        if self.config.offline {
            return headers_on_disk(&self.offline(&cache, repo, requested)?);
        }

        let http = Http::new(&self.config)?;
        let listing = match self.listing(&http, repo, revision, progress).await {
            Ok(listing) => listing,
            Err(error) => {
                let cached = || cache.model(&cache.commit_of(requested)?).ok();
                return headers_on_disk(&or_cached(error, progress, cached)?);
            }
        };

        if let Ok(model) = cache.model(&listing.commit) {
            return headers_on_disk(&model);
        }

        let fetch = self.fetch(&http, &cache, repo, &listing, progress);
        let choice = files::choose_weights(&listing.names)
            .filter(|choice| choice.is_safetensors)
            .ok_or_else(|| no_headers(repo))?;
        let config = fetch.file("config.json").await?;
        let names = if choice.is_index {
            files::shards_of(&fetch.file(choice.file).await?)?
        } else {
            vec![choice.file.to_owned()]
        };

        let mut headers = Vec::new();
        for file in names {
            headers.push(remote_header(&fetch, &file).await?);
        }

        Ok(ModelHeaders { config, headers })
    }
}

/// Downloads every file of the model. The small ones come first, so that errors show early.
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

    if listing.names.contains(files::KEPT_COLUMNS) {
        fetch.file(files::KEPT_COLUMNS).await?;
    }

    Ok(())
}

/// Falls back to the cache if the hub cannot be reached or no longer serves the repository, as
/// huggingface_hub does. Returns `error` if it is of another kind or nothing is cached.
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

/// Runs a future on its own thread and runtime, so that it can be called from within a runtime.
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

/// Reads the header of a safetensors file on the hub: with one request, or two if it is longer than
/// [`FIRST_BYTES`].
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

/// The length of the header JSON, from the 8 bytes before it.
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
    let mut file = llm_int8_files::open(path).map_err(io)?;
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
