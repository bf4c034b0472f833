//! `llm-int8 bench`: measure how fast a model runs, compared with what the machine allows.

use super::{check_drafts, load, load_config};
use crate::args::{BenchArgs, UsageError};
use crate::display::{bytes, grouped, line};
use crate::hints::explained;
use anyhow::Context;
use llm_int8::bench::{BenchOptions, BenchReport, LinearBench};
use llm_int8::{AutoModelForCausalLM, LlmError, MemoryUse};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::Write as _;

/// Lengths that are measured by default.
const CONTEXTS: [usize; 3] = [32, 128, 256];
const PROMPTS: [usize; 3] = [16, 128, 512];

pub(crate) fn bench(args: &BenchArgs) -> anyhow::Result<()> {
    check_drafts(args.speculate, &args.model)?;
    if !args.linear.is_empty() {
        return linear(args);
    }

    let model = load(&args.model, &args.adapter)?;
    let options = options(args, model.decoder().spec().positions)?;
    let report = model
        .bench(&options, &mut |what| line(&format!("measuring: {what}")))
        .map_err(usage_error)?;
    let text = match args.json {
        true => format!("{:#}\n", as_json(&model, &report)),
        false => as_text(&model, &report).context("the report cannot be written")?,
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;

    Ok(())
}

/// What to measure. Contexts and prompts that do not fit a model with `positions` positions are
/// left out with a note. It is a usage error if none fits, or none of those on the command line.
fn options(args: &BenchArgs, positions: usize) -> Result<BenchOptions, UsageError> {
    let mut options = BenchOptions {
        contexts: args.contexts.clone().unwrap_or_else(|| CONTEXTS.into()),
        batches: args.batch_sizes.clone(),
        prompts: args.prompts.clone().unwrap_or_else(|| PROMPTS.into()),
        new_tokens: args.max_new_tokens,
        runs: args.runs,
        speculate: args.speculate,
    };
    let left_out = options.fit(positions);

    let new = options.new_tokens;
    let room = |what: &str, left_out: &[usize], new| {
        let list: Vec<String> = left_out.iter().map(usize::to_string).collect();
        format!(
            "{what} {} and {new} new tokens are more than the model's {positions} positions",
            list.join(", ")
        )
    };
    let contexts = room("--contexts", &left_out.contexts, new);
    let prompts = room("--prompts", &left_out.prompts, 1);
    if options.contexts.is_empty() && (args.contexts.is_some() || options.prompts.is_empty()) {
        return Err(UsageError(contexts));
    }

    if options.prompts.is_empty() && args.prompts.is_some() {
        return Err(UsageError(prompts));
    }

    for (lengths, text) in [(&left_out.contexts, contexts), (&left_out.prompts, prompts)] {
        if !lengths.is_empty() {
            line(&format!("note: left out: {text}"));
        }
    }

    Ok(options)
}

/// Turns settings that cannot be measured into usage errors.
fn usage_error(error: LlmError) -> anyhow::Error {
    match error {
        LlmError::Setting { .. } | LlmError::ContextExceeded { .. } => {
            UsageError(explained(&error)).into()
        }
        error => error.into(),
    }
}

/// Measures single layers.
fn linear(args: &BenchArgs) -> anyhow::Result<()> {
    let placement = load_config(&args.model, None)?.options.placement;
    let device = placement
        .devices
        .first()
        .map_or("cpu".into(), |budget| budget.device.name().to_owned());
    let bench = LinearBench {
        shapes: args.linear.clone(),
        rows: args.rows.clone(),
        runs: args.runs,
        placement,
    };
    let rates = bench
        .run(&mut |what| line(&format!("measuring: {what}")))
        .map_err(usage_error)?;
    let mut stdout = std::io::stdout().lock();
    if args.json {
        let layers = rates.iter().map(|rate| {
            json!({
                "out_features": rate.out_features,
                "in_features": rate.in_features,
                "rows": rate.rows,
                "outlier_columns": rate.outlier_columns,
                "microseconds": rate.microseconds,
            })
        });
        let object =
            json!({ "device": device, "threads": threads(), "linear": layers.collect::<Vec<_>>() });
        writeln!(stdout, "{object:#}")?;
        return Ok(());
    }

    writeln!(
        stdout,
        "{device}\n{:>13} {:>6} {:>9} {:>12} {:>10} {:>10}",
        "out x in", "rows", "outliers", "microseconds", "GB/s", "TOPS"
    )?;

    for rate in &rates {
        let codes = (rate.out_features * rate.in_features) as f64;
        writeln!(
            stdout,
            "{:>13} {:>6} {:>9} {:>12.1} {:>10.1} {:>10.3}",
            format!("{}x{}", rate.out_features, rate.in_features),
            rate.rows,
            rate.outlier_columns,
            rate.microseconds,
            codes / rate.microseconds / 1e3,
            2.0 * codes * rate.rows as f64 / rate.microseconds / 1e6,
        )?;
    }

    Ok(())
}

/// The devices of the model, in the order of the forward pass.
fn device(model: &AutoModelForCausalLM) -> String {
    let parts: Vec<String> = model.placed().into_iter().map(|part| part.device).collect();
    parts.join(", ")
}

fn as_json(model: &AutoModelForCausalLM, report: &BenchReport) -> Value {
    let load = model.load_report();
    let decode = report.decode.iter().map(|rate| {
        json!({
            "context": rate.context,
            "batch": rate.batch,
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
        "device": device(model),
        "graphs": model.decoder().graph_count(),
        "isa": report.isa,
        "threads": threads(),
        "load": {
            "seconds": load.duration.as_secs_f64(),
            "peak_anonymous_bytes": load.peak_memory.map(|peak| peak.anonymous),
        },
        "memory": {
            "model_bytes": model.memory_footprint().actual(),
            "cache_dtype": model.decoder().cache_dtype().name(),
            "cache_bytes_per_token": model.decoder().cache_bytes_per_position(),
            "now_anonymous_bytes": MemoryUse::now().map(|now| now.anonymous),
            "devices": device_memory(model),
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
    let mut text = String::new();
    write_limits(&mut text, model, report)?;
    write_rates(&mut text, report)?;
    Ok(text)
}

/// The model, the limits of the machine, and what loading took.
fn write_limits(
    text: &mut String,
    model: &AutoModelForCausalLM,
    report: &BenchReport,
) -> std::fmt::Result {
    match report.multiply_rate {
        Some(rate) => {
            writeln!(
                text,
                "{}: {}, {} threads",
                model.name(),
                report.isa,
                threads()
            )?;

            let read = report.read_rate / 1e9;
            writeln!(
                text,
                "limits: reading memory {read:.1} GB/s, {:.0} G multiply-adds/s",
                rate / 1e9
            )?;
        }
        None => {
            writeln!(text, "{}: {}", model.name(), device(model))?;
            writeln!(
                text,
                "limits: a copy on the device reads and writes {:.1} GB/s",
                report.read_rate / 1e9
            )?;
        }
    }

    let load = model.load_report();
    let peak = load.peak_memory.map_or(String::new(), |peak| {
        format!(", peak {}", bytes(peak.anonymous))
    });
    let footprint = bytes(model.memory_footprint().actual());
    writeln!(
        text,
        "load: {:.2} s, model {footprint}{peak}",
        load.duration.as_secs_f64()
    )?;

    let decoder = model.decoder();
    writeln!(
        text,
        "keys and values: {} bytes for each token, {}\n",
        grouped(decoder.cache_bytes_per_position()),
        decoder.cache_dtype()
    )
}

/// One table each for decode, prefill and speculative decoding.
fn write_rates(text: &mut String, report: &BenchReport) -> std::fmt::Result {
    writeln!(
        text,
        "{:>18} {:>10}  of the read limit",
        "decode after", "tokens/s"
    )?;
    for rate in &report.decode {
        let share = rate.tokens_per_second * rate.bytes_per_token as f64 / report.read_rate;
        let what = match rate.batch {
            1 => rate.context.to_string(),
            batch => format!("{} (batch {batch})", rate.context),
        };
        writeln!(
            text,
            "{what:>18} {:>10.1}  {:.0} %",
            rate.tokens_per_second,
            100.0 * share
        )?;
    }

    writeln!(text, "{:>18} {:>10}", "prompt of", "tokens/s")?;
    for rate in &report.prefill {
        writeln!(text, "{:>18} {:>10.1}", rate.tokens, rate.tokens_per_second)?;
    }

    if let Some(rate) = report.speculation {
        writeln!(text, "{:>18} {:>10}", "repetitive text", "tokens/s")?;
        writeln!(
            text,
            "{:>18} {:>10.1}",
            "plain", rate.plain_tokens_per_second
        )?;
        let drafts = format!("{} drafts", rate.drafts);
        writeln!(
            text,
            "{drafts:>18} {:>10.1}  {:.0} % accepted",
            rate.tokens_per_second,
            100.0 * rate.acceptance
        )?;
    }

    Ok(())
}

fn device_memory(model: &AutoModelForCausalLM) -> Vec<Value> {
    let all = model.decoder().device_memory().unwrap_or_default();
    all.into_iter()
        .map(|(name, memory)| {
            json!({
                "device": name,
                "allocated": memory.allocated,
                "peak": memory.peak,
                "free": memory.free,
            })
        })
        .collect()
}

fn threads() -> usize {
    rayon::current_num_threads()
}
