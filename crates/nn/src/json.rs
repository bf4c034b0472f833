//! JSON as Python's `json` module reads and writes it: the small files of a model come from there.
//!
//! Python writes `NaN`, `Infinity` and `-Infinity`, which JSON does not allow and [`Value`] cannot
//! hold. Here they become marked strings: reading one as a number fails with an error that names
//! the key, and [`to_text`] writes them back unchanged.

use serde_json::Value;
use std::borrow::Cow;

/// What Python writes for non-finite floats, longest first.
const WORDS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// First character of the string that stands for such a word: a Unicode noncharacter, which does
/// not occur in real text.
const MARK: char = '\u{FFFF}';

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Input that Python's `json.loads` rejects.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// The file begins with a byte order mark.
    #[error("it begins with a byte order mark; save it as UTF-8 without one")]
    ByteOrderMark,
    /// The file is not JSON.
    #[error("it is not JSON ({0})")]
    Syntax(#[from] serde_json::Error),
}

/// Parses the bytes of a JSON file. If a key occurs twice, the last one wins.
///
/// ```
/// use llm_int8_nn::json;
/// let value = json::parse(br#"{"limits": [0.0, Infinity], "note": "NaN stays a word here"}"#)?;
/// assert_eq!(value["note"], "NaN stays a word here");
/// assert!(value["limits"][1].as_f64().is_none());
/// assert!(json::to_text(&value).contains("Infinity"));
/// # Ok::<(), json::JsonError>(())
/// ```
///
/// # Errors
/// [`JsonError`] for anything Python's `json.loads` would reject.
pub fn parse(bytes: &[u8]) -> Result<Value, JsonError> {
    if bytes.starts_with(BYTE_ORDER_MARK) {
        return Err(JsonError::ByteOrderMark);
    }
    Ok(serde_json::from_slice(&marked(bytes))?)
}

/// Indented JSON, with Python's words for non-finite floats.
pub fn to_text(value: &Value) -> String {
    let text = format!("{value:#}");
    if !text.contains(MARK) {
        return text;
    }

    WORDS.iter().fold(text, |text, word| {
        text.replace(&format!("\"{MARK}{word}\""), word)
    })
}

/// A value as it appears in an error message.
pub fn shown(value: &Value) -> String {
    match value.as_str().and_then(|text| text.strip_prefix(MARK)) {
        Some(word) => word.to_owned(),
        None => value.to_string(),
    }
}

/// The same JSON with each of Python's words outside strings replaced by its marked string.
fn marked(bytes: &[u8]) -> Cow<'_, [u8]> {
    let mut out: Vec<u8> = Vec::new();
    let mut copied = 0; // how much of `bytes` is in `out`
    let mut at = 0;
    let mut in_string = false;

    while let Some(byte) = bytes.get(at) {
        match byte {
            b'\\' if in_string => at += 1,
            b'"' => in_string = !in_string,
            b'-' | b'I' | b'N' if !in_string => {
                if let Some(word) = WORDS
                    .iter()
                    .find(|word| bytes[at..].starts_with(word.as_bytes()))
                {
                    out.extend_from_slice(&bytes[copied..at]);
                    out.extend_from_slice(format!("\"{MARK}{word}\"").as_bytes());
                    copied = at + word.len();
                    at = copied;
                    continue;
                }
            }
            _ => {}
        }

        at += 1;
    }

    if copied == 0 {
        return Cow::Borrowed(bytes);
    }

    out.extend_from_slice(&bytes[copied..]);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_outside_strings_survive_a_round_trip() {
        let text =
            r#"{"a":[0.0,Infinity,-Infinity,NaN],"NaN":"Infinity \" NaN","b":{"c":-1,"d":NaN}}"#;
        let value = parse(text.as_bytes()).unwrap();
        assert_eq!(value["NaN"], "Infinity \" NaN");
        assert_eq!(value["b"]["c"], -1);
        assert_eq!(shown(&value["a"][2]), "-Infinity");

        let written: String = to_text(&value).split_whitespace().collect();
        assert!(
            written.contains(r#""a":[0.0,Infinity,-Infinity,NaN]"#)
                && written.contains(r#""d":NaN"#)
        );
        assert_eq!(parse(to_text(&value).as_bytes()).unwrap(), value);
    }

    #[test]
    fn the_last_of_two_equal_keys_wins() {
        assert_eq!(parse(br#"{"a": 1, "a": 2}"#).unwrap()["a"], 2);
    }

    #[test]
    fn an_integer_beyond_64_bits_becomes_a_float() {
        let value = parse(br#"{"model_max_length": 1000000000000000019884624838656}"#).unwrap();
        assert_eq!(value["model_max_length"].as_f64(), Some(1e30));
    }

    #[test]
    fn what_python_rejects_is_rejected() {
        for text in [
            "\u{FEFF}{}",
            "{\"a\": 1,}",
            "{\"a\": 1} // comment",
            "# comment\n{}",
            "{'a': 1}",
            "{\"a\": NaNs}",
            "{\"a\": nan}",
            "{\"a\": +Infinity}",
            "{\"a\": inf}",
            "{\"a\": --Infinity}",
            "{\"a\" NaN}",
            "{\"a\": \"\u{1}\"}",
            "{\"a\": True}",
            "{\"a\": 1",
            "",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }

        assert!(parse(b"{\"a\": \"\xFF\"}").is_err());

        let mark = parse("\u{FEFF}{}".as_bytes()).unwrap_err().to_string();
        assert!(mark.contains("byte order mark"), "{mark}");
    }

    proptest::proptest! {
        /// Strict JSON parses the same as with serde_json, and no input panics.
        #[test]
        fn any_bytes_parse_or_fail_without_a_panic(bytes in proptest::collection::vec(proptest::sample::select(b"\"\\{}[]:, aN-Infinity1\xFF".to_vec()), 0..40)) {
            if let Ok(strict) = serde_json::from_slice::<Value>(&bytes) {
                proptest::prop_assert_eq!(parse(&bytes).unwrap(), strict);
            } else {
                drop(parse(&bytes));
            }
        }
    }
}
