//! What an option of the program can do about an error of a library. Libraries speak of their own
//! fields; that a field is an option here, and what it is called, only the program knows.

use llm_int8::LlmError;
use llm_int8::decoder::DecoderError;
use llm_int8::decoder::cuda::CudaError;

/// An error of the library and the options that help.
pub(crate) fn explained(error: &LlmError) -> String {
    match of(error) {
        Some(hint) => format!("{error}: {hint}"),
        None => error.to_string(),
    }
}

/// The options that help with an error or with one of its causes.
pub(crate) fn of_chain(error: &anyhow::Error) -> Option<&'static str> {
    error.chain().find_map(|cause| {
        let llm = cause.downcast_ref().and_then(of);
        let decoder = cause.downcast_ref().and_then(of_decoder);
        llm.or(decoder)
            .or_else(|| cause.downcast_ref().and_then(of_cuda))
    })
}

fn of(error: &LlmError) -> Option<&'static str> {
    Some(match error {
        LlmError::NoTokenizer { .. } => "use --token-ids 1,2,3 --print-ids",
        LlmError::NoChatTemplate { .. } => "use --chat-template FILE, or `llm-int8 run`",
        LlmError::ContextExceeded { .. } => "use --max-new-tokens N or --truncate",
        LlmError::BadLogits => "try --dtype bfloat16 or --no-quantize",
        LlmError::Setting { name, .. } => match *name {
            "the device" => "use --device auto, --device cpu, or --device-map auto for several",
            "a memory limit" => {
                "--max-memory needs --device-map auto, and names devices by their place in --device"
            }
            "speculate" => "use --outliers row --device cpu",
            _ => return None,
        },
        LlmError::Prompt { source, .. } => return of(source),
        LlmError::Decoder(error) => return of_decoder(error),
        _ => return None,
    })
}

fn of_decoder(error: &DecoderError) -> Option<&'static str> {
    Some(match error {
        DecoderError::NonFiniteLogits => "try --dtype bfloat16 or --no-quantize",
        DecoderError::OriginalWeightsOnDevice => {
            "use --device cpu, or leave --outlier-weights original away"
        }
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
