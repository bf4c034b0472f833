//! The tokenizer a GGUF file describes, as the text of a `tokenizer.json`.
//!
//! llama.cpp keeps pieces, their kinds and merges or scores, and names the rule that splits texts
//! (`tokenizer.ggml.pre`); the rules themselves stand in its `llama-vocab.cpp`.

use crate::companion::Companion;
use crate::error::{LlmError, Result};
use llm_int8_nn::checkpoint::GgufFile;
use serde_json::{Value, json};
use std::collections::HashMap;

/// Kinds of pieces (`llama_token_type`).
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;

/// How Llama 3 and its followers split: `{}` is how many digits stay together.
const SPLIT: [&str; 2] = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// The files of a tokenizer beside the weights: `tokenizer.json`, `tokenizer_config.json` with the chat
/// template, `generation_config.json`; none where the file holds no tokenizer.
///
/// # Errors
/// [`LlmError::Tokenizer`] for a tokenizer of a kind that is not read here.
pub(crate) fn companions(file: &GgufFile) -> Result<Vec<Companion>> {
    let Some(tokens) = file.texts("tokenizer.ggml.tokens") else { return Ok(Vec::new()) };
    let tokenizer = match file.text("tokenizer.ggml.model") {
        Some("gpt2") => byte_level(file, &tokens)?,
        Some("llama") => sentence_piece(file, &tokens)?,
        other => {
            return Err(refuse(
                file,
                format!("kind `{}`; gpt2 and llama are read here", other.unwrap_or("?")),
            ));
        }
    };
    let text = |key: &str| {
        let id = file.integer(key).and_then(|id| usize::try_from(id).ok());
        id.and_then(|id| tokens.get(id)).map_or(Value::Null, |token| (*token).into())
    };
    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": false,
        // The class would else give `token_type_ids`, which decoders refuse.
        "model_input_names": ["input_ids", "attention_mask"],
        "bos_token": text("tokenizer.ggml.bos_token_id"),
        "eos_token": text("tokenizer.ggml.eos_token_id"),
        "unk_token": text("tokenizer.ggml.unknown_token_id"),
        "pad_token": text("tokenizer.ggml.padding_token_id"),
    });
    if let Some(template) = file.text("tokenizer.chat_template") {
        config["chat_template"] = template.into();
    }
    // Some models end a text and a turn with different tokens.
    let mut ends: Vec<i64> = ["eos", "eot"]
        .iter()
        .filter_map(|end| file.integer(&format!("tokenizer.ggml.{end}_token_id")))
        .collect();
    ends.dedup();
    let generation = json!({
        "bos_token_id": file.integer("tokenizer.ggml.bos_token_id"),
        "eos_token_id": ends,
    });
    let companion = |name, value: Value| Companion::bytes(name, format!("{value:#}\n").into_bytes());
    Ok(vec![
        companion("tokenizer.json", tokenizer),
        companion("tokenizer_config.json", config),
        companion("generation_config.json", generation),
    ])
}

fn refuse(file: &GgufFile, reason: String) -> LlmError {
    LlmError::Tokenizer { what: format!("in {}", file.name()), reason: format!("it is of {reason}") }
}

/// Byte-level BPE, as GPT-2's.
fn byte_level(file: &GgufFile, tokens: &[&str]) -> Result<Value> {
    let pre = file.text("tokenizer.ggml.pre").unwrap_or("default");
    let bytes = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
    let split = |digits: &str| {
        let regex = [SPLIT[0], digits, SPLIT[1]].concat();
        let split = json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false });
        json!({ "type": "Sequence", "pretokenizers": [split, bytes(false)] })
    };
    let (pre_tokenizer, normalizer, ignore_merges) = match pre {
        "default" | "gpt-2" => (bytes(true), Value::Null, false),
        "smollm" | "starcoder" | "refact" => {
            let digits = json!({ "type": "Digits", "individual_digits": true });
            (json!({ "type": "Sequence", "pretokenizers": [digits, bytes(true)] }), Value::Null, false)
        }
        "llama-bpe" | "llama3" | "llama-v3" => (split(r"\p{N}{1,3}"), Value::Null, true),
        "qwen2" => (split(r"\p{N}"), json!({ "type": "NFC" }), false),
        other => {
            return Err(refuse(
                file,
                format!(
                    "rule `{other}`; default, gpt-2, smollm, starcoder, llama-bpe and qwen2 are read here"
                ),
            ));
        }
    };
    let merges =
        file.texts("tokenizer.ggml.merges").ok_or_else(|| refuse(file, "BPE without merges".into()))?;
    // Written as pairs: a merge of pieces that hold spaces cannot be split again.
    let pairs: Vec<Value> =
        merges.iter().filter_map(|merge| merge.split_once(' ')).map(|(a, b)| json!([a, b])).collect();
    let model = json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": null,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": false,
        "byte_fallback": false,
        "ignore_merges": ignore_merges,
        "vocab": vocabulary(tokens),
        "merges": pairs,
    });
    let decoder = bytes(true);
    let begin = file.flag("tokenizer.ggml.add_bos_token").unwrap_or(false);
    Ok(assembled(
        file,
        tokens,
        begin,
        json!({
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "decoder": decoder, "model": model,
        }),
    ))
}

/// SentencePiece's BPE, as Llama 2's: pieces with scores, from which merges follow.
fn sentence_piece(file: &GgufFile, tokens: &[&str]) -> Result<Value> {
    let scores = file
        .numbers("tokenizer.ggml.scores")
        .filter(|scores| scores.len() == tokens.len())
        .ok_or_else(|| refuse(file, "SentencePiece without a score for every piece".into()))?;
    let unknown = file.integer("tokenizer.ggml.unknown_token_id").unwrap_or(0);
    let unknown = usize::try_from(unknown).ok().and_then(|id| tokens.get(id)).copied();
    let model = json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": unknown,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": true,
        "byte_fallback": true,
        "ignore_merges": false,
        "vocab": vocabulary(tokens),
        "merges": merges(tokens, &scores),
    });
    let space = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let has_prefix = file.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    let prefix = json!({ "type": "Prepend", "prepend": "▁" });
    let normalizers = if has_prefix { vec![prefix, space] } else { vec![space] };
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if has_prefix {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let begin = file.flag("tokenizer.ggml.add_bos_token").unwrap_or(true);
    Ok(assembled(
        file,
        tokens,
        begin,
        json!({
            "normalizer": { "type": "Sequence", "normalizers": normalizers },
            "pre_tokenizer": null,
            "decoder": { "type": "Sequence", "decoders": decoders },
            "model": model,
        }),
    ))
}

fn vocabulary(tokens: &[&str]) -> Value {
    tokens
        .iter()
        .enumerate()
        .map(|(id, token)| ((*token).to_owned(), Value::from(id)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// Every way to put a piece together from two others, the best-scored pieces first.
fn merges(tokens: &[&str], scores: &[f64]) -> Vec<[String; 2]> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
    let mut found: Vec<(f64, usize, usize, &str, &str)> = Vec::new();
    for (token, score) in tokens.iter().zip(scores) {
        for (place, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(place);
            if let (Some(l), Some(r)) = (ids.get(left), ids.get(right)) {
                found.push((*score, *l, *r, left, right));
            }
        }
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
    found.into_iter().map(|(_, _, _, left, right)| [left.to_owned(), right.to_owned()]).collect()
}

/// The parts with special tokens and, where texts begin with a token, the step that puts it there.
fn assembled(file: &GgufFile, tokens: &[&str], begin: bool, mut parts: Value) -> Value {
    let kinds = file.numbers("tokenizer.ggml.token_type").unwrap_or_default();
    let special = |kind: f64| kind == CONTROL || kind == USER_DEFINED;
    let added: Vec<Value> = (tokens.iter().enumerate().zip(kinds))
        .filter(|(_, kind)| special(*kind))
        .map(|((id, token), kind)| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind == CONTROL,
            })
        })
        .collect();
    let first = file.integer("tokenizer.ggml.bos_token_id").and_then(|id| usize::try_from(id).ok());
    let first = first.filter(|_| begin).and_then(|id| Some((id, *tokens.get(id)?)));
    parts["version"] = "1.0".into();
    parts["truncation"] = Value::Null;
    parts["padding"] = Value::Null;
    parts["added_tokens"] = added.into();
    parts["post_processor"] = match first {
        None => Value::Null,
        Some((id, token)) => {
            let special = json!({ "SpecialToken": { "id": token, "type_id": 0 } });
            let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
            let second = json!({ "Sequence": { "id": "B", "type_id": 1 } });
            json!({
                "type": "TemplateProcessing",
                "single": [special, text],
                "pair": [special, text, second],
                "special_tokens": { token: { "id": token, "ids": [id], "tokens": [token] } },
            })
        }
    };
    parts
}
