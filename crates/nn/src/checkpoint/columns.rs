//! Original outlier columns, read from a mapped checkpoint.

use super::Checkpoint;
use super::view::{FLOATS, TensorView};
use crate::error::Result;
use crate::linear::OriginalWeights;
use bytemuck::Pod;
use half::{bf16, f16};
use llm_int8_kernels::Element;
use safetensors::Dtype;
use std::sync::Arc;

/// Columns of one weight in a checkpoint, read on demand.
#[derive(Debug, Clone)]
pub struct CheckpointColumns {
    checkpoint: Arc<Checkpoint>,
    name: String,
    transposed: bool,
}

impl CheckpointColumns {
    /// Columns of tensor `name`, which is stored as `[out, in]`, or `[in, out]` if `transposed`.
    pub fn new(checkpoint: Arc<Checkpoint>, name: impl Into<String>, transposed: bool) -> Self {
        Self {
            checkpoint,
            name: name.into(),
            transposed,
        }
    }
}

impl OriginalWeights for CheckpointColumns {
    fn columns(&self, columns: &[u32]) -> Result<Vec<f32>> {
        let view = self.checkpoint.tensor(&self.name)?;
        match view.dtype {
            Dtype::F32 => self.read::<f32>(&view, columns, Element::to_f32),
            Dtype::F16 => self.read::<f16>(&view, columns, Element::to_f32),
            Dtype::BF16 => self.read::<bf16>(&view, columns, Element::to_f32),
            Dtype::F64 => self.read::<f64>(&view, columns, |x| x as f32),
            _ => Err(view.wrong_dtype(FLOATS)),
        }
    }
}

impl CheckpointColumns {
    fn read<T: Pod>(
        &self,
        view: &TensorView<'_>,
        columns: &[u32],
        convert: impl Fn(T) -> f32,
    ) -> Result<Vec<f32>> {
        let elements = view.elements()?;
        Ok(gather(
            &elements,
            view.shape,
            self.transposed,
            columns,
            convert,
        ))
    }
}

/// `[columns.len(), out]` from a weight `[out, in]`, or `[in, out]` if `transposed`.
fn gather<T: Pod>(
    values: &[T],
    shape: &[usize],
    transposed: bool,
    columns: &[u32],
    convert: impl Fn(T) -> f32,
) -> Vec<f32> {
    let width = shape.get(1).copied().unwrap_or(0).max(1);
    let column_of = |column: u32| -> Vec<f32> {
        let column = column as usize;
        if transposed {
            values[column * width..][..width]
                .iter()
                .map(|x| convert(*x))
                .collect()
        } else {
            values
                .chunks(width)
                .map(|row| convert(row[column]))
                .collect()
        }
    };

    columns
        .iter()
        .flat_map(|&column| column_of(column))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_storage_orders_give_the_same_columns() {
        let out_in = [1f32, 2., 3., 4., 5., 6.]; // [2, 3]
        let in_out = [1f32, 4., 2., 5., 3., 6.]; // [3, 2]
        assert_eq!(
            gather(&out_in, &[2, 3], false, &[0, 2], |x| x),
            [1., 4., 3., 6.]
        );
        assert_eq!(
            gather(&in_out, &[3, 2], true, &[0, 2], |x| x),
            [1., 4., 3., 6.]
        );
    }
}
