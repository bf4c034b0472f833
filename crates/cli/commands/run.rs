//! `llm-int8 run`: text after a prompt.

use super::{load, sampled};
use crate::args::{RunArgs, WrongUse};
use crate::display::{bytes, line};
use anyhow::Context;
use llm_int8::{AutoModelForCausalLM, FinishReason, Generated, GenerationConfig, MemoryUse};
use std::io::{Read, Write};
use std::ops::ControlFlow;

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<()> {
    let prompt = prompt(args)?;
    let model = load(&args.model)?;
    let config = generation(&model, args);
    let generated = match (prompt, args.print_ids) {
        (Prompt::Text(text), false) => stream(|show| model.generate_stream(&text, &config, show))?,
        (Prompt::Text(text), true) => {
            let ids = model.tokenizer()?.encode(&text)?;
            print_ids(&model, &ids, &config)?
        }
        (Prompt::Ids(ids), true) => print_ids(&model, &ids, &config)?,
        (Prompt::Ids(ids), false) => stream(|show| model.generate_stream_from_ids(&ids, &config, show))?,
    };
    if !args.quiet {
        report(&model, &generated);
    }
    Ok(())
}

enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

fn prompt(args: &RunArgs) -> anyhow::Result<Prompt> {
    match (&args.token_ids, args.prompt.as_deref()) {
        (Some(ids), _) if ids.is_empty() => Err(WrongUse("--token-ids needs at least one id".into()).into()),
        (Some(ids), _) => Ok(Prompt::Ids(ids.clone())),
        (None, Some("-")) => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("cannot read the prompt from standard input")?;
            Ok(Prompt::Text(text))
        }
        (None, text) => Ok(Prompt::Text(text.unwrap_or_default().to_owned())),
    }
}

/// The model's own settings, changed by what the arguments say.
fn generation(model: &AutoModelForCausalLM, args: &RunArgs) -> GenerationConfig {
    GenerationConfig {
        max_new_tokens: args.max_new_tokens,
        truncate: args.truncate,
        ..sampled(model.generation_config(), &args.sampling)
    }
}

/// Shows text as it comes; a closed output ends generating.
fn stream(
    generate: impl FnOnce(&mut dyn FnMut(&str) -> ControlFlow<()>) -> llm_int8::Result<Generated>,
) -> anyhow::Result<Generated> {
    let mut stdout = std::io::stdout().lock();
    let mut failed = None;
    let generated =
        generate(&mut |piece| match stdout.write_all(piece.as_bytes()).and_then(|()| stdout.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        })?;
    match failed {
        Some(error) => Err(error.into()),
        None => {
            writeln!(stdout)?;
            Ok(generated)
        }
    }
}

fn print_ids(
    model: &AutoModelForCausalLM,
    ids: &[u32],
    config: &GenerationConfig,
) -> anyhow::Result<Generated> {
    let generated = model.generate_ids(ids, config, &mut |_| ControlFlow::Continue(()))?;
    let text: Vec<String> = generated.ids.iter().map(u32::to_string).collect();
    writeln!(std::io::stdout().lock(), "{}", text.join(","))?;
    Ok(generated)
}

/// Times and memory, on standard error.
fn report(model: &AutoModelForCausalLM, generated: &Generated) {
    let (load, timing) = (model.load_report(), &generated.timing);
    let footprint = model.memory_footprint();
    let decode = match timing.decode_rate() {
        Some(rate) => format!("{} tokens at {rate:.1} tokens/s", timing.decoded_tokens),
        None => "no further token".into(),
    };
    let reason = match generated.finish_reason {
        FinishReason::EndOfText => "end of text",
        FinishReason::StopString => "stop string",
        FinishReason::Length => "--max-new-tokens",
        FinishReason::Interrupted => "interrupted",
    };
    let peak = load.peak_memory.map_or(String::new(), |peak| {
        format!(", peak while loading {} (without mapped files)", bytes(peak.anonymous))
    });
    let now = MemoryUse::now().map_or(String::new(), |now| format!(", now {}", bytes(now.anonymous)));
    line("device:  cpu");
    line(&format!(
        "load:    {:.2} s, {} int8 layers, {} kept",
        load.duration.as_secs_f64(),
        load.layers.replaced.len(),
        load.layers.kept.len()
    ));
    line(&format!("prefill: {} tokens at {:.1} tokens/s", timing.prompt_tokens, timing.prefill_rate()));
    line(&format!("decode:  {decode}; ended by {reason}"));
    line(&format!(
        "memory:  model {}, key/value cache {}{peak}{now}",
        bytes(footprint.actual()),
        bytes(generated.cache_bytes)
    ));
}
