//! candle-transformers' own Llama and Qwen2 on the checkpoints that the decoder is tested with: an
//! oracle that shares no code with transformers.

use crate::support::{distance, golden, golden_json, golden_tensor, over};
use candle_core::{DType, Device, IndexOp, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, qwen2};
use llm_int8_decoder::{Decoder, LoadOptions, ModelConfig, WeightDtype};
use llm_int8_nn::checkpoint::Checkpoint;

/// Logits `[tokens, V]` of the first sequence, token by token over a cache.
fn by_token(
    ids: &Tensor,
    mut forward: impl FnMut(&Tensor, usize) -> Result<Tensor>,
) -> Result<Tensor> {
    let rows =
        (0..ids.dim(1)?).map(|position| forward(&ids.i((..1, position..=position))?, position));
    let rows: Result<Vec<Tensor>> = rows.map(|row| row?.flatten_all()).collect();
    Tensor::stack(&rows?, 0)
}

macro_rules! llama_by_token {
    ($name:ident, $($llama:ident)::+) => {
        fn $name(vb: VarBuilder<'_>, config: serde_json::Value, ids: &Tensor) -> Result<Tensor> {
            use $($llama)::+::{Cache, Llama, LlamaConfig};
            let config: LlamaConfig = serde_json::from_value(config).unwrap();
            let config = config.into_config(false);
            let model = Llama::load(vb, &config)?;
            let mut cache = Cache::new(true, DType::F32, &config, &Device::Cpu)?;
            by_token(ids, |ids, position| model.forward(ids, position, &mut cache))
        }
    };
}

llama_by_token!(own_llama, llama);
llama_by_token!(int8_llama, llm_int8_candle_models::llama);

fn own_qwen2(vb: VarBuilder<'_>, mut config: serde_json::Value, ids: &Tensor) -> Result<Tensor> {
    // candle wants a number where transformers writes null.
    config["sliding_window"] = config["max_position_embeddings"].clone();
    let config: qwen2::Config = serde_json::from_value(config).unwrap();
    let mut model = qwen2::ModelForCausalLM::new(&config, vb)?;
    by_token(ids, |ids, position| model.forward(ids, position))
}

type Run = fn(VarBuilder<'_>, serde_json::Value, &Tensor) -> Result<Tensor>;

#[test]
fn the_decoder_computes_what_candles_llama_and_qwen2_compute() {
    let cases: [(&str, Run); 3] = [
        ("llama", own_llama),
        ("llama3_rope", own_llama),
        ("qwen2", own_qwen2),
    ];
    for (name, run) in cases {
        let config = format!("models/{name}/config.json");
        let weights = golden(&format!("models/{name}/model.safetensors"));
        let expected =
            |key: &str| golden_tensor(&format!("models/{name}/expected.safetensors"), key);
        let ids = expected("input_ids").to_dtype(DType::U32).unwrap();
        let candle = run(
            over(std::slice::from_ref(&weights)),
            golden_json(&config),
            &ids,
        )
        .unwrap();

        let options = LoadOptions {
            int8: None,
            dtype: WeightDtype::Float32,
            ..LoadOptions::default()
        };
        let config = ModelConfig::parse(&std::fs::read(golden(&config)).unwrap()).unwrap();
        let checkpoint = Checkpoint::open_safetensors(&[weights], None).unwrap();
        let loaded = Decoder::load(&config, &checkpoint.into(), &options, &mut |_| ());
        let ours = loaded.unwrap().0.logits(&ids).unwrap().i(0).unwrap();

        let theirs = expected("logits_f32").i(0).unwrap();
        assert!(distance(&candle, &ours) < 1e-5, "{name}");
        assert!(distance(&candle, &theirs) < 1e-5, "{name}");
    }
}

/// A checkpoint in shards that transformers saved after `load_in_8bit`.
#[test]
fn candles_llama_loads_a_checkpoint_of_bitsandbytes() {
    let folder = "bnb_checkpoints/llama";
    let files = (1..=3).map(|i| golden(&format!("{folder}/model-0000{i}-of-00003.safetensors")));
    let checkpoint = over(&files.collect::<Vec<_>>());
    let config = golden_json(&format!("{folder}/config.json"));
    let expected = |key: &str| golden_tensor("models/llama/expected.safetensors", key);
    let ids = expected("input_ids").to_dtype(DType::U32).unwrap();
    let exact = expected("logits_f32").i(0).unwrap();
    let theirs = expected("logits_int8_f32").i(0).unwrap();

    let float = own_llama(checkpoint.clone(), config.clone(), &ids).unwrap();
    let int8 = int8_llama(checkpoint, config, &ids).unwrap();
    assert!(distance(&float, &exact) < distance(&theirs, &exact));
    assert!((1e-3..0.03).contains(&distance(&int8, &float)));
    assert!(distance(&int8, &exact) < 1.15 * distance(&theirs, &exact));
}
