//! Warnings about a model's files. A library prints nothing, so the caller shows them.

use llm_int8_decoder::LoadWarning;
use std::fmt;

/// Something in a model's files that has no effect, though transformers would use it, or the author
/// may expect it to have one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// Settings that transformers supports and this library does not.
    IgnoredSettings {
        /// The file they are in.
        file: String,
        /// Their keys, in the order of the file.
        keys: Vec<String>,
    },
    /// Something about the weights.
    Weights(LoadWarning),
    /// Settings that only apply to sampling, in a file that does not turn sampling on.
    SamplingSettings {
        /// The file they are in.
        file: String,
        /// Their keys, in the order of the file.
        keys: Vec<String>,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IgnoredSettings { file, keys } => {
                write!(f, "{file}: not supported and ignored: {}", keys.join(", "))
            }
            Self::Weights(warning) => warning.fmt(f),
            Self::SamplingSettings { file, keys } => {
                let keys = keys.join(", ");
                write!(
                    f,
                    "{file}: used only when sampling, and `do_sample` is not true: {keys}"
                )
            }
        }
    }
}
