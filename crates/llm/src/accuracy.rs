//! How exactly a model computes in 8 bit: bitsandbytes' rule, and rules that lose less.

use crate::error::Result;
use crate::tokenizer::LazyTokenizer;
use llm_int8_decoder::Decoder;
use llm_int8_nn::checkpoint::Checkpoint;
use llm_int8_nn::linear::{Int8Config, OutlierRule, OutlierWeights};
use std::path::PathBuf;

/// Presets of [`Int8Config`], from the widely known to the most exact. The codes of the weights are
/// the same for all.
///
/// ```
/// use llm_int8::Accuracy;
/// use llm_int8::nn::linear::{Int8Config, OutlierRule};
/// assert_eq!(Accuracy::Bitsandbytes.int8_config(), Int8Config::default());
/// assert_eq!(Accuracy::Better.int8_config().outliers, OutlierRule::row_rms(4.0));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Accuracy {
    /// Activations of 6 and more are outliers, and so are their columns in the whole batch: what
    /// bitsandbytes computes.
    #[default]
    Bitsandbytes,
    /// Activations of 4 times the root mean square of their row and more are outliers. The same
    /// files and bytes.
    Better,
    /// Activations of 3 times the root mean square of their row and more are outliers, and the weights
    /// of a hundredth of the input features are kept in f16, which takes 2 % more memory. Needs the
    /// unquantised checkpoint, or one that was saved in 8 bit with this preset.
    Best,
}

impl Accuracy {
    /// All presets.
    pub const ALL: [Self; 3] = [Self::Bitsandbytes, Self::Better, Self::Best];

    /// The preset's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bitsandbytes => "bitsandbytes",
            Self::Better => "better",
            Self::Best => "best",
        }
    }

    /// How int8 layers compute.
    pub fn int8_config(self) -> Int8Config {
        match self {
            Self::Bitsandbytes => Int8Config::default(),
            Self::Better => Int8Config {
                outliers: OutlierRule::row_rms(4.0),
                outlier_weights: OutlierWeights::Dequantized,
            },
            Self::Best => Int8Config {
                outliers: OutlierRule::row_rms(3.0),
                outlier_weights: OutlierWeights::Kept,
            },
        }
    }
}

/// The share of a layer's input features whose weights are kept in f16.
const KEPT_SHARE: f64 = 0.01;

/// Tokens of the sample on which kept columns are chosen.
const SAMPLE_TOKENS: usize = 256;

/// The text of the sample. Features with large activations are largely the same for every text.
const SAMPLE: &str = "\
The station master of Ellerby kept two clocks on his wall. One showed the time of the city, which arrived by \
telegraph every morning at ten; the other showed the time of the village, which was read from the sun. \"They \
differ by eleven minutes,\" he told a traveller in March 1871, \"and nobody has ever missed a train because of it.\" \
The traveller wrote this down. She was an engineer, and was asked to survey the line as far as the quarry: 14.6 \
kilometres, three bridges, one tunnel. What she found was simple enough. The rails were sound; the second bridge was \
not. Its piers stood on clay, and in a wet year the river had taken away a third of the stones around them.\n\n\
How should one repair it? Her report lists three ways:\n\n\
1. Drive new piles beside the old piers (cost: 4,200 pounds).\n\
2. Move the line 60 metres to the north, where there is rock.\n\
3. Do nothing, and limit every train to 10 km/h.\n\n\
The company chose the third, of course. For years the morning train crept over the water while children waved at it from \
the bank, and the engineer, who had a house in Ellerby by then, could be heard to say: if x is the speed of a train and y \
the patience of a board of directors, then x * y is a constant.\n\n\
def speed(patience, constant=10.0):\n    return constant / patience if patience > 0 else None\n";

/// Sets the kept columns of a model that is configured to have some: those saved with it, otherwise
/// those that a sample shows to be worth most.
pub(crate) fn keep_columns(
    decoder: &mut Decoder,
    saved: Option<PathBuf>,
    tokenizer: &LazyTokenizer,
) -> Result<()> {
    if !decoder.needs_kept_columns() {
        return Ok(());
    }
    if let Some(saved) = saved {
        let saved = Checkpoint::open_safetensors(&[saved], None)?;
        return Ok(decoder.load_kept_columns(&saved)?);
    }
    let sample = sample(decoder, tokenizer);
    Ok(decoder.keep_columns(&sample, KEPT_SHARE)?)
}

/// The ids of the sample. A model without a usable tokenizer gets ids from all over its vocabulary.
fn sample(decoder: &Decoder, tokenizer: &LazyTokenizer) -> Vec<u32> {
    let spec = decoder.spec();
    let length = SAMPLE_TOKENS.min(spec.positions);
    let vocabulary = spec.vocab_size() as u64;

    let encoded = match tokenizer.get() {
        Ok(Some(tokenizer)) => tokenizer.encode(SAMPLE).unwrap_or_default(),
        _ => Vec::new(),
    };
    let ids: Vec<u32> = (encoded.into_iter())
        .filter(|id| u64::from(*id) < vocabulary)
        .take(length)
        .collect();
    if !ids.is_empty() {
        return ids;
    }

    // Multiples of a large prime visit the vocabulary evenly.
    const STEP: u64 = 2_654_435_761;
    (1..=length as u64)
        .map(|i| (i * STEP % vocabulary.max(1)) as u32)
        .collect()
}
