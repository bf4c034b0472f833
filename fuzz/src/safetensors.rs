//! Safetensors files and shard indices by grammar.

use crate::{Choices, json};
use serde_json::{Map, Value, json};

const DTYPES: [&str; 16] = [
    "F16", "F32", "BF16", "F64", "I8", "U8", "I16", "I32", "I64", "U64", "BOOL", "F8_E4M3",
    "F8_E5M2", "C64", "F4", "Q8",
];

/// Names that a reader looks for: weights of layers, bitsandbytes' state, kept columns.
const NAMES: [&str; 12] = [
    "a.weight",
    "a.SCB",
    "a.weight_format",
    "a.bias",
    "b.weight",
    "model.a.weight",
    "x",
    "",
    "a.kept_columns",
    "a.kept_weight",
    "a.weight.SCB",
    "é",
];

/// A file. Offsets follow each other unless a choice says otherwise.
pub fn file(from: &mut Choices<'_>) -> Vec<u8> {
    let mut header = Map::new();
    let mut end = 0u64;
    for _ in 0..from.below(5) {
        let dtype = from.one(&DTYPES);
        let shape: Vec<u64> = match from.below(4) {
            0 => vec![from.below(8) as u64],
            1 => vec![from.below(8) as u64, from.below(8) as u64],
            2 => Vec::new(),
            _ => (0..from.below(5)).map(|_| from.number()).collect(),
        };
        let count = shape
            .iter()
            .fold(1u64, |count, size| count.wrapping_mul(*size));
        let bits: u64 = match dtype {
            "F64" | "I64" | "U64" | "C64" => 64,
            "F32" | "I32" => 32,
            "F16" | "BF16" | "I16" => 16,
            "F4" => 4,
            _ => 8,
        };
        let start = if from.rarely() { from.number() } else { end };
        let length = if from.rarely() {
            from.number()
        } else {
            count.wrapping_mul(bits) / 8
        };
        end = start.wrapping_add(length);
        let mut entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] });
        if from.rarely() {
            entry = json::value(from, &[]);
        }
        header.insert(from.one(&NAMES).to_owned(), entry);
    }
    if from.flag() {
        header.insert("__metadata__".into(), json!({ "format": "pt" }));
    }
    if from.rarely() {
        header.insert("__metadata__".into(), json::value(from, &[]));
    }

    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let length = if from.rarely() {
        from.number()
    } else {
        text.len() as u64
    };
    let size = if from.rarely() { from.number() } else { end }.min(4096) as usize;
    let pattern = from.bytes(16);
    let data = (0..size).map(|place| pattern.get(place % 16).copied().unwrap_or(0));

    length
        .to_le_bytes()
        .into_iter()
        .chain(text)
        .chain(data)
        .collect()
}

/// An index over files of these names.
pub fn index(from: &mut Choices<'_>, files: &[&str]) -> Vec<u8> {
    let mut map = Map::new();
    for _ in 0..from.below(8) {
        let file = match from.below(8) {
            0 => from.text(),
            1 => "../x.safetensors".to_owned(),
            _ => from.one(files).to_owned(),
        };
        map.insert(from.one(&NAMES).to_owned(), file.into());
    }
    let mut index = json!({ "metadata": { "total_size": from.number() }, "weight_map": map });
    if from.rarely() {
        json::change(&mut index, from, &["weight_map", "metadata"], &[]);
    }
    index.to_string().into_bytes()
}
