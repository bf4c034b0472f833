//! The names of a model's small files: everything that transformers reads for generation and for
//! tokenizers of any class (`vocab_files_names`, `PreTrainedTokenizerBase.from_pretrained`). With
//! them, a copy of the model behaves like the model.

use crate::files::LONGEST_JSON;
use std::collections::BTreeSet;
use std::path::Path;

/// Names of a SentencePiece or tiktoken model. They differ by tokenizer class.
pub(crate) const TOKENIZER_MODELS: [&str; 5] = [
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "spm.model",
];

/// The other fixed names.
const NAMES: [&str; 10] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
];

/// The one subfolder that is used: additional chat templates, chosen by name.
const TEMPLATES: &str = "additional_chat_templates";

/// The version of transformers that this crate follows.
const TRANSFORMERS: [u64; 3] = [4, 57, 1];

/// Names that every model may have.
pub(crate) fn fixed_names() -> impl Iterator<Item = &'static str> {
    NAMES.into_iter().chain(TOKENIZER_MODELS)
}

/// The small files among these names, without `config.json`.
pub(crate) fn chosen(names: &BTreeSet<String>) -> Vec<&str> {
    let mut chosen: Vec<&str> = fixed_names().filter(|name| names.contains(*name)).collect();
    chosen.extend(
        names
            .iter()
            .map(String::as_str)
            .filter(|name| is_versioned(name) || is_template(name)),
    );
    chosen
}

/// Whether a file of this name can be part of a model. Names that lead out of its folder cannot.
pub(crate) fn may_be_fetched(name: &str) -> bool {
    crate::model_ref::is_plain_name(name) || is_template(name)
}

/// `additional_chat_templates/NAME.jinja`.
fn is_template(name: &str) -> bool {
    let inner = name
        .strip_prefix(TEMPLATES)
        .and_then(|rest| rest.strip_prefix('/'));
    inner.is_some_and(|inner| inner.ends_with(".jinja") && crate::model_ref::is_plain_name(inner))
}

/// `tokenizer.4.0.0.json`, which transformers reads instead of `tokenizer.json` from that version
/// on.
fn is_versioned(name: &str) -> bool {
    version(name).is_some()
}

fn version(name: &str) -> Option<Vec<u64>> {
    let digits = name.strip_prefix("tokenizer.")?.strip_suffix(".json")?;
    digits.split('.').map(|part| part.parse().ok()).collect()
}

/// The versioned tokenizer file that transformers' `get_fast_tokenizer_file` would choose from the
/// `fast_tokenizer_files` of a `tokenizer_config.json`; `None` for `tokenizer.json`.
pub(crate) fn preferred_tokenizer(config: &Path) -> Option<String> {
    let bytes = llm_int8_files::read(config, LONGEST_JSON).ok()?;
    let config: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    let names = config["fast_tokenizer_files"]
        .as_array()?
        .iter()
        .filter_map(|name| name.as_str());
    let mut known: Vec<&str> = names.filter(|name| is_versioned(name)).collect();

    // As there, versions are sorted as strings, and the first one that is too new ends the search.
    known.sort_unstable();
    let usable = known
        .iter()
        .take_while(|name| version(name).is_some_and(|v| v[..] <= TRANSFORMERS[..]));

    usable.last().map(|name| (*name).to_owned())
}

/// Names of the files in a model's folder, including the folder of chat templates. Dangling links
/// are ignored.
pub(crate) fn names_in(folder: &Path) -> std::io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.path().exists() {
            names.extend(entry.file_name().into_string().ok());
        }
    }

    let templates = std::fs::read_dir(folder.join(TEMPLATES))
        .into_iter()
        .flatten()
        .flatten();
    let templates = templates.filter(|entry| entry.path().is_file());
    let templates =
        templates.filter_map(|entry| Some(format!("{TEMPLATES}/{}", entry.file_name().to_str()?)));
    names.extend(templates.filter(|name| is_template(name)));

    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn only_the_folder_of_chat_templates_is_allowed() {
        for good in [
            "model.safetensors",
            "additional_chat_templates/tool_use.jinja",
        ] {
            assert!(may_be_fetched(good), "{good}");
        }

        for bad in [
            "onnx/model.onnx",
            "additional_chat_templates/../config.jinja",
            "additional_chat_templates/a/b.jinja",
            "additional_chat_templates//b.jinja",
            "additional_chat_templates/evil.sh",
            "additional_chat_templates/.jinja",
            "/additional_chat_templates/x.jinja",
            "../x",
        ] {
            assert!(!may_be_fetched(bad), "{bad}");
        }
    }

    #[test]
    fn files_of_every_tokenizer_class_are_chosen_and_no_others() {
        let names = set(&[
            "README.md",
            "added_tokens.json",
            "additional_chat_templates/rag.jinja",
            "spiece.model",
            "tf_model.h5",
            "tokenizer.4.0.0.json",
            "tokenizer.bak.json",
            "tokenizer.json",
        ]);

        let expected = [
            "tokenizer.json",
            "added_tokens.json",
            "spiece.model",
            "additional_chat_templates/rag.jinja",
            "tokenizer.4.0.0.json",
        ];

        assert_eq!(chosen(&names), expected);
    }

    /// The expected values are from `get_fast_tokenizer_file` of transformers 4.57.1.
    #[test]
    fn the_preferred_tokenizer_is_the_one_of_transformers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer_config.json");
        for (files, expected) in [
            (&["tokenizer.json"][..], None),
            (
                &["tokenizer.json", "tokenizer.4.0.0.json"],
                Some("tokenizer.4.0.0.json"),
            ),
            (
                &["tokenizer.4.9.0.json", "tokenizer.4.0.0.json"],
                Some("tokenizer.4.9.0.json"),
            ),
            (
                &["tokenizer.4.57.1.json", "tokenizer.4.58.0.json"],
                Some("tokenizer.4.57.1.json"),
            ),
            (&["tokenizer.10.0.0.json", "tokenizer.4.0.0.json"], None),
            (&["tokenizer.5.0.0.json"], None),
        ] {
            std::fs::write(
                &path,
                serde_json::json!({ "fast_tokenizer_files": files }).to_string(),
            )
            .unwrap();
            assert_eq!(preferred_tokenizer(&path).as_deref(), expected, "{files:?}");
        }

        std::fs::write(&path, "{}").unwrap();
        assert_eq!(preferred_tokenizer(&path), None);
    }
}
