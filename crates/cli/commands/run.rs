//! `llm-int8 run`: generate text after a prompt.

use super::{check_drafts, load, part_text};
use crate::args::{RunArgs, UsageError};
use crate::display::{bytes, line};
use anyhow::Context;
use llm_int8::{
    AutoModelForCausalLM, FinishReason, Generated, Generation, GenerationConfig, MemoryUse, Prompt,
};
use serde_json::json;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Instant;

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<()> {
    check_drafts(args.sampling.speculate, &args.model)?;
    if let Some(file) = &args.prompts_file {
        return batch(args, file);
    }

    let prompt = prompt(args)?;
    let model = load(&args.model, &args.adapter)?;
    let config = generation(&model, args);
    let generation = model.generation(prompt).config(config);
    let generated = if args.print_ids {
        print_ids(generation.ids_only())?
    } else {
        stream(generation)?
    };

    if !args.quiet {
        report(&model, &generated);
    }

    Ok(())
}

/// Runs the prompts of a file in batches, and prints one JSON object per line in the order of the
/// file.
fn batch(args: &RunArgs, file: &Path) -> anyhow::Result<()> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let prompts: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    if prompts.is_empty() {
        return Err(UsageError(format!(
            "{} has no prompts; expected one per line",
            file.display()
        ))
        .into());
    }

    let model = load(&args.model, &args.adapter)?;
    let config = generation(&model, args);
    let started = Instant::now();
    let batch = model
        .generate_batch(prompts.iter().copied())
        .config(config)
        .at_once(args.batch_size);
    let all = batch.run()?;
    let seconds = started.elapsed().as_secs_f64();

    let mut stdout = std::io::stdout().lock();
    for (prompt, generated) in prompts.iter().zip(&all) {
        let object = json!({
            "prompt": prompt,
            "text": generated.text,
            "token_ids": generated.ids,
            "finish_reason": reason(generated.finish_reason),
        });
        writeln!(stdout, "{object}")?;
    }

    if !args.quiet {
        let tokens: usize = all.iter().map(|generated| generated.ids.len()).sum();
        let count = all.len();
        let at_once = args.batch_size.min(count);
        line(&format!(
            "batch:   {count} prompts, {at_once} at once: {tokens} new tokens in {seconds:.2} s, {:.1} tokens/s",
            tokens as f64 / seconds
        ));
    }

    Ok(())
}

fn reason(finish_reason: FinishReason) -> &'static str {
    match finish_reason {
        FinishReason::EndOfText => "end of text",
        FinishReason::StopString => "stop string",
        FinishReason::Length => "--max-new-tokens",
        FinishReason::Time => "max_time",
        FinishReason::Interrupted => "interrupted",
    }
}

fn prompt(args: &RunArgs) -> anyhow::Result<Prompt> {
    match (&args.token_ids, args.prompt.as_deref()) {
        (Some(ids), _) if ids.is_empty() => {
            Err(UsageError("--token-ids needs at least one id".into()).into())
        }
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

/// The model's own settings, overridden by the options.
fn generation(model: &AutoModelForCausalLM, args: &RunArgs) -> GenerationConfig {
    let config = args.sampling.over(model.generation_config());
    GenerationConfig {
        max_new_tokens: args.max_new_tokens.or(config.max_new_tokens),
        truncate: args.truncate,
        ..config
    }
}

/// Prints text as it is generated. A closed output stops generation.
fn stream(generation: Generation<'_>) -> anyhow::Result<Generated> {
    let mut stdout = std::io::stdout().lock();
    let mut pieces = generation.pieces()?;
    for piece in &mut pieces {
        stdout.write_all(piece?.text.as_bytes())?;
        stdout.flush()?;
    }

    writeln!(stdout)?;
    Ok(pieces.finish()?)
}

fn print_ids(generation: Generation<'_>) -> anyhow::Result<Generated> {
    let generated = generation.run()?;
    let text: Vec<String> = generated.ids.iter().map(u32::to_string).collect();
    writeln!(std::io::stdout().lock(), "{}", text.join(","))?;
    Ok(generated)
}

/// Prints where the model is, and the memory use of its devices.
fn devices(model: &AutoModelForCausalLM) {
    let placed = model.placed();
    if let [only] = &placed[..]
        && only.device == "cpu"
    {
        return line("device:  cpu");
    }
    for part in &placed {
        line(&format!(
            "device:  {}, {}",
            part_text(part),
            bytes(part.bytes)
        ));
    }

    match model.decoder().device_memory() {
        Ok(all) => all.iter().for_each(|(name, memory)| {
            line(&format!(
                "         {name} holds {} of this process, peak {}; {} of {} free",
                bytes(memory.allocated),
                bytes(memory.peak),
                bytes(memory.free),
                bytes(memory.total)
            ));
        }),
        Err(error) => line(&format!("         its memory use is unknown: {error}")),
    }
}

/// Prints timings and memory use on standard error.
fn report(model: &AutoModelForCausalLM, generated: &Generated) {
    let load = model.load_report();
    let timing = &generated.timing;
    let footprint = model.memory_footprint();
    let decode = match timing.decode_rate() {
        Some(rate) => format!("{} tokens at {rate:.1} tokens/s", timing.decoded_tokens),
        None => "no tokens after the first".into(),
    };
    let reason = reason(generated.finish_reason);
    let peak = load.peak_memory.map_or(String::new(), |peak| {
        format!(
            ", peak while loading {} (without mapped files)",
            bytes(peak.anonymous)
        )
    });
    let now = MemoryUse::now().map_or(String::new(), |now| {
        format!(", now {}", bytes(now.anonymous))
    });

    devices(model);
    line(&format!(
        "load:    {:.2} s, {} int8 layers, {} kept{}",
        load.duration.as_secs_f64(),
        load.layers.replaced.len(),
        load.layers.kept.len(),
        match model.decoder().adapted_layers() {
            0 => String::new(),
            adapted => format!(", {adapted} with an adapter"),
        }
    ));
    line(&format!(
        "prefill: {} tokens at {:.1} tokens/s",
        timing.prompt_tokens,
        timing.prefill_rate()
    ));
    line(&format!("decode:  {decode}; ended by {reason}"));
    if let Some(rate) = timing.acceptance_rate() {
        let drafted = timing.drafted_tokens;
        let accepted = timing.accepted_tokens;
        line(&format!(
            "drafts:  {accepted} of {drafted} accepted ({:.0} %)",
            100.0 * rate
        ));
    }

    line(&format!(
        "memory:  model {}, key/value cache {} in {}{peak}{now}",
        bytes(footprint.actual()),
        bytes(generated.cache_bytes),
        model.decoder().cache_dtype()
    ));
}
