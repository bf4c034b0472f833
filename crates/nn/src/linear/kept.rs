//! A few columns of a weight, kept in f16 beside its codes.

use super::config::OutlierWeights;
use super::int8::Int8Linear;
use super::original::ColumnStore;
use crate::checkpoint::{Checkpoint, NewTensor};
use crate::error::{NnError, Result};
use half::f16;
use llm_int8_kernels::MatRef;
use safetensors::Dtype;
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

    /// The tensors of a saved layer `prefix`: `<prefix>.columns`, U32 `[n]`, and `<prefix>.values`, F16
    /// `[n, out_features]`.
    pub fn state(&self, prefix: &str) -> [NewTensor<'_>; 2] {
        let count = self.columns.len();
        let columns = NewTensor::new(format!("{prefix}.columns"), Dtype::U32, &[count], || {
            let bytes = self.columns.iter().flat_map(|column| column.to_le_bytes());
            Ok(bytes.collect::<Vec<_>>().into())
        });
        let shape = [count, self.out_features];
        let values = NewTensor::new(format!("{prefix}.values"), Dtype::F16, &shape, || {
            let bytes = self.values.iter().flat_map(|value| value.to_le_bytes());
            Ok(bytes.collect::<Vec<_>>().into())
        });
        [columns, values]
    }

    /// Reads what [`state`](Self::state) wrote, for a layer of `out_features`.
    ///
    /// # Errors
    /// The errors of [`Checkpoint::tensor`]; [`NnError::QuantisationState`] for columns that are not
    /// ascending, and for other dtypes or shapes.
    pub fn read_state(checkpoint: &Checkpoint, prefix: &str, out_features: usize) -> Result<Self> {
        let columns = checkpoint.tensor(&format!("{prefix}.columns"))?;
        let values = checkpoint.tensor(&format!("{prefix}.values"))?;
        let kept = match (columns.dtype, values.dtype, values.shape) {
            (Dtype::U32, Dtype::F16, [_, outputs]) if *outputs == out_features => Self::new(
                columns.elements::<u32>()?.into_owned(),
                values.elements::<f16>()?.into_owned(),
                out_features,
            ),
            _ => None,
        };
        kept.ok_or_else(|| NnError::QuantisationState {
            layer: prefix.to_owned(),
            reason: format!(
                "its kept columns in {} are not an ascending list of columns with {out_features} values in F16 each",
                values.file
            ),
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
        self.kept = Some(kept);
        Ok(())
    }

    /// The columns kept in f16 beside the codes.
    pub fn kept_columns(&self) -> Option<&KeptColumns> {
        self.kept.as_ref()
    }

    /// The input features whose columns are multiplied in floating point in every row, ascending: those
    /// that are kept, with [`OutlierWeights::Kept`].
    pub fn kept_indices(&self) -> &[u32] {
        self.active_kept().map_or(&[], KeptColumns::columns)
    }

    /// The kept columns, if the layer is configured to use them.
    pub(super) fn active_kept(&self) -> Option<&KeptColumns> {
        (self.kept.as_ref()).filter(|_| self.config().outlier_weights == OutlierWeights::Kept)
    }
}

impl fmt::Debug for KeptColumns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptColumns")
            .field("columns", &self.columns)
            .finish_non_exhaustive()
    }
}
