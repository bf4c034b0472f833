//! Tokenizers against transformers'. `golden/tokenizers` holds a small vocabulary for every class
//! and file format, with what transformers 4.57 makes of strings and ids
//! (`scripts/check_tokenizers.py`, which compares 500 strings each).

use crate::support::{golden, golden_text, llm_int8, llm_int8_with_input, stdout};
use llm_int8::hub::NoProgress;
use llm_int8::{LoadConfig, Tokenizer};
use serde_json::Value;
use std::path::Path;
use tempfile::TempDir;

fn tokenizer(folder: &Path) -> llm_int8::Result<Tokenizer> {
    Tokenizer::from_pretrained(
        &folder.display().to_string(),
        &LoadConfig::default().hub,
        &NoProgress,
    )
}

fn ids(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_u64().unwrap() as u32)
        .collect()
}

#[test]
fn every_class_and_file_format_gives_the_ids_and_texts_of_transformers() {
    let mut forms = 0;
    for entry in std::fs::read_dir(golden("tokenizers")).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let tokenizer = tokenizer(&entry.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let cases: Vec<Value> =
            serde_json::from_str(&golden_text(&format!("tokenizers/{name}/expected.json")))
                .unwrap();
        for case in &cases {
            let text = case["text"].as_str().unwrap();
            assert_eq!(
                tokenizer.encode(text).unwrap(),
                ids(&case["ids"]),
                "{name}: {text:?}"
            );
            assert_eq!(
                tokenizer.encode_templated(text).unwrap(),
                ids(&case["plain"]),
                "{name}: {text:?}"
            );

            for (key, decoded) in [("ids", "decoded"), ("noise", "noise_decoded")] {
                let ids = ids(&case[key]);
                let ours = [
                    tokenizer.decode_all(&ids).unwrap(),
                    tokenizer.decode(&ids).unwrap(),
                ];
                assert_eq!(serde_json::json!(ours), case[decoded], "{name}: {ids:?}");
            }
        }

        assert!(cases.len() >= 10, "{name}");

        forms += 1;
    }

    assert!(forms >= 30, "{forms}");
}

/// A copy of a golden tokenizer without some of its files, and with another
/// `tokenizer_config.json` if one is given.
fn changed(form: &str, leave_out: &[&str], config: Option<&str>) -> TempDir {
    let folder = TempDir::new().unwrap();
    for entry in std::fs::read_dir(golden("tokenizers").join(form))
        .unwrap()
        .flatten()
    {
        let name = entry.file_name().into_string().unwrap();
        if !leave_out.contains(&name.as_str()) {
            std::fs::copy(entry.path(), folder.path().join(name)).unwrap();
        }
    }
    if let Some(config) = config {
        std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
    }

    folder
}

#[test]
fn unsupported_tokenizers_are_rejected_by_name() {
    let error_of = |form, leave_out: &[&str], config| {
        tokenizer(changed(form, leave_out, config).path())
            .unwrap_err()
            .to_string()
    };

    let error = error_of(
        "gpt2_json",
        &[],
        Some(r#"{"tokenizer_class": "BertTokenizer"}"#),
    );
    assert!(
        error.contains("`BertTokenizer` is not supported") && error.contains("GPT2Tokenizer"),
        "{error}"
    );

    let error = error_of(
        "gpt2_merges",
        &[],
        Some(r#"{"tokenizer_class": "GPTNeoXTokenizer"}"#),
    );
    assert!(
        error.contains("`GPTNeoXTokenizer` is built from tokenizer.json"),
        "{error}"
    );

    let error = error_of("gpt2_merges", &["merges.txt"], None);
    assert!(error.contains("vocab.json and merges.txt"), "{error}");

    let error = error_of(
        "codegen_json",
        &[],
        Some(r#"{"tokenizer_class": "CodeGenTokenizer", "add_bos_token": true}"#),
    );
    assert!(error.contains("`add_bos_token`"), "{error}");

    let error = error_of(
        "llama3_json_llama_class",
        &[],
        Some(r#"{"tokenizer_class": "LlamaTokenizer", "bos_token": null}"#),
    );
    assert!(error.contains("there is no `bos_token`"), "{error}");

    let error = error_of(
        "phi3_json",
        &[],
        Some(r#"{"tokenizer_class": "LlamaTokenizer", "add_prefix_space": false}"#),
    );
    assert!(
        error.contains("`add_prefix_space`") && error.contains("tokenizer.model"),
        "{error}"
    );

    let error = error_of("gpt2_json", &[], Some(r#"{"eos_token": 5}"#));
    assert!(error.contains("`eos_token` is 5"), "{error}");
}

#[test]
fn a_tokenizer_model_in_another_format_is_rejected() {
    let folder = changed("llama_model_bpe", &["tokenizer.model"], None);
    std::fs::write(folder.path().join("tokenizer.model"), "IQ== 0\nIg== 1\n").unwrap();
    let error = tokenizer(folder.path()).unwrap_err().to_string();
    assert!(error.contains("not SentencePiece's"), "{error}");
}

#[test]
fn infilling_markers_are_rejected_instead_of_tokenised_as_text() {
    let tokenizer = tokenizer(&golden("tokenizers/code_llama_model")).unwrap();
    let error = tokenizer
        .encode("def f(<FILL_ME>):")
        .unwrap_err()
        .to_string();
    assert!(error.contains("<FILL_ME>"), "{error}");
}

#[test]
fn the_program_shows_tokens_ids_and_texts() {
    let lines = stdout(&llm_int8(&["tokenize", "tiny-gpt2", "Hello world"]));
    let shown: Vec<(u32, &str)> = lines
        .lines()
        .map(|line| line.trim().split_once(" -> ").unwrap())
        .map(|(id, piece)| (id.parse().unwrap(), piece))
        .collect();
    assert!(
        shown.iter().any(|(_, piece)| piece.contains('Ġ')),
        "{lines}"
    );

    let ids: Vec<String> = shown.iter().map(|(id, _)| id.to_string()).collect();
    let list = stdout(&llm_int8(&[
        "tokenize",
        "tiny-gpt2",
        "Hello world",
        "--ids",
    ]));
    assert_eq!(list.trim_end(), format!("[{}]", ids.join(", ")));
    assert_eq!(
        stdout(&llm_int8_with_input(
            &["tokenize", "tiny-gpt2", "-", "--ids"],
            "Hello world"
        )),
        list
    );
    assert_eq!(
        stdout(&llm_int8(&[
            "tokenize",
            "tiny-gpt2",
            list.trim(),
            "--decode"
        ])),
        "Hello world\n"
    );

    let json: Value = serde_json::from_str(&stdout(&llm_int8(&[
        "tokenize",
        "tiny-gpt2",
        "a<|endoftext|>",
        "--json",
    ])))
    .unwrap();
    let last = json["tokens"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (last["token"].as_str(), last["special"].as_bool()),
        (Some("<|endoftext|>"), Some(true))
    );
}

#[test]
fn special_tokens_can_be_omitted() {
    let model = golden("tokenizers/opt_merges").display().to_string();
    let first = |arguments: &[&str]| {
        let all = [&["tokenize", &model, "Hello", "--ids"], arguments].concat();
        stdout(&llm_int8(&all))
            .trim_matches(['[', ']', '\n'])
            .split(", ")
            .next()
            .unwrap()
            .to_owned()
    };

    assert_eq!(first(&[]), "2", "OPT begins with </s>");
    assert_ne!(first(&["--no-special-tokens"]), "2");

    let text = |arguments: &[&str]| {
        stdout(&llm_int8(
            &[&["tokenize", &model, "2,40", "--decode"], arguments].concat(),
        ))
    };

    assert!(text(&[]).starts_with("</s>"));
    assert!(!text(&["--skip-special-tokens"]).contains("</s>"));
}

#[test]
fn wrong_ids_and_models_without_a_tokenizer_are_named() {
    let fails = |arguments: &[&str], code| {
        let output = llm_int8(arguments);
        assert_eq!(output.status.code(), Some(code));
        String::from_utf8(output.stderr).unwrap()
    };

    let error = fails(&["tokenize", "tiny-gpt2", "1,x", "--decode"], 2);
    assert!(error.contains("\"x\" is not a token id"), "{error}");
    let error = fails(
        &[
            "tokenize",
            &golden("models/gpt2").display().to_string(),
            "Hello",
        ],
        1,
    );
    assert!(error.contains("has no tokenizer"), "{error}");

    let error = fails(&["tokenize", "nowhere/at/all", "Hello"], 2);
    assert!(error.contains("nowhere/at/all"), "{error}");
}
