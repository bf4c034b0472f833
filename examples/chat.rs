//! A conversation: each turn costs only its own tokens.
//!
//! `cargo run --release --example chat -- [MODEL]`: a model without a chat template gets a plain
//! one here.

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use llm_int8::{AutoModelForCausalLM, Chat, GenerationConfig, LoadConfig};
use std::ops::ControlFlow;

const PLAIN: &str = "{% for m in messages %}{{ m.content }}\n{% endfor %}";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "tiny-gpt2".into());
    let model = AutoModelForCausalLM::from_pretrained(&name, &LoadConfig::from_env())?;
    let template = match model.chat_template() {
        Ok(template) => template,
        Err(_) => model.chat_template_of(PLAIN)?,
    };
    let mut chat = Chat::with_template(&model, template);
    let config = GenerationConfig {
        max_new_tokens: Some(16),
        ..model.generation_config()
    };

    for question in ["Who art thou?", "And what is thy name?"] {
        println!("> {question}");
        let reply = chat.reply(question, &config, &mut |text| {
            print!("{text}");
            ControlFlow::Continue(())
        })?;
        println!("\n[{} tokens]", reply.generated.ids.len());
    }
    Ok(())
}
