//! `llm-int8 quantize` and `dequantize`: save a model to a folder.

use super::{hub_config, load_config, load_named, weight_dtype};
use crate::args::{DequantizeArgs, OutputArgs, QuantizeArgs, UsageError};
use crate::display::{Writing, bytes, line};
use crate::interrupt::Interrupt;
use llm_int8::decoder::{LoadOptions, Placement, SavedLayers};
use llm_int8::nn::checkpoint::NewFolder;
use llm_int8::{AutoModelForCausalLM, DeviceName, LoadConfig, SaveOptions};
use std::ops::ControlFlow;

pub(crate) fn quantize(args: &QuantizeArgs) -> anyhow::Result<()> {
    if args.model.no_quantize {
        return Err(UsageError("quantize cannot be used with --no-quantize".into()).into());
    }

    if args.model.quantize_head {
        let text = "--quantize-head is a format that bitsandbytes does not know and transformers cannot load; it is \
                    for run, chat, eval and bench";
        return Err(UsageError(text.into()).into());
    }

    if args
        .model
        .device
        .iter()
        .any(|name| !matches!(name, DeviceName::Auto | DeviceName::Cpu))
    {
        return Err(UsageError("quantize runs on the CPU; omit --device".into()).into());
    }

    check(&args.output)?;
    let mut config = load_config(&args.model, None)?;
    config.options.placement = Placement::cpu();
    save(
        &load_named(&args.model.model, &config)?,
        &args.output,
        SavedLayers::Int8,
    )
}

pub(crate) fn dequantize(args: &DequantizeArgs) -> anyhow::Result<()> {
    check(&args.output)?;
    let options = LoadOptions {
        dtype: weight_dtype(args.dtype),
        ..LoadOptions::default()
    };
    let config = LoadConfig {
        options,
        hub: hub_config(args.offline),
        ..LoadConfig::default()
    };
    let model = load_named(&args.model, &config)?;
    if !model.is_prequantized() {
        let text = format!(
            "{} is not an 8-bit checkpoint; there is nothing to dequantise",
            args.model
        );
        return Err(UsageError(text).into());
    }

    save(&model, &args.output, SavedLayers::Dequantized)
}

fn save(
    model: &AutoModelForCausalLM,
    output: &OutputArgs,
    layers: SavedLayers,
) -> anyhow::Result<()> {
    let options = SaveOptions {
        max_shard_size: output.max_shard_size,
        layers,
    };
    let interrupt = Interrupt::watch()?;
    let writing = Writing::new();
    let mut written = 0;
    let saved = model.save_pretrained(&output.folder, &options, &mut |event| {
        written = event.total;
        writing.show(&event);
        if interrupt.was_pressed() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });

    writing.end();
    saved?;
    if let Err(error) = model.tokenizer() {
        line(&format!(
            "note: the folder has no usable tokenizer: {error}"
        ));
    }

    line(&format!(
        "wrote {} of weights to {}",
        bytes(written),
        output.folder.display()
    ));

    Ok(())
}

/// Checks before loading that the folder can be written.
fn check(output: &OutputArgs) -> anyhow::Result<()> {
    NewFolder::check(&output.folder).map_err(|error| UsageError(error.to_string()).into())
}
