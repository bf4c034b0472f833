//! What loading reports besides the model itself.

use llm_int8_nn::linear::ReplaceReport;
use std::fmt;

/// Which layers of a model are int8, and what in its files was ignored.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoadOutcome {
    /// Layers that are int8 and layers that were kept in floats.
    pub layers: ReplaceReport,
    /// Where the model differs from its files.
    pub warnings: Vec<LoadWarning>,
}

/// Something in a model's files that loading ignored or changed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadWarning {
    /// Tensors that the model has no place for were ignored, as transformers ignores them.
    UnusedTensors {
        /// Files of the checkpoint.
        checkpoint: String,
        /// The model family.
        family: String,
        /// How many tensors there are.
        count: usize,
        /// The first few names.
        names: Vec<String>,
    },
    /// Several shards hold these tensors. The copy in the shard that the index names was read;
    /// transformers reads that of the last shard.
    CopiedTensors {
        /// The names.
        names: Vec<String>,
    },
    /// A `quantization_config` with an unknown method was ignored, as transformers ignores it.
    UnknownQuantization {
        /// Its `quant_method`.
        method: String,
    },
    /// The model is float64 and was loaded as float32.
    Float64,
}

/// Maximum number of names that a message lists.
pub(super) const LISTED: usize = 5;

/// `a`, `b` and 3 more.
fn list(f: &mut fmt::Formatter<'_>, names: &[String], count: usize) -> fmt::Result {
    for (i, name) in names.iter().take(LISTED).enumerate() {
        write!(f, "{}`{name}`", if i == 0 { "" } else { ", " })?;
    }
    match count.saturating_sub(LISTED.min(names.len())) {
        0 => Ok(()),
        more => write!(f, " and {more} more"),
    }
}

impl fmt::Display for LoadWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnusedTensors {
                checkpoint,
                family,
                count,
                names,
            } => {
                let plural = if *count == 1 { "" } else { "s" };
                write!(
                    f,
                    "{checkpoint}: ignored {count} tensor{plural} that {family} has no place for: "
                )?;
                list(f, names, *count)
            }
            Self::CopiedTensors { names } => {
                f.write_str("several shards hold ")?;
                list(f, names, names.len())?;
                f.write_str(
                    "; the copy that the index names is used (transformers uses that of the last shard)",
                )
            }
            Self::UnknownQuantization { method } => write!(
                f,
                "config.json: the quantization_config of `{method}` asks for no known quantisation and is ignored"
            ),
            Self::Float64 => f.write_str("the model is float64; it is held in float32"),
        }
    }
}
