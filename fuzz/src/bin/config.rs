//! `config.json` and `generation_config.json`: what describes a small model also loads and runs.

#![no_main]

use libfuzzer_sys::fuzz_target;
use llm_int8::decoder::spec::with_model_type;
use llm_int8::decoder::{
    Decoder, DecoderSpec, LoadOptions, ModelConfig, ModelTensors, WeightDtype,
};
use llm_int8::nn::checkpoint::Checkpoint;
use llm_int8::nn::module::Module;
use llm_int8::{GenerationConfig, LoadConfig};
use llm_int8_fuzz::{Choices, Folder, Limits, bounded, config};
use serde_json::{Map, Value, json};
use std::cell::LazyCell;
use std::path::Path;
use std::sync::Arc;

const LIMITS: Limits = Limits::new(4, 128);

/// Models with more elements are only described.
const LARGEST: usize = 1 << 15;

thread_local! {
    static FOLDER: LazyCell<Folder> = LazyCell::new(Folder::default);
}

fuzz_target!(|data: &[u8]| FOLDER.with(|folder| bounded(LIMITS, || run(folder, data))));

fn run(folder: &Folder, data: &[u8]) {
    let mut from = Choices::new(data);
    let style = from.byte();
    if style & 3 == 3 {
        return generation(style, &mut from);
    }
    let bytes = match style & 0x1c {
        0 => from.rest().to_vec(),
        _ => config::model(&mut from).to_string().into_bytes(),
    };
    let Ok(parsed) = ModelConfig::parse(&bytes) else {
        return;
    };
    let parsed = with_model_type(
        parsed,
        ["", "gpt2", "models--org--llama-2", "phi3"][usize::from(style >> 6)],
    );
    let mut warnings = Vec::new();
    let _ = GenerationConfig::from_model_config(&parsed, "config.json", &mut warnings);
    if let Err(error) = DecoderSpec::from_config(&parsed) {
        return assert!(!error.to_string().is_empty());
    }
    let Ok(empty) = Checkpoint::from_headers([]) else {
        return;
    };
    if let Ok(tensors) = Decoder::tensors_in(&parsed, &empty) {
        load(folder, &parsed, &tensors, style);
    }
}

fn generation(style: u8, from: &mut Choices<'_>) {
    let bytes = match style & 4 {
        0 => config::generation(from).to_string().into_bytes(),
        _ => from.rest().to_vec(),
    };
    let mut warnings = Vec::new();
    if let Err(error) =
        GenerationConfig::from_json_with(&bytes, "generation_config.json", &mut warnings)
    {
        assert!(!error.to_string().is_empty());
    }
    warnings
        .iter()
        .for_each(|warning| drop(warning.to_string()));
}

/// Writes weights that fit, loads them and computes a few tokens.
fn load(folder: &Folder, config: &ModelConfig, tensors: &ModelTensors, style: u8) {
    let count = |shape: &[usize]| {
        shape
            .iter()
            .try_fold(1usize, |count, size| count.checked_mul(*size))
    };
    let elements = (tensors.needed.iter())
        .try_fold(0usize, |sum, tensor| sum.checked_add(count(&tensor.shape)?))
        .unwrap_or(usize::MAX);
    let headers = header(tensors);
    if elements > LARGEST || tensors.needed.len() > 2000 {
        return describe(config, &headers);
    }

    let path = folder.path().join("model.safetensors");
    write(&path, &headers, elements);
    let checkpoint =
        Checkpoint::open_safetensors(&[path], None).expect("a file that was just written");
    let options = LoadOptions {
        dtype: if style & 0x20 == 0 {
            WeightDtype::Auto
        } else {
            WeightDtype::Float16
        },
        int8: if style & 0x10 == 0 {
            LoadConfig::default().options.int8
        } else {
            None
        },
        ..LoadOptions::default()
    };
    let checkpoint = Arc::new(checkpoint);
    let decoder = match Decoder::load(config, &checkpoint, &options, &mut |_| ()) {
        Ok((decoder, _)) => decoder,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let _ = decoder.describe().to_string();
    let _ = decoder.execution_plan().to_string();

    let mut cache = decoder.new_cache();
    for ids in [&[0u32, 1, 2][..], &[3], &[0; 12], &[1]] {
        match decoder.next_logits(ids, &mut cache) {
            Ok(logits) => assert_eq!(logits.len(), decoder.spec().vocab_size()),
            Err(error) => return assert!(!error.to_string().is_empty()),
        }
    }
    cache.truncate(2);
    let _ = decoder.next_logits(&[1, 2], &mut cache);
}

/// Plans a model that is too large to load.
fn describe(config: &ModelConfig, headers: &Value) {
    let length: u64 = (headers.as_object().into_iter().flatten())
        .filter_map(|(_, entry)| entry["data_offsets"][1].as_u64())
        .max()
        .unwrap_or(0);
    let text = headers.to_string();
    let file = (
        "model.safetensors",
        text.as_bytes(),
        length.saturating_add(text.len() as u64 + 8),
    );
    let Ok(checkpoint) = Checkpoint::from_headers([file]) else {
        return;
    };
    if let Ok((decoder, outcome)) = Decoder::plan(config, &checkpoint, &LoadOptions::default()) {
        let tree = decoder.describe();
        let _ = (
            tree.to_string(),
            tree.footprint(),
            decoder.execution_plan().to_string(),
            outcome.layers,
        );
    }
}

fn header(tensors: &ModelTensors) -> Value {
    let mut header = Map::new();
    let mut end = 0u64;
    for tensor in &tensors.needed {
        let start = end;
        let count = tensor
            .shape
            .iter()
            .fold(1u64, |count, size| count.saturating_mul(*size as u64));
        end = start.saturating_add(count.saturating_mul(2));
        header.insert(
            tensor.key.clone(),
            json!({ "dtype": "F16", "shape": tensor.shape, "data_offsets": [start, end] }),
        );
    }
    header.into()
}

fn write(path: &Path, header: &Value, elements: usize) {
    let text = header.to_string();
    let values = (0..elements).map(|number| half::f16::from_f32((number % 19) as f32 / 16.0 - 0.5));
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes.extend(values.flat_map(|value| value.to_le_bytes()));
    std::fs::write(path, bytes).expect("a file in memory");
}
