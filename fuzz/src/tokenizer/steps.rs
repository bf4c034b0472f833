//! The steps around the model: normalizers, pre-tokenizers, post-processors, decoders.

use crate::Choices;
use serde_json::{Value, json};

const PATTERNS: [&str; 12] = [
    " ",
    "a",
    "\\s+",
    "[^a]",
    "(a|b)*c",
    "\\p{L}+|\\p{N}{1,3}",
    "(?=a)",
    "",
    "^",
    "(?i:'s|'t)| ?\\p{L}+|\\s+(?!\\S)",
    "(",
    "a{2,5}",
];

fn pattern(from: &mut Choices<'_>) -> Value {
    if from.flag() {
        json!({ "String": from.one(&PATTERNS) })
    } else {
        json!({ "Regex": from.one(&PATTERNS) })
    }
}

fn steps(
    from: &mut Choices<'_>,
    levels: usize,
    make: fn(&mut Choices<'_>, usize) -> Value,
) -> Value {
    if levels == 0 {
        return json!([]);
    }
    let count = from.below(4);
    (0..count).map(|_| make(from, levels - 1)).collect()
}

pub(super) fn normalizer(from: &mut Choices<'_>, levels: usize) -> Value {
    match from.below(12) {
        0 => json!({ "type": "Sequence", "normalizers": steps(from, levels, normalizer) }),
        1 => {
            json!({ "type": from.one(&["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "ByteLevel"]) })
        }
        2..=4 => json!({ "type": "Replace", "pattern": pattern(from), "content": from.text() }),
        5 => json!({ "type": "Prepend", "prepend": from.text() }),
        6 => json!({ "type": "Strip", "strip_left": from.flag(), "strip_right": from.flag() }),
        7 => json!({
            "type": "BertNormalizer", "clean_text": from.flag(), "handle_chinese_chars": from.flag(),
            "strip_accents": from.flag(), "lowercase": from.flag(),
        }),
        8 => {
            json!({ "type": "Precompiled", "precompiled_charsmap": from.one(&["", "AAAA", "BAAAAAAAAAA=", "/////w=="]) })
        }
        _ => json!({ "type": "NFC" }),
    }
}

pub(super) fn pre_tokenizer(from: &mut Choices<'_>, levels: usize) -> Value {
    let behavior = [
        "Isolated",
        "Removed",
        "MergedWithPrevious",
        "MergedWithNext",
        "Contiguous",
    ];
    match from.below(11) {
        0 => json!({ "type": "Sequence", "pretokenizers": steps(from, levels, pre_tokenizer) }),
        1 | 2 => json!({
            "type": "ByteLevel", "add_prefix_space": from.flag(), "trim_offsets": from.flag(), "use_regex": from.flag(),
        }),
        3 | 4 => json!({
            "type": "Split", "pattern": pattern(from), "behavior": from.one(&behavior), "invert": from.flag(),
        }),
        5 | 6 => json!({
            "type": "Metaspace", "replacement": from.one(&["▁", "a", "é", " "]),
            "prepend_scheme": from.one(&["first", "never", "always"]), "split": from.flag(),
        }),
        7 => json!({ "type": "Digits", "individual_digits": from.flag() }),
        8 => json!({ "type": "Punctuation", "behavior": from.one(&behavior) }),
        9 => json!({ "type": "FixedLength", "length": from.number() }),
        _ => json!({
            "type": from.one(&["Whitespace", "WhitespaceSplit", "BertPreTokenizer", "UnicodeScripts", "CharDelimiterSplit"]),
            "delimiter": from.one(&[" ", "a", "日"]),
        }),
    }
}

pub(super) fn post_processor(from: &mut Choices<'_>, levels: usize) -> Value {
    match from.below(6) {
        0 => json!({ "type": "Sequence", "processors": steps(from, levels, post_processor) }),
        1 => {
            json!({ "type": "ByteLevel", "add_prefix_space": from.flag(), "trim_offsets": from.flag(), "use_regex": from.flag() })
        }
        2 => json!({
            "type": from.one(&["RobertaProcessing", "BertProcessing"]), "sep": [from.text(), from.number()],
            "cls": [from.text(), from.number()], "trim_offsets": from.flag(), "add_prefix_space": from.flag(),
        }),
        _ => template(from),
    }
}

fn template(from: &mut Choices<'_>) -> Value {
    let part = |from: &mut Choices<'_>| {
        let count = from.below(5);
        (0..count)
            .map(|_| match from.flag() {
                true => json!({ "SpecialToken": { "id": from.one(&["<s>", "</s>"]), "type_id": from.below(3) } }),
                false => json!({ "Sequence": { "id": from.one(&["A", "B"]), "type_id": from.below(3) } }),
            })
            .collect::<Value>()
    };
    let token = |from: &mut Choices<'_>, id: &str| {
        let ids: Vec<u64> = (0..from.below(3)).map(|_| from.number()).collect();
        let tokens: Vec<String> = (0..from.below(3)).map(|_| from.text()).collect();
        json!({ "id": id, "ids": ids, "tokens": tokens })
    };
    json!({
        "type": "TemplateProcessing", "single": part(from), "pair": part(from),
        "special_tokens": { "<s>": token(from, "<s>"), "</s>": token(from, "</s>") },
    })
}

pub(super) fn decoder(from: &mut Choices<'_>, levels: usize) -> Value {
    match from.below(11) {
        0 | 1 => json!({ "type": "Sequence", "decoders": steps(from, levels, decoder) }),
        2 => {
            json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true })
        }
        3 => {
            json!({ "type": "WordPiece", "prefix": from.one(&["##", "", "é"]), "cleanup": from.flag() })
        }
        4 => {
            json!({ "type": "Metaspace", "replacement": from.one(&["▁", "é"]), "prepend_scheme": "always", "split": true })
        }
        5 => json!({ "type": "BPEDecoder", "suffix": from.text() }),
        6 => json!({
            "type": "CTC", "pad_token": from.text(), "word_delimiter_token": from.text(), "cleanup": from.flag(),
        }),
        7 | 8 => json!({ "type": "Replace", "pattern": pattern(from), "content": from.text() }),
        9 => {
            json!({ "type": "Strip", "content": from.one(&[" ", "a", "▁", "日"]), "start": from.number(), "stop": from.number() })
        }
        _ => json!({ "type": from.one(&["ByteFallback", "Fuse"]) }),
    }
}
