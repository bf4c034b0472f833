//! The cache as Python's huggingface_hub lays it out.
//!
//! `models--org--name/{blobs/ETAG, snapshots/COMMIT/FILE → ../../blobs/ETAG, refs/REVISION}` and
//! `.locks/models--org--name/ETAG.lock`.

use crate::error::{HubError, Result};
use crate::files::{self, ModelFiles, WeightFiles};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// One repository in the cache.
#[derive(Debug, Clone)]
pub(crate) struct RepoCache {
    root: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub(crate) fn new(cache_dir: &Path, repo: &str) -> Self {
        let folder = format!("models--{}", repo.replace('/', "--"));
        Self { root: cache_dir.join(&folder), locks: cache_dir.join(".locks").join(folder) }
    }

    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    pub(crate) fn incomplete(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{etag}.incomplete"))
    }

    pub(crate) fn lock(&self, etag: &str) -> PathBuf {
        self.locks.join(format!("{etag}.lock"))
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    fn reference(&self, revision: &str) -> PathBuf {
        revision.split('/').fold(self.root.join("refs"), |path, part| path.join(part))
    }

    /// The commit a revision stands for, as far as the cache knows.
    pub(crate) fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = std::fs::read_to_string(self.reference(revision)).ok()?;
        let commit = text.trim();
        is_commit(commit).then(|| commit.to_owned())
    }

    /// Notes which commit a revision stands for.
    pub(crate) fn set_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) {
            return Ok(());
        }
        let path = self.reference(revision);
        let error = |source| HubError::Io { path: path.clone(), source };
        create_parent(&path)?;
        let beside = path.with_extension(format!("{}.partial", std::process::id()));
        std::fs::write(&beside, commit).and_then(|()| std::fs::rename(&beside, &path)).map_err(error)
    }

    /// Names in a snapshot whose blobs are there.
    pub(crate) fn names(&self, commit: &str) -> BTreeSet<String> {
        let Ok(entries) = std::fs::read_dir(self.snapshot(commit)) else { return BTreeSet::new() };
        entries
            .filter_map(std::result::Result::ok)
            .filter(|entry| entry.path().exists())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    }

    /// The model of a snapshot, if everything it needs is there.
    pub(crate) fn model(&self, commit: &str) -> Result<ModelFiles> {
        files::in_folder(&self.snapshot(commit), &self.names(commit), Some(commit.to_owned()))
    }

    /// Lets a file of a snapshot point to its blob.
    pub(crate) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<PathBuf> {
        let path = self.snapshot(commit).join(file);
        let error = |source| HubError::Io { path: path.clone(), source };
        create_parent(&path)?;
        if path.exists() {
            return Ok(path);
        }
        // A link whose blob is gone.
        if path.is_symlink() {
            std::fs::remove_file(&path).map_err(error)?;
        }
        let target = Path::new("../../blobs").join(etag);
        match symlink(&target, &path) {
            Ok(()) => {}
            Err(cause) if cause.kind() == std::io::ErrorKind::AlreadyExists => {}
            // File systems without links get a copy, as with huggingface_hub.
            Err(_) => drop(std::fs::copy(self.blob(etag), &path).map_err(error)?),
        }
        Ok(path)
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// Creates the folder a file will be in.
pub(crate) fn create_parent(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    std::fs::create_dir_all(parent).map_err(|source| HubError::Io { path: parent.to_owned(), source })
}

pub(crate) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Models that are whole in the cache, by name.
pub(crate) fn models(cache_dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(cache_dir) else { return Vec::new() };
    let mut found: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|folder| Some(folder.strip_prefix("models--")?.replacen("--", "/", 1)))
        .filter(|repo| {
            let cache = RepoCache::new(cache_dir, repo);
            let snapshots = std::fs::read_dir(cache.root.join("snapshots")).into_iter().flatten();
            let mut commits = snapshots.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            commits.any(|commit| cache.model(&commit).is_ok_and(|model| has_weights(&model.weights)))
        })
        .collect();
    found.sort();
    found
}

fn has_weights(weights: &WeightFiles) -> bool {
    weights.files().iter().all(|file| file.exists())
}
