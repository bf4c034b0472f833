//! The tiny models of `golden/models`, at least one for every family.

use super::{golden, golden_tensor, golden_text};
use candle_core::{DType, Tensor};
use llm_int8_decoder::{Decoder, LoadOptions, ModelConfig};
use llm_int8_nn::checkpoint::Checkpoint;
use std::sync::Arc;

/// The names of the folders that hold expected values.
pub(crate) fn folders() -> Vec<String> {
    let all = std::fs::read_dir(golden("models")).unwrap().flatten();
    let complete = all.filter(|entry| entry.path().join("expected.safetensors").exists());
    let mut names: Vec<String> = complete
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();

    names
}

pub(crate) fn config(folder: &str) -> ModelConfig {
    ModelConfig::parse(golden_text(&format!("models/{folder}/config.json")).as_bytes()).unwrap()
}

pub(crate) fn try_load(folder: &str, options: &LoadOptions) -> llm_int8_decoder::Result<Decoder> {
    let files = [golden(&format!("models/{folder}/model.safetensors"))];
    let checkpoint = Arc::new(Checkpoint::open_safetensors(&files, None).unwrap());
    Decoder::load(&config(folder), &checkpoint, options, &mut |_| ()).map(|(decoder, _)| decoder)
}

pub(crate) fn load(folder: &str, options: &LoadOptions) -> Decoder {
    match try_load(folder, options) {
        Ok(decoder) => decoder,
        Err(error) => panic!("{folder}: {error}"),
    }
}

pub(crate) fn expected(folder: &str, name: &str) -> Tensor {
    golden_tensor(&format!("models/{folder}/expected.safetensors"), name)
}

pub(crate) fn input_ids(folder: &str) -> Tensor {
    expected(folder, "input_ids").to_dtype(DType::U32).unwrap()
}

/// Runs a check on every folder, and fails with all faults found.
pub(crate) fn in_every_folder(check: impl Fn(&str) -> Result<(), String>) {
    let faults: Vec<String> = folders()
        .iter()
        .filter_map(|name| check(name).err().map(|fault| format!("{name}: {fault}")))
        .collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

pub(crate) fn at_most(what: &str, value: f64, limit: f64) -> Result<(), String> {
    if value <= limit {
        Ok(())
    } else {
        Err(format!("{what} is {value:e}, more than {limit:e}"))
    }
}
