//! `llm-int8 eval`: measure the perplexity of a text, or what 8 bit loses on it.

use super::{UsageError, explain, load, load_config, may_be_cpu, read_text, show_load_warnings};
use crate::args::EvalArgs;
use crate::display::{Downloads, bar, bytes, line};
use llm_int8::{
    AccuracyComparison, AutoModelForCausalLM, ComparedRule, Comparison, PerplexityOptions,
    RuleResult,
};
use serde_json::{Value, json};
use std::io::Write;
use std::ops::ControlFlow;

pub(crate) fn eval(args: &EvalArgs) -> anyhow::Result<()> {
    let text = read_text(&args.text)?;
    match args.compare {
        true => compare(args, &text),
        false => perplexity(args, &text),
    }
}

fn options(args: &EvalArgs) -> PerplexityOptions {
    PerplexityOptions {
        window: args.window,
        stride: args.stride.unwrap_or(args.window),
    }
}

/// The ids of the text, cut as requested.
fn encode(args: &EvalArgs, model: &AutoModelForCausalLM, text: &str) -> anyhow::Result<Vec<u32>> {
    let mut ids = model.tokenizer()?.encode(text)?;
    if let Some(most) = args.max_tokens {
        ids.truncate(most);
    }
    Ok(ids)
}

fn perplexity(args: &EvalArgs, text: &str) -> anyhow::Result<()> {
    let model = load(&args.model, &args.adapter)?;
    let ids = encode(args, &model, text)?;
    let options = options(args);

    let bar = bar("{bar:30} {pos}/{len} tokens, {eta} left");
    let found = model.perplexity(&ids, options, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        ControlFlow::Continue(())
    });
    bar.finish_and_clear();

    let found = found?;
    let text = match args.json {
        true => {
            let object = json!({
                "model": args.model.model,
                "mean_nll": found.mean_nll,
                "perplexity": found.perplexity,
                "tokens": found.tokens,
                "window": options.window,
                "stride": options.stride,
            });
            format!("{object:#}\n")
        }
        false => format!(
            "perplexity {:.4} (mean negative log-likelihood {:.6} over {} tokens)\n",
            found.perplexity, found.mean_nll, found.tokens
        ),
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    if !args.json {
        say_windows(options);
    }

    Ok(())
}

fn say_windows(options: PerplexityOptions) {
    line(&format!(
        "windows of {} tokens, one every {} tokens; the first token of a window is not scored",
        options.window, options.stride
    ));
}

fn compare(args: &EvalArgs, text: &str) -> anyhow::Result<()> {
    if !may_be_cpu(&args.model) {
        return Err(UsageError("--compare runs on the CPU; leave out --device".into()).into());
    }

    let config = load_config(&args.model, None)?;
    let downloads = Downloads::new(&config.hub);
    let mut comparison = AccuracyComparison::load(&args.model.model, &config, &downloads)
        .map_err(|error| explain(error, &args.model.model))?;
    show_load_warnings(comparison.model());
    let ids = encode(args, comparison.model(), text)?;
    let options = options(args);

    let bar = bar("{bar:30} {pos}/{len} passes, {eta} left");
    let rules = comparison.rules();
    let found = comparison.run(&rules, &ids, options, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        ControlFlow::Continue(())
    });
    bar.finish_and_clear();

    let found = found?;
    let output = match args.json {
        true => format!("{:#}\n", comparison_json(args, options, &found)),
        false => table(&found),
    };
    std::io::stdout().lock().write_all(output.as_bytes())?;
    if found.baseline == ComparedRule::FloatActivations {
        let reason = match comparison.model().is_prequantized() {
            true => "the checkpoint holds 8-bit weights",
            false => "there is not enough memory for the unquantised model",
        };
        line(&format!(
            "compared with float activations on the 8-bit weights: {reason}"
        ));
    }
    if !args.json {
        say_windows(options);
    }
    Ok(())
}

fn comparison_json(args: &EvalArgs, options: PerplexityOptions, found: &Comparison) -> Value {
    let rule = |result: &RuleResult| {
        json!({
            "name": result.rule.name(),
            "bytes": result.bytes,
            "perplexity": result.perplexity,
            "kl": result.kl,
            "kl_standard_error": result.kl_standard_error,
            "worst_kl": result.worst_kl,
            "worst_position": result.worst_position,
            "agreement": result.agreement,
            "outlier_share": result.outlier_share,
            "seconds": result.duration.as_secs_f64(),
        })
    };
    json!({
        "model": args.model.model,
        "baseline": found.baseline.name(),
        "tokens": found.tokens,
        "window": options.window,
        "stride": options.stride,
        "rules": found.rules.iter().map(rule).collect::<Vec<_>>(),
    })
}

/// The results as a table of text.
fn table(found: &Comparison) -> String {
    let header = [
        "rule",
        "bytes",
        "perplexity",
        "KL divergence",
        "same token",
        "worst KL",
        "in float",
        "seconds",
    ];
    let mut rows = vec![header.map(str::to_owned)];
    for result in &found.rules {
        rows.push([
            result.rule.name().to_owned(),
            bytes(result.bytes),
            format!("{:.3}", result.perplexity),
            format!("{:.6} ± {:.6}", result.kl, result.kl_standard_error),
            format!("{:.2} %", 100.0 * result.agreement),
            format!("{:.4}", result.worst_kl),
            format!("{:.2} %", 100.0 * result.outlier_share),
            format!("{:.1}", result.duration.as_secs_f64()),
        ]);
    }

    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..header.len()).map(|i| width(i).unwrap_or(0)).collect();
    let line = |row: &[String; 8]| {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(i, (cell, width))| match i {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };

    let baseline = found.baseline.name();
    let head = format!(
        "divergence from {baseline} over {} tokens, in nats\n\n",
        found.tokens
    );
    head + &rows.iter().map(line).collect::<String>()
}
