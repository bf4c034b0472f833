//! The lines of README.md about the library: load a model, print it, generate.
//!
//! `cargo run --release --example library`

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use llm_int8::{AutoModelForCausalLM, LoadConfig};

fn main() -> llm_int8::Result<()> {
    let model = AutoModelForCausalLM::from_pretrained("tiny-gpt2", &LoadConfig::from_env())?;
    println!("{model}");
    println!("{}", model.generation("In the beginning").run()?.text);
    Ok(())
}
