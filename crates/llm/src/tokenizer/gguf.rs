//! Converts the tokenizer in a GGUF file to a `tokenizer.json`.
//!
//! llama.cpp stores the pieces, their types, and merges or scores, and names the rule that splits a
//! text (`tokenizer.ggml.pre`). The rules themselves are code in its `llama-vocab.cpp`.

use super::gguf_rules::{ends, is_false_end, rule};
use super::slow::byte_level as byte_step;
use crate::companion::Companion;
use crate::error::{LlmError, Result};
use llm_int8_nn::checkpoint::GgufFile;
use serde_json::{Value, json};
use std::collections::HashMap;

/// Types of pieces (`llama_token_type`).
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;
const UNKNOWN: f64 = 2.0;

/// The small files of the tokenizer: `tokenizer.json`, `tokenizer_config.json` with the chat
/// template, and `generation_config.json`; empty if the file has no tokenizer.
///
/// # Errors
/// [`LlmError::Tokenizer`] if the kind of tokenizer is not supported.
pub(crate) fn companions(file: &GgufFile) -> Result<Vec<Companion>> {
    let Some(tokens) = file.strings("tokenizer.ggml.tokens") else {
        return Ok(Vec::new());
    };

    let tokenizer = match file.text("tokenizer.ggml.model") {
        Some("gpt2") => byte_level(file, &tokens)?,
        Some("llama") => sentence_piece(file, &tokens)?,
        other => {
            return Err(refuse(
                file,
                format!(
                    "its kind `{}` is not supported; supported are gpt2 and llama",
                    other.unwrap_or("?")
                ),
            ));
        }
    };

    let ids = Ids::of(file, &tokens);
    let text = |id: Option<usize>| {
        id.and_then(|id| tokens.get(id))
            .map_or(Value::Null, |token| (*token).into())
    };
    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": false,
        // Otherwise the class returns `token_type_ids`, which decoders reject.
        "model_input_names": ["input_ids", "attention_mask"],
        "bos_token": text(ids.bos),
        "eos_token": text(ids.eos),
        "unk_token": text(ids.unk),
        "pad_token": text(ids.pad),
    });
    if let Some(template) = file.text("tokenizer.chat_template") {
        config["chat_template"] = template.into();
    }

    let generation = json!({ "bos_token_id": ids.bos, "eos_token_id": ids.ends });
    let companion =
        |name, value: Value| Companion::bytes(name, format!("{value:#}\n").into_bytes());
    Ok(vec![
        companion("tokenizer.json", tokenizer),
        companion("tokenizer_config.json", config),
        companion("generation_config.json", generation),
    ])
}

/// Ids of special tokens: from the metadata, else llama.cpp's defaults for the kind of tokenizer.
struct Ids {
    bos: Option<usize>,
    eos: Option<usize>,
    unk: Option<usize>,
    pad: Option<usize>,
    /// Tokens that end a text or a turn.
    ends: Vec<usize>,
}

impl Ids {
    fn of(file: &GgufFile, tokens: &[&str]) -> Self {
        let key = |name: &str| file.integer(&format!("tokenizer.ggml.{name}_token_id"));
        let inside = |id: Option<i64>| {
            id.and_then(|id| usize::try_from(id).ok())
                .filter(|id| *id < tokens.len())
        };
        let defaults = match (
            file.text("tokenizer.ggml.model"),
            file.text("tokenizer.ggml.pre"),
        ) {
            (Some("llama"), _) => [Some(1), Some(2), Some(0)],
            (_, Some("glm4" | "chatglm-bpe")) => [None, Some(11), None],
            _ => [Some(11), Some(11), None],
        };
        let [bos, eos, unk] = [("bos", 0), ("eos", 1), ("unknown", 2)]
            .map(|(name, place)| inside(key(name)).or_else(|| inside(defaults[place])));

        let has = |text: &str| tokens.contains(&text);
        let by_text = tokens
            .iter()
            .enumerate()
            .filter(|(_, token)| ends(token) && !is_false_end(token, has));
        let by_key = ["eot", "eom", "fim_pad", "fim_rep", "fim_sep"].map(|name| inside(key(name)));
        let mut all: Vec<usize> = by_text.map(|(id, _)| id).collect();
        all.extend([eos].into_iter().chain(by_key).flatten());
        all.sort_unstable();
        all.dedup();
        // Put the main end token first: transformers pads with the first one.
        if let Some(place) = eos.and_then(|eos| all.iter().position(|id| *id == eos)) {
            all[..=place].rotate_right(1);
        }

        Self {
            bos,
            eos,
            unk,
            pad: inside(key("padding")),
            ends: all,
        }
    }
}

fn refuse(file: &GgufFile, reason: String) -> LlmError {
    LlmError::Tokenizer {
        what: format!("in {}", file.name()),
        reason,
    }
}

/// Byte-level BPE, as in GPT-2.
fn byte_level(file: &GgufFile, tokens: &[&str]) -> Result<Value> {
    let pre = file.text("tokenizer.ggml.pre").unwrap_or("default");
    let rule = rule(pre)
        .ok_or_else(|| refuse(file, format!("its splitting rule `{pre}` is not supported")))?;
    let split = |regex: &&str| json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false });
    let mut steps: Vec<Value> = rule.splits.iter().map(split).collect();
    steps.push(byte_step(false, false));
    let pre_tokenizer = json!({ "type": "Sequence", "pretokenizers": steps });
    let normalizer = if rule.nfc {
        json!({ "type": "NFC" })
    } else {
        Value::Null
    };

    let merges = file
        .strings("tokenizer.ggml.merges")
        .ok_or_else(|| refuse(file, "it is a BPE tokenizer without merges".into()))?;

    // Written as pairs, because a joined merge of pieces with spaces is ambiguous.
    let pairs: Vec<Value> = merges
        .iter()
        .filter_map(|merge| merge.split_once(' '))
        .map(|(a, b)| json!([a, b]))
        .collect();
    let model = json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": null,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": false,
        "byte_fallback": false,
        "ignore_merges": rule.ignore_merges,
        "vocab": vocabulary(tokens),
        "merges": pairs,
    });

    let decoder = byte_step(true, true);
    let begin = file
        .flag("tokenizer.ggml.add_bos_token")
        .unwrap_or(rule.add_bos);
    Ok(assembled(
        file,
        tokens,
        begin,
        json!({
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "decoder": decoder, "model": model,
        }),
    ))
}

/// SentencePiece BPE, as in Llama 2: pieces with scores, from which the merges are derived.
fn sentence_piece(file: &GgufFile, tokens: &[&str]) -> Result<Value> {
    let scores = file
        .numbers("tokenizer.ggml.scores")
        .filter(|scores| scores.len() == tokens.len())
        .ok_or_else(|| {
            refuse(
                file,
                "it is a SentencePiece tokenizer without a score for every piece".into(),
            )
        })?;
    let unknown = file.integer("tokenizer.ggml.unknown_token_id").unwrap_or(0);
    let unknown = usize::try_from(unknown)
        .ok()
        .and_then(|id| tokens.get(id))
        .copied();
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
    let normalizers = if has_prefix {
        vec![prefix, space]
    } else {
        vec![space]
    };

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

/// Every split of a piece into two others, pieces with the highest score first.
fn merges(tokens: &[&str], scores: &[f64]) -> Vec<[String; 2]> {
    let ids: HashMap<&str, usize> = tokens
        .iter()
        .enumerate()
        .map(|(id, token)| (*token, id))
        .collect();
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
    found
        .into_iter()
        .map(|(_, _, _, left, right)| [left.to_owned(), right.to_owned()])
        .collect()
}

/// Completes `parts` with the special tokens and, if a text gets begin or end tokens, the step that
/// adds them.
fn assembled(file: &GgufFile, tokens: &[&str], begin: bool, mut parts: Value) -> Value {
    let kinds = file
        .numbers("tokenizer.ggml.token_type")
        .unwrap_or_default();
    let has = |text: &str| tokens.contains(&text);
    let added: Vec<Value> = (tokens.iter().enumerate())
        .filter_map(|(id, token)| {
            let kind = kinds.get(id).copied();
            let is_end = ends(token) && !is_false_end(token, has);
            let is_special = kind == Some(CONTROL) || kind == Some(UNKNOWN) || is_end;
            (is_special || kind == Some(USER_DEFINED)).then(|| {
                json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false,
                    "rstrip": strips_right(file, token), "normalized": false, "special": is_special,
                })
            })
        })
        .collect();
    parts["version"] = "1.0".into();
    parts["truncation"] = Value::Null;
    parts["padding"] = Value::Null;
    parts["added_tokens"] = added.into();

    let ids = Ids::of(file, tokens);
    let around = |id: Option<usize>, is_requested: bool| {
        id.filter(|_| is_requested)
            .and_then(|id| Some((id, (*tokens.get(id)?).to_owned())))
    };
    let end = file.flag("tokenizer.ggml.add_eos_token").unwrap_or(false);
    parts["post_processor"] =
        super::build::template_json(around(ids.bos, begin), around(ids.eos, end));
    parts
}

/// Phi-3's added tokens strip the whitespace after them; GGUF has no flag for this.
fn strips_right(file: &GgufFile, token: &str) -> bool {
    let name = file.text("general.name").unwrap_or_default().to_lowercase();
    let is_phi3 = name.contains("phi-3") || name.contains("phi3");
    is_phi3 && !["<unk>", "<s>", "<|endoftext|>"].contains(&token)
}
