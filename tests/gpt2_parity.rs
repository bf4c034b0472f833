//! Int8 against values that only GPT-2's golden folder has: one sequence alone, and original
//! outlier weights. `families.rs` tests what every family has.

use crate::support::{golden, golden_tensor, relative_error};
use candle_core::{DType, Tensor};
use llm_int8_decoder::{Decoder, LoadOptions, ModelConfig, WeightDtype};
use llm_int8_nn::checkpoint::Checkpoint;
use llm_int8_nn::linear::{Int8Config, OutlierRule, OutlierWeights};
use std::sync::Arc;

const EXPECTED: &str = "models/gpt2/expected.safetensors";

fn load(folder: &str, options: &LoadOptions) -> Decoder {
    let config =
        ModelConfig::parse(&std::fs::read(golden(folder).join("config.json")).unwrap()).unwrap();
    let files = [golden(folder).join("model.safetensors")];
    let checkpoint = Arc::new(Checkpoint::open_safetensors(&files, None).unwrap());

    Decoder::load(&config, &checkpoint, options, &mut |_| ())
        .unwrap()
        .0
}

fn int8_f32(rule: OutlierRule, weights: OutlierWeights) -> LoadOptions {
    let int8 = Int8Config {
        outliers: rule,
        outlier_weights: weights,
    };
    LoadOptions {
        int8: Some(int8),
        dtype: WeightDtype::Float32,
        ..LoadOptions::default()
    }
}

fn input_ids() -> Tensor {
    golden_tensor(EXPECTED, "input_ids")
        .to_dtype(DType::U32)
        .unwrap()
}

fn logits(model: &Decoder, ids: &Tensor) -> Tensor {
    model.logits(ids).unwrap()
}

#[test]
fn original_outlier_weights_are_as_accurate_as_bitsandbytes_in_both_scopes() {
    let exact = golden_tensor(EXPECTED, "logits_f32");
    let their_distance = relative_error(&golden_tensor(EXPECTED, "logits_int8_f32"), &exact);
    for rule in [OutlierRule::batch(6.0), OutlierRule::row(6.0)] {
        let ours = logits(
            &load("models/gpt2", &int8_f32(rule, OutlierWeights::Original)),
            &input_ids(),
        );
        let distance = relative_error(&ours, &exact);
        assert!(
            distance <= 1.05 * their_distance,
            "{rule:?}: {distance} and {their_distance}"
        );
    }
}

#[test]
fn the_first_sequence_alone_matches_bitsandbytes() {
    let model = load(
        "models/gpt2",
        &int8_f32(OutlierRule::batch(6.0), OutlierWeights::Dequantized),
    );
    let alone = logits(&model, &input_ids().narrow(0, 0, 1).unwrap());
    let theirs = golden_tensor(EXPECTED, "logits_int8_f32_row0");
    assert!(relative_error(&alone, &theirs.reshape(alone.dims()).unwrap()) < 0.02);
}
