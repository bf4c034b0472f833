//! `llm-int8 eval`: measure the perplexity of a text.

use super::load;
use crate::args::EvalArgs;
use crate::display::{bar, line};
use anyhow::Context;
use llm_int8::PerplexityOptions;
use serde_json::json;
use std::io::Write;
use std::ops::ControlFlow;

pub(crate) fn eval(args: &EvalArgs) -> anyhow::Result<()> {
    let bytes = std::fs::read(&args.text)
        .with_context(|| format!("cannot read {}", args.text.display()))?;
    let text = String::from_utf8(bytes).with_context(|| {
        format!(
            "{} is not UTF-8 text; convert it first",
            args.text.display()
        )
    })?;

    let model = load(&args.model, &args.adapter)?;
    let mut ids = model.tokenizer()?.encode(&text)?;
    if let Some(most) = args.max_tokens {
        ids.truncate(most);
    }

    let options = PerplexityOptions {
        window: args.window,
        stride: args.stride.unwrap_or(args.window),
    };
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
        line(&format!(
            "windows of {} tokens, one every {} tokens; the first token of a window is not scored",
            options.window, options.stride
        ));
    }

    Ok(())
}
