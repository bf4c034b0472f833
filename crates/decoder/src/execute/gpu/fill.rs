//! From the checkpoint onto a device: a weight's bytes travel as they are in the file and are
//! quantised there, some rows at a time, so that the device holds little beside the model.

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
use llm_int8_nn::linear::Int8Weight;
use safetensors::Dtype;
use std::sync::Arc;

/// Bytes of a weight that are on the device at once, beside its codes; more only where rows cannot
/// be taken apart.
const AT_ONCE: usize = 32 << 20;

/// Where the weight of a part goes.
pub(crate) struct Target {
    weight: Weight,
    first_row: usize,
}

impl Stage {
    /// Where the weight of a slot goes; none where it has none of its own here.
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
                match model.table(slot) {
                    Ok(TableWeight::Float(table)) => Some((Weight::Float(Arc::clone(table)), 0)),
                    Ok(TableWeight::Int8(table)) => Some((
                        Weight::Int8(
                            Arc::clone(table),
                            llm_int8_nn::linear::Int8Config::default(),
                        ),
                        0,
                    )),
                    Err(_) => model.parts.weight_of(slot),
                }
                .map(target)
            }
        }
    }
}

impl Target {
    /// Fills it with a float tensor, which is quantised where the target is int8.
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
                // Reading it as floats says what is wrong.
                _ => Ok(float_tensor(view, dtype, transposed).map(drop)?),
            },
        }
    }

    /// Fills it with codes that were quantised before.
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
        let outputs = if transposed { cols } else { rows };
        // A column's largest magnitude needs all rows.
        let at_once = if transposed {
            rows
        } else {
            (AT_ONCE / (cols * size_of::<T>()).max(1)).clamp(1, rows.max(1))
        };
        for (i, part) in elements.chunks((at_once * cols).max(1)).enumerate() {
            let (weight, mark) = scratch.upload(matrix, part)?;
            let first = self.first_row + if transposed { 0 } else { i * at_once };
            let count = if transposed {
                outputs
            } else {
                part.len() / cols.max(1)
            };
            if transposed {
                matrix.quantize_transposed(weight, first..first + count, mark)?;
            } else {
                matrix.quantize_rows(weight, first..first + count, mark)?;
            }
            if let Some(row) = Int8Matrix::check_finite(mark)? {
                let row = row + first - self.first_row;
                let source = bad_value(view, &elements, [rows, cols], row, transposed);
                return Err(NnError::Quantise {
                    name: view.name.clone(),
                    file: view.file.to_owned(),
                    source: Box::new(source),
                }
                .into());
            }
        }
        Ok(())
    }
}

/// What the CPU would say of the first value of a weight row that is not finite in f16.
fn bad_value<T: Float>(
    view: &TensorView<'_>,
    elements: &[T],
    [rows, cols]: [usize; 2],
    row: usize,
    transposed: bool,
) -> KernelError {
    let inputs = if transposed { rows } else { cols };
    let value = |column: usize| {
        let place = if transposed {
            column * cols + row
        } else {
            row * cols + column
        };
        let bytes = bytemuck::bytes_of(&elements[place]);
        match view.dtype {
            Dtype::F16 => bytemuck::pod_read_unaligned::<f16>(bytes).to_f32(),
            Dtype::BF16 => bytemuck::pod_read_unaligned::<bf16>(bytes).to_f32(),
            _ => bytemuck::pod_read_unaligned::<f32>(bytes),
        }
    };
    let column = (0..inputs)
        .find(|column| !f16::from_f32(value(*column)).is_finite())
        .unwrap_or(0);
    KernelError::NonFiniteWeight {
        row,
        column,
        value: value(column),
    }
}

/// Memory of a device for weights on their way, kept from tensor to tensor.
#[derive(Default)]
pub(crate) struct Scratch {
    memory: Option<(Buffer<u8>, Buffer<u32>)>,
}

impl Scratch {
    /// The values on the device of `matrix`, and a mark for bad rows.
    fn upload<T: Float>(
        &mut self,
        matrix: &Int8Matrix,
        values: &[T],
    ) -> Result<(View<'_, T>, &Buffer<u32>)> {
        let (device, bytes) = (matrix.device(), size_of_val(values));
        let fits =
            |(memory, _): &(Buffer<u8>, _)| memory.len() >= bytes && memory.device().is(device);
        if !self.memory.as_ref().is_some_and(fits) {
            // The old one goes first.
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
