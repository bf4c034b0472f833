//! What a loaded model leaves out of its files. A library prints nothing, so the caller shows
//! these.

use llm_int8_decoder::LoadWarning;
use std::fmt;

/// Something in a model's files that is not used, though transformers would use it or expect it to
/// be used.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// Settings that transformers knows and this library does not act on.
    IgnoredSettings {
        /// The file they are in.
        file: String,
        /// The settings, in the order of the file.
        keys: Vec<String>,
    },
    /// Something about the weights.
    Weights(LoadWarning),
    /// Settings that only sampling looks at, in a file that does not turn sampling on.
    SamplingSettings {
        /// The file they are in.
        file: String,
        /// The settings, in the order of the file.
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
