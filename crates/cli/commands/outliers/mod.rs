//! `llm-int8 outliers`: which activations are outliers, as text, JSON, a page or a picture.

mod json;
mod kind;
mod page;
mod plot;
mod text;

use super::{load_config, load_named, may_be_cpu, read_text};
use crate::args::{OutlierArgs, UsageError};
use crate::display::{Downloads, bar, line};
use anyhow::Context;
use llm_int8::decoder::Placement;
use llm_int8::nn::linear::{OutlierRule, OutlierScope};
use llm_int8::outliers::OutlierReport;
use llm_int8::{AutoModelForCausalLM, OutlierOptions, load};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

/// Cells of a row of a heat map; wider rows are drawn by the largest of neighbouring features.
const MOST_CELLS: usize = 1024;

pub(crate) fn outliers(args: &OutlierArgs) -> anyhow::Result<()> {
    check(args)?;
    let text = read_text(&args.text)?;

    let mut config = load_config(&args.model, None)?;
    config.options.placement = Placement::cpu();
    let model = load_named(&args.model.model, &config)?;
    let checkpoint =
        load::checkpoint(&args.model.model, &config.hub, &Downloads::new(&config.hub))?;
    let mut ids = model.tokenizer()?.encode(&text)?;
    ids.truncate(args.max_tokens.unwrap_or(usize::MAX));

    let options = OutlierOptions {
        window: args.window,
        checkpoint: Some(&checkpoint),
    };
    let bar = bar("{bar:30} {pos}/{len} tokens, {eta} left");
    let report = model.outliers(&ids, &options, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        ControlFlow::Continue(())
    });
    bar.finish_and_clear();
    publish(args, &model, &report?)
}

/// Writes the files that were asked for, then prints.
fn publish(
    args: &OutlierArgs,
    model: &AutoModelForCausalLM,
    report: &OutlierReport,
) -> anyhow::Result<()> {
    let object = json::object(&args.model.model, model, report);
    if let Some(path) = &args.html {
        write(path, &page::html(&object)?)?;
    }
    if let Some(path) = &args.plot {
        write(path, &plot::svg(&args.model.model, report))?;
    }

    let text = match args.json {
        true => format!("{object:#}\n"),
        false => text::text(report),
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    llm_int8_files::write(path, text.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;
    line(&format!("wrote {}", path.display()));
    Ok(())
}

/// Refuses what can be refused before a model is loaded.
fn check(args: &OutlierArgs) -> anyhow::Result<()> {
    let refuse = |text: String| Err(UsageError(text).into());
    if args.model.no_quantize {
        return refuse(
            "outliers are those of 8-bit layers, so --no-quantize leaves nothing to show; omit it"
                .into(),
        );
    }
    if !may_be_cpu(&args.model) {
        return refuse("outliers runs on the CPU; omit --device and --device-map".into());
    }
    if args.html.is_some() && args.html == args.plot {
        return refuse("--html and --plot name the same file".into());
    }

    for path in args.html.iter().chain(&args.plot) {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        if path.is_dir() || !folder.is_dir() {
            return refuse(format!(
                "{} cannot be written: it must be a file in a folder that exists",
                path.display()
            ));
        }
    }
    Ok(())
}

/// The rule in words.
fn rule_text(rule: OutlierRule) -> String {
    match rule {
        _ if rule.finds_none() => "none (threshold 0)".into(),
        OutlierRule::Absolute { threshold, scope } => {
            let scope = match scope {
                OutlierScope::Batch => "their columns in the whole window are float",
                OutlierScope::Row => "each row by itself",
            };
            format!("magnitudes of {threshold} and more; {scope}")
        }
        OutlierRule::RowRms { factor } => {
            format!("magnitudes of {factor} × the root mean square of their row and more")
        }
    }
}
