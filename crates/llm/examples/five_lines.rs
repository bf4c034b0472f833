//! Load a model in 8 bit, print it, list its parameters, generate, stream.
//!
//! `cargo run --release -p llm-int8 --example five_lines -- [MODEL] [PROMPT]`

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use llm_int8::{AutoModelForCausalLM, LoadConfig};
use std::io::Write;
use std::ops::ControlFlow;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_else(|| "tiny-gpt2".into());
    let prompt = arguments.next().unwrap_or_else(|| "And it came to pass".into());

    let model = AutoModelForCausalLM::from_pretrained(&name, &LoadConfig::from_env())?;
    println!("{model}");
    model.named_parameters().iter().for_each(|parameter| println!("{parameter}"));
    println!("{}", model.generate(&prompt, &model.generation_config())?.text);

    // The same, piece by piece as it is made.
    model.generate_stream(&prompt, &model.generation_config(), &mut |piece| {
        print!("{piece}");
        match std::io::stdout().flush() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })?;
    println!();
    Ok(())
}
