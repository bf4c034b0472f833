//! What is in a model, without reading its weights: tree, int8 layers, parameters, memory.
//!
//! `cargo run --release --example inspect -- [MODEL]`

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use llm_int8::hub::NoProgress;
use llm_int8::{AutoModelForCausalLM, LoadConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "tiny-gpt2".into());
    let plan = AutoModelForCausalLM::plan(&name, &LoadConfig::from_env(), &NoProgress)?;

    println!("{}", plan.tree);
    println!("{} layers become int8", plan.layers.replaced.len());
    for kept in &plan.layers.kept {
        println!("{} is kept, because of `{}`", kept.path, kept.because);
    }
    let footprint = plan.tree.footprint();
    println!(
        "{} bytes, as transformers counts {}",
        footprint.actual(),
        footprint.transformers()
    );
    Ok(())
}
