//! Loads a model in 8 bit, prints it, lists its parameters, generates text and streams it.
//!
//! `cargo run --release --example generate -- [MODEL] [PROMPT]`

#![allow(clippy::print_stdout, reason = "an example prints what it does")]

use llm_int8::{AutoModelForCausalLM, LoadConfig};
use std::io::Write;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_else(|| "tiny-gpt2".into());
    let prompt = arguments
        .next()
        .unwrap_or_else(|| "And it came to pass".into());

    let model = AutoModelForCausalLM::from_pretrained(&name, &LoadConfig::from_env())?;
    println!("{model}");
    for parameter in model.named_parameters() {
        println!("{parameter}");
    }

    println!("{}", model.generation(prompt.as_str()).run()?.text);

    for piece in model.generation(prompt.as_str()).temperature(0.8).seed(1) {
        print!("{}", piece?.text);
        std::io::stdout().flush()?;
    }

    println!();
    Ok(())
}
