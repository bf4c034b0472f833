//! The small files beside a model's weights: tokenizer, chat template, generation settings.

use crate::builtin;
use crate::error::{LlmError, Result};
use serde_json::Value;
use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// Upper bound of a small file in bytes. The largest `tokenizer.json` have 40 MB.
const LONGEST: u64 = 256 << 20;

/// A small file: on disk, built in, or made from the metadata of a GGUF file.
#[derive(Debug, Clone)]
pub(crate) struct Companion {
    /// Its path relative to the model's folder, with `/` separators.
    pub(crate) name: String,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    File(PathBuf),
    Bytes(Cow<'static, [u8]>),
}

impl Companion {
    /// A file in a model's folder or one of its subfolders (such as `additional_chat_templates`).
    pub(crate) fn file(root: &Path, path: PathBuf) -> Self {
        let name = path
            .strip_prefix(root)
            .unwrap_or(&path)
            .to_string_lossy()
            .replace('\\', "/");
        Self {
            name,
            content: Content::File(path),
        }
    }

    /// The same file under another name.
    pub(crate) fn named(self, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..self
        }
    }

    pub(crate) fn bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Self {
        Self {
            name: name.to_owned(),
            content: Content::Bytes(bytes.into()),
        }
    }

    /// The files of the built-in model.
    pub(crate) fn of_builtin() -> Vec<Self> {
        vec![
            Self::bytes("generation_config.json", builtin::GENERATION_CONFIG),
            Self::bytes("tokenizer.json", builtin::TOKENIZER),
            Self::bytes("tokenizer_config.json", builtin::TOKENIZER_CONFIG),
        ]
    }

    pub(crate) fn read(&self) -> Result<Cow<'_, [u8]>> {
        match &self.content {
            Content::Bytes(bytes) => Ok(Cow::Borrowed(bytes)),
            Content::File(path) => {
                let read = llm_int8_files::read(path, LONGEST);
                read.map(Cow::Owned).map_err(|source| LlmError::Read {
                    path: path.clone(),
                    source,
                })
            }
        }
    }

    /// Whether the file may be copied into a folder that is to be published. A link is followed only
    /// within the model's folder or its cache, or to a file of the same name, so that no model can
    /// have `tokenizer_config.json -> ~/.ssh/id_rsa` copied.
    ///
    /// # Errors
    /// [`LlmError::Read`].
    pub(crate) fn check_publishable(&self) -> Result<()> {
        let Content::File(path) = &self.content else {
            return Ok(());
        };
        let error = |source| LlmError::Read {
            path: path.clone(),
            source,
        };
        if !path.is_symlink() {
            return Ok(());
        }

        let target = path.canonicalize().map_err(error)?;
        // A snapshot in the hub's cache links to `../../blobs`.
        let folder = path.parent().unwrap_or(path);
        let is_inside = [
            folder.to_owned(),
            folder.join("../../blobs"),
            folder.join("../../../blobs"),
        ]
        .iter()
        .filter_map(|folder| folder.canonicalize().ok())
        .any(|folder| target.starts_with(folder));
        if is_inside || target.file_name() == path.file_name() {
            return Ok(());
        }

        let reason = format!(
            "it is a link out of the model's folder, to {}; copy that file into the folder if it belongs to the model",
            target.display()
        );
        Err(error(std::io::Error::other(reason)))
    }

    /// Parses the companion of this name; `None` if there is none.
    pub(crate) fn json(all: &[Self], name: &str) -> Result<Option<Value>> {
        let Some(companion) = all.iter().find(|companion| companion.name == name) else {
            return Ok(None);
        };

        let parsed = llm_int8_nn::json::parse(&companion.read()?);
        let what = || match &companion.content {
            Content::File(path) => path.display().to_string(),
            Content::Bytes(_) => name.to_owned(),
        };
        parsed.map(Some).map_err(|cause| LlmError::MalformedJson {
            what: what(),
            reason: cause.to_string(),
        })
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_out_of_the_model_are_not_published() {
        let outer = tempfile::tempdir().unwrap();
        let at = |name: &str| outer.path().join(name);
        for folder in ["repo/blobs", "repo/snapshots/c", "other"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        for file in [
            "secret",
            "repo/blobs/e",
            "other/vocab.json",
            "repo/snapshots/c/a.json",
        ] {
            std::fs::write(at(file), "{}").unwrap();
        }
        let root = at("repo/snapshots/c");
        for (name, target, is_allowed) in [
            ("tokenizer.json", "../../blobs/e", true),
            ("merges.txt", "a.json", true),
            ("vocab.json", "../../../other/vocab.json", true),
            ("tokenizer_config.json", "../../../secret", false),
        ] {
            symlink(target, root.join(name)).unwrap();
            let companion = Companion::file(&root, root.join(name));
            let checked = companion.check_publishable();
            assert_eq!(checked.is_ok(), is_allowed, "{name}");
            if let Err(error) = checked {
                assert!(error.to_string().contains("link out of the model's folder"));
            }
        }
    }
}
