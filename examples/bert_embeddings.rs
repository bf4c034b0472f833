//! Sentence embeddings by candle-transformers' BERT in 8 bit. `llm_int8_candle_models::bert` is its
//! bert.rs with one line changed (tests/candle_models/build.rs); in a program of your own, copy the
//! file.
//!
//! `cargo run --release --example bert_embeddings -- [FOLDER]`: a folder with config.json,
//! model.safetensors and tokenizer.json, such as that of all-MiniLM-L6-v2. Without it, a tiny BERT
//! with random weights: its similarities mean nothing, but those of int8 lie near those of float.

#![allow(clippy::print_stdout, reason = "an example prints what it does")]

use candle_core::{DType, Device, Result, Tensor};
use llm_int8::Tokenizer;
use llm_int8::nn::checkpoint::Checkpoint;
use llm_int8::nn::drop_in::with_int8_report;
use llm_int8::nn::linear::Int8Config;
use llm_int8::nn::module::SkipList;
use llm_int8::nn::var_builder::var_builder;
use llm_int8_candle_models::bert::{BertModel, Config};
use std::path::PathBuf;

const SENTENCES: [&str; 4] = [
    "the cat sleeps under the tree",
    "a small cat sleeps in the house",
    "she reads a book by the window",
    "the river runs to the sea",
];

/// The mean of the tokens' hidden states, of length 1: `[width]`.
fn embedding(model: &BertModel, ids: &[u32]) -> Result<Tensor> {
    let ids = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
    let hidden = model.forward(&ids, &ids.zeros_like()?, None)?;
    let mean = hidden.mean(1)?.squeeze(0)?;
    mean.broadcast_div(&mean.sqr()?.sum_all()?.sqrt()?)
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/candle/bert");
    let folder = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| shipped.into()));
    let config: Config = serde_json::from_slice(&std::fs::read(folder.join("config.json"))?)?;
    let tokenizer = std::fs::read(folder.join("tokenizer.json"))?;
    let tokenizer = Tokenizer::from_bytes(&tokenizer, "tokenizer.json")?;
    let files = [folder.join("model.safetensors")];
    let checkpoint = Checkpoint::open_safetensors(&files, None)?;
    let vb = var_builder(checkpoint.into(), DType::F32, &Device::Cpu);

    // The whole encoder in float, then nothing of it.
    let mut similarities = Vec::new();
    for skip in [SkipList::new(["encoder"]), SkipList::default()] {
        let build = || BertModel::load(vb.clone(), &config);
        let (model, layers) = with_int8_report(Int8Config::default(), &skip, build)?;
        let int8 = layers.iter().filter(|layer| layer.is_int8).count();
        let bytes: usize = layers.iter().map(|layer| layer.bytes).sum();
        println!(
            "{int8} of {} linear layers are int8, {bytes} bytes",
            layers.len()
        );

        let mut embeddings = Vec::new();
        for sentence in SENTENCES {
            embeddings.push(embedding(&model, &tokenizer.encode(sentence)?)?);
        }
        let embeddings = Tensor::stack(&embeddings, 0)?;
        similarities.push(embeddings.matmul(&embeddings.t()?)?.to_vec2::<f32>()?);
    }

    println!("cosine similarity, float and int8:");
    for (i, j) in (0..SENTENCES.len()).flat_map(|i| (0..i).map(move |j| (j, i))) {
        let [float, int8] = [0, 1].map(|model| similarities[model][i][j]);
        println!("{float:.3} {int8:.3}  {} | {}", SENTENCES[i], SENTENCES[j]);
    }
    Ok(())
}
