//! A model as the user names it.

use crate::address;
use crate::error::{HubError, Result};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A folder, or a repository on the hub at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelRef {
    /// A folder with a checkpoint.
    Local(PathBuf),
    /// A repository: `gpt2-large`, `org/name`, `org/name@revision`.
    Hub {
        /// `name` or `org/name`.
        repo: String,
        /// A branch, tag or commit; `None` means `main`.
        revision: Option<String>,
    },
}

impl FromStr for ModelRef {
    type Err = HubError;

    /// ```
    /// use llm_int8_hub::ModelRef;
    /// let model: ModelRef = "org/name@v1.0".parse()?; // or https://huggingface.co/org/name/tree/v1.0
    /// assert_eq!(model, ModelRef::Hub { repo: "org/name".into(), revision: Some("v1.0".into()) });
    /// assert!(matches!("./folder".parse()?, ModelRef::Local(_)));
    /// assert!("a/b/c".parse::<ModelRef>().is_err());
    /// # Ok::<(), llm_int8_hub::HubError>(())
    /// ```
    fn from_str(name: &str) -> Result<Self> {
        if let Some(path) = address::on_the_hub(name) {
            return address::model(name, path);
        }

        if is_path(name) {
            return Ok(Self::Local(PathBuf::from(name)));
        }

        let refuse = |reason: &str| HubError::InvalidName {
            name: name.to_owned(),
            reason: reason.to_owned(),
        };

        if name.contains("://") {
            return Err(refuse(
                "it is not an address on huggingface.co; to use a mirror, set HF_ENDPOINT",
            ));
        }

        let (repo, revision) = match name.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (name, None),
        };
        let parts: Vec<&str> = repo.split('/').collect();
        if parts.len() > 2 {
            return Err(refuse(
                "there is no such folder, and a name on the hub has at most one `/`",
            ));
        }

        if !parts.iter().all(|part| is_plain_name(part)) {
            return Err(refuse(
                "only letters, digits, `-`, `_` and `.` are allowed, and no `..`",
            ));
        }

        if revision.is_some_and(|revision| !is_plain_revision(revision)) {
            return Err(refuse(
                "the revision after `@` is not a branch, tag or commit",
            ));
        }

        Ok(Self::Hub {
            repo: repo.to_owned(),
            revision: revision.map(str::to_owned),
        })
    }
}

/// Extensions of files that people pass instead of the folder. No repository's name ends in one.
const FILE_ENDINGS: [&str; 9] = [
    ".safetensors",
    ".bin",
    ".json",
    ".gguf",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".onnx",
];

/// Whether a name is meant as a path: it begins like one, is an existing folder, or names a file.
fn is_path(name: &str) -> bool {
    let begins_like_one = ["./", "../", "/", "~/"]
        .iter()
        .any(|start| name.starts_with(start));
    let is_windows_path = name.contains('\\') || name.as_bytes().get(1..3) == Some(b":/");
    let path = Path::new(name);

    // A file that happens to have a model's name, such as `gpt2`, does not hide the model.
    let is_file = name.contains(['/', '.']) && path.is_file();
    let lower = name.to_ascii_lowercase();
    let has_file_ending = FILE_ENDINGS.iter().any(|ending| lower.ends_with(ending));

    begins_like_one
        || is_windows_path
        || [".", "..", "~"].contains(&name)
        || path.is_dir()
        || is_file
        || (has_file_ending && !name.contains("://"))
}

/// Whether a name is safe in a URL and as a file name in the cache.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty()
        && name.len() <= 128
        && name.chars().all(allowed)
        && !name.starts_with('.')
        && !name.contains("..")
}

/// Whether a revision is safe in a URL and as a path in the cache. It may contain slashes.
pub(crate) fn is_plain_revision(revision: &str) -> bool {
    revision.split('/').all(is_plain_name)
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => write!(f, "{}", path.display()),
            Self::Hub {
                repo,
                revision: None,
            } => f.write_str(repo),
            Self::Hub {
                repo,
                revision: Some(revision),
            } => write!(f, "{repo}@{revision}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_rejected() {
        for name in [
            "",
            "a/b/c",
            "a/../b",
            "..a",
            "a b",
            "a/",
            "/",
            "org/name@",
            "org/name@../x",
            "a\0b",
            "-/.x",
        ] {
            let parsed = name.parse::<ModelRef>();
            assert!(
                matches!(
                    parsed,
                    Err(HubError::InvalidName { .. }) | Ok(ModelRef::Local(_))
                ),
                "{name:?}: {parsed:?}"
            );
        }
    }

    #[test]
    fn names_that_look_like_paths_are_paths() {
        for name in [
            "./x",
            "../x",
            "/x",
            "~/x",
            "~",
            ".",
            "C:/x",
            "C:\\x",
            "a\\b",
            "model.safetensors",
            "a/b/config.json",
        ] {
            assert_eq!(
                name.parse::<ModelRef>().unwrap(),
                ModelRef::Local(name.into()),
                "{name}"
            );
        }

        for name in ["gpt2", "org/name", "org/name.v1", "Qwen/Qwen2.5-0.5B"] {
            assert!(
                matches!(name.parse().unwrap(), ModelRef::Hub { .. }),
                "{name}"
            );
        }

        let nested = "models/org/name"
            .parse::<ModelRef>()
            .unwrap_err()
            .to_string();
        assert!(nested.contains("there is no such folder"), "{nested}");
    }

    #[test]
    fn names_print_as_they_are_written() {
        for name in ["gpt2-large", "org/name", "org/name@refs/pr/1"] {
            assert_eq!(name.parse::<ModelRef>().unwrap().to_string(), name);
        }
    }
}
