//! Tokenizers by grammar: `tokenizer.json` and the small files beside it, or the files that preceded
//! it.

mod steps;

use crate::{Choices, json};
use serde_json::{Map, Value, json};
use steps::{decoder, normalizer, post_processor, pre_tokenizer};

const PIECES: [&str; 22] = [
    "a", "b", "ab", "aba", "▁", "▁a", "Ġ", "Ġa", "##a", "a##b", "<unk>", "<s>", "</s>", "<0x41>",
    "<0xFF>", "é", "日", " ", "", "[UNK]", "[PAD]", "x",
];

const KEYS: [&str; 60] = [
    "type",
    "vocab",
    "merges",
    "unk_token",
    "unk_id",
    "byte_fallback",
    "dropout",
    "fuse_unk",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "ignore_merges",
    "max_input_chars_per_word",
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
    "added_tokens",
    "truncation",
    "padding",
    "model",
    "content",
    "id",
    "special",
    "single_word",
    "lstrip",
    "rstrip",
    "normalized",
    "pattern",
    "String",
    "Regex",
    "behavior",
    "invert",
    "prepend",
    "replacement",
    "prepend_scheme",
    "split",
    "add_prefix_space",
    "trim_offsets",
    "use_regex",
    "single",
    "pair",
    "special_tokens",
    "ids",
    "tokens",
    "sep",
    "cls",
    "prefix",
    "suffix",
    "cleanup",
    "start",
    "stop",
    "pad_id",
    "pad_to_multiple_of",
    "max_length",
    "stride",
    "strategy",
    "direction",
    "length",
    "precompiled_charsmap",
    "version",
];

const WORDS: [&str; 44] = [
    "BPE",
    "WordPiece",
    "WordLevel",
    "Unigram",
    "Sequence",
    "NFC",
    "NFKC",
    "Lowercase",
    "Replace",
    "Prepend",
    "Strip",
    "BertNormalizer",
    "Precompiled",
    "ByteLevel",
    "Whitespace",
    "Metaspace",
    "Split",
    "Digits",
    "CharDelimiterSplit",
    "Punctuation",
    "UnicodeScripts",
    "FixedLength",
    "BertPreTokenizer",
    "WhitespaceSplit",
    "CTC",
    "BPEDecoder",
    "Fuse",
    "ByteFallback",
    "TemplateProcessing",
    "RobertaProcessing",
    "BertProcessing",
    "Isolated",
    "Removed",
    "MergedWithPrevious",
    "MergedWithNext",
    "Contiguous",
    "first",
    "never",
    "always",
    "Left",
    "Right",
    "BatchLongest",
    "LongestFirst",
    "StripAccents",
];

const CLASSES: [&str; 14] = [
    "PreTrainedTokenizerFast",
    "LlamaTokenizer",
    "GPT2Tokenizer",
    "Qwen2TokenizerFast",
    "CodeLlamaTokenizer",
    "GemmaTokenizer",
    "GPTNeoXTokenizerFast",
    "BloomTokenizerFast",
    "CohereTokenizerFast",
    "CodeGenTokenizer",
    "TokenizersBackend",
    "PreTrainedTokenizer",
    "BertTokenizer",
    "",
];

/// A model's files: name and content, or none if the model has no such file.
pub type Files = Vec<(&'static str, Option<Vec<u8>>)>;

/// Names of all files that [`files`] may write.
pub const NAMES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "config.json",
];

/// The files of a tokenizer.
pub fn files(from: &mut Choices<'_>) -> Files {
    let text = |value: Value| Some(value.to_string().into_bytes());
    let present = from.byte();
    let has = |bit: u8| present & 1 << bit != 0;
    let mut files: Files = vec![(
        "config.json",
        text(json!({ "model_type": from.one(&["llama", "gpt2", "qwen2", "gemma2"]) })),
    )];

    files.push((
        "tokenizer_config.json",
        (!has(0)).then(|| config(from).to_string().into_bytes()),
    ));
    files.push((
        "special_tokens_map.json",
        has(1).then(|| special_tokens(from).to_string().into_bytes()),
    ));
    files.push((
        "added_tokens.json",
        has(2).then(|| added_tokens(from).to_string().into_bytes()),
    ));
    if has(3) && has(4) {
        files.push(("tokenizer.json", None));
        let is_pieces = has(5);
        files.push((
            "vocab.json",
            (!is_pieces).then(|| vocabulary(from).to_string().into_bytes()),
        ));
        files.push((
            "merges.txt",
            (!is_pieces).then(|| merges_text(from).into_bytes()),
        ));
        files.push(("tokenizer.model", is_pieces.then(|| pieces(from))));
    } else {
        files.extend(["vocab.json", "merges.txt", "tokenizer.model"].map(|name| (name, None)));
        files.push(("tokenizer.json", text(tokenizer(from))));
    }

    files
}

/// A `tokenizer.json`.
pub fn tokenizer(from: &mut Choices<'_>) -> Value {
    let mut value = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": optional(from, normalizer),
        "pre_tokenizer": optional(from, pre_tokenizer),
        "post_processor": optional(from, post_processor),
        "decoder": optional(from, decoder),
        "model": model(from),
    });
    for _ in 0..from.below(4) {
        let token = added_token(from);
        value["added_tokens"]
            .as_array_mut()
            .expect("a list")
            .push(token);
    }
    if from.flag() {
        json::change(&mut value, from, &KEYS, &WORDS);
    }
    value
}

fn optional(from: &mut Choices<'_>, make: fn(&mut Choices<'_>, usize) -> Value) -> Value {
    if from.below(4) == 0 {
        Value::Null
    } else {
        make(from, 2)
    }
}

fn piece(from: &mut Choices<'_>) -> String {
    if from.rarely() {
        from.text()
    } else {
        from.one(&PIECES).to_owned()
    }
}

fn vocabulary(from: &mut Choices<'_>) -> Value {
    let count = from.below(24);
    let pairs = (0..count).map(|number| {
        let id = if from.rarely() {
            from.number()
        } else {
            number as u64
        };
        let text = if from.flag() {
            PIECES[number % PIECES.len()].to_owned()
        } else {
            piece(from)
        };
        (text, Value::from(id))
    });
    pairs.collect::<Map<_, _>>().into()
}

fn merges_text(from: &mut Choices<'_>) -> String {
    let mut text = if from.flag() {
        "#version: 0.2\n".to_owned()
    } else {
        String::new()
    };
    for _ in 0..from.below(12) {
        text += &format!("{} {}\n", piece(from), piece(from));
    }
    text
}

fn model(from: &mut Choices<'_>) -> Value {
    let unknown = |from: &mut Choices<'_>| json!(from.one(&["<unk>", "[UNK]", "a", "none"]));
    match from.below(4) {
        0 => json!({
            "type": "BPE",
            "dropout": if from.rarely() { json!(from.float()) } else { Value::Null },
            "unk_token": if from.flag() { unknown(from) } else { Value::Null },
            "continuing_subword_prefix": if from.rarely() { json!(piece(from)) } else { Value::Null },
            "end_of_word_suffix": if from.rarely() { json!(piece(from)) } else { Value::Null },
            "fuse_unk": from.flag(),
            "byte_fallback": from.flag(),
            "ignore_merges": from.flag(),
            "vocab": vocabulary(from),
            "merges": merges(from),
        }),
        1 => json!({
            "type": "WordPiece", "unk_token": unknown(from), "continuing_subword_prefix": from.one(&["##", "", "é"]),
            "max_input_chars_per_word": from.number(), "vocab": vocabulary(from),
        }),
        2 => json!({ "type": "WordLevel", "unk_token": unknown(from), "vocab": vocabulary(from) }),
        _ => {
            let count = from.below(16);
            let vocab: Vec<Value> = (0..count)
                .map(|_| json!([piece(from), from.float()]))
                .collect();
            let id = if from.flag() {
                Value::Null
            } else {
                json!(from.number())
            };
            json!({ "type": "Unigram", "unk_id": id, "byte_fallback": from.flag(), "vocab": vocab })
        }
    }
}

fn merges(from: &mut Choices<'_>) -> Value {
    let is_text = from.flag();
    let count = from.below(12);
    (0..count)
        .map(|_| {
            let (left, right) = (piece(from), piece(from));
            if is_text {
                json!(format!("{left} {right}"))
            } else {
                json!([left, right])
            }
        })
        .collect()
}

fn added_token(from: &mut Choices<'_>) -> Value {
    json!({
        "id": from.number(), "content": piece(from), "single_word": from.flag(), "lstrip": from.flag(),
        "rstrip": from.flag(), "normalized": from.flag(), "special": from.flag(),
    })
}

fn token_value(from: &mut Choices<'_>) -> Value {
    match from.below(5) {
        0 => Value::Null,
        1 | 2 => piece(from).into(),
        3 => added_token(from),
        _ => json::value(from, &PIECES),
    }
}

fn config(from: &mut Choices<'_>) -> Value {
    const FLAGS: [&str; 9] = [
        "add_bos_token",
        "add_eos_token",
        "add_prefix_space",
        "legacy",
        "split_special_tokens",
        "clean_up_tokenization_spaces",
        "use_default_system_prompt",
        "fill_token",
        "errors",
    ];
    let mut config = json!({ "tokenizer_class": from.one(&CLASSES) });
    for _ in 0..from.below(4) {
        config[from.one(&FLAGS)] = if from.rarely() {
            json::value(from, &[])
        } else {
            from.flag().into()
        };
    }
    for _ in 0..from.below(4) {
        config[from.one(&[
            "bos_token",
            "eos_token",
            "unk_token",
            "pad_token",
            "additional_special_tokens",
        ])] = token_value(from);
    }
    if from.flag() {
        let count = from.below(4);
        let entries = (0..count).map(|_| (from.number().to_string(), added_token(from)));
        config["added_tokens_decoder"] = entries.collect::<Map<_, _>>().into();
    }
    if from.rarely() {
        config["extra_special_tokens"] = json::value(from, &PIECES);
    }
    config
}

fn special_tokens(from: &mut Choices<'_>) -> Value {
    let mut map = json!({});
    for _ in 0..from.below(4) {
        map[from.one(&[
            "bos_token",
            "eos_token",
            "unk_token",
            "additional_special_tokens",
        ])] = token_value(from);
    }
    map
}

fn added_tokens(from: &mut Choices<'_>) -> Value {
    let count = from.below(4);
    let pairs = (0..count).map(|_| (piece(from), Value::from(from.number())));
    pairs.collect::<Map<_, _>>().into()
}

/// SentencePiece's protobuf: pieces with text, score and kind, then the trainer's settings.
fn pieces(from: &mut Choices<'_>) -> Vec<u8> {
    fn field(out: &mut Vec<u8>, tag: u8, content: &[u8]) {
        out.extend([tag, content.len() as u8]);
        out.extend(content);
    }
    let mut out = Vec::new();
    for _ in 0..from.below(24) {
        let mut piece_bytes = Vec::new();
        field(&mut piece_bytes, 0x0a, piece(from).as_bytes());
        piece_bytes.push(0x15);
        piece_bytes.extend((from.float() as f32).to_le_bytes());
        piece_bytes.extend([0x18, from.byte() % 7]);
        field(&mut out, 0x0a, &piece_bytes);
    }
    let mut trainer = vec![0x18, 1 + from.byte() % 4];
    if from.flag() {
        trainer.extend([0xea, 0x02, 1, b'a']);
    }
    field(&mut out, 0x12, &trainer);
    if from.rarely() {
        out.extend(from.rest());
    }
    out
}
