//! The small files beside a model's weights: tokenizer, chat template, generation settings.

use crate::builtin;
use crate::error::{LlmError, Result};
use serde_json::Value;
use std::borrow::Cow;
use std::path::{Path, PathBuf};

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
                let read = std::fs::read(path);
                read.map(Cow::Owned).map_err(|source| LlmError::Read {
                    path: path.clone(),
                    source,
                })
            }
        }
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
