//! Which activations are outliers.

use crate::{args, plan};

/// Which activations are outliers: `OutlierRule` of llm-int8-kernels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outliers {
    /// Those whose magnitude in f16 is `threshold` or more; 0: none.
    Absolute {
        /// The smallest magnitude of an outlier.
        threshold: f32,
        /// If false, an outlier makes its whole column one, in all rows (bitsandbytes).
        by_row: bool,
    },
    /// For each row by itself, those whose magnitude in f16 is `factor` times its root mean square or
    /// more; 0: none.
    RowRms {
        /// The smallest magnitude of an outlier, in units of the row's root mean square.
        factor: f32,
    },
}

impl Outliers {
    /// The form of rules that find no outlier in any row.
    pub(super) const NONE: args::OutlierRule = args::OutlierRule {
        limit: 0xffff,
        factor: 0.0,
    };

    pub(super) fn is_by_row(self) -> bool {
        match self {
            Self::Absolute { by_row, .. } => by_row,
            Self::RowRms { .. } => true,
        }
    }

    pub(super) fn args(self) -> args::OutlierRule {
        match self {
            Self::Absolute { threshold, .. } => args::OutlierRule {
                limit: plan::outlier_limit(threshold),
                factor: 0.0,
            },
            Self::RowRms { factor } => args::OutlierRule {
                limit: plan::outlier_limit(0.0),
                factor: factor.max(0.0),
            },
        }
    }
}
