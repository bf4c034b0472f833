//! How an int8 layer treats outliers.

pub use llm_int8_kernels::outlier::{row_rms, smallest_outlier};
pub use llm_int8_kernels::{OutlierRule, OutlierScope};

/// Where the weights of outlier columns come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OutlierWeights {
    /// Dequantised from the int8 codes, as in bitsandbytes. Needs no extra memory.
    #[default]
    Dequantized,
    /// The checkpoint's own floats, as in the paper (section 3.2). A column is read from the mapped
    /// file the first time it holds an outlier, and cached.
    Original,
    /// Dequantised, except for a few columns of each layer that are kept in f16 beside the codes and
    /// multiplied in floating point in every row. Which they are is decided once, from activations
    /// of a sample ([`Int8Linear::keep_columns`](super::Int8Linear::keep_columns)). Not in
    /// bitsandbytes.
    Kept,
}

/// How int8 layers compute: the counterpart of `BitsAndBytesConfig(load_in_8bit=True)`.
///
/// ```
/// use llm_int8_nn::linear::{Int8Config, OutlierRule, OutlierWeights};
/// let config = Int8Config::default();
/// assert_eq!(config.outliers, OutlierRule::batch(6.0)); // llm_int8_threshold=6.0
/// assert_eq!(config.outlier_weights, OutlierWeights::Dequantized);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Int8Config {
    /// Which activations stay in floating point; bitsandbytes: those of 6 and more, for the whole
    /// batch.
    pub outliers: OutlierRule,
    /// Where the weights of outlier columns come from.
    pub outlier_weights: OutlierWeights,
}
