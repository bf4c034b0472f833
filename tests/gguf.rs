//! GGUF files: the golden models as llama.cpp's converter writes them (`golden/gguf`), a tokenizer
//! in the metadata, and files with false headers.

use crate::support::{golden, golden_tensor, golden_text, llm_int8, relative_error};
use candle_core::{DType, Tensor};
use llm_int8::decoder::{Decoder, LoadOptions, ModelConfig, WeightDtype, open_gguf};
use llm_int8::decoder::{DecoderError, Result};
use llm_int8::hub::HubConfig;
use llm_int8::nn::NnError;
use llm_int8::nn::checkpoint::{Checkpoint, GgufFile};
use llm_int8::nn::module::Module;
use llm_int8::{AutoModelForCausalLM, LoadConfig};
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

const MODELS: [&str; 8] = [
    "gemma2",
    "gpt2",
    "llama",
    "llama3_rope",
    "phi3",
    "qwen2",
    "qwen3",
    "starcoder2",
];

fn unquantised() -> LoadOptions {
    LoadOptions {
        int8: None,
        dtype: WeightDtype::Float32,
        ..LoadOptions::default()
    }
}

fn load(path: &Path) -> Result<Decoder> {
    let (config, checkpoint) = open_gguf(GgufFile::open(path)?)?;
    Decoder::load(&config, &Arc::new(checkpoint), &unquantised(), &mut |_| ())
        .map(|(decoder, _)| decoder)
}

/// The same model from its safetensors folder.
fn from_folder(family: &str) -> Decoder {
    let mut config = golden_text(&format!("models/{family}/config.json"));
    if family == "gemma2" {
        // GGUF does not store it; llama.cpp takes the head size.
        config = config.replace(
            "\"query_pre_attn_scalar\": 256",
            "\"query_pre_attn_scalar\": 16",
        );
    }

    let files = [golden(&format!("models/{family}/model.safetensors"))];
    let checkpoint = Arc::new(Checkpoint::open_safetensors(&files, None).unwrap());
    let config = ModelConfig::parse(config.as_bytes()).unwrap();

    Decoder::load(&config, &checkpoint, &unquantised(), &mut |_| ())
        .unwrap()
        .0
}

fn logits(model: &Decoder, family: &str) -> Tensor {
    let ids = golden_tensor(
        &format!("models/{family}/expected.safetensors"),
        "input_ids",
    );
    let ids = ids.to_dtype(DType::U32).unwrap();
    model.logits(&ids).unwrap()
}

#[test]
fn a_gguf_file_gives_the_logits_and_the_tree_of_its_source() {
    for family in MODELS {
        let ours = load(&golden(&format!("gguf/{family}.gguf")))
            .unwrap_or_else(|e| panic!("{family}: {e}"));
        let theirs = from_folder(family);
        let error = relative_error(&logits(&ours, family), &logits(&theirs, family));
        assert!(error < 1e-5, "{family}: {error}");
        let text = |model: &Decoder| model.describe().to_string().replace(", padding_idx=0", "");
        assert_eq!(text(&ours), text(&theirs), "{family}");
    }
}

#[test]
fn the_program_runs_and_quantises_a_gguf_file() {
    let file = golden("gguf/llama.gguf").display().to_string();
    let scratch = TempDir::new().unwrap();
    let folder = scratch.path().join("llama").display().to_string();
    assert!(
        llm_int8(&["quantize", &file, "-o", &folder])
            .status
            .success()
    );

    let run = |model: &str| {
        let output = llm_int8(&[
            "run",
            model,
            "--token-ids",
            "5,6,7",
            "--print-ids",
            "-n",
            "8",
            "-q",
        ]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );

        String::from_utf8(output.stdout).unwrap()
    };

    let ids = run(&file);
    assert_eq!(run(&folder), ids);
    assert_eq!(run(&golden("models/llama").display().to_string()), ids);

    let headers = llm_int8(&["inspect", &file, "--headers-only"]);
    let text = String::from_utf8(headers.stdout).unwrap();
    assert!(
        text.starts_with(golden_text("models/llama/print.txt").trim_end()),
        "{text}"
    );
}

#[test]
fn a_tokenizer_in_the_metadata_gives_the_ids_of_sentencepiece() {
    let tokenizer = llm_int8::Tokenizer::from_gguf(
        &GgufFile::open(&golden("gguf/sentencepiece.gguf")).unwrap(),
    );
    let tokenizer = tokenizer.unwrap().unwrap();
    let expected: serde_json::Value =
        serde_json::from_str(&golden_text("gguf/sentencepiece.json")).unwrap();
    for case in expected.as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let ids: Vec<u64> = case["ids"]
            .as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_u64().unwrap())
            .collect();
        let ours: Vec<u64> = tokenizer
            .encode(text)
            .unwrap()
            .into_iter()
            .map(u64::from)
            .collect();
        assert_eq!(ours, ids, "{text:?}");
        assert_eq!(
            tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(),
            text
        );
    }
}

#[test]
fn an_unknown_architecture_lists_the_known_ones() {
    let bytes = std::fs::read(golden("gguf/starcoder2.gguf")).unwrap();
    let at = bytes
        .windows(10)
        .position(|window| window == b"starcoder2")
        .unwrap();
    let mut changed = bytes.clone();
    changed[at..at + 10].copy_from_slice(b"starcoder9");
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("m.gguf");
    std::fs::write(&path, changed).unwrap();
    let error = load(&path).unwrap_err().to_string();
    assert!(
        error.contains("`starcoder9`") && error.contains("gemma2, gpt2, llama"),
        "{error}"
    );
}

#[test]
fn false_headers_are_rejected() {
    let bytes = std::fs::read(golden("gguf/qwen2.gguf")).unwrap();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("m.gguf");
    let fails = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let error = load(&path).unwrap_err();
        assert!(
            matches!(error, DecoderError::Nn(NnError::MalformedFile { .. })),
            "{error}"
        );
        assert!(error.to_string().contains("m.gguf"), "{error}");
    };

    let with = |offset: usize, value: u64| {
        let mut changed = bytes.clone();
        changed[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        changed
    };

    fails(b"");
    fails(b"GGUF");
    fails(b"not a gguf file at all");
    fails(&bytes[..bytes.len() / 2]);
    fails(&bytes[..bytes.len() - 40]);
    for count in [u64::MAX, 1 << 40, 1 << 29] {
        fails(&with(8, count)); // tensors
        fails(&with(16, count)); // metadata
        fails(&with(24, count)); // length of the first key
    }

    let name = b"token_embd.weight";
    let at = bytes
        .windows(name.len())
        .position(|window| window == name)
        .unwrap()
        + name.len();

    for size in [u64::MAX, 1 << 62, 1 << 33, 4096] {
        fails(&with(at + 4, size)); // first dimension
    }

    fails(&with(at + 4 + 16 + 4, 1 << 60)); // offset
}

#[test]
fn a_missing_file_is_named() {
    let config = LoadConfig {
        options: unquantised(),
        hub: HubConfig {
            offline: true,
            ..HubConfig::from_env()
        },
        ..LoadConfig::default()
    };
    let error = AutoModelForCausalLM::from_pretrained("nowhere/m.gguf", &config)
        .unwrap_err()
        .to_string();
    assert!(error.contains("cannot read nowhere/m.gguf"), "{error}");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]
    /// A file with any byte changed gives a model or an error.
    #[test]
    fn damaged_bytes_never_panic(offset in 0usize..4000, byte in proptest::num::u8::ANY, model in 0usize..8) {
        let mut bytes = std::fs::read(golden(&format!("gguf/{}.gguf", MODELS[model]))).unwrap();
        bytes[offset] = byte;
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("m.gguf");
        std::fs::write(&path, bytes).unwrap();
        let _ = load(&path);
    }
}
