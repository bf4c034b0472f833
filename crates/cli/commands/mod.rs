//! The commands, one per file, and what they share.

mod affine;
mod bench;
mod chat;
mod eval;
mod inspect;
mod logits;
mod outliers;
mod pull;
mod run;
mod save;
mod serve;
mod tokenize;
mod verify;

use crate::args::{
    AdapterArgs, Arguments, Command, DeviceMapName, Dtype, ModelArgs, Outliers, Threshold,
    UsageError, Weights,
};
use crate::display::{Downloads, line};
use crate::hints::explained;
use crate::interrupt::{Ending, clean_up_on_signals};
use anyhow::Context;
use clap::CommandFactory;
use llm_int8::decoder::{DecoderError, LoadOptions, PlacedPart, Placement, WeightDtype};
use llm_int8::hub::{HubConfig, HubError};
use llm_int8::nn::linear::{Int8Config, OutlierRule, OutlierWeights};
use llm_int8::nn::module::SkipList;
use llm_int8::nn::{Isa, NnError};
use llm_int8::{Accuracy, AutoModelForCausalLM, DeviceConfig, DeviceName, LlmError, LoadConfig};
use std::path::Path;

/// Runs the command.
pub(crate) fn dispatch(arguments: Arguments) -> anyhow::Result<()> {
    clean_up_on_signals(match arguments.command {
        Command::Serve(_) => Ending::NotByRequest,
        _ => Ending::ByAny,
    });

    match arguments.command {
        Command::Run(args) => run::run(&args),
        Command::Chat(args) => chat::chat(&args),
        Command::Serve(args) => serve::serve(args),
        Command::Inspect(args) => inspect::inspect(&args),
        Command::Tokenize(args) => tokenize::tokenize(&args),
        Command::Pull(args) => pull::pull(&args),
        Command::Logits(args) => logits::logits(&args),
        Command::Quantize(args) => save::quantize(&args),
        Command::Dequantize(args) => save::dequantize(&args),
        Command::Verify(args) => verify::verify(&args),
        Command::Eval(args) => eval::eval(&args),
        Command::Outliers(args) => outliers::outliers(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Affine(args) => affine::affine(&args),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "llm-int8", &mut text);
            std::io::Write::write_all(&mut std::io::stdout().lock(), &text)?;
            Ok(())
        }
        Command::Man { folder } => man(&folder),
        Command::Reference => {
            let text = reference();
            std::io::Write::write_all(&mut std::io::stdout().lock(), text.as_bytes())?;
            Ok(())
        }
    }
}

/// docs/cli.md.
fn reference() -> String {
    let options = clap_markdown::MarkdownOptions::new()
        .title("What commands and options are there?".to_owned())
        .show_footer(false);
    clap_markdown::help_markdown_command_custom(&Arguments::command(), &options)
}

fn man(folder: &Path) -> anyhow::Result<()> {
    clap_mangen::generate_to(Arguments::command(), folder)
        .with_context(|| format!("cannot write manual pages into {}", folder.display()))
}

/// Converts the model options to the library's settings.
fn load_config(args: &ModelArgs, adapter: Option<&str>) -> anyhow::Result<LoadConfig> {
    if let Some(threads) = args.threads {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads.into())
            .build_global()
            .context("the threads cannot be set up")?;
    }

    let isa = match std::env::var("LLM_INT8_ISA") {
        Ok(name) if !name.is_empty() => {
            Isa::by_name(&name).map_err(|cause| UsageError(format!("LLM_INT8_ISA: {cause}")))?
        }
        _ => Isa::detect(),
    };

    let int8 = int8_config(args)?;
    let options = LoadOptions {
        dtype: weight_dtype(args.dtype),
        cache_dtype: args.cache_dtype.map(Into::into),
        int8: (!args.no_quantize).then_some(int8),
        threshold: match args.threshold {
            Some(Threshold::Absolute(threshold)) => Some(threshold),
            _ => None,
        },
        skip_modules: SkipList::new(args.skip_modules.iter().cloned()),
        quantize_head: args.quantize_head,
        strict: args.strict,
        isa,
        placement: placement(args, adapter)?,
        adapter: None,
    };

    Ok(LoadConfig {
        options,
        hub: hub_config(args.offline),
        adapter: adapter.map(str::to_owned),
    })
}

/// How int8 layers compute.
fn int8_config(args: &ModelArgs) -> anyhow::Result<Int8Config> {
    if let Some(accuracy) = args.accuracy {
        return Ok(Accuracy::from(accuracy).int8_config());
    }
    Ok(Int8Config {
        outliers: outlier_rule(args)?,
        outlier_weights: match args.outlier_weights {
            Weights::Dequantized => OutlierWeights::Dequantized,
            Weights::Original => OutlierWeights::Original,
        },
    })
}

/// Which activations are outliers. Without a threshold, that of bitsandbytes.
fn outlier_rule(args: &ModelArgs) -> anyhow::Result<OutlierRule> {
    match (args.threshold, args.outliers) {
        (Some(Threshold::Rms(_)), Some(Outliers::Batch)) => {
            let text = "a threshold in rms judges each row by itself; leave out --outliers batch";
            Err(UsageError(text.into()).into())
        }
        (Some(Threshold::Rms(factor)), _) => Ok(OutlierRule::row_rms(factor)),
        (Some(Threshold::Absolute(threshold)), Some(Outliers::Row)) => {
            Ok(OutlierRule::row(threshold))
        }
        (Some(Threshold::Absolute(threshold)), _) => Ok(OutlierRule::batch(threshold)),
        (None, Some(Outliers::Row)) => Ok(OutlierRule::row(6.0)),
        (None, _) => Ok(OutlierRule::default()),
    }
}

fn placement(args: &ModelArgs, adapter: Option<&str>) -> anyhow::Result<Placement> {
    // Only the CPU computes with float weights beside the codes, applies adapters and keeps keys
    // and values in another dtype, so `auto` means the CPU.
    let is_auto = args.device == [DeviceName::Auto] && args.device_map.is_none();
    let has_floats = int8_config(args)?.outlier_weights != OutlierWeights::Dequantized;
    let has_cache = args
        .cache_dtype
        .is_some_and(|dtype| dtype.may_differ_from(args.dtype));
    if is_auto && (has_floats || has_cache || adapter.is_some()) {
        return Ok(Placement::cpu());
    }

    let config = DeviceConfig {
        devices: args.device.clone(),
        map: args.device_map == Some(DeviceMapName::Auto),
        limits: args.max_memory.clone(),
        uses_graphs: !args.no_cuda_graph,
        overlaps_kernels: !args.no_cuda_overlap,
    };
    config.placement().map_err(|error| match error {
        LlmError::Setting { .. } => UsageError(explained(&error)).into(),
        error => error.into(),
    })
}

fn weight_dtype(dtype: Dtype) -> WeightDtype {
    match dtype {
        Dtype::Float16 => WeightDtype::Float16,
        Dtype::Bfloat16 => WeightDtype::BFloat16,
        Dtype::Float32 => WeightDtype::Float32,
        Dtype::Auto => WeightDtype::Auto,
    }
}

/// A part of a model and where it is: `cuda:0 (NVIDIA …): embedding and head, blocks 0 to 35`.
fn part_text(part: &PlacedPart) -> String {
    let mut what = Vec::new();
    if part.has_head {
        what.push("embedding and head".to_owned());
    }

    match part.blocks.len() {
        0 => {}
        1 => what.push(format!("block {}", part.blocks.start)),
        _ => what.push(format!(
            "blocks {} to {}",
            part.blocks.start,
            part.blocks.end - 1
        )),
    }

    format!("{} ({}): {}", part.device, part.hardware, what.join(", "))
}

/// Rejects `--speculate` with options for which drafts would change the text: they are exact only
/// if a token does not depend on its batch.
fn check_drafts(speculate: usize, args: &ModelArgs) -> anyhow::Result<()> {
    let pooled = !int8_config(args)?.outliers.is_by_row() && !args.no_quantize;
    if speculate > 0 && pooled {
        let text = "--speculate needs --outliers row: if outliers are found over the whole batch, drafts change the text";
        return Err(UsageError(text.into()).into());
    }

    let may_be_cpu = args.device == [DeviceName::Auto] || args.device == [DeviceName::Cpu];
    if speculate > 0 && !may_be_cpu {
        let text = "--speculate runs on the CPU: GPUs sum in a different order for one token than for several, \
                    so drafts could change the text; use --device cpu";
        return Err(UsageError(text.into()).into());
    }

    Ok(())
}

fn hub_config(offline: bool) -> HubConfig {
    let mut hub = HubConfig::from_env();
    hub.offline |= offline;
    hub
}

/// Loads the model that the options name.
fn load(args: &ModelArgs, adapter: &AdapterArgs) -> anyhow::Result<AutoModelForCausalLM> {
    let config = load_config(args, adapter.adapter.as_deref())?;
    load_named(&args.model, &config)
}

fn load_named(name: &str, config: &LoadConfig) -> anyhow::Result<AutoModelForCausalLM> {
    let downloads = Downloads::new(&config.hub);
    let model = AutoModelForCausalLM::from_pretrained_with(name, config, &downloads, &mut |_| ())
        .map_err(|error| explain(error, name))?;
    show_load_warnings(&model);
    Ok(model)
}

fn show_load_warnings(model: &AutoModelForCausalLM) {
    let warnings = &model.load_report().warnings;
    warnings
        .iter()
        .for_each(|warning| line(&format!("warning: {warning}")));
}

/// Whether the options leave a command that needs the CPU free to run there.
fn may_be_cpu(args: &ModelArgs) -> bool {
    let on_cpu = |name: &DeviceName| matches!(name, DeviceName::Auto | DeviceName::Cpu);
    args.device_map.is_none() && args.device.iter().all(on_cpu)
}

/// Reads a text file.
fn read_text(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    String::from_utf8(bytes)
        .with_context(|| format!("{} is not UTF-8 text; convert it first", path.display()))
}

/// Adds the model's name and hints to an error. Bad input is a usage error: an unknown module to
/// skip, a bad model name, a file instead of its folder, a placement that is impossible.
fn explain(error: LlmError, name: &str) -> anyhow::Error {
    match error {
        LlmError::Nn(NnError::UnknownModule { .. })
        | LlmError::Decoder(
            DecoderError::Placement { .. }
            | DecoderError::OriginalWeightsOnDevice
            | DecoderError::AdapterOnDevice
            | DecoderError::CacheDtypeOnDevice { .. },
        )
        | LlmError::Hub(HubError::InvalidName { .. } | HubError::NotAFolder { .. }) => {
            UsageError(explained(&error)).into()
        }
        LlmError::Decoder(DecoderError::UnexpectedTensors { .. }) => {
            anyhow::Error::from(error).context(format!("{name} cannot be loaded with --strict"))
        }
        error => anyhow::Error::from(error).context(format!("{name} cannot be loaded")),
    }
}
