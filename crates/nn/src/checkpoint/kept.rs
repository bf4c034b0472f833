//! Kept columns of int8 layers in safetensors files, beside 8-bit checkpoints.

use super::{Checkpoint, NewTensor};
use crate::error::{NnError, Result};
use crate::linear::KeptColumns;
use half::f16;
use safetensors::Dtype;

/// The tensors of the kept columns of the layer `prefix`: `<prefix>.columns`, U32 `[n]`, and
/// `<prefix>.values`, F16 `[n, out_features]`.
pub fn kept_state<'a>(kept: &'a KeptColumns, prefix: &str) -> [NewTensor<'a>; 2] {
    let count = kept.columns().len();
    let columns = NewTensor::new(format!("{prefix}.columns"), Dtype::U32, &[count], || {
        let bytes = kept
            .columns()
            .iter()
            .flat_map(|column| column.to_le_bytes());
        Ok(bytes.collect::<Vec<_>>().into())
    });
    let shape = [count, kept.out_features()];
    let values = NewTensor::new(format!("{prefix}.values"), Dtype::F16, &shape, || {
        let bytes = kept.values().iter().flat_map(|value| value.to_le_bytes());
        Ok(bytes.collect::<Vec<_>>().into())
    });
    [columns, values]
}

/// Reads what [`kept_state`] gave, for a layer of `out_features`.
///
/// # Errors
/// The errors of [`Checkpoint::tensor`]; [`NnError::QuantisationState`] for columns that are not
/// ascending, and for other dtypes or shapes.
pub fn read_kept_state(
    checkpoint: &Checkpoint,
    prefix: &str,
    out_features: usize,
) -> Result<KeptColumns> {
    let columns = checkpoint.tensor(&format!("{prefix}.columns"))?;
    let values = checkpoint.tensor(&format!("{prefix}.values"))?;
    let kept = match (columns.dtype, values.dtype, values.shape) {
        (Dtype::U32, Dtype::F16, [_, outputs]) if *outputs == out_features => KeptColumns::new(
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
