//! The tiny checkpoint of `golden/field/llama`, for tests to change into what is found in the wild,
//! and what transformers makes of each change (`golden/field/weights.json`, made by
//! scripts/make_field_weights_golden.py).

use super::{Tensors, golden_text, read_tensors, write_tensors};
use candle_core::{Device, Tensor};
use llm_int8::decoder::{LoadOptions, WeightDtype};
use llm_int8::hub::{HubConfig, NoProgress};
use llm_int8::{AutoModelForCausalLM, LoadConfig};
use safetensors::Dtype;
use serde_json::Value;
use std::path::Path;
use tempfile::TempDir;

const IDS: [u32; 7] = [5, 9, 33, 17, 60, 2, 7];
pub(crate) const UP: &str = "model.layers.0.mlp.up_proj";
pub(crate) const NORM: &str = "model.norm.weight";

pub(crate) fn config() -> Value {
    serde_json::from_str(&golden_text("field/llama/config.json")).unwrap()
}

pub(crate) fn tensors() -> Tensors {
    read_tensors("field/llama/model.safetensors")
}

/// What transformers makes of a case.
pub(crate) fn expected(case: &str) -> Value {
    let all: Value = serde_json::from_str(&golden_text("field/weights.json")).unwrap();
    all[case].clone()
}

pub(crate) fn floats(value: &Value) -> Vec<f32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|x| x.as_f64().unwrap() as f32)
        .collect()
}

/// A model folder with this `config.json` and these tensors.
pub(crate) fn folder(config: &Value, tensors: &Tensors) -> TempDir {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    write_tensors(&folder.path().join("model.safetensors"), tensors);
    folder
}

/// Loads a model, and checks that planning it from the headers alone gives the same tree and
/// warnings.
pub(crate) fn load(folder: &Path, options: &LoadOptions) -> llm_int8::Result<AutoModelForCausalLM> {
    let hub = HubConfig {
        offline: true,
        ..HubConfig::from_env()
    };
    let config = LoadConfig {
        options: options.clone(),
        hub,
        ..LoadConfig::default()
    };
    let model = AutoModelForCausalLM::from_pretrained(&folder.display().to_string(), &config);

    let plan = AutoModelForCausalLM::plan(&folder.display().to_string(), &config, &NoProgress);
    match (&model, plan) {
        (Ok(model), Ok(plan)) => {
            assert_eq!(plan.tree, *model.tree());
            assert_eq!(plan.warnings, model.load_report().warnings);
        }
        (Ok(_), Err(error)) => panic!("{error}"),
        (Err(_), _) => {}
    }

    model
}

pub(crate) fn floats_in_f32() -> LoadOptions {
    LoadOptions {
        int8: None,
        dtype: WeightDtype::Float32,
        ..LoadOptions::default()
    }
}

pub(crate) fn int8_in_f32() -> LoadOptions {
    LoadOptions {
        dtype: WeightDtype::Float32,
        ..LoadOptions::default()
    }
}

/// ‖ours − theirs‖ / ‖theirs‖ of the logits after the last token.
pub(crate) fn distance(model: &AutoModelForCausalLM, case: &str) -> f32 {
    let input = Tensor::new(&[IDS], &Device::Cpu).unwrap();
    let logits = model.decoder().logits(&input).unwrap();
    let logits = logits
        .to_dtype(candle_core::DType::F32)
        .unwrap()
        .to_vec3::<f32>()
        .unwrap();
    let theirs = floats(&expected(case)["logits"]);
    let ours = &logits[0][logits[0].len() - 1];
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>();

    (square(&mut ours.iter().zip(&theirs).map(|(a, b)| a - b))
        / square(&mut theirs.iter().copied()))
    .sqrt()
}

pub(crate) fn warnings(model: &AutoModelForCausalLM) -> Vec<String> {
    model
        .load_report()
        .warnings
        .iter()
        .map(ToString::to_string)
        .collect()
}

pub(crate) fn ones(shape: &[usize]) -> (Dtype, Vec<usize>, Vec<u8>) {
    (
        Dtype::F32,
        shape.to_vec(),
        1f32.to_le_bytes().repeat(shape.iter().product()),
    )
}
