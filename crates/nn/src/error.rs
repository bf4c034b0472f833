//! The one error of this crate: what was wrong, where, and what to do.

use std::path::PathBuf;

/// The result of everything in this crate that can fail.
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
        /// What the system said.
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
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
        /// Bytes of the whole file.
        needed: u64,
    },
    /// A folder to be written is there already.
    #[error("{} exists and is not empty; choose another name, or remove it first", path.display())]
    TargetExists {
        /// The folder.
        path: PathBuf,
    },
    /// The caller ended it.
    #[error("interrupted while writing {}; nothing was left behind", path.display())]
    Interrupted {
        /// The file.
        path: PathBuf,
    },
    /// A checkpoint file whose structure is not what its format says.
    #[error(
        "{file} is not a usable checkpoint: {reason}; download it again, or check that it was copied whole"
    )]
    MalformedFile {
        /// The file.
        file: String,
        /// What does not hold.
        reason: String,
    },
    /// A file that is whole, but of a kind that is not read.
    #[error("{file} cannot be read: {reason}")]
    UnsupportedFile {
        /// The file.
        file: String,
        /// What it is, and what to do.
        reason: String,
    },
    /// An index (`*.index.json`) that does not fit the files beside it.
    #[error("the shard index {} is wrong: {reason}", path.display())]
    MalformedIndex {
        /// The index file.
        path: PathBuf,
        /// What does not hold.
        reason: String,
    },
    /// A tensor that was asked for by a name the checkpoint does not have.
    #[error("the checkpoint {checkpoint} has no tensor `{name}`{hint}")]
    UnknownTensor {
        /// Files of the checkpoint.
        checkpoint: String,
        /// The name.
        name: String,
        /// Near names, if there are any.
        hint: String,
    },
    /// A tensor with another shape than the configuration asks for.
    #[error(
        "tensor `{name}` in {file} has shape {found:?}, but config.json asks for {expected:?}; \
         config.json and weights do not belong together"
    )]
    WrongShape {
        /// The tensor.
        name: String,
        /// Where it was read.
        file: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape the model needs.
        expected: Vec<usize>,
    },
    /// A tensor stored in a dtype that cannot be used in its place.
    #[error("tensor `{name}` in {file} is stored as {found}; {expected} can be read here")]
    WrongDtype {
        /// The tensor.
        name: String,
        /// Where it was read.
        file: String,
        /// The dtype found.
        found: String,
        /// The dtypes that would do.
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
        /// Where it was read.
        file: String,
        /// What the kernel said.
        source: Box<llm_int8_kernels::KernelError>,
    },
    /// An 8-bit checkpoint of bitsandbytes whose quantisation state is not usable.
    #[error("the 8-bit state of `{layer}` is not usable: {reason}")]
    QuantisationState {
        /// The layer's path.
        layer: String,
        /// What does not hold.
        reason: String,
    },
    /// Full-precision outlier weights were asked for where there are none.
    #[error(
        "layer `{layer}` has no full-precision weights to take outlier columns from \
         (it was loaded from int8 codes); use outlier weights `dequantized`"
    )]
    NoOriginalWeights {
        /// The layer's path.
        layer: String,
    },
    /// A `config.json` that does not describe a model we can build.
    #[error("config.json: {reason}")]
    Config {
        /// What is wrong and what to do.
        reason: String,
    },
    /// A name in the skip list that matches no module of the model.
    #[error("skip list: `{name}` matches no module of this model{hint}")]
    UnknownModule {
        /// The name given.
        name: String,
        /// Near names, if there are any.
        hint: String,
    },
    /// An input whose shape or dtype a layer cannot take.
    #[error("{layer}: {reason}")]
    Input {
        /// The layer or model.
        layer: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A parameter whose values have not been read (the model was built from headers alone).
    #[error(
        "the weights of this model were not read: it was built from headers only, to be looked at and not run"
    )]
    NotLoaded,
    /// A kernel refused its arguments.
    #[error(transparent)]
    Kernel(#[from] llm_int8_kernels::KernelError),
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Candle(#[from] candle_core::Error),
}

impl NnError {
    /// Names files where they were meant to be, instead of where they were being written.
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

    /// Puts an error into candle's type, for the places where candle calls us.
    pub(crate) fn into_candle(self) -> candle_core::Error {
        match self {
            Self::Candle(error) => error,
            other => candle_core::Error::wrap(other),
        }
    }
}
