//! The error type of this crate. Messages say what was wrong, where, and what to do.

use llm_int8_nn::{CacheDtype, NnError};

/// A result with this crate's error.
pub type Result<T, E = DecoderError> = std::result::Result<T, E>;

/// What can go wrong between a checkpoint and its model's logits.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecoderError {
    /// A `config.json` that is invalid, or that describes a model this crate cannot build.
    #[error("config.json: {reason}")]
    Config {
        /// What is wrong and what to do.
        reason: String,
    },
    /// A model family that is not supported.
    #[error(
        "model type `{model_type}` is not supported; supported are {supported}; docs/adding-a-family.md in \
         the source tree explains how to add one"
    )]
    UnsupportedFamily {
        /// `model_type` of config.json.
        model_type: String,
        /// The supported values, separated by commas.
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
        /// Similar names in the checkpoint, or another reason; empty if there is none.
        hint: String,
    },
    /// Tensors in the checkpoint that the model has no place for, which
    /// [`LoadOptions::strict`](crate::LoadOptions) refuses.
    #[error(
        "the checkpoint {checkpoint} holds {count} tensor(s) that {family} has no place for ({names}); \
         does config.json belong to these weights? The option `strict` is on; without it they are ignored"
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
    /// A sequence longer than the model's context.
    #[error(
        "{requested} positions are needed, but the model has {available}; \
         shorten the prompt or ask for fewer new tokens"
    )]
    ContextExceeded {
        /// Positions needed: cached ones, the prompt and new tokens.
        requested: usize,
        /// Positions that the model has.
        available: usize,
    },
    /// Logits that are NaN or infinite.
    #[error(
        "the model's output contains NaN or infinity, so no token can be chosen; \
         its weights or activations overflow: try bfloat16 (the option `dtype`), or load it without 8 bit"
    )]
    NonFiniteLogits,
    /// A placement that is impossible.
    #[error("the model cannot be placed as requested: {reason}")]
    Placement {
        /// Why, and what can be done.
        reason: String,
    },
    /// [`OutlierWeights::Original`](llm_int8_nn::linear::OutlierWeights::Original) or
    /// [`Kept`](llm_int8_nn::linear::OutlierWeights::Kept) on a device.
    #[error(
        "float weights of outlier columns are used on the CPU only; compute there, or take them from the codes"
    )]
    OriginalWeightsOnDevice,
    /// A pass with a hook while blocks are on a device.
    #[error(
        "the inputs of layers can be seen on the CPU only, and part of the model is on a GPU; load it on the CPU"
    )]
    HookOnDevice,
    /// An adapter on a device.
    #[error(
        "adapters are applied on the CPU only, and part of the model would lie on a device; compute on the CPU, or merge \
         the adapter into its model first (`merge_and_unload()` of peft)"
    )]
    AdapterOnDevice,
    /// A cache in another dtype than the float parameters on a device.
    #[error(
        "keys and values in {dtype} are kept on the CPU only, and part of the model would lie on a device; compute on the \
         CPU, or keep them in {float}"
    )]
    CacheDtypeOnDevice {
        /// The dtype that was asked for.
        dtype: CacheDtype,
        /// That of the model's float parameters, in which devices store keys and values.
        float: CacheDtype,
    },
    /// Saving a model with an adapter.
    #[error(
        "an adapter is applied to this model, and a saved model would not hold it; load the model without the adapter \
         to save it"
    )]
    SavedAdapter,
    /// An invariant of this program that does not hold.
    #[error(
        "a bug in this program: {what} is missing where the plan of the model needs it; please report it"
    )]
    Bug {
        /// What is missing.
        what: &'static str,
    },
    /// An error of a device.
    #[error(transparent)]
    Cuda(#[from] llm_int8_cuda::CudaError),
    /// An error of a candle tensor operation.
    #[error("tensor operation failed: {0}")]
    Candle(#[from] candle_core::Error),
    /// An error of a layer or of the checkpoint.
    #[error(transparent)]
    Nn(#[from] NnError),
}
