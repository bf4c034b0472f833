//! The cache, in the layout of Python's huggingface_hub.
//!
//! `models--org--name/{blobs/ETAG, snapshots/COMMIT/FILE → ../../blobs/ETAG, refs/REVISION}` and
//! `.locks/models--org--name/ETAG.lock`; `.no_exist/COMMIT/FILE` beside `snapshots` marks what a
//! commit lacks.

use crate::error::{HubError, Result};
use crate::files::{self, ModelFiles, WeightFiles};
use crate::small;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Upper bound of a file that names a commit, in bytes.
const LONGEST_REFERENCE: u64 = 1000;

/// One repository in the cache.
#[derive(Debug, Clone)]
pub(crate) struct RepoCache {
    root: PathBuf,
    locks: PathBuf,
    links: Links,
}

/// Makes a link, given what it leads to and its own path.
type MakeLink = fn(&Path, &Path) -> std::io::Result<()>;

/// How files of snapshots share their blobs' bytes. Tests forbid one or both, as file systems do.
#[derive(Debug, Clone, Copy)]
struct Links {
    symbolic: MakeLink,
    hard: MakeLink,
}

impl RepoCache {
    pub(crate) fn new(cache_dir: &Path, repo: &str) -> Self {
        let folder = format!("models--{}", repo.replace('/', "--"));
        Self {
            root: cache_dir.join(&folder),
            locks: cache_dir.join(".locks").join(folder),
            links: Links {
                symbolic: symlink,
                hard: |blob, link| std::fs::hard_link(blob, link),
            },
        }
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
        revision
            .split('/')
            .fold(self.root.join("refs"), |path, part| path.join(part))
    }

    /// The commit that a revision pointed to when it was last downloaded.
    pub(crate) fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let bytes = llm_int8_files::read(&self.reference(revision), LONGEST_REFERENCE).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let commit = text.trim();
        is_commit(commit).then(|| commit.to_owned())
    }

    /// Records the commit that a revision points to.
    pub(crate) fn set_commit(&self, revision: &str, commit: &str) -> Result<()> {
        // Do not rewrite the same commit: a complete cache may be read-only.
        if is_commit(revision) || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }

        let path = self.reference(revision);
        let error = |source| HubError::Io {
            path: path.clone(),
            source,
        };

        create_parent(&path)?;
        llm_int8_files::write(&path, commit.as_bytes()).map_err(error)
    }

    /// Names in a snapshot whose blobs exist, without those of unfinished copies.
    pub(crate) fn names(&self, commit: &str) -> BTreeSet<String> {
        let mut names = small::names_in(&self.snapshot(commit)).unwrap_or_default();
        names.retain(|name| small::may_be_fetched(name));
        names
    }

    /// Records which small files a commit does not have, as huggingface_hub does after a 404.
    pub(crate) fn note_absent(&self, commit: &str, names: &BTreeSet<String>) {
        for name in small::fixed_names().filter(|name| !names.contains(*name)) {
            let marker = self.absent(commit, name);
            // This only saves a later request, so a failure does not matter.
            let _ = create_parent(&marker).map(|()| std::fs::File::create_new(&marker));
        }
    }

    /// Whether each small file of a commit is either cached or known not to exist.
    pub(crate) fn knows_all(&self, commit: &str) -> bool {
        let names = self.names(commit);
        small::fixed_names().all(|name| names.contains(name) || self.absent(commit, name).exists())
    }

    fn absent(&self, commit: &str, name: &str) -> PathBuf {
        self.root.join(".no_exist").join(commit).join(name)
    }

    /// The model of a snapshot, if all its files are there.
    pub(crate) fn model(&self, commit: &str) -> Result<ModelFiles> {
        files::in_folder(
            &self.snapshot(commit),
            &self.names(commit),
            Some(commit.to_owned()),
        )
    }

    /// Links a file of a snapshot to its blob. Returns its path.
    pub(crate) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<PathBuf> {
        let path = self.snapshot(commit).join(file);
        let error = |source| HubError::Io {
            path: path.clone(),
            source,
        };

        create_parent(&path)?;
        if path.exists() {
            return Ok(path);
        }

        // It is a dangling link: the blob was removed.
        if path.is_symlink() {
            std::fs::remove_file(&path).map_err(error)?;
        }

        // Up from `snapshots/COMMIT`, and one more for each folder in the name (a chat template is
        // one folder deeper).
        let up = "../".repeat(2 + file.matches('/').count());
        let target = Path::new(&up).join("blobs").join(etag);
        let linked = (self.links.symbolic)(&target, &path).or_else(|cause| match cause.kind() {
            std::io::ErrorKind::AlreadyExists => Ok(()),
            _ => (self.links.hard)(&self.blob(etag), &path),
        });

        // On file systems without links, copy, as huggingface_hub does.
        linked
            .or_else(|_| llm_int8_files::copy(&self.blob(etag), &path))
            .map_err(error)?;
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
    let Some(parent) = path.parent() else {
        return Ok(());
    };

    std::fs::create_dir_all(parent).map_err(|source| HubError::Io {
        path: parent.to_owned(),
        source,
    })
}

pub(crate) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Models that are complete in the cache, by name.
pub(crate) fn models(cache_dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(cache_dir) else {
        return Vec::new();
    };
    let mut found: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|folder| Some(folder.strip_prefix("models--")?.replacen("--", "/", 1)))
        .filter(|repo| {
            let cache = RepoCache::new(cache_dir, repo);
            let snapshots = std::fs::read_dir(cache.root.join("snapshots"))
                .into_iter()
                .flatten();
            let mut commits =
                snapshots.filter_map(|entry| entry.ok()?.file_name().into_string().ok());

            commits.any(|commit| {
                cache
                    .model(&commit)
                    .is_ok_and(|model| has_weights(&model.weights))
            })
        })
        .collect();

    found.sort();
    found
}

fn has_weights(weights: &WeightFiles) -> bool {
    weights.files().iter().all(|file| file.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    const NAME: &str = "config.json";

    fn forbidden(_: &Path, _: &Path) -> std::io::Result<()> {
        Err(std::io::ErrorKind::PermissionDenied.into())
    }

    fn cache(folder: &Path, hard: MakeLink) -> RepoCache {
        let cache = RepoCache::new(folder, "org/model");
        let links = Links {
            symbolic: forbidden,
            hard,
        };
        std::fs::create_dir_all(cache.root.join("blobs")).unwrap();
        std::fs::write(cache.blob("etag"), "{}").unwrap();
        RepoCache { links, ..cache }
    }

    #[test]
    fn without_symbolic_links_a_file_is_a_hard_link_or_a_copy() {
        let hard: MakeLink = |blob, link| std::fs::hard_link(blob, link);
        for (hard, is_shared) in [(hard, true), (forbidden as MakeLink, false)] {
            let folder = tempfile::tempdir().unwrap();
            let cache = cache(folder.path(), hard);
            let path = cache.link(COMMIT, NAME, "etag").unwrap();
            assert!(path.symlink_metadata().unwrap().is_file());
            assert_eq!(std::fs::read(&path).unwrap(), b"{}");
            assert_eq!(cache.names(COMMIT), BTreeSet::from([NAME.to_owned()]));

            std::fs::write(cache.blob("etag"), "[]").unwrap();
            assert_eq!(std::fs::read(&path).unwrap() == b"[]", is_shared);
            assert_eq!(cache.link(COMMIT, NAME, "etag").unwrap(), path);
        }
    }

    /// What a failed copy leaves must not be taken for the file, which is never copied again then.
    #[test]
    fn a_copy_that_fails_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path(), forbidden);
        let error = cache.link(COMMIT, NAME, "missing").unwrap_err().to_string();
        assert!(error.contains(NAME), "{error}");
        let left = std::fs::read_dir(cache.snapshot(COMMIT)).unwrap();
        assert_eq!(left.count(), 0);

        // A copy that a killed process did not finish.
        let cut = cache.snapshot(COMMIT).join(".config.json.0a1b2c.partial");
        std::fs::write(&cut, "{").unwrap();
        assert!(cache.names(COMMIT).is_empty());
        let path = cache.link(COMMIT, NAME, "etag").unwrap();
        assert_eq!(std::fs::read(path).unwrap(), b"{}");
    }
}
