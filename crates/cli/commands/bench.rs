//! `llm-int8 bench`: how fast a model runs, beside what the machine allows.

use super::{check_drafts, load};
use crate::args::BenchArgs;
use crate::display::{bytes, line};
use anyhow::Context;
use llm_int8::bench::{BenchOptions, BenchReport};
use llm_int8::{AutoModelForCausalLM, MemoryUse};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::Write as _;

pub(crate) fn bench(args: &BenchArgs) -> anyhow::Result<()> {
    check_drafts(args.speculate, &args.model)?;
    let model = load(&args.model)?;
    let options = BenchOptions {
        contexts: args.contexts.clone(),
        prompts: args.prompts.clone(),
        new_tokens: args.max_new_tokens,
        runs: args.runs,
        speculate: args.speculate,
    };
    let report = model.bench(&options, &mut |what| line(&format!("measuring: {what}")))?;
    let text = match args.json {
        true => format!("{:#}\n", as_json(&model, &report)),
        false => as_text(&model, &report).context("the report cannot be written")?,
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

fn as_json(model: &AutoModelForCausalLM, report: &BenchReport) -> Value {
    let load = model.load_report();
    let decode = report.decode.iter().map(|rate| {
        json!({
            "context": rate.context,
            "tokens_per_second": rate.tokens_per_second,
            "bytes_per_token": rate.bytes_per_token,
            "share_of_read_limit": rate.tokens_per_second * rate.bytes_per_token as f64 / report.read_rate,
        })
    });
    let prefill = report
        .prefill
        .iter()
        .map(|rate| json!({ "tokens": rate.tokens, "tokens_per_second": rate.tokens_per_second }));
    let speculation = report.speculation.map(|rate| {
        json!({
            "drafts": rate.drafts,
            "tokens_per_second": rate.tokens_per_second,
            "plain_tokens_per_second": rate.plain_tokens_per_second,
            "acceptance": rate.acceptance,
        })
    });
    json!({
        "model": model.name(),
        "device": "cpu",
        "isa": report.isa,
        "threads": threads(),
        "load": {
            "seconds": load.duration.as_secs_f64(),
            "peak_anonymous_bytes": load.peak_memory.map(|peak| peak.anonymous),
        },
        "memory": {
            "model_bytes": model.memory_footprint().actual(),
            "now_anonymous_bytes": MemoryUse::now().map(|now| now.anonymous),
        },
        "limits": {
            "read_bytes_per_second": report.read_rate,
            "multiply_adds_per_second": report.multiply_rate,
        },
        "decode": decode.collect::<Vec<_>>(),
        "prefill": prefill.collect::<Vec<_>>(),
        "speculate": speculation,
    })
}

fn as_text(model: &AutoModelForCausalLM, report: &BenchReport) -> Result<String, std::fmt::Error> {
    let (load, mut text) = (model.load_report(), String::new());
    let peak = load.peak_memory.map_or(String::new(), |peak| format!(", peak {}", bytes(peak.anonymous)));
    writeln!(text, "{}: {}, {} threads", model.name(), report.isa, threads())?;
    writeln!(
        text,
        "limits: reading memory {:.1} GB/s, {:.0} G multiply-adds/s",
        report.read_rate / 1e9,
        report.multiply_rate / 1e9
    )?;
    let footprint = bytes(model.memory_footprint().actual());
    writeln!(text, "load: {:.2} s, model {footprint}{peak}\n", load.duration.as_secs_f64())?;
    writeln!(text, "{:>18} {:>10}  of what reading allows", "decode after", "tokens/s")?;
    for rate in &report.decode {
        let share = rate.tokens_per_second * rate.bytes_per_token as f64 / report.read_rate;
        writeln!(text, "{:>18} {:>10.1}  {:.0} %", rate.context, rate.tokens_per_second, 100.0 * share)?;
    }
    writeln!(text, "{:>18} {:>10}", "prompt of", "tokens/s")?;
    for rate in &report.prefill {
        writeln!(text, "{:>18} {:>10.1}", rate.tokens, rate.tokens_per_second)?;
    }
    if let Some(rate) = report.speculation {
        writeln!(text, "{:>18} {:>10}", "repetitive text", "tokens/s")?;
        writeln!(text, "{:>18} {:>10.1}", "plain", rate.plain_tokens_per_second)?;
        let drafts = format!("{} drafts", rate.drafts);
        writeln!(
            text,
            "{drafts:>18} {:>10.1}  {:.0} % accepted",
            rate.tokens_per_second,
            100.0 * rate.acceptance
        )?;
    }
    Ok(text)
}

fn threads() -> usize {
    rayon::current_num_threads()
}
