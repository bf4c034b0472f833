//! From the checkpoint onto a device: a weight's bytes travel as they are in the file and are
//! quantised on the device, some rows at a time, so that it needs little memory besides the model.

use super::Stage;
use super::parts::{TableWeight, Weight};
use crate::error::{DecoderError, Result};
use crate::slot::{ModelSlot, Slot};
use half::{bf16, f16};
use llm_int8_cuda::ops::{Float, FloatMatrix, Int8Matrix};
use llm_int8_cuda::{Buffer, View};
use llm_int8_kernels::KernelError;
use llm_int8_nn::NnError;
use llm_int8_nn::checkpoint::{TensorView, float_bytes, float_tensor};
use llm_int8_nn::dtype::FloatDtype;
use llm_int8_nn::linear::{Int8Config, Int8Weight};
use safetensors::Dtype;
use std::sync::Arc;

/// Bytes of unquantised weights that are on the device at once. A transposed weight exceeds it: all
/// of it is needed to quantise one of its outputs.
const CHUNK_BYTES: usize = 32 << 20;

/// Where the weight of a part is written: rows of a device matrix from `first_row` on.
pub(crate) struct Target {
    weight: Weight,
    first_row: usize,
}

impl Stage {
    /// The target of a slot's weight; none if it lies elsewhere, or is a tied head without a weight
    /// of its own.
    pub(crate) fn target(&self, slot: Slot, is_tied: bool) -> Option<Target> {
        let target = |(weight, first_row)| Target { weight, first_row };
        match slot {
            Slot::Block(layer, slot) => {
                let block = self.blocks.get(layer.checked_sub(self.first)?)?;
                block.weight_of(slot).map(target)
            }
            Slot::Model(slot) => {
                if slot == ModelSlot::Head && is_tied {
                    return None;
                }
                let model = self.model.as_ref()?;
                let weight = match model.table(slot) {
                    Ok(TableWeight::Float(table)) => Weight::Float(Arc::clone(table)),
                    // Rows are looked up, not multiplied: the config is never read.
                    Ok(TableWeight::Int8(table)) => {
                        Weight::Int8(Arc::clone(table), Int8Config::default())
                    }
                    Err(_) => return model.parts.weight_of(slot).map(target),
                };
                Some(target((weight, 0)))
            }
        }
    }
}

impl Target {
    /// Writes a float tensor, which an int8 target quantises. A float target stores it as `dtype`.
    /// `transposed`: the file has the weight as `[in_features, out_features]`.
    pub(crate) fn fill(
        &self,
        view: &TensorView<'_>,
        dtype: FloatDtype,
        transposed: bool,
        scratch: &mut Scratch,
    ) -> Result<()> {
        match &self.weight {
            Weight::Float(matrix) => self.fill_float(matrix, view, dtype, transposed),
            Weight::Int8(matrix, _) => match view.dtype {
                Dtype::F32 => self.quantize::<f32>(matrix, view, transposed, scratch),
                Dtype::F16 => self.quantize::<f16>(matrix, view, transposed, scratch),
                Dtype::BF16 => self.quantize::<bf16>(matrix, view, transposed, scratch),
                // Not a float: reading it as one returns the error that says so.
                _ => Ok(float_tensor(view, dtype, transposed).map(drop)?),
            },
        }
    }

    /// Writes codes that the checkpoint stores.
    pub(crate) fn fill_codes(&self, codes: &Int8Weight) -> Result<()> {
        match &self.weight {
            Weight::Int8(matrix, _) => {
                Ok(matrix.write_rows(self.first_row, codes.codes(), codes.absmax())?)
            }
            Weight::Float(_) => Err(DecoderError::Bug {
                what: "an int8 matrix for codes",
            }),
        }
    }

    fn fill_float(
        &self,
        matrix: &FloatMatrix,
        view: &TensorView<'_>,
        dtype: FloatDtype,
        transposed: bool,
    ) -> Result<()> {
        let tensor = float_tensor(view, dtype, transposed)?;
        Ok(matrix.write_rows(self.first_row, &float_bytes(&tensor, false)?)?)
    }

    fn quantize<T: Float>(
        &self,
        matrix: &Int8Matrix,
        view: &TensorView<'_>,
        transposed: bool,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let [rows, cols] = *view.shape else {
            return Err(DecoderError::Bug {
                what: "a weight of two dimensions",
            });
        };
        let elements = view.elements::<T>()?;
        let error = |row: usize| {
            let weight = UnquantizedWeight {
                view,
                elements: &elements,
                cols,
                inputs: if transposed { rows } else { cols },
                transposed,
            };
            DecoderError::from(NnError::Quantise {
                name: view.name.clone(),
                file: view.file.to_owned(),
                source: Box::new(weight.non_finite(row)),
            })
        };

        // A row of the file is then a value of every output, whose absmax needs all rows.
        let chunk_rows = if transposed {
            rows
        } else {
            (CHUNK_BYTES / (cols * size_of::<T>()).max(1)).clamp(1, rows.max(1))
        };
        for (i, chunk) in elements.chunks((chunk_rows * cols).max(1)).enumerate() {
            let (weight, mark) = scratch.upload(matrix, chunk)?;
            let first = if transposed { 0 } else { i * chunk_rows };
            let target = self.first_row + first;

            if transposed {
                matrix.quantize_transposed(weight, target..target + cols, mark)?;
            } else {
                let count = chunk.len() / cols.max(1);
                matrix.quantize_rows(weight, target..target + count, mark)?;
            }
            if let Some(row) = Int8Matrix::check_finite(mark)? {
                return Err(error(first + row));
            }
        }
        Ok(())
    }
}

/// A weight in the file, for reporting a bad value as the CPU reports it.
struct UnquantizedWeight<'a, T> {
    view: &'a TensorView<'a>,
    elements: &'a [T],
    /// Length of a row in the file.
    cols: usize,
    /// Input features.
    inputs: usize,
    transposed: bool,
}

impl<T: Float> UnquantizedWeight<'_, T> {
    /// The error for the first value of output row `row` that is not finite in f16.
    fn non_finite(&self, row: usize) -> KernelError {
        let column = (0..self.inputs)
            .find(|column| !f16::from_f32(self.value(row, *column)).is_finite())
            .unwrap_or(0);
        KernelError::NonFiniteWeight {
            row,
            column,
            value: self.value(row, column),
        }
    }

    fn value(&self, row: usize, column: usize) -> f32 {
        let index = if self.transposed {
            column * self.cols + row
        } else {
            row * self.cols + column
        };
        let bytes = bytemuck::bytes_of(&self.elements[index]);
        match self.view.dtype {
            Dtype::F16 => bytemuck::pod_read_unaligned::<f16>(bytes).to_f32(),
            Dtype::BF16 => bytemuck::pod_read_unaligned::<bf16>(bytes).to_f32(),
            _ => bytemuck::pod_read_unaligned::<f32>(bytes),
        }
    }
}

/// Device memory for unquantised weights, kept from tensor to tensor.
#[derive(Default)]
pub(crate) struct Scratch {
    memory: Option<(Buffer<u8>, Buffer<u32>)>,
}

impl Scratch {
    /// Uploads values to the device of `matrix`. The second result is where kernels mark a row that
    /// has a value which is not finite in f16.
    fn upload<T: Float>(
        &mut self,
        matrix: &Int8Matrix,
        values: &[T],
    ) -> Result<(View<'_, T>, &Buffer<u32>)> {
        let device = matrix.device();
        let bytes = size_of_val(values);

        let fits =
            |(memory, _): &(Buffer<u8>, _)| memory.len() >= bytes && memory.device().is(device);
        if !self.memory.as_ref().is_some_and(fits) {
            // Free the old one first, so that both need not fit at once.
            self.memory = None;
            self.memory = Some((device.allocate(bytes)?, Int8Matrix::mark(device)?));
        }
        let (memory, mark) = self.memory.as_ref().ok_or(DecoderError::Bug {
            what: "memory of a weight on its way",
        })?;

        let view = memory.part(..bytes)?.cast::<T>()?;
        view.write(values)?;
        Ok((view, mark))
    }
}
