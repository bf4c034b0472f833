//! candle-transformers' `LogitsProcessor` draws the tokens of a model in 8 bit, in the loop that
//! every example of candle has.
//!
//! `cargo run --release --example logits_processor -- [MODEL] [PROMPT]`

#![allow(clippy::print_stdout, reason = "an example prints what it does")]

use candle_core::{Device, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling};
use llm_int8::{AutoModelForCausalLM, LoadConfig};

const NEW_TOKENS: usize = 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_else(|| "tiny-gpt2".into());
    let prompt = arguments
        .next()
        .unwrap_or_else(|| "And it came to pass".into());

    let model = AutoModelForCausalLM::from_pretrained(&name, &LoadConfig::from_env())?;
    let (decoder, tokenizer) = (model.decoder(), model.tokenizer()?);

    let nucleus = Sampling::TopKThenTopP {
        k: 40,
        p: 0.9,
        temperature: 0.8,
    };
    for sampling in [Sampling::ArgMax, nucleus] {
        println!("{sampling:?}");
        let mut processor = LogitsProcessor::from_sampling(299792458, sampling);
        let mut tokens = tokenizer.encode(&prompt)?;
        let mut cache = decoder.new_cache();

        for _ in 0..NEW_TOKENS {
            let index_pos = cache.len();
            let ids = Tensor::new(&tokens[index_pos..], &Device::Cpu)?.unsqueeze(0)?;
            let logits = decoder.forward_tensor(&ids, index_pos, &mut cache)?;
            tokens.push(processor.sample(&logits.squeeze(0)?)?);
        }
        println!("{}", tokenizer.decode(&tokens)?);
    }
    Ok(())
}
