//! `llm-int8 inspect`: print a model's tree, parameters and footprint.

use super::{explain, load_config, load_named, part_text};
use crate::args::InspectArgs;
use crate::display::{Downloads, grouped, line};
use llm_int8::AutoModelForCausalLM;
use llm_int8::decoder::PlacedPart;
use llm_int8::nn::CacheDtype;
use llm_int8::nn::linear::ReplaceReport;
use llm_int8::nn::module::{Footprint, Node};
use serde_json::{Value, json};
use std::io::Write;

pub(crate) fn inspect(args: &InspectArgs) -> anyhow::Result<()> {
    let (tree, layers, placed, steps, cache) = if args.headers_only {
        let config = load_config(&args.model, None)?;
        let plan =
            AutoModelForCausalLM::plan(&args.model.model, &config, &Downloads::new(&config.hub))
                .map_err(|error| explain(error, &args.model.model))?;
        plan.warnings
            .iter()
            .for_each(|warning| line(&format!("warning: {warning}")));
        let cache = (plan.cache_dtype, plan.cache_bytes_per_position);
        (plan.tree, plan.layers, plan.placed, plan.steps, cache)
    } else {
        let model = load_named(&args.model.model, &load_config(&args.model, None)?)?;
        let decoder = model.decoder();
        let steps = decoder.execution_plan().clone();
        let cache = (decoder.cache_dtype(), decoder.cache_bytes_per_position());
        (
            model.tree().clone(),
            model.load_report().layers.clone(),
            model.placed(),
            steps,
            cache,
        )
    };

    let text = match (args.json, args.plan) {
        (true, _) => json_text(args, &tree, &layers, &placed, cache),
        (false, true) => steps.to_string(),
        (false, false) => plain_text(args, &tree, &placed, cache),
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;

    Ok(())
}

/// The dtype of keys and values, and their bytes for each token.
type Cache = (CacheDtype, u64);

fn plain_text(
    args: &InspectArgs,
    tree: &Node,
    placed: &[PlacedPart],
    (dtype, bytes): Cache,
) -> String {
    let mut text = format!("{tree}\n");
    if args.params {
        tree.named_parameters()
            .iter()
            .for_each(|parameter| text.push_str(&format!("{parameter}\n")));
    }

    let Footprint {
        parameters,
        buffers,
        absmax,
    } = tree.footprint();
    text.push_str(&format!(
        "footprint by transformers' rule: {} bytes (parameters {}, buffers {})\n\
         held here: {} bytes (parameters {}, absmax of int8 rows {}, no buffers)\n\
         keys and values: {} bytes for each token, {dtype}\n",
        grouped(parameters + buffers),
        grouped(parameters),
        grouped(buffers),
        grouped(parameters + absmax),
        grouped(parameters),
        grouped(absmax),
        grouped(bytes),
    ));
    // Do not mention the CPU if everything is there.
    if placed.iter().any(|part| part.device != "cpu") {
        for part in placed {
            text.push_str(&format!(
                "{}: {} bytes\n",
                part_text(part),
                grouped(part.bytes)
            ));
        }
    }

    text
}

fn json_text(
    args: &InspectArgs,
    tree: &Node,
    layers: &ReplaceReport,
    placed: &[PlacedPart],
    (dtype, bytes): Cache,
) -> String {
    let parameters: Vec<_> = (tree.named_parameters().iter())
        .map(|parameter| json!({ "name": parameter.name, "dtype": parameter.dtype.name(), "shape": parameter.shape }))
        .collect();
    let footprint = tree.footprint();
    let kept: Vec<_> = layers
        .kept
        .iter()
        .map(|layer| json!({ "path": layer.path.to_string(), "because": layer.because }))
        .collect();
    let object = json!({
        "model": args.model.model,
        "tree": tree.to_string(),
        "parameters": parameters,
        "footprint": {
            "transformers": footprint.transformers(),
            "actual": footprint.actual(),
            "parameters": footprint.parameters,
            "buffers": footprint.buffers,
            "absmax": footprint.absmax,
        },
        "cache": { "dtype": dtype.name(), "bytes_per_token": bytes },
        "int8_layers": layers.replaced.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "kept_layers": kept,
        "devices": placed.iter().map(place_json).collect::<Vec<_>>(),
    });
    format!("{object:#}\n")
}

fn place_json(part: &PlacedPart) -> Value {
    json!({
        "device": part.device,
        "model": part.hardware,
        "head": part.has_head,
        "blocks": [part.blocks.start, part.blocks.end],
        "bytes": part.bytes,
    })
}
