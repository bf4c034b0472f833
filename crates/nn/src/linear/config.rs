//! How an int8 layer treats outliers.

pub use llm_int8_kernels::OutlierScope;

/// Where the weights of outlier columns come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OutlierWeights {
    /// Dequantised from the int8 codes, as in bitsandbytes. Needs no extra memory.
    #[default]
    Dequantized,
    /// The checkpoint's own floats, as in the paper (section 3.2). A column is read from the mapped
    /// file the first time it holds an outlier, and cached.
    Original,
}

/// How int8 layers compute: the counterpart of `BitsAndBytesConfig(load_in_8bit=True)`.
///
/// ```
/// use llm_int8_nn::linear::{Int8Config, OutlierScope, OutlierWeights};
/// let config = Int8Config::default();
/// assert_eq!(config.threshold, 6.0); // llm_int8_threshold
/// assert_eq!(config.outlier_scope, OutlierScope::Batch);
/// assert_eq!(config.outlier_weights, OutlierWeights::Dequantized);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Int8Config {
    /// A feature is an outlier if its magnitude reaches this value; 0 disables outlier handling.
    pub threshold: f32,
    /// Whether outlier columns are determined for the whole batch (bitsandbytes) or for each row.
    pub outlier_scope: OutlierScope,
    /// Where the weights of outlier columns come from.
    pub outlier_weights: OutlierWeights,
}

impl Default for Int8Config {
    /// The defaults of bitsandbytes under transformers: threshold 6, whole batch, dequantised
    /// weights.
    fn default() -> Self {
        Self {
            threshold: 6.0,
            outlier_scope: OutlierScope::Batch,
            outlier_weights: OutlierWeights::Dequantized,
        }
    }
}
