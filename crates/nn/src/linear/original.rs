//! Full-precision weights of outlier columns (LLM.int8() paper, section 3.2).
//!
//! Outlier features are few and mostly the same for every token. So a column is read from the
//! source the first time it holds an outlier and cached: memory grows with the outlier columns, not
//! with the weight.

use crate::error::Result;
use llm_int8_kernels::MatRef;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

/// A source of full-precision weight columns: a mapped checkpoint, or a tensor.
pub trait OriginalWeights: Send + Sync {
    /// The weight columns of these input features: f32 `[columns.len(), out_features]`, in the
    /// order of `columns`.
    ///
    /// # Errors
    /// If the source cannot be read.
    fn columns(&self, columns: &[u32]) -> Result<Vec<f32>>;
}

/// Original weights of some outlier columns of one layer.
#[derive(Debug, Clone, Default)]
pub(super) struct OutlierColumns {
    /// Input features, ascending.
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

    /// The requested columns that are not here.
    fn missing(&self, requested: &[u32]) -> Vec<u32> {
        requested
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

/// A source and the cache of columns read from it. Clones share both.
#[derive(Clone)]
pub(super) struct ColumnStore {
    source: Arc<dyn OriginalWeights>,
    cached: Arc<RwLock<Arc<OutlierColumns>>>,
}

impl ColumnStore {
    pub(super) fn new(source: Arc<dyn OriginalWeights>) -> Self {
        Self {
            source,
            cached: Arc::default(),
        }
    }

    /// The weights of these columns, f32 `[columns.len(), out_features]`, past the cache.
    pub(super) fn read(&self, columns: &[u32]) -> Result<Vec<f32>> {
        self.source.columns(columns)
    }

    /// A set that holds at least the requested columns (ascending), read from the source as needed.
    pub(super) fn with_columns(
        &self,
        requested: &[u32],
        out_features: usize,
    ) -> Result<Arc<OutlierColumns>> {
        let cached = Arc::clone(&self.cached.read().unwrap_or_else(PoisonError::into_inner));
        let missing = cached.missing(requested);
        if missing.is_empty() {
            return Ok(cached);
        }

        // Read before locking: the source may be a file.
        let values = self.source.columns(&missing)?;
        let fresh = OutlierColumns {
            columns: missing,
            values,
            out_features,
        };

        let mut guard = self.cached.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have cached some of them meanwhile: keep each column once.
        let still_missing = guard.missing(&fresh.columns);
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

    /// Bytes of the columns cached so far.
    pub(super) fn bytes(&self) -> u64 {
        let cached = self.cached.read().unwrap_or_else(PoisonError::into_inner);
        4 * (cached.values.len() + cached.columns.len()) as u64
    }
}

impl fmt::Debug for ColumnStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ColumnStore")
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}
