//! The error type of this crate. Messages say what was wrong, where, and what to do.

use std::path::PathBuf;
use std::time::Duration;

/// Result with [`HubError`].
pub type Result<T, E = HubError> = std::result::Result<T, E>;

/// What can go wrong on the way from a model's name to its files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A string that cannot be a model's name.
    #[error(
        "`{name}` is not a model's name: {reason} (names look like gpt2-large, org/name or org/name@revision)"
    )]
    InvalidName {
        /// The string.
        name: String,
        /// Why not.
        reason: String,
    },
    /// A folder without the files of a model.
    #[error("{} has no {lacks}{hint}; it holds: {}", folder.display(), list(holds))]
    IncompleteFolder {
        /// The folder.
        folder: PathBuf,
        /// What is missing.
        lacks: String,
        /// What is there.
        holds: Vec<String>,
        /// What it may be instead, if anything is known.
        hint: String,
    },
    /// A file where a model's folder was expected.
    #[error("{} is a file, not a model's folder: {hint}", path.display())]
    NotAFolder {
        /// The file.
        path: PathBuf,
        /// What to pass instead.
        hint: String,
    },
    /// A path that does not exist.
    #[error("there is no folder {}", path.display())]
    NoSuchFolder {
        /// The path.
        path: PathBuf,
    },
    /// A file with invalid content.
    #[error("{} is not usable: {reason}", path.display())]
    MalformedFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Reading or writing failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The disk has no room for a file.
    #[error(
        "the disk is full: {file} needs {needed} more bytes in {}; free some space, or set HF_HUB_CACHE to another disk",
        folder.display()
    )]
    DiskFull {
        /// The file.
        file: String,
        /// Bytes still to be written.
        needed: u64,
        /// The folder it is written to.
        folder: PathBuf,
    },
    /// The hub answered 401 or 403.
    #[error(
        "access to {repo} is refused ({status}): there is no such model{hint}, or it is private or gated. If it is \
         gated, accept its licence at {endpoint}/{repo}, then set HF_TOKEN to a token of \
         {endpoint}/settings/tokens that may read it{}",
        if *had_token { " (the one that was sent may not)" } else { "" }
    )]
    Refused {
        /// The repository.
        repo: String,
        /// URL of the hub.
        endpoint: String,
        /// The HTTP status.
        status: u16,
        /// Whether a token was sent.
        had_token: bool,
        /// Similar names to suggest; may be empty.
        hint: String,
    },
    /// The hub has no such repository (404).
    #[error(
        "there is no model {repo} at {endpoint} and no such folder here{hint} (a private model needs HF_TOKEN)"
    )]
    NoSuchModel {
        /// The repository.
        repo: String,
        /// URL of the hub.
        endpoint: String,
        /// Similar names to suggest; may be empty.
        hint: String,
    },
    /// The repository has no such revision (404).
    #[error("the model {repo} has no revision `{revision}`; see {endpoint}/{repo}/commits/main")]
    NoSuchRevision {
        /// The repository.
        repo: String,
        /// The revision.
        revision: String,
        /// URL of the hub.
        endpoint: String,
    },
    /// The repository has no such file (404).
    #[error("the model {repo} has no file {file}")]
    NoSuchFile {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
    },
    /// A repository without the files of a model.
    #[error(
        "the repository {repo} has no {lacks}, so it is not a model that can be loaded here{hint}"
    )]
    NotAModel {
        /// The repository.
        repo: String,
        /// What is missing.
        lacks: String,
        /// What it may be instead, if anything is known.
        hint: String,
    },
    /// A repository without the files of an adapter.
    #[error(
        "the repository {repo} is no adapter: adapter_config.json and {weights} are not both there"
    )]
    NotAnAdapter {
        /// The repository.
        repo: String,
        /// The weights that an adapter has.
        weights: &'static str,
    },
    /// The hub cannot be reached.
    #[error(
        "{host} cannot be reached ({reason}); check the network or HF_ENDPOINT. Models that need no network: {}",
        list(offline_models)
    )]
    NoNetwork {
        /// The host.
        host: String,
        /// What went wrong.
        reason: String,
        /// The built-in model and those in the cache.
        offline_models: Vec<String>,
    },
    /// Offline mode is on, and the model is not in the cache.
    #[error("{model} is not in the cache {} and offline mode is on; models that are there: {}", cache.display(), list(offline_models))]
    Offline {
        /// The model.
        model: String,
        /// The cache.
        cache: PathBuf,
        /// The built-in model and those in the cache.
        offline_models: Vec<String>,
    },
    /// A file did not match its checksum, its length or its format in any of several downloads.
    #[error(
        "{file} of {repo} arrived damaged each time ({reason}); nothing of it was kept. Try again, or another HF_ENDPOINT"
    )]
    Damaged {
        /// The file.
        file: String,
        /// The repository.
        repo: String,
        /// Which check failed.
        reason: String,
    },
    /// The server's answer cannot be used.
    #[error("{host} gave an answer that cannot be used for {what}: {reason}; check HF_ENDPOINT")]
    MalformedAnswer {
        /// The host.
        host: String,
        /// What was requested.
        what: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// Too many consecutive failures.
    #[error(
        "{file} could not be downloaded after {attempts} attempts: {reason}. Run the command again to resume at byte {kept}"
    )]
    GaveUp {
        /// The file.
        file: String,
        /// Failed attempts.
        attempts: u32,
        /// The last failure.
        reason: String,
        /// Bytes downloaded so far, which are kept.
        kept: u64,
    },
    /// Another process held the file's lock for too long.
    #[error(
        "another process has been downloading {file} for more than {waited:?}; wait for it, or remove {} if there is none",
        lock.display()
    )]
    Locked {
        /// The file.
        file: String,
        /// How long this process waited.
        waited: Duration,
        /// The lock file.
        lock: PathBuf,
    },
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "(nothing)".into()
    } else {
        names.join(", ")
    }
}
