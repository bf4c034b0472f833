//! Which files of a folder or repository make up a model.

use crate::error::{HubError, Result};
use crate::{hints, small};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Upper bound of a JSON file that is read here, in bytes: far more than any index.
pub(crate) const LONGEST_JSON: u64 = 64 << 20;

/// Input features of int8 layers whose weights this library keeps in f16, beside the weights of an
/// 8-bit checkpoint.
pub const KEPT_COLUMNS: &str = "kept_columns.safetensors";

/// The files of a model on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    /// The folder they are in.
    pub root: PathBuf,
    /// `config.json`.
    pub config: PathBuf,
    /// `generation_config.json`.
    pub generation_config: Option<PathBuf>,
    /// The tokenizer's files.
    pub tokenizer: TokenizerFiles,
    /// The weights.
    pub weights: WeightFiles,
    /// The small files that a copy of the model needs, without `config.json`: those that
    /// transformers reads for generation and for any of its tokenizers, including additional chat
    /// templates (in their own folder).
    pub companions: Vec<PathBuf>,
    /// The commit, for a model from the hub.
    pub commit: Option<String>,
}

/// The small files of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmallFiles {
    /// The folder they are in.
    pub root: PathBuf,
    /// `config.json`.
    pub config: Option<PathBuf>,
    /// The tokenizer's files.
    pub tokenizer: TokenizerFiles,
    /// The small files that a copy of the model needs, without `config.json`.
    pub companions: Vec<PathBuf>,
}

impl From<ModelFiles> for SmallFiles {
    fn from(files: ModelFiles) -> Self {
        Self {
            root: files.root,
            config: Some(files.config),
            tokenizer: files.tokenizer,
            companions: files.companions,
        }
    }
}

/// The tokenizer's files, as far as they exist.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenizerFiles {
    /// `tokenizer.json`, which holds everything; or a file for certain versions of transformers,
    /// such as `tokenizer.4.0.0.json`, if `tokenizer_config.json` prefers that.
    pub tokenizer_json: Option<PathBuf>,
    /// `vocab.json`, of older byte-level BPE models.
    pub vocab_json: Option<PathBuf>,
    /// `merges.txt`, of older byte-level BPE models.
    pub merges_txt: Option<PathBuf>,
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<PathBuf>,
    /// `special_tokens_map.json`.
    pub special_tokens_map: Option<PathBuf>,
    /// `added_tokens.json`.
    pub added_tokens: Option<PathBuf>,
    /// The SentencePiece or tiktoken model: `tokenizer.model`, or one of its other names.
    pub tokenizer_model: Option<PathBuf>,
    /// `chat_template.jinja`.
    pub chat_template: Option<PathBuf>,
}

/// The files of the weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WeightFiles {
    /// `model.safetensors`, or the shards that an index names.
    Safetensors {
        /// The files.
        files: Vec<PathBuf>,
        /// `model.safetensors.index.json`, if the weights are sharded.
        index: Option<PathBuf>,
    },
    /// `pytorch_model.bin`, or the shards that an index names.
    PytorchBin {
        /// The files.
        files: Vec<PathBuf>,
        /// `pytorch_model.bin.index.json`, if the weights are sharded.
        index: Option<PathBuf>,
    },
}

impl WeightFiles {
    /// The files, without the index.
    pub fn files(&self) -> &[PathBuf] {
        match self {
            Self::Safetensors { files, .. } | Self::PytorchBin { files, .. } => files,
        }
    }
}

/// What can be known about a model without its weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelHeaders {
    /// `config.json`.
    pub config: PathBuf,
    /// The header of each safetensors file.
    pub headers: Vec<SafetensorsHeader>,
}

/// The header of a safetensors file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SafetensorsHeader {
    /// The file's name in its repository.
    pub file_name: String,
    /// The header's JSON, without the 8 bytes of its length.
    pub json: Vec<u8>,
    /// Length of the whole file in bytes.
    pub file_len: u64,
}

/// The weight file or index to load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WeightChoice {
    /// The single file, or the index.
    pub(crate) file: &'static str,
    pub(crate) is_index: bool,
    pub(crate) is_safetensors: bool,
}

impl WeightChoice {
    const fn new(file: &'static str, is_index: bool, is_safetensors: bool) -> Self {
        Self {
            file,
            is_index,
            is_safetensors,
        }
    }
}

/// The files that weights can be in, in order of preference.
const WEIGHTS: [WeightChoice; 4] = [
    WeightChoice::new("model.safetensors", false, true),
    WeightChoice::new("model.safetensors.index.json", true, true),
    WeightChoice::new("pytorch_model.bin", false, false),
    WeightChoice::new("pytorch_model.bin.index.json", true, false),
];

/// Chooses the weights among these file names.
pub(crate) fn choose_weights(names: &BTreeSet<String>) -> Option<WeightChoice> {
    WEIGHTS
        .into_iter()
        .find(|choice| names.contains(choice.file))
}

/// The shards that an index names. They must be plain file names, so that none leads out of the
/// folder.
pub(crate) fn shards_of(index: &Path) -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let malformed = |reason: String| HubError::MalformedFile {
        path: index.to_owned(),
        reason,
    };
    let text = llm_int8_files::read(index, LONGEST_JSON).map_err(|source| HubError::Io {
        path: index.to_owned(),
        source,
    })?;
    let parsed: Index =
        serde_json::from_slice(&text).map_err(|cause| malformed(cause.to_string()))?;
    let shards: BTreeSet<String> = parsed.weight_map.into_values().collect();
    if shards.is_empty() {
        return Err(malformed("it names no shards".into()));
    }
    match shards
        .iter()
        .find(|name| !crate::model_ref::is_plain_name(name))
    {
        Some(name) => Err(malformed(format!(
            "it names the shard {name:?}, which is not a plain file name"
        ))),
        None => Ok(shards.into_iter().collect()),
    }
}

/// The small files of a folder that holds files of these names.
pub(crate) fn small_in(folder: &Path, names: &BTreeSet<String>) -> SmallFiles {
    let path = |name: &str| names.contains(name).then(|| folder.join(name));
    SmallFiles {
        root: folder.to_owned(),
        config: path("config.json"),
        tokenizer: tokenizer_files(path),
        companions: small::chosen(names)
            .into_iter()
            .map(|name| folder.join(name))
            .collect(),
    }
}

/// The small files in a folder.
pub(crate) fn local_small(folder: &Path) -> Result<SmallFiles> {
    Ok(small_in(folder, &names_of_folder(folder)?))
}

/// The model in a folder.
pub(crate) fn local(folder: &Path) -> Result<ModelFiles> {
    in_folder(folder, &names_of_folder(folder)?, None)
}

pub(crate) fn names_of_folder(folder: &Path) -> Result<BTreeSet<String>> {
    if folder.is_file() {
        return Err(HubError::NotAFolder {
            path: folder.to_owned(),
            hint: hints::of_file(folder),
        });
    }

    small::names_in(folder).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => HubError::NoSuchFolder {
            path: folder.to_owned(),
        },
        _ => HubError::Io {
            path: folder.to_owned(),
            source,
        },
    })
}

/// The model in a folder that holds files of these names.
pub(crate) fn in_folder(
    folder: &Path,
    names: &BTreeSet<String>,
    commit: Option<String>,
) -> Result<ModelFiles> {
    let lacks = |what: &str| HubError::IncompleteFolder {
        folder: folder.to_owned(),
        lacks: what.to_owned(),
        holds: names.iter().take(12).cloned().collect(),
        hint: hints::of_folder(folder, names),
    };

    if names.is_empty() {
        return Err(lacks("any file"));
    }

    let path = |name: &str| names.contains(name).then(|| folder.join(name));
    let config = path("config.json").ok_or_else(|| lacks("config.json"))?;

    let choice = choose_weights(names).ok_or_else(|| {
        lacks("model.safetensors, model.safetensors.index.json or pytorch_model.bin")
    })?;
    let (files, index) = if choice.is_index {
        let index = folder.join(choice.file);
        let shards = shards_of(&index)?;
        if let Some(missing) = shards.iter().find(|name| !folder.join(name).exists()) {
            return Err(lacks(&format!("{missing}, which {} names", choice.file)));
        }

        (
            shards.iter().map(|name| folder.join(name)).collect(),
            Some(index),
        )
    } else {
        (vec![folder.join(choice.file)], None)
    };

    let weights = if choice.is_safetensors {
        WeightFiles::Safetensors { files, index }
    } else {
        WeightFiles::PytorchBin { files, index }
    };

    Ok(ModelFiles {
        root: folder.to_owned(),
        config,
        generation_config: path("generation_config.json"),
        tokenizer: tokenizer_files(path),
        weights,
        companions: small::chosen(names)
            .into_iter()
            .map(|name| folder.join(name))
            .collect(),
        commit,
    })
}

/// The tokenizer's files. `path` returns the path of a name if such a file exists.
fn tokenizer_files(path: impl Fn(&str) -> Option<PathBuf>) -> TokenizerFiles {
    let tokenizer_config = path("tokenizer_config.json");
    let preferred = tokenizer_config
        .as_deref()
        .and_then(small::preferred_tokenizer);
    TokenizerFiles {
        tokenizer_json: preferred
            .and_then(|name| path(&name))
            .or_else(|| path("tokenizer.json")),
        vocab_json: path("vocab.json"),
        merges_txt: path("merges.txt"),
        special_tokens_map: path("special_tokens_map.json"),
        added_tokens: path("added_tokens.json"),
        tokenizer_model: small::TOKENIZER_MODELS.iter().find_map(|name| path(name)),
        chat_template: path("chat_template.jinja"),
        tokenizer_config,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn safetensors_are_preferred_to_bin_and_single_files_to_shards() {
        let files = folder(&[
            ("config.json", "{}"),
            ("pytorch_model.bin", ""),
            ("model.safetensors", ""),
            ("model.safetensors.index.json", "{}"),
            ("vocab.json", "{}"),
        ]);

        let model = local(files.path()).unwrap();
        assert!(
            matches!(&model.weights, WeightFiles::Safetensors { files, index: None } if files.len() == 1)
        );
        assert!(model.tokenizer.vocab_json.is_some() && model.tokenizer.tokenizer_json.is_none());
    }

    #[test]
    fn errors_name_what_a_folder_lacks() {
        let error = local(folder(&[("README.md", "")]).path())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("has no config.json") && error.contains("README.md"),
            "{error}"
        );

        let error = local(folder(&[("config.json", "{}")]).path())
            .unwrap_err()
            .to_string();
        assert!(error.contains("has no model.safetensors"), "{error}");

        let index = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors"}}"#;
        let error = local(
            folder(&[
                ("config.json", "{}"),
                ("model.safetensors.index.json", index),
            ])
            .path(),
        )
        .unwrap_err();

        assert!(
            error
                .to_string()
                .contains("has no model-00001-of-00002.safetensors"),
            "{error}"
        );
    }

    #[test]
    fn an_index_cannot_name_files_outside_its_folder() {
        for shard in ["../secret", "/etc/passwd", "a/b", ""] {
            let index = format!(r#"{{"weight_map": {{"a": "{shard}"}}}}"#);
            let files = folder(&[("model.safetensors.index.json", &index)]);
            let error = shards_of(&files.path().join("model.safetensors.index.json"))
                .unwrap_err()
                .to_string();
            assert!(error.contains("not a plain file name"), "{error}");
        }
    }
}
