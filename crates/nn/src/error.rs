//! The error type of this crate. Messages say what was wrong, where, and what to do.

use std::path::PathBuf;

/// Result with [`NnError`].
pub type Result<T, E = NnError> = std::result::Result<T, E>;

/// What can go wrong with a checkpoint or a layer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NnError {
    /// A file could not be opened, read or mapped.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The disk has no room for a file.
    #[error(
        "the disk is full: {} needs {needed} bytes; free some space or choose another place. Nothing was left behind",
        path.display()
    )]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// Size of the whole file in bytes.
        needed: u64,
    },
    /// The output folder exists and is not empty.
    #[error("{} exists and is not empty; choose another name, or remove it first", path.display())]
    TargetExists {
        /// The folder.
        path: PathBuf,
    },
    /// The caller's observer stopped the write.
    #[error("interrupted while writing {}; nothing was left behind", path.display())]
    Interrupted {
        /// The file.
        path: PathBuf,
    },
    /// A checkpoint file that violates its own format: truncated, damaged or forged.
    #[error(
        "{file} is not a usable checkpoint: {reason}; download it again, or check that it was copied whole"
    )]
    MalformedFile {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An intact file of an unsupported kind.
    #[error("{file} cannot be read: {reason}")]
    UnsupportedFile {
        /// The file.
        file: String,
        /// What it is, and what to do.
        reason: String,
    },
    /// A shard index (`*.index.json`) that does not match the files beside it.
    #[error("the shard index {} is wrong: {reason}", path.display())]
    MalformedIndex {
        /// The index file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The checkpoint has no tensor of the requested name.
    #[error("the checkpoint {checkpoint} has no tensor `{name}`{hint}")]
    UnknownTensor {
        /// The checkpoint's files.
        checkpoint: String,
        /// The requested name.
        name: String,
        /// Similar names to suggest; may be empty.
        hint: String,
    },
    /// A tensor whose shape is not the one the configuration calls for.
    #[error(
        "tensor `{name}` in {file} has shape {found:?}, but config.json asks for {expected:?}; \
         config.json and weights do not belong together"
    )]
    WrongShape {
        /// The tensor.
        name: String,
        /// The file it is in.
        file: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape the model needs.
        expected: Vec<usize>,
    },
    /// A tensor stored in a dtype that the model cannot use there.
    #[error("tensor `{name}` in {file} is stored as {found}; {expected} can be read here")]
    WrongDtype {
        /// The tensor.
        name: String,
        /// The file it is in.
        file: String,
        /// The dtype in the file.
        found: String,
        /// The dtypes accepted there.
        expected: &'static str,
    },
    /// A weight that cannot be quantised.
    #[error(
        "tensor `{name}` in {file} cannot be quantised: {source}; \
         keep the layer as it is (the option `skip_modules`), or check the file"
    )]
    Quantise {
        /// The tensor.
        name: String,
        /// The file it is in.
        file: String,
        /// The kernel's error.
        source: Box<llm_int8_kernels::KernelError>,
    },
    /// An 8-bit checkpoint of bitsandbytes with an invalid quantisation state.
    #[error("the 8-bit state of `{layer}` is not usable: {reason}")]
    QuantisationState {
        /// The layer's path.
        layer: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Original outlier weights were requested, but the layer was loaded from int8 codes.
    #[error(
        "layer `{layer}` has no full-precision weights to take outlier columns from \
         (it was loaded from int8 codes); load the unquantised checkpoint, or use outlier weights `dequantized`"
    )]
    NoOriginalWeights {
        /// The layer's path.
        layer: String,
    },
    /// A `config.json` from which no model can be built.
    #[error("config.json: {reason}")]
    Config {
        /// What is wrong and what to do.
        reason: String,
    },
    /// An adapter that cannot be used.
    #[error("adapter_config.json: {reason}")]
    Adapter {
        /// What is wrong and what would do.
        reason: String,
    },
    /// A folder without the files of an adapter.
    #[error(
        "{} holds no adapter: it has no {lacks}; give the folder that `save_pretrained` of PEFT wrote",
        folder.display()
    )]
    NoAdapter {
        /// The folder.
        folder: PathBuf,
        /// The file that is missing.
        lacks: &'static str,
    },
    /// A tensor of an adapter that cannot be applied to the model.
    #[error("tensor `{name}` in {file} cannot be applied: {reason}")]
    AdapterTensor {
        /// The tensor.
        name: String,
        /// The file it is in.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A name in the skip list that matches no module of the model.
    #[error("skip list: `{name}` matches no module of this model{hint}")]
    UnknownModule {
        /// The name in the list.
        name: String,
        /// Similar names to suggest; may be empty.
        hint: String,
    },
    /// An input whose shape, dtype or device a layer cannot take.
    #[error("{layer}: {reason}")]
    Input {
        /// The layer or model.
        layer: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A parameter without values: the model was built from headers alone.
    #[error(
        "the weights of this model were not read: it was built from headers only, to be inspected and not run"
    )]
    NotLoaded,
    /// A layer without a kernel for a device.
    #[error(
        "{layer}: this program has no kernel of this layer for {device}; keep layer and tensor on the CPU, or use \
         candle's own layer there (int8 layers run on CUDA in programs built with the feature `candle-cuda`)"
    )]
    UnsupportedDevice {
        /// The layer.
        layer: String,
        /// The device.
        device: String,
    },
    /// A layer's weights and its input are on different devices. For candle, two devices that were
    /// opened separately on the same GPU are different.
    #[error(
        "{layer}: its weights are on {weights}, the input is on {input}; move one to the `Device` of the other \
         (`Int8Linear::to_device`, `Tensor::to_device`)"
    )]
    WrongDevice {
        /// The layer.
        layer: String,
        /// Where its weights are.
        weights: String,
        /// Where the input is.
        input: String,
    },
    /// Weights that were to be read are on a GPU.
    #[error("{layer}: its weights are on {device}; `Int8Linear::to_device` copies them to the CPU")]
    OnGpu {
        /// The layer.
        layer: String,
        /// The device.
        device: String,
    },
    /// A configuration that a layer does not have on a GPU.
    #[error(
        "{layer}: {what} do not exist on a GPU; change the layer's `Int8Config`, or leave it on the CPU"
    )]
    UnsupportedOnGpu {
        /// The layer.
        layer: String,
        /// What the configuration asks for.
        what: &'static str,
    },
    /// A GPU failed.
    #[cfg(feature = "candle-cuda")]
    #[error("{layer}: {source}")]
    Gpu {
        /// The layer.
        layer: String,
        /// What the GPU said.
        source: llm_int8_cuda::CudaError,
    },
    /// A kernel rejected its arguments.
    #[error(transparent)]
    Kernel(#[from] llm_int8_kernels::KernelError),
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Candle(#[from] candle_core::Error),
}

impl NnError {
    /// Replaces paths below the temporary place `partial` by those below `target`, so that messages
    /// name the files the user asked for.
    pub(crate) fn at(mut self, partial: &std::path::Path, target: &std::path::Path) -> Self {
        if let Self::Write { path, .. } | Self::DiskFull { path, .. } | Self::Interrupted { path } =
            &mut self
        {
            match path.strip_prefix(partial) {
                Ok(rest) if rest.as_os_str().is_empty() => *path = target.to_owned(),
                Ok(rest) => *path = target.join(rest),
                Err(_) => {}
            }
        }
        self
    }

    /// Wraps the error in candle's type, for code that candle calls.
    pub(crate) fn into_candle(self) -> candle_core::Error {
        match self {
            Self::Candle(error) => error,
            other => candle_core::Error::wrap(other),
        }
    }
}

impl From<NnError> for candle_core::Error {
    /// So that `?` works where candle's `Result` is returned.
    fn from(error: NnError) -> Self {
        error.into_candle()
    }
}
