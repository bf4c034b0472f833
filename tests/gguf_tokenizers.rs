//! Tokenizers from GGUF metadata, with llama.cpp's defaults: which tokens text begins and ends
//! with, and how it is split.

use llm_int8::nn::checkpoint::GgufFile;
use llm_int8::{Result, Tokenizer};
use tempfile::TempDir;

/// A value of GGUF metadata.
enum Meta<'a> {
    Text(&'a str),
    Texts(Vec<String>),
    Numbers(Vec<f32>),
    Kinds(Vec<i32>),
    Id(u32),
    Flag(bool),
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn list<T>(bytes: &mut Vec<u8>, kind: u32, items: &[T], mut write: impl FnMut(&mut Vec<u8>, &T)) {
    bytes.extend(9u32.to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend((items.len() as u64).to_le_bytes());
    items.iter().for_each(|item| write(bytes, item));
}

/// A GGUF file without tensors.
fn file(metadata: &[(&str, Meta<'_>)]) -> (TempDir, GgufFile) {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    bytes.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut bytes, key);
        match value {
            Meta::Text(value) => {
                bytes.extend(8u32.to_le_bytes());
                text(&mut bytes, value);
            }
            Meta::Id(id) => bytes.extend([4u32.to_le_bytes(), id.to_le_bytes()].concat()),
            Meta::Flag(flag) => {
                bytes.extend(7u32.to_le_bytes());
                bytes.push(u8::from(*flag));
            }
            Meta::Texts(items) => list(&mut bytes, 8, items, |bytes, item| text(bytes, item)),
            Meta::Numbers(items) => list(&mut bytes, 6, items, |bytes, item| {
                bytes.extend(item.to_le_bytes())
            }),
            Meta::Kinds(items) => list(&mut bytes, 5, items, |bytes, item| {
                bytes.extend(item.to_le_bytes())
            }),
        }
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("t.gguf");
    std::fs::write(&path, bytes).unwrap();
    let opened = GgufFile::open(&path).unwrap();

    (folder, opened)
}

/// A byte-level tokenizer: the 256 characters that GPT-2 writes bytes as, then `tokens` as control
/// tokens, then the results of two merges.
fn byte_level(
    pre: Option<&'static str>,
    tokens: &[&str],
    more: Vec<(&'static str, Meta<'static>)>,
) -> Result<Tokenizer> {
    let printable = |byte: &u32| {
        (33..127).contains(byte) || (161..173).contains(byte) || (174..256).contains(byte)
    };
    let mut pieces: Vec<String> = (0..256)
        .filter(printable)
        .map(|byte| char::from_u32(byte).unwrap().into())
        .collect();
    pieces.extend((256..256 + 68).map(|code| String::from(char::from_u32(code).unwrap())));
    assert_eq!(pieces.len(), 256);

    let mut kinds = vec![1; 256];
    pieces.extend(tokens.iter().map(|token| (*token).to_owned()));
    kinds.extend(tokens.iter().map(|_| 3));

    let mut metadata = vec![
        ("tokenizer.ggml.model", Meta::Text("gpt2")),
        ("tokenizer.ggml.tokens", Meta::Texts(pieces)),
        ("tokenizer.ggml.token_type", Meta::Kinds(kinds)),
        (
            "tokenizer.ggml.merges",
            Meta::Texts(vec!["a b".into(), "1 2".into()]),
        ),
    ];
    metadata.extend(pre.map(|pre| ("tokenizer.ggml.pre", Meta::Text(pre))));
    metadata.extend(more);

    // The results of the merges must be in the vocabulary.
    if let Some((_, Meta::Texts(pieces))) = metadata
        .iter_mut()
        .find(|(key, _)| *key == "tokenizer.ggml.tokens")
    {
        pieces.extend(["ab", "12"].map(str::to_owned));
    }
    if let Some((_, Meta::Kinds(kinds))) = metadata
        .iter_mut()
        .find(|(key, _)| *key == "tokenizer.ggml.token_type")
    {
        kinds.extend([1, 1]);
    }

    Tokenizer::from_gguf(&file(&metadata).1).map(Option::unwrap)
}

/// The keys that name `<s>` and `</s>`, the first two control tokens.
fn bos_and_eos() -> Vec<(&'static str, Meta<'static>)> {
    vec![
        ("tokenizer.ggml.bos_token_id", Meta::Id(256)),
        ("tokenizer.ggml.eos_token_id", Meta::Id(257)),
    ]
}

#[test]
fn the_pre_tokenizer_decides_whether_text_begins_with_bos() {
    for (pre, begins) in [
        ("llama-bpe", true),
        ("tekken", true),
        ("qwen2", false),
        ("gpt-2", false),
        ("dbrx", false),
    ] {
        let tokenizer = byte_level(Some(pre), &["<s>", "</s>"], bos_and_eos()).unwrap();
        assert_eq!(
            tokenizer.encode("ab").unwrap().first() == Some(&256),
            begins,
            "{pre}"
        );
    }
}

#[test]
fn explicit_keys_override_the_pre_tokenizer() {
    let with_flag = |key, value| {
        let mut metadata = bos_and_eos();
        metadata.push((key, Meta::Flag(value)));
        metadata
    };
    let ids = |pre, more| {
        byte_level(Some(pre), &["<s>", "</s>"], more)
            .unwrap()
            .encode("ab")
            .unwrap()
    };

    assert_eq!(
        ids(
            "llama-bpe",
            with_flag("tokenizer.ggml.add_bos_token", false)
        ),
        [258]
    );
    assert_eq!(
        ids("qwen2", with_flag("tokenizer.ggml.add_bos_token", true)),
        [256, 258]
    );
    assert_eq!(
        ids("qwen2", with_flag("tokenizer.ggml.add_eos_token", true)),
        [258, 257]
    );
}

#[test]
fn the_pre_tokenizer_splits_words_and_unknown_ones_are_rejected() {
    let pieces = |pre| {
        byte_level(pre, &["<s>", "</s>"], bos_and_eos())
            .unwrap()
            .encode_templated("ab12")
            .unwrap()
            .len()
    };

    for keeps_digits in [
        None,
        Some("default"),
        Some("gpt-2"),
        Some("llama-bpe"),
        Some("gpt-4o"),
    ] {
        assert_eq!(pieces(keeps_digits), 2, "{keeps_digits:?}");
    }

    for splits_digits in ["smollm", "starcoder", "qwen2", "tekken", "deepseek-coder"] {
        assert_eq!(pieces(Some(splits_digits)), 3, "{splits_digits}");
    }

    let error = byte_level(Some("someone's-own"), &["<s>"], Vec::new())
        .unwrap_err()
        .to_string();
    assert!(error.contains("rule `someone's-own`"), "{error}");
}

#[test]
fn sentencepiece_begins_with_token_1_when_the_file_names_no_bos() {
    let pieces = ["<unk>", "<s>", "</s>", "▁", "a", "▁a"]
        .map(str::to_owned)
        .to_vec();
    let metadata = [
        ("tokenizer.ggml.model", Meta::Text("llama")),
        ("tokenizer.ggml.tokens", Meta::Texts(pieces)),
        (
            "tokenizer.ggml.scores",
            Meta::Numbers(vec![0.0, 0.0, 0.0, -3.0, -4.0, -1.0]),
        ),
        (
            "tokenizer.ggml.token_type",
            Meta::Kinds(vec![2, 3, 3, 1, 1, 1]),
        ),
    ];
    let (_folder, opened) = file(&metadata);
    let tokenizer = Tokenizer::from_gguf(&opened).unwrap().unwrap();
    assert_eq!(tokenizer.encode("a a").unwrap(), [1, 5, 5]);
    assert_eq!(tokenizer.special_tokens()["bos_token"], "<s>");
}

#[test]
fn unsupported_kinds_of_tokenizers_are_rejected_by_name() {
    let metadata = [
        ("tokenizer.ggml.model", Meta::Text("rwkv")),
        ("tokenizer.ggml.tokens", Meta::Texts(vec!["a".into()])),
    ];
    let error = Tokenizer::from_gguf(&file(&metadata).1)
        .unwrap_err()
        .to_string();
    assert!(error.contains("kind `rwkv`"), "{error}");
}
