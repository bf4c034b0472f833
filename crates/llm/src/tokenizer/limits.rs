//! What is checked in a `tokenizer.json` before the tokenizers library sees it: parts that make it
//! read past a piece, or write far more text than it is given. Panics alone need no check, they are
//! caught.

use serde::Deserialize;
use serde_json::Value;
use tokenizers::AddedToken;

/// How much longer a normalizer and pre-tokenizer, or a decoder, may make a text. Real ones replace a
/// space by `▁`, which is three times as long, or write bytes as characters, which is twice as long.
const GROWTH: usize = 256;

/// Token ids that a post-processor may add to a text.
const ADDED_IDS: usize = 1 << 16;

/// The parts of a `tokenizer.json` that are checked.
#[derive(Deserialize)]
struct Parts {
    model: Model,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
}

#[derive(Deserialize)]
struct Model {
    continuing_subword_prefix: Option<String>,
}

/// The merges, which are many: read only if there is a prefix.
#[derive(Deserialize)]
struct Merges {
    model: ModelMerges,
}

#[derive(Deserialize)]
struct ModelMerges {
    #[serde(default)]
    merges: Vec<Value>,
}

/// Checks the bytes of a `tokenizer.json` and returns its added tokens.
pub(super) fn check(bytes: &[u8]) -> Result<Vec<AddedToken>, String> {
    let parts: Parts = serde_json::from_slice(bytes).map_err(|cause| cause.to_string())?;
    if let Some(prefix) = parts.model.continuing_subword_prefix
        && !prefix.is_empty()
    {
        let all: Merges = serde_json::from_slice(bytes).map_err(|cause| cause.to_string())?;
        check_merges(&prefix, &all.model.merges)?;
    }

    let before = growth(&parts.normalizer).saturating_mul(growth(&parts.pre_tokenizer));
    for (name, growth) in [
        ("normalizer and pre-tokenizer", before),
        ("decoder", growth(&parts.decoder)),
    ] {
        if growth > GROWTH {
            return Err(format!(
                "its {name} can make a text more than {GROWTH} times as long"
            ));
        }
    }

    check_charsmaps(&parts.normalizer)?;
    if added_ids(&parts.post_processor) > ADDED_IDS {
        return Err(format!(
            "its post-processor adds more than {ADDED_IDS} tokens to a text"
        ));
    }

    Ok(parts.added_tokens)
}

/// The library cuts the prefix off the second piece of each merge without looking, and takes the
/// rest for UTF-8 (`BpeBuilder::build`).
fn check_merges(prefix: &str, merges: &[Value]) -> Result<(), String> {
    let second = |merge: &Value| match merge {
        Value::String(pair) => pair.split(' ').nth(1).map(str::to_owned),
        pair => pair[1].as_str().map(str::to_owned),
    };
    match merges
        .iter()
        .filter_map(second)
        .find(|piece| !piece.starts_with(prefix))
    {
        Some(piece) => Err(format!(
            "its merges have the second piece {piece:?} without the `continuing_subword_prefix` {prefix:?}"
        )),
        None => Ok(()),
    }
}

/// A `precompiled_charsmap` begins with the length of its trie, for which the library asks for memory
/// without looking (up to 8 GiB for 5 bytes).
fn check_charsmaps(part: &Value) -> Result<(), String> {
    for inner in part["normalizers"].as_array().into_iter().flatten() {
        check_charsmaps(inner)?;
    }
    let Some(text) = part["precompiled_charsmap"].as_str() else {
        return Ok(());
    };

    // Four characters of base64 are three bytes.
    let present = text.len() as u64 / 4 * 3;
    match first_number(text.as_bytes()) {
        Some(length) if u64::from(length) + 4 > present => Err(format!(
            "its precompiled_charsmap of {present} bytes says that it has {length}"
        )),
        _ => Ok(()),
    }
}

/// The first four bytes of a base64 text as a little-endian number; `None` if it is too short or no
/// base64, which the library reports.
fn first_number(text: &[u8]) -> Option<u32> {
    let mut bits = 0u64;
    for &digit in text.get(..6)? {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u64::from(value);
    }

    Some(((bits >> 4) as u32).swap_bytes())
}

/// A bound on how much longer a part and its children make a text.
fn growth(part: &Value) -> usize {
    let inner = ["normalizers", "pretokenizers", "decoders"]
        .into_iter()
        .filter_map(|key| part[key].as_array())
        .flatten()
        .map(growth);
    let own = match part["type"].as_str() {
        Some("Replace") => part["content"].as_str().map_or(1, str::len).max(1),
        // Each byte becomes a character of up to two bytes; a piece may get a space in front, and it
        // may be one byte long.
        Some("ByteLevel") => 4,
        // A space becomes `▁`, which a piece may also get in front.
        Some("Metaspace") => 4,
        _ => 1,
    };

    inner.fold(own, usize::saturating_mul)
}

/// A bound on the ids that a part and its children add to a text.
fn added_ids(part: &Value) -> usize {
    let length = |value: &Value| value.as_array().map_or(0, Vec::len);
    let inner = part["processors"].as_array().into_iter().flatten();
    let longest = part["special_tokens"]
        .as_object()
        .into_iter()
        .flat_map(|tokens| tokens.values())
        .map(|token| length(&token["ids"]))
        .max()
        .unwrap_or(0);
    let pieces = length(&part["single"]).max(length(&part["pair"]));

    inner
        .map(added_ids)
        .fold(pieces.saturating_mul(longest), usize::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn replace(content: &str) -> Value {
        json!({ "type": "Replace", "pattern": { "String": "a" }, "content": content })
    }

    /// Checks a file with these parts and an empty model.
    fn check_with(mut parts: Value) -> Result<Vec<AddedToken>, String> {
        if parts["model"].is_null() {
            parts["model"] = json!({ "type": "BPE", "vocab": {}, "merges": [] });
        }
        check(parts.to_string().as_bytes())
    }

    #[test]
    fn merges_must_have_the_prefix_that_is_cut_off_them() {
        let model = |merges: Value| json!({ "model": { "continuing_subword_prefix": "##", "merges": merges } });
        assert!(check_with(model(json!([["a", "##b"], ["a##b", "##c"]]))).is_ok());
        assert!(check_with(model(json!(["a ##b"]))).is_ok());
        for merges in [json!([["a", "b"]]), json!(["a é"]), json!([["a", ""]])] {
            let error = check_with(model(merges)).unwrap_err();
            assert!(error.contains("continuing_subword_prefix"), "{error}");
        }
    }

    #[test]
    fn replacements_that_multiply_are_refused() {
        let sequence = |kind: &str, count| {
            let parts = vec![replace("aa"); count];
            json!({ "type": "Sequence", kind: parts })
        };
        assert!(check_with(json!({ "normalizer": sequence("normalizers", 8) })).is_ok());
        // Found by fuzzing.
        let levels = |count| {
            let level = json!({ "type": "ByteLevel", "add_prefix_space": true });
            json!({ "type": "Sequence", "pretokenizers": vec![level; count] })
        };
        assert!(check_with(json!({ "pre_tokenizer": levels(4) })).is_ok());
        for part in [
            json!({ "pre_tokenizer": levels(5) }),
            json!({ "pre_tokenizer": levels(3), "normalizer": sequence("normalizers", 3) }),
            json!({ "normalizer": sequence("normalizers", 9) }),
            json!({ "normalizer": sequence("normalizers", 100) }),
            json!({ "decoder": sequence("decoders", 40) }),
            json!({ "normalizer": replace(&"x".repeat(5000)) }),
        ] {
            assert!(check_with(part).unwrap_err().contains("times as long"));
        }
    }

    /// Found by fuzzing.
    #[test]
    fn charsmaps_that_claim_more_than_they_have_are_refused() {
        let map = |text: &str| json!({ "type": "Precompiled", "precompiled_charsmap": text });
        assert_eq!(first_number(b"AQIDBAUG"), Some(0x0403_0201));
        // Eight bytes, of which four are the trie; what is no base64 is left to the library.
        for text in ["BAAAAAAAAAA=", "", "AAAA", "?"] {
            assert!(
                check_with(json!({ "normalizer": map(text) })).is_ok(),
                "{text}"
            );
        }
        let nested = json!({ "type": "Sequence", "normalizers": [map("/////w==")] });
        for part in [map("/////w=="), map("CQAAAAAAAAA="), nested] {
            let error = check_with(json!({ "normalizer": part })).unwrap_err();
            assert!(error.contains("precompiled_charsmap"), "{error}");
        }
    }

    #[test]
    fn post_processors_that_add_too_many_ids_are_refused() {
        let template = |pieces: usize, ids: usize| {
            let piece = json!({ "SpecialToken": { "id": "<s>", "type_id": 0 } });
            json!({
                "type": "TemplateProcessing",
                "single": vec![piece; pieces],
                "special_tokens": { "<s>": { "id": "<s>", "ids": vec![1; ids], "tokens": vec!["<s>"; ids] } },
            })
        };
        assert!(check_with(json!({ "post_processor": template(2, 3) })).is_ok());
        let nested = json!({ "type": "Sequence", "processors": [template(1000, 1000)] });
        for part in [template(1000, 1000), nested] {
            let error = check_with(json!({ "post_processor": part })).unwrap_err();
            assert!(error.contains("adds more than"), "{error}");
        }
    }
}
