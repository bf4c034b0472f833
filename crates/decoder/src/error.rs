//! The one error of this crate: what was wrong, where, and what to do.

use llm_int8_nn::NnError;

/// The result of everything in this crate that can fail.
pub type Result<T, E = DecoderError> = std::result::Result<T, E>;

/// What can go wrong between a checkpoint and its model's logits.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecoderError {
    /// A `config.json` that does not describe a model we can build.
    #[error("config.json: {reason}")]
    Config {
        /// What is wrong and what to do.
        reason: String,
    },
    /// A model family that is not supported.
    #[error(
        "model type `{model_type}` is not supported; supported are {supported}; docs/adding-a-family.md of \
         the sources tells how to add one"
    )]
    UnsupportedFamily {
        /// `model_type` of config.json.
        model_type: String,
        /// The list of supported families.
        supported: String,
    },
    /// A tensor the model needs is not in the checkpoint.
    #[error("the checkpoint {checkpoint} has no tensor `{name}`, which {family} needs{hint}")]
    MissingTensor {
        /// Files of the checkpoint.
        checkpoint: String,
        /// The tensor.
        name: String,
        /// The model family.
        family: String,
        /// Near names, if there are any.
        hint: String,
    },
    /// Tensors in the checkpoint that the model has no place for, where
    /// [`LoadOptions::strict`](crate::LoadOptions) refuses them.
    #[error(
        "the checkpoint {checkpoint} holds {count} tensor(s) that {family} has no place for ({names}); \
         is config.json the one that belongs to these weights? The option `strict` is on; without it they are \
         ignored"
    )]
    UnexpectedTensors {
        /// Files of the checkpoint.
        checkpoint: String,
        /// How many there are.
        count: usize,
        /// The first few names.
        names: String,
        /// The model family.
        family: String,
    },
    /// Token ids or rows that the model cannot take.
    #[error("{model}: {reason}")]
    Input {
        /// The model family.
        model: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// More positions than the model has.
    #[error(
        "{requested} positions are needed, but the model has {available}; \
         shorten the prompt or ask for fewer new tokens"
    )]
    ContextExceeded {
        /// Positions asked for: cached, given and new ones.
        requested: usize,
        /// Positions the model has.
        available: usize,
    },
    /// Logits that no token can be chosen by.
    #[error(
        "the model's output contains NaN or infinity, so no token can be chosen; \
         its weights or activations overflow: try bfloat16 (the option `dtype`), or load it without 8 bit"
    )]
    NonFiniteLogits,
    /// Devices that the model cannot be put on as asked for.
    #[error("the model cannot be put there: {reason}")]
    Placement {
        /// Why, and what can be done.
        reason: String,
    },
    /// Original outlier weights and a device.
    #[error(
        "original outlier weights are taken from the file while tokens are computed, which only the CPU does; compute \
         there, or take them from the codes"
    )]
    OriginalWeightsOnDevice,
    /// Parts of this program do not agree with each other.
    #[error(
        "a bug in this program: {what} is missing where the plan of the model needs it; please report it"
    )]
    Bug {
        /// What is missing.
        what: &'static str,
    },
    /// A device refused something.
    #[error(transparent)]
    Cuda(#[from] llm_int8_cuda::CudaError),
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Candle(#[from] candle_core::Error),
    /// A layer or the checkpoint refused something.
    #[error(transparent)]
    Nn(#[from] NnError),
}
