//! The built-in model against transformers (`golden/tiny_gpt2_expected.safetensors`).

use crate::support::{golden_tensor, relative_error};
use candle_core::DType;
use llm_int8::decoder::WeightDtype;
use llm_int8::{AutoModelForCausalLM, GenerationConfig, LoadConfig};

const EXPECTED: &str = "tiny_gpt2_expected.safetensors";

fn ids(name: &str) -> Vec<u32> {
    let ids = golden_tensor(EXPECTED, name)
        .flatten_all()
        .unwrap()
        .to_dtype(DType::U32)
        .unwrap();
    ids.to_vec1().unwrap()
}

fn load(int8: bool) -> AutoModelForCausalLM {
    let mut config = LoadConfig::default();
    config.options.dtype = WeightDtype::Float32;
    if !int8 {
        config.options.int8 = None;
    }

    AutoModelForCausalLM::from_pretrained("tiny-gpt2", &config).unwrap()
}

#[test]
fn logits_match_transformers() {
    let logits = load(false).logits(&ids("input_ids")).unwrap();
    let error = relative_error(&logits, &golden_tensor(EXPECTED, "logits_f32"));
    assert!(error < 1e-4, "{error}");
}

#[test]
fn int8_logits_are_close_to_the_unquantised_ones() {
    let logits = load(true).logits(&ids("input_ids")).unwrap();
    let error = relative_error(&logits, &golden_tensor(EXPECTED, "logits_f32"));
    assert!(error > 0.0 && error < 0.02, "{error}");
}

#[test]
fn greedy_ids_match_transformers() {
    let expected = ids("greedy_f32");
    let prompt = &ids("input_ids")[..16];
    let model = load(false);
    let config = GenerationConfig {
        max_new_tokens: Some(32),
        ..GenerationConfig::default()
    };
    let mut pieces = model
        .generation(prompt)
        .config(config)
        .ids_only()
        .pieces()
        .unwrap();
    let streamed: Vec<u32> = pieces.by_ref().map(|piece| piece.unwrap().id).collect();
    let generated = pieces.finish().unwrap();
    assert_eq!([prompt, &generated.ids].concat(), expected);
    assert_eq!(streamed, generated.ids);
}
