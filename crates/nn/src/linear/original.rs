//! Full-precision weights of outlier columns (LLM.int8() paper, section 3.2).
//!
//! Outlier features are few and stay the same from token to token, so their columns are fetched
//! from the source when first met and kept: the memory is that of the columns, not of the weight.

use crate::error::Result;
use llm_int8_kernels::MatRef;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

/// A place to fetch full-precision weight columns from: a mapped checkpoint, or a tensor.
pub trait OriginalWeights: Send + Sync {
    /// The weights of those input features, ascending: f32 `[columns.len(), out_features]`.
    ///
    /// # Errors
    /// Where the source cannot be read.
    fn columns(&self, columns: &[u32]) -> Result<Vec<f32>>;
}

/// Columns that were met, of one layer.
#[derive(Debug, Clone, Default)]
pub(super) struct OutlierColumns {
    columns: Vec<u32>,
    /// `[columns.len(), out_features]`.
    values: Vec<f32>,
    out_features: usize,
}

impl OutlierColumns {
    /// The form the kernels take.
    pub(super) fn kernel_form(&self) -> Result<llm_int8_kernels::OutlierWeights<'_>> {
        let values = MatRef::new(&self.values, self.columns.len(), self.out_features)?;
        Ok(llm_int8_kernels::OutlierWeights::Original {
            columns: &self.columns,
            values,
        })
    }

    fn lacks(&self, wanted: &[u32]) -> Vec<u32> {
        wanted
            .iter()
            .copied()
            .filter(|column| self.columns.binary_search(column).is_err())
            .collect()
    }

    /// These columns and the new ones, ascending.
    fn merged(&self, new: &Self) -> Self {
        let n = self.out_features.max(new.out_features);
        let mut all: Vec<(u32, &[f32])> = (self.columns.iter().copied().zip(self.values.chunks(n)))
            .chain(new.columns.iter().copied().zip(new.values.chunks(n)))
            .collect();
        all.sort_unstable_by_key(|(column, _)| *column);
        Self {
            columns: all.iter().map(|(column, _)| *column).collect(),
            values: all
                .iter()
                .flat_map(|(_, values)| values.iter().copied())
                .collect(),
            out_features: n,
        }
    }
}

/// A source and the columns already taken from it. Clones share both.
#[derive(Clone)]
pub(super) struct ColumnStore {
    source: Arc<dyn OriginalWeights>,
    met: Arc<RwLock<Arc<OutlierColumns>>>,
}

impl ColumnStore {
    pub(super) fn new(source: Arc<dyn OriginalWeights>) -> Self {
        Self {
            source,
            met: Arc::default(),
        }
    }

    /// At least these columns (ascending).
    pub(super) fn with_columns(
        &self,
        wanted: &[u32],
        out_features: usize,
    ) -> Result<Arc<OutlierColumns>> {
        let met = Arc::clone(&self.met.read().unwrap_or_else(PoisonError::into_inner));
        let missing = met.lacks(wanted);
        if missing.is_empty() {
            return Ok(met);
        }
        let values = self.source.columns(&missing)?;
        let fresh = OutlierColumns {
            columns: missing,
            values,
            out_features,
        };
        let mut guard = self.met.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have fetched some of them meanwhile: keep each column once.
        let still_missing = guard.lacks(&fresh.columns);
        if still_missing.len() == fresh.columns.len() {
            *guard = Arc::new(guard.merged(&fresh));
        } else {
            let values = self.source.columns(&still_missing)?;
            *guard = Arc::new(guard.merged(&OutlierColumns {
                columns: still_missing,
                values,
                out_features,
            }));
        }
        Ok(Arc::clone(&guard))
    }

    /// Bytes of the columns kept so far.
    pub(super) fn bytes(&self) -> u64 {
        let met = self.met.read().unwrap_or_else(PoisonError::into_inner);
        4 * (met.values.len() + met.columns.len()) as u64
    }
}

impl fmt::Debug for ColumnStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ColumnStore")
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}
