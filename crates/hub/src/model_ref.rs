//! What a user calls a model.

use crate::error::{HubError, Result};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A folder, or a repository of the hub at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelRef {
    /// A folder with a checkpoint.
    Local(PathBuf),
    /// A repository: `gpt2-large`, `org/name`, `org/name@revision`.
    Hub {
        /// `name` or `org/name`.
        repo: String,
        /// A branch, tag or commit; `main` where none is given.
        revision: Option<String>,
    },
}

impl FromStr for ModelRef {
    type Err = HubError;

    /// ```
    /// use llm_int8_hub::ModelRef;
    /// let model: ModelRef = "org/name@v1.0".parse()?;
    /// assert_eq!(model, ModelRef::Hub { repo: "org/name".into(), revision: Some("v1.0".into()) });
    /// assert!(matches!("./folder".parse()?, ModelRef::Local(_)));
    /// assert!("a/b/c".parse::<ModelRef>().is_err());
    /// # Ok::<(), llm_int8_hub::HubError>(())
    /// ```
    fn from_str(name: &str) -> Result<Self> {
        let is_path = ["./", "../", "/", "~/", ".\\"].iter().any(|start| name.starts_with(start))
            || name == "."
            || name == ".."
            || std::path::Path::new(name).is_dir();
        if is_path {
            return Ok(Self::Local(PathBuf::from(name)));
        }
        let (repo, revision) = match name.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (name, None),
        };
        let refuse =
            |reason: &str| HubError::InvalidName { name: name.to_owned(), reason: reason.to_owned() };
        let parts: Vec<&str> = repo.split('/').collect();
        if parts.len() > 2 {
            return Err(refuse("more than one `/`; a folder's path starts with `./` or `/`"));
        }
        if !parts.iter().all(|part| is_plain_name(part)) {
            return Err(refuse("only letters, digits, `-`, `_` and `.` are allowed, and no `..`"));
        }
        if revision.is_some_and(|revision| !is_plain_revision(revision)) {
            return Err(refuse("the revision after `@` is not a branch, tag or commit"));
        }
        Ok(Self::Hub { repo: repo.to_owned(), revision: revision.map(str::to_owned) })
    }
}

/// A name that can stand in a URL and in a file name of the cache.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty()
        && name.len() <= 128
        && name.chars().all(allowed)
        && !name.starts_with('.')
        && !name.contains("..")
}

fn is_plain_revision(revision: &str) -> bool {
    revision.split('/').all(is_plain_name)
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => write!(f, "{}", path.display()),
            Self::Hub { repo, revision: None } => f.write_str(repo),
            Self::Hub { repo, revision: Some(revision) } => write!(f, "{repo}@{revision}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_refused() {
        for name in
            ["", "a/b/c", "a/../b", "..a", "a b", "a/", "/", "org/name@", "org/name@../x", "a\0b", "-/.x"]
        {
            let parsed = name.parse::<ModelRef>();
            assert!(
                matches!(parsed, Err(HubError::InvalidName { .. }) | Ok(ModelRef::Local(_))),
                "{name:?}: {parsed:?}"
            );
        }
    }

    #[test]
    fn names_print_as_they_are_written() {
        for name in ["gpt2-large", "org/name", "org/name@refs/pr/1"] {
            assert_eq!(name.parse::<ModelRef>().unwrap().to_string(), name);
        }
    }
}
