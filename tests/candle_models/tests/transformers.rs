//! Beside transformers with `load_in_8bit` (`golden/candle`, `scripts/make_candle_golden.py`).

use crate::support::{distance, golden, golden_json, golden_tensor, over};
use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;
use llm_int8_nn::drop_in::with_int8_report;
use llm_int8_nn::linear::Int8Config;
use llm_int8_nn::module::SkipList;

macro_rules! hidden {
    ($bert:ident, $t5:ident, $($models:ident)::+) => {
        fn $bert(vb: VarBuilder<'_>, ids: &Tensor) -> Result<Tensor> {
            use $($models)::+::bert::{BertModel, Config};
            let config = golden_json("candle/bert/config.json");
            let config: Config = serde_json::from_value(config).unwrap();
            BertModel::load(vb, &config)?.forward(ids, &ids.zeros_like()?, None)
        }

        fn $t5(vb: VarBuilder<'_>, ids: &Tensor) -> Result<Tensor> {
            use $($models)::+::t5::{Config, T5EncoderModel};
            let config = golden_json("candle/t5/config.json");
            let config: Config = serde_json::from_value(config).unwrap();
            T5EncoderModel::load(vb, &config)?.forward(ids)
        }
    };
}

hidden!(float_bert, float_t5, candle_transformers::models);
hidden!(int8_bert, int8_t5, llm_int8_candle_models);

type Hidden = fn(VarBuilder<'_>, &Tensor) -> Result<Tensor>;

fn compare(name: &str, float: Hidden, int8: Hidden, skip: &[&str]) {
    let expected = |key: &str| golden_tensor(&format!("candle/{name}/expected.safetensors"), key);
    let checkpoint = over(&[golden(&format!("candle/{name}/model.safetensors"))]);
    let ids = expected("input_ids").to_dtype(DType::U32).unwrap();
    let exact = expected("hidden_f32");
    let theirs = expected("hidden_int8_f32");

    let ours = float(checkpoint.clone(), &ids).unwrap();
    assert!(distance(&ours, &exact) < 1e-5);

    let skip = SkipList::new(skip.iter().copied());
    let build = || int8(checkpoint, &ids);
    let (ours, layers) = with_int8_report(Int8Config::default(), &skip, build).unwrap();
    let paths = layers.iter().filter(|layer| layer.is_int8);
    let mut paths: Vec<String> = paths.map(|layer| layer.path.to_string()).collect();
    let facts = golden_json(&format!("candle/{name}/facts.json"));
    let mut expected: Vec<String> = serde_json::from_value(facts["int8"].clone()).unwrap();
    paths.sort();
    expected.sort();
    assert_eq!(paths, expected);

    let (of_ours, of_theirs) = (distance(&ours, &exact), distance(&theirs, &exact));
    assert!(of_ours < 1.15 * of_theirs, "{of_ours}, {of_theirs}");
    // They round to f16 between layers, which moves a code here and there: 0.1 of what 8 bit costs.
    let difference = distance(&ours, &theirs);
    assert!(difference < 0.2 * of_theirs, "{difference}, {of_theirs}");
}

#[test]
fn bert_in_8_bit_is_that_of_transformers() {
    compare("bert", float_bert, int8_bert, &[]);
}

/// transformers never quantises `wo` of T5 (`_keep_in_fp32_modules`).
#[test]
fn the_t5_encoder_in_8_bit_is_that_of_transformers() {
    compare("t5", float_t5, int8_t5, &["wo"]);
}
