//! Which activations are outliers.

use crate::simd::for_every_width;
use crate::{Element, Isa};
use half::f16;

/// Which rows an outlier's column is taken out of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OutlierScope {
    /// All rows: a column with an outlier in any row is an outlier column for the whole batch
    /// (bitsandbytes). A row's result depends on its batch.
    #[default]
    Batch,
    /// Only the row it is in: a row's result is the same, bit for bit, alone and in any batch.
    Row,
}

/// Which activations are outliers: they stay in floating point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum OutlierRule {
    /// Those whose magnitude in f16 is `threshold` or more; 0: none (bitsandbytes, the LLM.int8()
    /// paper).
    Absolute {
        /// The smallest magnitude of an outlier.
        threshold: f32,
        /// Which rows an outlier's column is taken out of.
        scope: OutlierScope,
    },
    /// Those whose magnitude in f16 is `factor` times the root mean square of their row or more; 0:
    /// none. Each row is judged by itself, so a row's result does not depend on its batch, nor on
    /// the scale of its activations. [`reference::row_rms`](crate::reference::row_rms) is the order
    /// of the additions.
    RowRms {
        /// The smallest magnitude of an outlier, in units of the row's root mean square.
        factor: f32,
    },
}

impl Default for OutlierRule {
    /// bitsandbytes' default: magnitudes of 6 and more, for the whole batch.
    fn default() -> Self {
        Self::batch(6.0)
    }
}

impl OutlierRule {
    /// Magnitudes of `threshold` and more, for the whole batch.
    pub fn batch(threshold: f32) -> Self {
        Self::Absolute {
            threshold,
            scope: OutlierScope::Batch,
        }
    }

    /// Magnitudes of `threshold` and more, for each row.
    pub fn row(threshold: f32) -> Self {
        Self::Absolute {
            threshold,
            scope: OutlierScope::Row,
        }
    }

    /// Magnitudes of `factor` times the row's root mean square and more.
    pub fn row_rms(factor: f32) -> Self {
        Self::RowRms { factor }
    }

    /// Which rows an outlier's column is taken out of.
    pub fn scope(self) -> OutlierScope {
        match self {
            Self::Absolute { scope, .. } => scope,
            Self::RowRms { .. } => OutlierScope::Row,
        }
    }

    /// Whether no activation is an outlier, whatever the activations are.
    pub fn finds_none(self) -> bool {
        match self {
            Self::Absolute {
                threshold: limit, ..
            }
            | Self::RowRms { factor: limit } => limit.is_nan() || limit <= 0.0,
        }
    }

    /// Whether a row gives the same result in any batch.
    pub fn is_by_row(self) -> bool {
        self.scope() == OutlierScope::Row || self.finds_none()
    }

    /// The bits of the smallest positive f16 that is an outlier in this row. `None` if the row has
    /// no outlier for certain.
    pub(super) fn limit(self, isa: Isa, row16: &[f16]) -> Option<u16> {
        if self.finds_none() {
            return None;
        }

        let threshold = match self {
            Self::Absolute { threshold, .. } => threshold,
            Self::RowRms { factor } => factor * row_rms(isa, row16),
        };
        // The row holds a NaN.
        (!threshold.is_nan()).then(|| smallest_outlier(threshold).to_bits())
    }
}

/// The smallest positive f16 that is not below `threshold`: the magnitude from which on values of a
/// row of f16 are outliers. 0 is never an outlier.
///
/// ```
/// use llm_int8_kernels::outlier::smallest_outlier;
/// assert_eq!(smallest_outlier(6.0).to_f32(), 6.0);
/// assert_eq!(smallest_outlier(6.001).to_f32(), 6.00390625); // the next f16
/// ```
pub fn smallest_outlier(threshold: f32) -> f16 {
    // Positive floats are ordered like their bits.
    let nearest = f16::from_f32(threshold);
    let bits = match nearest.to_f32() >= threshold {
        true => nearest.to_bits(),
        false => nearest.to_bits() + 1,
    };
    f16::from_bits(bits.max(1))
}

/// Values whose squares are added as a tree.
pub(crate) const RMS_CHUNK: usize = 128;

/// The root mean square of a row, f32: the same bits as
/// [`reference::row_rms`](crate::reference::row_rms).
///
/// ```
/// use llm_int8_kernels::{Isa, outlier::row_rms};
/// assert_eq!(row_rms(Isa::detect(), &[3.0, -4.0, 0.0, 0.0].map(half::f16::from_f32)), 2.5);
/// ```
pub fn row_rms(isa: Isa, row16: &[f16]) -> f32 {
    let mut values = [0f32; RMS_CHUNK];
    let mut sum = 0f32;
    for chunk in row16.chunks(RMS_CHUNK) {
        f16::to_f32_slice(chunk, &mut values[..chunk.len()]);
        values[chunk.len()..].fill(0.0);
        sum += sum_of_squares(isa, &values);
    }

    (sum / row16.len() as f32).sqrt()
}

for_every_width! {
    fn sum_of_squares(values: &[f32; RMS_CHUNK]) -> f32 = tree_of_squares
}

/// The squares, added pairwise: halves of the chunk, then quarters, and so on.
#[inline(always)]
fn tree_of_squares(values: &[f32; RMS_CHUNK]) -> f32 {
    let mut sums: [f32; RMS_CHUNK] = std::array::from_fn(|i| values[i] * values[i]);
    let mut width = RMS_CHUNK / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }

    sums[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;

    #[test]
    fn the_smallest_outlier_is_not_below_the_threshold() {
        assert_eq!(smallest_outlier(6.0), f16::from_f32(6.0));
        let next = smallest_outlier(6.0001).to_bits();
        assert_eq!(next, f16::from_f32(6.0).to_bits() + 1);
        assert_eq!(smallest_outlier(0.0).to_bits(), 1);
        assert_eq!(smallest_outlier(1e9), f16::INFINITY);
    }

    #[test]
    fn rules_that_find_nothing() {
        for rule in [
            OutlierRule::batch(0.0),
            OutlierRule::row(-1.0),
            OutlierRule::row_rms(f32::NAN),
        ] {
            assert!(rule.finds_none() && rule.is_by_row(), "{rule:?}");
        }
        assert!(!OutlierRule::default().is_by_row() && OutlierRule::row_rms(4.0).is_by_row());
    }

    proptest::proptest! {
        #[test]
        fn the_rms_has_the_same_bits_on_every_path(values in proptest::collection::vec(-9.0f32..9.0, 1..700)) {
            let row: Vec<f16> = values.iter().map(|x| f16::from_f32(*x)).collect();
            let expected = reference::row_rms(&row);
            for isa in Isa::available() {
                proptest::prop_assert_eq!(row_rms(isa, &row).to_bits(), expected.to_bits());
            }

            let exact = row.iter().map(|x| x.to_f64().powi(2)).sum::<f64>() / row.len() as f64;
            proptest::prop_assert!((f64::from(expected) - exact.sqrt()).abs() <= 1e-6 * exact.sqrt());
        }
    }
}
