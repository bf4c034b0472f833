//! Several prompts at once, each with its own settings, and requests that come and go while others
//! run.
//!
//! `cargo run --release --example batch -- [MODEL]`

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use llm_int8::generate::Update;
use llm_int8::{AutoModelForCausalLM, GenerationConfig, LoadConfig, Request};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "tiny-gpt2".into());
    let model = AutoModelForCausalLM::from_pretrained(&name, &LoadConfig::from_env())?;
    let short = GenerationConfig {
        max_new_tokens: Some(8),
        ..model.generation_config()
    };

    // A batch with a known end.
    let prompts = ["In the beginning", "ROMEO:"];
    for (prompt, generated) in prompts
        .iter()
        .zip(model.generate_batch(prompts).config(short.clone()).run()?)
    {
        println!("{prompt}{}", generated.text);
    }

    // An engine: at most two sequences run together, a third waits for its turn.
    let mut engine = model.engine(2)?;
    for prompt in ["And God said", "Now Moses", "JULIET:"] {
        engine.add(Request::new(prompt).config(short.clone()))?;
    }
    while !engine.is_idle() {
        for event in engine.step() {
            if let Update::Finished(generated) = event.update {
                println!("{:?}: {}", event.id, generated.text);
            }
        }
    }
    Ok(())
}
