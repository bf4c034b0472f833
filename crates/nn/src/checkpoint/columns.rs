//! Original outlier columns out of a mapped checkpoint.

use super::Checkpoint;
use super::view::FLOATS;
use crate::error::Result;
use crate::linear::OriginalWeights;
use bytemuck::Pod;
use half::{bf16, f16};
use llm_int8_kernels::Element;
use safetensors::Dtype;
use std::sync::Arc;

/// Columns of one weight of a checkpoint, read when they are first needed.
#[derive(Debug, Clone)]
pub struct CheckpointColumns {
    checkpoint: Arc<Checkpoint>,
    name: String,
    transposed: bool,
}

impl CheckpointColumns {
    /// Columns of tensor `name`; `transposed` where it is stored `[in, out]`.
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
            Dtype::F32 => Ok(gather::<f32>(
                &view.elements()?,
                view.shape,
                self.transposed,
                columns,
                Element::to_f32,
            )),
            Dtype::F16 => Ok(gather::<f16>(
                &view.elements()?,
                view.shape,
                self.transposed,
                columns,
                Element::to_f32,
            )),
            Dtype::BF16 => Ok(gather::<bf16>(
                &view.elements()?,
                view.shape,
                self.transposed,
                columns,
                Element::to_f32,
            )),
            Dtype::F64 => Ok(gather::<f64>(
                &view.elements()?,
                view.shape,
                self.transposed,
                columns,
                |x| x as f32,
            )),
            _ => Err(view.wrong_dtype(FLOATS)),
        }
    }
}

/// `[columns.len(), out]` of a weight `[out, in]`, or `[in, out]` where transposed.
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
    fn both_layouts_give_the_same_columns() {
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
