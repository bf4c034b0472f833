//! Which options of the program help with an error of the library. Libraries name their own fields;
//! only the program knows its options.

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use llm_int8::LlmError;
use llm_int8::decoder::DecoderError;
use llm_int8::decoder::cuda::CudaError;

/// The message of a library error, with the options that help.
pub(crate) fn explained(error: &LlmError) -> String {
    match of_llm(error) {
        Some(hint) => format!("{error}: {hint}"),
        None => error.to_string(),
    }
}

/// The options that help with an error or one of its causes.
pub(crate) fn of_chain(error: &anyhow::Error) -> Option<&'static str> {
    error.chain().find_map(|cause| {
        let llm = cause.downcast_ref().and_then(of_llm);
        let decoder = cause.downcast_ref().and_then(of_decoder);
        llm.or(decoder)
            .or_else(|| cause.downcast_ref().and_then(of_cuda))
    })
}

/// Names the option that a stray argument was meant for: `run MODEL 'Once'` lacks `--prompt`.
pub(crate) fn with_option(mut error: clap::Error) -> clap::Error {
    let text = |kind| error.get(kind).map(ToString::to_string).unwrap_or_default();
    if error.kind() != ErrorKind::UnknownArgument || text(ContextKind::InvalidArg).starts_with('-')
    {
        return error;
    }

    let usage = text(ContextKind::Usage);
    let tip = if usage.contains("llm-int8 run ") {
        "the prompt is given with --prompt"
    } else if usage.contains("llm-int8 eval ") {
        "the text is given with --text"
    } else if usage.contains("llm-int8 logits ") {
        "the prompt is given with --token-ids, or with --prompt to `llm-int8 run`"
    } else {
        return error;
    };
    let tip = ContextValue::StyledStrs(vec![StyledStr::from(tip)]);
    error.insert(ContextKind::Suggested, tip);
    error
}

fn of_llm(error: &LlmError) -> Option<&'static str> {
    Some(match error {
        LlmError::NoTokenizer { .. } => "use --token-ids 1,2,3 --print-ids",
        LlmError::NoChatTemplate { .. } => {
            "use --chat-template FILE, or `llm-int8 run` for plain text"
        }
        LlmError::ContextExceeded { .. } => "use --max-new-tokens N or --truncate",
        LlmError::BadLogits => "try --dtype bfloat16 or --no-quantize",
        LlmError::Setting { name, .. } => match *name {
            "the device" => {
                "use --device auto, --device cpu, or --device-map auto for several devices"
            }
            "a memory limit" => {
                "--max-memory needs --device-map auto, and its numbers are indices of the devices in use"
            }
            "speculate" => "use --outliers row --device cpu",
            _ => return None,
        },
        LlmError::Prompt { source, .. } => return of_llm(source),
        LlmError::Decoder(error) => return of_decoder(error),
        _ => return None,
    })
}

fn of_decoder(error: &DecoderError) -> Option<&'static str> {
    Some(match error {
        DecoderError::NonFiniteLogits => "try --dtype bfloat16 or --no-quantize",
        DecoderError::OriginalWeightsOnDevice => {
            "use --device cpu, or omit --outlier-weights original"
        }
        DecoderError::AdapterOnDevice => "use --device cpu",
        DecoderError::CacheDtypeOnDevice { .. } => "use --device cpu, or omit --cache-dtype",
        DecoderError::Cuda(error) => return of_cuda(error),
        _ => return None,
    })
}

fn of_cuda(error: &CudaError) -> Option<&'static str> {
    match error {
        CudaError::NotBuilt | CudaError::NoDriver | CudaError::NoDevice { .. } => {
            Some("use --device cpu")
        }
        CudaError::OutOfMemory { .. } => Some("use --device-map auto"),
        _ => None,
    }
}
