//! What an int8 layer does with outliers.

pub use llm_int8_kernels::OutlierScope;

/// Where the weights of outlier columns come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OutlierWeights {
    /// The int8 weights, turned back into floats: what bitsandbytes does, and no memory beside the
    /// codes.
    #[default]
    Dequantized,
    /// The checkpoint's own floats, as in the paper (section 3.2): a column is fetched from the
    /// mapped file when it is first met, and kept.
    Original,
}

/// How int8 layers compute, the counterpart of `BitsAndBytesConfig(load_in_8bit=True)`.
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
    /// A feature is an outlier where its magnitude reaches this; 0 turns outlier handling off.
    pub threshold: f32,
    /// Whether outliers are looked for in the whole batch (bitsandbytes) or in each row by itself.
    pub outlier_scope: OutlierScope,
    /// Where the weights of outlier columns come from.
    pub outlier_weights: OutlierWeights,
}

impl Default for Int8Config {
    /// bitsandbytes' behaviour under transformers: threshold 6, whole batch, dequantised weights.
    fn default() -> Self {
        Self {
            threshold: 6.0,
            outlier_scope: OutlierScope::Batch,
            outlier_weights: OutlierWeights::Dequantized,
        }
    }
}
