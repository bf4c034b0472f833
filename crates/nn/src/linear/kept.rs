//! A few columns of a weight, kept in f16 beside its codes.

use super::config::OutlierWeights;
use super::int8::Int8Linear;
use super::original::ColumnStore;
use crate::error::{NnError, Result};
use half::f16;
use llm_int8_kernels::MatRef;
use std::fmt;
use std::sync::Arc;

/// Columns of a weight `[out, in]` in f16, those of the input features with the largest activations.
/// Clones share the memory.
#[derive(Clone, PartialEq)]
pub struct KeptColumns {
    /// Input features, ascending.
    columns: Arc<[u32]>,
    /// `[columns.len(), out_features]`.
    values: Arc<[f16]>,
    out_features: usize,
}

impl KeptColumns {
    /// These columns of a source of original weights; `columns` in any order.
    pub(super) fn read(store: &ColumnStore, columns: &[u32], out_features: usize) -> Result<Self> {
        let mut columns = columns.to_vec();
        columns.sort_unstable();
        columns.dedup();
        let values = store.read(&columns)?;
        Ok(Self {
            columns: columns.into(),
            values: values.into_iter().map(f16::from_f32).collect(),
            out_features,
        })
    }

    /// Columns that were saved: `columns` ascending, `values` `[columns.len(), out_features]`. `None` if
    /// they are not that.
    pub fn new(columns: Vec<u32>, values: Vec<f16>, out_features: usize) -> Option<Self> {
        let is_sound = columns.is_sorted_by(|a, b| a < b)
            && columns.len().checked_mul(out_features) == Some(values.len());
        is_sound.then(|| Self {
            columns: columns.into(),
            values: values.into(),
            out_features,
        })
    }

    /// The input features, ascending.
    pub fn columns(&self) -> &[u32] {
        &self.columns
    }

    /// Their weights, f16 `[columns, out_features]`.
    pub fn values(&self) -> &[f16] {
        &self.values
    }

    /// Length of a column.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> u64 {
        (size_of_val(&*self.columns) + size_of_val(&*self.values)) as u64
    }

    /// Whether the columns are those of a weight `[out_features, in_features]`.
    pub(super) fn fits(&self, in_features: usize, out_features: usize) -> bool {
        self.out_features == out_features
            && self
                .columns
                .last()
                .is_none_or(|last| (*last as usize) < in_features)
    }

    /// The form the kernels take.
    pub(super) fn kernel_form(&self) -> Result<llm_int8_kernels::OutlierWeights<'_>> {
        Ok(llm_int8_kernels::OutlierWeights::Kept {
            columns: &self.columns,
            values: MatRef::new(&self.values, self.columns.len(), self.out_features)?,
        })
    }
}

impl Int8Linear {
    /// Reads these columns from the source of original weights and keeps them in f16: from now on they
    /// are multiplied in floating point in every row. The source is released. No effect unless the
    /// layer was configured with [`OutlierWeights::Kept`].
    ///
    /// # Errors
    /// [`NnError::NoOriginalWeights`] if there is no source; [`NnError::Input`] for a column that the
    /// weight does not have; errors of reading the source.
    pub fn keep_columns(&mut self, columns: &[u32]) -> Result<()> {
        if self.config().outlier_weights != OutlierWeights::Kept {
            return Ok(());
        }
        let Some(store) = &self.original else {
            return Err(NnError::NoOriginalWeights {
                layer: self.label(),
            });
        };

        let kept = KeptColumns::read(store, columns, self.out_features())?;
        self.set_kept_columns(kept)?;
        self.original = None;
        Ok(())
    }

    /// Sets the kept columns.
    ///
    /// # Errors
    /// [`NnError::Input`] for columns that the weight does not have.
    pub fn set_kept_columns(&mut self, kept: KeptColumns) -> Result<()> {
        if !kept.fits(self.in_features(), self.out_features()) {
            return Err(NnError::Input {
                layer: self.label(),
                reason: format!(
                    "the columns to keep do not fit a weight of [{}, {}]",
                    self.out_features(),
                    self.in_features()
                ),
            });
        }
        self.kept = Some(Box::new(kept));
        Ok(())
    }

    /// The columns kept in f16 beside the codes.
    pub fn kept_columns(&self) -> Option<&KeptColumns> {
        self.kept.as_deref()
    }

    /// The input features whose columns are multiplied in floating point in every row, ascending: those
    /// that are kept, with [`OutlierWeights::Kept`].
    pub fn kept_indices(&self) -> &[u32] {
        self.active_kept().map_or(&[], KeptColumns::columns)
    }

    /// The kept columns, if the layer is configured to use them.
    pub(super) fn active_kept(&self) -> Option<&KeptColumns> {
        (self.kept.as_deref()).filter(|_| self.config().outlier_weights == OutlierWeights::Kept)
    }
}

impl fmt::Debug for KeptColumns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptColumns")
            .field("columns", &self.columns)
            .finish_non_exhaustive()
    }
}
