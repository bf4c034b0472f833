//! Checkpoints in every supported format, and broken or hostile ones.

use crate::support::{Tensors, golden, read_tensors, write_tensors};
use candle_core::{Device, Tensor};
use llm_int8_decoder::{Decoder, LoadOptions, ModelConfig, WeightDtype};
use llm_int8_decoder::{DecoderError, Result};
use llm_int8_nn::NnError;
use llm_int8_nn::checkpoint::Checkpoint;
use llm_int8_nn::module::{Module, SkipList};
use safetensors::Dtype;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

fn config() -> ModelConfig {
    ModelConfig::parse(&std::fs::read(golden("models/gpt2/config.json")).unwrap()).unwrap()
}

fn tensors() -> Tensors {
    read_tensors("models/gpt2/model.safetensors")
}

fn load(checkpoint: Checkpoint, options: &LoadOptions) -> Result<Decoder> {
    Decoder::load(&config(), &Arc::new(checkpoint), options, &mut |_| ())
        .map(|(decoder, _)| decoder)
}

/// The logits of four fixed tokens.
fn logits_of(decoder: &Decoder) -> Vec<f32> {
    let ids = Tensor::new(&[[5u32, 17, 200, 3]], &Device::Cpu).unwrap();
    let logits = decoder.logits(&ids).unwrap();
    logits.flatten_all().unwrap().to_vec1().unwrap()
}

fn written(tensors: &Tensors) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.safetensors");
    write_tensors(&path, tensors);
    (folder, path)
}

fn open(path: &Path) -> Result<Checkpoint, NnError> {
    Checkpoint::open_safetensors(&[path.to_owned()], None)
}

fn load_tensors(tensors: &Tensors) -> Result<Decoder> {
    let (_folder, path) = written(tensors);
    load(open(&path)?, &LoadOptions::default())
}

fn failure(tensors: &Tensors) -> String {
    load_tensors(tensors)
        .expect_err("this must not load")
        .to_string()
}

fn unquantised() -> LoadOptions {
    LoadOptions {
        int8: None,
        dtype: WeightDtype::Auto,
        ..LoadOptions::default()
    }
}

#[test]
fn a_pickle_gives_the_same_logits_as_safetensors() {
    for options in [LoadOptions::default(), unquantised()] {
        let bin =
            Checkpoint::open_pickle(&[golden("models/gpt2_bin/pytorch_model.bin")], None).unwrap();
        let plain = open(&golden("models/gpt2/model.safetensors")).unwrap();
        assert_eq!(
            logits_of(&load(bin, &options).unwrap()),
            logits_of(&load(plain, &options).unwrap())
        );
    }
}

#[test]
fn keys_without_a_prefix_mask_buffers_and_a_tied_head_are_accepted() {
    let expected = logits_of(&load_tensors(&tensors()).unwrap());
    let mut changed: Tensors = tensors()
        .into_iter()
        .map(|(name, t)| (name.replace("transformer.", ""), t))
        .collect();
    let mask = (Dtype::F32, vec![1, 1, 64, 64], vec![0; 4 * 64 * 64]);
    changed.insert("h.0.attn.bias".into(), mask);
    changed.insert(
        "h.0.attn.masked_bias".into(),
        (Dtype::F32, vec![], vec![0; 4]),
    );
    changed.insert("lm_head.weight".into(), changed["wte.weight"].clone());
    assert_eq!(logits_of(&load_tensors(&changed).unwrap()), expected);
}

#[test]
fn a_sharded_checkpoint_gives_the_same_logits() {
    let folder = TempDir::new().unwrap();
    let names = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ];
    let mut shards = [Tensors::new(), Tensors::new()];
    let mut map = serde_json::Map::new();
    for (i, (name, tensor)) in tensors().into_iter().enumerate() {
        map.insert(name.clone(), names[i % 2].into());
        shards[i % 2].insert(name, tensor);
    }

    let paths = names.map(|name| folder.path().join(name));
    shards
        .iter()
        .zip(&paths)
        .for_each(|(shard, path)| write_tensors(path, shard));
    let index = folder.path().join("model.safetensors.index.json");
    let write_index = |map: &serde_json::Map<String, serde_json::Value>| {
        std::fs::write(&index, serde_json::json!({ "weight_map": map }).to_string()).unwrap();
    };
    write_index(&map);
    let sharded = Checkpoint::open_safetensors(&paths, Some(&index)).unwrap();
    let expected = logits_of(&load_tensors(&tensors()).unwrap());
    assert_eq!(
        logits_of(&load(sharded, &LoadOptions::default()).unwrap()),
        expected
    );

    map.insert("another".into(), "model-00003-of-00003.safetensors".into());
    write_index(&map);
    let error = Checkpoint::open_safetensors(&paths, Some(&index))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("shard index") && error.contains("names the file model-00003"),
        "{error}"
    );

    std::fs::write(&index, "{").unwrap();
    assert!(matches!(
        Checkpoint::open_safetensors(&paths, Some(&index)),
        Err(NnError::MalformedIndex { .. })
    ));
}

#[test]
fn other_float_dtypes_are_read() {
    let expected = logits_of(&load_tensors(&tensors()).unwrap());
    let to_f32 = |bytes: &[u8]| -> Vec<u8> {
        let halves = bytes
            .chunks(2)
            .map(|b| f16_from_bits(u16::from_le_bytes([b[0], b[1]])));
        halves.flat_map(f32::to_le_bytes).collect()
    };

    let wide: Tensors = tensors()
        .into_iter()
        .map(|(name, (_, shape, bytes))| (name, (Dtype::F32, shape, to_f32(&bytes))))
        .collect();

    // Loading rounds to f16, which changes no value that came from f16.
    assert_eq!(logits_of(&load_tensors(&wide).unwrap()), expected);
}

/// The f32 value of an f16, from its bits. Finite values only.
fn f16_from_bits(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let exponent = i32::from(bits >> 10 & 31);
    let mantissa = f32::from(bits & 1023);
    match exponent {
        0 => sign * mantissa * 2f32.powi(-24),
        _ => sign * (1.0 + mantissa / 1024.0) * 2f32.powi(exponent - 15),
    }
}

#[test]
fn missing_and_misshapen_tensors_are_named() {
    let mut missing = tensors();
    missing.remove("transformer.h.1.ln_1.weight");
    let error = failure(&missing);
    assert!(
        error.contains("has no tensor `transformer.h.1.ln_1.weight`, which gpt2 needs"),
        "{error}"
    );
    assert!(
        error.contains("did you mean `transformer.h.0.ln_1.weight`"),
        "{error}"
    );

    let mut misshapen = tensors();
    misshapen
        .get_mut("transformer.h.2.mlp.c_fc.weight")
        .unwrap()
        .1
        .reverse();
    let error = failure(&misshapen);
    assert!(
        error.contains("`transformer.h.2.mlp.c_fc.weight`") && error.contains("[192, 48]"),
        "{error}"
    );
    assert!(error.contains("model.safetensors"), "{error}");

    let mut integers = tensors();
    integers.get_mut("transformer.ln_f.weight").unwrap().0 = Dtype::I16;
    let error = failure(&integers);
    assert!(
        error.contains("`transformer.ln_f.weight`") && error.contains("stored as I16"),
        "{error}"
    );
}

#[test]
fn nan_weights_are_named() {
    let mut tensors = tensors();
    let bytes = &mut tensors
        .get_mut("transformer.h.1.attn.c_proj.weight")
        .unwrap()
        .2;
    bytes[10..12].copy_from_slice(&0x7e00u16.to_le_bytes());
    let error = failure(&tensors);
    assert!(
        error.contains("`transformer.h.1.attn.c_proj.weight`")
            && error.contains("cannot be quantised"),
        "{error}"
    );
    assert!(error.contains("NaN"), "{error}");
}

#[test]
fn truncated_files_and_false_headers_are_rejected() {
    let bytes = std::fs::read(golden("models/gpt2/model.safetensors")).unwrap();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.safetensors");
    let check = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let error = open(&path).expect_err("this must not open").to_string();
        assert!(
            error.contains("model.safetensors") && error.contains("not a usable checkpoint"),
            "{error}"
        );
    };

    for length in [0, 4, 8, 100, 5000, bytes.len() / 2, bytes.len() - 1] {
        check(&bytes[..length]);
    }

    let mut longer = bytes.clone();
    longer.push(0);
    check(&longer);
    for length in [u64::MAX, 1 << 40, bytes.len() as u64, 3] {
        let mut lying = bytes.clone();
        lying[..8].copy_from_slice(&length.to_le_bytes());
        check(&lying);
    }

    for header in [
        r#"{"a":{"dtype":"F32","shape":[9223372036854775807,9],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#,
        "[]",
    ] {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.extend([0; 4]);
        check(&file);
    }
}

#[test]
fn broken_pickles_are_rejected() {
    let bytes = std::fs::read(golden("models/gpt2_bin/pytorch_model.bin")).unwrap();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("pytorch_model.bin");
    for broken in [
        &b""[..],
        b"not a zip",
        &bytes[..bytes.len() / 2],
        &bytes[..100],
    ] {
        std::fs::write(&path, broken).unwrap();
        let error = Checkpoint::open_pickle(std::slice::from_ref(&path), None)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("pytorch_model.bin") && error.contains("not a usable checkpoint"),
            "{error}"
        );
    }
}

#[test]
fn headers_alone_give_the_tree_of_the_loaded_model() {
    let bytes = std::fs::read(golden("models/gpt2/model.safetensors")).unwrap();
    let length = u64::from_le_bytes(*bytes.first_chunk().unwrap());
    let json = &bytes[8..8 + length as usize];
    let headers =
        Checkpoint::from_headers([("model.safetensors", json, bytes.len() as u64)]).unwrap();
    let (planned, _) = Decoder::plan(&config(), &headers, &LoadOptions::default()).unwrap();
    let loaded = load_tensors(&tensors()).unwrap();
    assert_eq!(planned.describe(), loaded.describe());

    let ids = Tensor::new(&[[1u32]], &Device::Cpu).unwrap();
    let error = planned.logits(&ids).unwrap_err();
    assert!(matches!(error, DecoderError::Nn(NnError::NotLoaded)));
    assert!(
        Checkpoint::from_headers([("x", json, 12)]).is_err(),
        "a header that does not match the size of its file"
    );
}

#[test]
fn skip_list_names_add_to_the_default_and_are_checked() {
    let options = |names: &[&str]| LoadOptions {
        skip_modules: SkipList::new(names.iter().copied()),
        ..LoadOptions::default()
    };

    let (_folder, path) = written(&tensors());
    let kept = load(open(&path).unwrap(), &options(&["h.1", "c_fc"]))
        .unwrap()
        .describe();
    let text = kept.to_string();
    assert!(
        text.contains("(lm_head): Linear(") && text.contains("(c_fc): Conv1D(nf=192, nx=48)"),
        "{text}"
    );

    let int8 = kept
        .named_parameters()
        .iter()
        .filter(|p| p.dtype == llm_int8_nn::ParameterDtype::I8)
        .count();
    assert_eq!(int8, 2 * 3, "two blocks with three layers each");

    let error = load(open(&path).unwrap(), &options(&["c_fcc"]))
        .unwrap_err()
        .to_string();
    assert!(error.contains("did you mean `c_fc`?"), "{error}");

    // An empty list crashes transformers on a model with tied embeddings. Here it changes nothing.
    assert!(load(open(&path).unwrap(), &options(&[])).is_ok());
}

#[test]
fn unquantised_models_print_as_in_transformers() {
    let (_folder, path) = written(&tensors());
    let tree = load(open(&path).unwrap(), &unquantised())
        .unwrap()
        .describe();
    assert!(tree.to_string().contains("(c_attn): Conv1D(nf=144, nx=48)"));

    let weight = &tree.named_parameters()[4];
    assert_eq!(
        weight.to_string(),
        "transformer.h.0.attn.c_attn.weight torch.float16 (48, 144)"
    );
}

/// A piece of gpt2's `config.json`, what replaces it, and the error of loading that.
const IMPOSSIBLE_CONFIGURATIONS: &[(&str, &str, &str)] = &[
    (
        "\"n_layer\": 3",
        "\"n_layer\": 4000000000",
        "`n_layer` is 4000000000; a whole number from 1",
    ),
    (
        "\"n_layer\": 3",
        "\"n_layer\": 100000000",
        "number of layers is 100000000",
    ),
    (
        "\"n_embd\": 48",
        "\"n_embd\": 99999999",
        "cannot be divided among 4 heads",
    ),
    (
        "\"n_embd\": 48",
        "\"n_embd\": 99999996",
        "hidden size is 99999996",
    ),
    (
        "\"vocab_size\": 256",
        "\"vocab_size\": 260000000",
        "has shape",
    ),
    (
        "\"n_positions\": 64",
        "\"n_positions\": 260000000",
        "has shape",
    ),
    ("\"n_embd\": 48", "\"n_embd\": -1", "`n_embd` is -1"),
    (
        "\"n_head\": 4",
        "\"n_head\": 0",
        "`n_head` is 0; a whole number from 1",
    ),
    (
        "\"n_head\": 4",
        "\"n_head\": 5",
        "cannot be divided among 5 heads",
    ),
    ("\"n_head\": 4", "\"n_head\": null", "`n_head` is null"),
    (
        "\"gpt2\"",
        "\"mamba\"",
        "model type `mamba` is not supported; supported are bloom, falcon, gemma2",
    ),
    (
        "gelu_new",
        "gelu_newer",
        "activation function `gelu_newer` is not known",
    ),
];

#[test]
fn impossible_configurations_are_rejected_before_allocating() {
    let text = std::fs::read_to_string(golden("models/gpt2/config.json")).unwrap();
    let plan = |from: &str, to: &str| {
        let changed = text.replace(from, to);
        assert_ne!(changed, text);
        let (_folder, path) = written(&tensors());
        let config = ModelConfig::parse(changed.as_bytes()).unwrap();
        Decoder::plan(&config, &open(&path).unwrap(), &LoadOptions::default())
            .unwrap_err()
            .to_string()
    };

    for (from, to, expected) in IMPOSSIBLE_CONFIGURATIONS {
        let error = plan(from, to);
        assert!(error.contains(expected), "{error}");
    }

    assert!(
        ModelConfig::parse(b"[1]")
            .unwrap_err()
            .to_string()
            .contains("not a JSON object")
    );
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]
    /// A file with any byte changed gives a model or an error.
    #[test]
    fn damaged_bytes_never_panic(offset in 0usize..9000, byte in proptest::num::u8::ANY, bin in proptest::bool::ANY) {
        let name = if bin { "models/gpt2_bin/pytorch_model.bin" } else { "models/gpt2/model.safetensors" };
        let mut bytes = std::fs::read(golden(name)).unwrap();
        let offset = offset % bytes.len();
        bytes[offset] = byte;
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("damaged");
        std::fs::write(&path, bytes).unwrap();
        let opened = if bin { Checkpoint::open_pickle(&[path], None) } else { open(&path) };
        if let Ok(checkpoint) = opened {
            let _ = load(checkpoint, &LoadOptions::default());
        }
    }
}
