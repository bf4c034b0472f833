//! Write a model in 8 bit, in the form of bitsandbytes, and load it again: Python loads it the same
//! way.
//!
//! `cargo run --release --example quantize -- [MODEL] [FOLDER]`

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use llm_int8::{AutoModelForCausalLM, LoadConfig, SaveOptions};
use std::ops::ControlFlow;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_else(|| "tiny-gpt2".into());
    let scratch = tempfile::tempdir()?;
    let folder = match arguments.next() {
        Some(folder) => folder.into(),
        None => scratch.path().join("8bit"),
    };

    let config = LoadConfig::from_env();
    let model = AutoModelForCausalLM::from_pretrained(&name, &config)?;
    model.save_pretrained(&folder, &SaveOptions::default(), &mut |_| {
        ControlFlow::Continue(())
    })?;

    // In Python: AutoModelForCausalLM.from_pretrained(folder)
    let again = AutoModelForCausalLM::from_pretrained(&folder.display().to_string(), &config)?;
    assert!(again.is_prequantized());
    println!("{} bytes", again.memory_footprint().parameters);
    println!(
        "{}",
        again
            .generation("In the beginning")
            .max_new_tokens(8)
            .run()?
            .text
    );
    Ok(())
}
