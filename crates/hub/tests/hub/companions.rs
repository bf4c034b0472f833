//! The small files that a copy of a model needs: all of them, and no others.

use crate::fake_hub::{COMMIT, FakeHub};
use crate::{FILE, config, model_hub, resolve, resolve_with, weights};
use llm_int8_hub::{HubConfig, KEPT_COLUMNS, ModelFiles, NoProgress};
use tempfile::TempDir;

/// The companions' names, relative to the model's folder.
fn companions(model: &ModelFiles) -> Vec<String> {
    let relative = |path: &std::path::PathBuf| {
        path.strip_prefix(&model.root)
            .unwrap()
            .display()
            .to_string()
    };

    model.companions.iter().map(relative).collect()
}

const SMALL: [&str; 18] = [
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
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "spm.model",
    "additional_chat_templates/rag.jinja",
    "additional_chat_templates/tool_use.jinja",
    "tokenizer.4.0.0.json",
];

/// A hub with every small file, and others that must not be downloaded.
fn hub_with_all() -> FakeHub {
    let hub = model_hub();
    for name in SMALL {
        hub.add(name, format!("{{\"of\": \"{name}\"}}").as_bytes());
    }

    hub.add(KEPT_COLUMNS, &weights());
    hub.add(
        "tokenizer_config.json",
        br#"{"fast_tokenizer_files": ["tokenizer.json", "tokenizer.4.0.0.json"]}"#,
    );
    for unwanted in [
        "additional_chat_templates/deep/x.jinja",
        "additional_chat_templates/notes.md",
        "additional_chat_templates/../../../../evil.jinja",
        "training_args.bin",
        "optimizer.pt",
        "original/tokenizer.model",
    ] {
        hub.add(unwanted, b"unwanted");
    }

    hub
}

#[test]
fn every_small_file_is_downloaded_and_found_in_a_folder_alike() {
    let hub = hub_with_all();
    let cache = TempDir::new().unwrap();
    let model = resolve(&hub, &cache, "org/model").unwrap();
    assert_eq!(companions(&model), SMALL);
    for name in SMALL
        .iter()
        .filter(|name| **name != "tokenizer_config.json")
    {
        let text = std::fs::read_to_string(model.root.join(name)).unwrap();
        assert_eq!(
            text,
            format!("{{\"of\": \"{name}\"}}"),
            "the link points to the blob"
        );
    }
    assert_eq!(
        std::fs::read(model.root.join(KEPT_COLUMNS)).unwrap(),
        weights()
    );
    assert!(hub.log().iter().all(|r| {
        !["deep", "notes", "evil", "training", "original", "optimizer"]
            .iter()
            .any(|name| r.path.contains(name))
    }));
    let tokenizer = &model.tokenizer;
    assert!(
        tokenizer
            .tokenizer_json
            .as_ref()
            .unwrap()
            .ends_with("tokenizer.4.0.0.json"),
        "as in transformers 4.57"
    );
    assert!(
        tokenizer.added_tokens.is_some()
            && tokenizer
                .tokenizer_model
                .as_ref()
                .unwrap()
                .ends_with("tokenizer.model")
    );

    // A folder with the same files is the same model.
    let folder = TempDir::new().unwrap();
    for name in SMALL.iter().chain(&["config.json", FILE]) {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::copy(model.root.join(name), path).unwrap();
    }
    let local = resolve_with(
        HubConfig::new(cache.path()),
        folder.path().to_str().unwrap(),
        &NoProgress,
    )
    .unwrap();
    assert_eq!(companions(&local), companions(&model));
}

#[test]
fn a_commit_that_python_downloaded_in_part_is_completed_once() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    resolve(&hub, &cache, "org/model").unwrap();
    let root = cache.path().join("models--org--model");
    assert!(
        root.join(".no_exist")
            .join(COMMIT)
            .join("added_tokens.json")
            .is_file(),
        "as huggingface_hub marks it"
    );

    // Another program's cache: a file is missing, and nothing records that it does not exist.
    hub.add("added_tokens.json", br#"{"<|user|>": 5}"#);
    std::fs::remove_dir_all(root.join(".no_exist")).unwrap();
    let name = format!("org/model@{COMMIT}");
    let whole = resolve_with(config(&hub, cache.path()), &name, &NoProgress).unwrap();
    assert_eq!(companions(&whole), ["tokenizer.json", "added_tokens.json"]);

    let before = hub.log().len();
    resolve_with(config(&hub, cache.path()), &name, &NoProgress).unwrap();

    assert_eq!(hub.log().len(), before);
}
