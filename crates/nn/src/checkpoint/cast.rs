//! Converts a stored tensor to what a layer holds: a float tensor of the requested dtype, or an
//! int8 weight.

use super::TensorView;
use super::view::FLOATS;
use crate::dtype::FloatDtype;
use crate::error::{NnError, Result};
use crate::linear::{CodeMemory, Int8Weight};
use bytemuck::Pod;
use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use llm_int8_kernels::{AlignedVec, Element, Isa, MatRef};
use rayon::prelude::*;
use safetensors::Dtype;

/// Elements converted by one task: enough to be worth a task, few enough to stay in cache.
const CHUNK: usize = 1 << 15;

/// Converts a tensor to `dtype`. With `transposed`, `[in, out]` becomes `[out, in]` (GPT-2's
/// `Conv1D`).
///
/// # Errors
/// [`NnError::WrongDtype`] if it is not stored as a float; [`NnError::Input`] if a finite value
/// overflows `dtype`, or an F64 value overflows f32.
pub fn float_tensor(view: &TensorView<'_>, dtype: FloatDtype, transposed: bool) -> Result<Tensor> {
    match view.dtype {
        Dtype::F32 => from_source::<f32>(view, dtype, transposed),
        Dtype::F16 => from_source::<f16>(view, dtype, transposed),
        Dtype::BF16 => from_source::<bf16>(view, dtype, transposed),
        Dtype::F64 => from_source::<f32>(&narrowed(view)?, dtype, transposed),
        _ => Err(view.wrong_dtype(FLOATS)),
    }
}

/// Rounds a tensor to the dtype that the model is loaded in, as transformers does before
/// quantising. Only bf16 needs this step: quantising itself rounds to f16. F64 becomes F32 here.
///
/// # Errors
/// [`NnError::Input`] if an F64 value overflows f32.
pub fn rounded(view: TensorView<'_>, dtype: FloatDtype) -> Result<TensorView<'_>> {
    let view = if view.dtype == Dtype::F64 {
        narrowed(&view)?
    } else {
        view
    };

    let data = match (view.dtype, dtype) {
        (Dtype::F32, FloatDtype::BF16) => {
            to_bytes(&view.elements::<f32>()?, |x| bf16::from_f32(*x))
        }
        (Dtype::F16, FloatDtype::BF16) => {
            to_bytes(&view.elements::<f16>()?, |x| bf16::from_f32(x.to_f32()))
        }
        _ => return Ok(view),
    };

    Ok(TensorView {
        dtype: Dtype::BF16,
        data: data.into(),
        ..view
    })
}

/// F64 converted to F32. torch too goes through F32 on the way to f16 and bf16.
fn narrowed<'a>(view: &TensorView<'a>) -> Result<TensorView<'a>> {
    let source = view.elements::<f64>()?;
    if source
        .par_iter()
        .any(|x| x.is_finite() && !(*x as f32).is_finite())
    {
        return Err(NnError::Input {
            layer: format!("tensor `{}` in {}", view.name, view.file),
            reason:
                "it holds values beyond the range of float32 (3.4e38), in which float64 weights are held here"
                    .into(),
        });
    }
    let data = to_bytes(&source, |x| *x as f32).into();
    Ok(TensorView {
        name: view.name.clone(),
        file: view.file,
        dtype: Dtype::F32,
        shape: view.shape,
        data,
    })
}

/// Converts elements in parallel, to bytes.
fn to_bytes<S: Sync, T: Pod + Send + Sync>(
    source: &[S],
    convert: impl Fn(&S) -> T + Sync,
) -> Vec<u8> {
    let mut bytes = vec![0; source.len() * size_of::<T>()];
    let pairs = bytes
        .par_chunks_mut(CHUNK * size_of::<T>())
        .zip(source.par_chunks(CHUNK));
    pairs.for_each(|(out, source)| {
        let out = out.chunks_exact_mut(size_of::<T>());
        out.zip(source)
            .for_each(|(y, x)| y.copy_from_slice(bytemuck::bytes_of(&convert(x))));
    });

    bytes
}

fn from_source<S: Element + Pod>(
    view: &TensorView<'_>,
    dtype: FloatDtype,
    transposed: bool,
) -> Result<Tensor> {
    let source = view.elements::<S>()?;
    match dtype {
        FloatDtype::F16 => to_target::<S, f16>(view, &source, transposed),
        FloatDtype::BF16 => to_target::<S, bf16>(view, &source, transposed),
        FloatDtype::F32 => to_target::<S, f32>(view, &source, transposed),
    }
}

fn to_target<S: Element, T: Element + WithDType + Pod>(
    view: &TensorView<'_>,
    source: &[S],
    transposed: bool,
) -> Result<Tensor> {
    // Vector loads that cross cache lines cost a tenth of the bandwidth.
    let mut values = AlignedVec::<T>::zeroed(source.len());
    let out = &mut values[..];
    let mut shape = view.shape.to_vec();
    let overflowed = if transposed && shape.len() == 2 {
        let convert = |x: S| T::of(x.to_f32());
        transpose_into(source, shape[0], shape[1], out, &convert);
        shape.swap(0, 1);
        // A second pass is affordable: few weights are stored transposed.
        source.par_iter().any(|x| overflows(*x, convert(*x)))
    } else {
        out.par_chunks_mut(CHUNK)
            .zip(source.par_chunks(CHUNK))
            .map(|(out, source)| convert_slice(source, out))
            .reduce(|| false, |a, b| a | b)
    };

    if overflowed {
        let (range, wider) = match T::DTYPE {
            DType::F16 => ("float16 (65504)", "bfloat16 or float32"),
            _ => ("bfloat16 (3.39e38)", "float32"),
        };
        return Err(NnError::Input {
            layer: format!("tensor `{}` in {}", view.name, view.file),
            reason: format!(
                "it holds values beyond the range of {range}; load it in {wider} (the option `dtype`)"
            ),
        });
    }

    let (memory, offset) = values.into_memory();
    let length = memory.len();
    let tensor = Tensor::from_vec(memory, length, &Device::Cpu)?;

    Ok(tensor.narrow(0, offset, source.len())?.reshape(shape)?)
}

/// Converts values, by vector instructions where `T` has them. Returns whether a finite one
/// overflowed.
fn convert_slice<S: Element, T: Element>(source: &[S], out: &mut [T]) -> bool {
    /// Values converted at a time: they stay in L1.
    const PIECE: usize = 1024;
    let mut floats = [0f32; PIECE];
    let mut overflowed = false;

    for (source, out) in source.chunks(PIECE).zip(out.chunks_mut(PIECE)) {
        let floats = &mut floats[..source.len()];
        S::to_f32_slice(source, floats);
        T::of_slice(floats, out);

        T::to_f32_slice(out, floats);
        // Not `all`, which ends early and keeps the compiler from vectorising.
        let is_finite = floats.iter().fold(true, |all, y| all & y.is_finite());
        overflowed |= !is_finite && source.iter().zip(out).any(|(x, y)| overflows(*x, *y));
    }

    overflowed
}

/// Whether `x` is finite and `y`, which it became, is not.
fn overflows<S: Element, T: Element>(x: S, y: T) -> bool {
    x.to_f32().is_finite() && !y.to_f32().is_finite()
}

/// `out[c][r] = convert(source[r][c])` for a source `[rows, columns]`. Each task writes a band of
/// output rows.
fn transpose_into<S: Element, T: Send>(
    source: &[S],
    rows: usize,
    columns: usize,
    out: &mut [T],
    convert: &(impl Fn(S) -> T + Sync),
) {
    /// Output rows in a band.
    const BAND: usize = 32;
    if rows == 0 || columns == 0 {
        return;
    }

    out.par_chunks_mut(BAND * rows)
        .enumerate()
        .for_each(|(band, out)| {
            let first = band * BAND;
            let width = out.len() / rows;
            for r in 0..rows {
                let piece = &source[r * columns + first..][..width];
                for (c, x) in piece.iter().enumerate() {
                    out[c * rows + r] = convert(*x);
                }
            }
        });
}

/// Quantises a tensor to an int8 weight `[out, in]` by bitsandbytes' rule. Its codes go into
/// `memory`. With `transposed`, the tensor is stored as `[in, out]`.
///
/// # Errors
/// [`NnError::WrongDtype`] if it is not stored as F16, BF16 or F32 (F64 must be [`rounded`] first);
/// [`NnError::WrongShape`] if it is not a matrix; [`NnError::Quantise`] for a value that is not
/// finite in f16.
pub fn int8_weight(
    view: &TensorView<'_>,
    transposed: bool,
    isa: Isa,
    memory: &mut CodeMemory,
) -> Result<Int8Weight> {
    match view.dtype {
        Dtype::F32 => quantize::<f32>(view, transposed, isa, memory),
        Dtype::F16 => quantize::<f16>(view, transposed, isa, memory),
        Dtype::BF16 => quantize::<bf16>(view, transposed, isa, memory),
        _ => Err(view.wrong_dtype(FLOATS)),
    }
}

fn quantize<S: Element + Pod>(
    view: &TensorView<'_>,
    transposed: bool,
    isa: Isa,
    memory: &mut CodeMemory,
) -> Result<Int8Weight> {
    let elements = view.elements::<S>()?;
    let [rows, columns] = *view.shape else {
        return Err(NnError::WrongShape {
            name: view.name.clone(),
            file: view.file.to_owned(),
            found: view.shape.to_vec(),
            expected: vec![0, 0],
        });
    };

    let source = MatRef::new(&elements, rows, columns)?;
    Int8Weight::quantize_in(memory, isa, source, transposed).map_err(|error| match error {
        NnError::Kernel(source) => NnError::Quantise {
            name: view.name.clone(),
            file: view.file.to_owned(),
            source: Box::new(source),
        },
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view<'a>(values: &'a [f32], shape: &'a [usize]) -> TensorView<'a> {
        let data = bytemuck::cast_slice(values).into();
        TensorView {
            name: "w".into(),
            file: "memory",
            dtype: Dtype::F32,
            shape,
            data,
        }
    }

    #[test]
    fn transposing_swaps_rows_and_columns_past_one_band() {
        let rows = 3;
        let columns = 70;
        let values: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
        let tensor = float_tensor(&view(&values, &[rows, columns]), FloatDtype::F32, true).unwrap();
        assert_eq!(tensor.dims(), [columns, rows]);

        let out = tensor.to_vec2::<f32>().unwrap();
        for r in 0..rows {
            for c in 0..columns {
                assert_eq!(out[c][r], values[r * columns + c]);
            }
        }
    }

    #[test]
    fn a_value_beyond_f16_is_an_error_and_not_infinity() {
        let values = [1.0f32, 70_000.0];
        for transposed in [false, true] {
            let error = float_tensor(&view(&values, &[1, 2]), FloatDtype::F16, transposed)
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("tensor `w`") && error.contains("bfloat16"),
                "{error}"
            );
            assert!(float_tensor(&view(&values, &[1, 2]), FloatDtype::BF16, transposed).is_ok());
        }

        let infinite = [f32::INFINITY, f32::NAN];
        assert!(
            float_tensor(&view(&infinite, &[2]), FloatDtype::F16, false).is_ok(),
            "infinities and NaNs of the file itself are kept"
        );
    }

    #[test]
    fn an_overflow_is_found_in_every_piece_and_beside_infinities_of_the_file() {
        let length = 2 * CHUNK + 1500;
        let mut values: Vec<f32> = (0..length).map(|i| i as f32 * 0.25 - 9000.0).collect();
        values[1000] = f32::INFINITY;
        values[length - 2] = f32::NAN;
        let load = |values: &[f32]| float_tensor(&view(values, &[length]), FloatDtype::F16, false);

        let tensor = load(&values).unwrap();
        for (x, y) in values.iter().zip(tensor.to_vec1::<f16>().unwrap()) {
            let expected = f16::from_f32(*x);
            assert!(y == expected || y.is_nan() && expected.is_nan());
        }

        for place in [0, 1001, 1023, 1024, CHUNK, length - 1] {
            let kept = std::mem::replace(&mut values[place], -70_000.0);
            assert!(load(&values).is_err(), "{place}");
            values[place] = kept;
        }
    }

    #[test]
    fn a_value_beyond_bf16_is_told_from_one_beyond_f16() {
        let values = [1.0, f32::MAX];
        let error = float_tensor(&view(&values, &[2]), FloatDtype::BF16, false).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("bfloat16 (3.39e38); load it in float32"),
            "{error}"
        );
    }

    #[test]
    fn halves_become_each_other_through_exact_floats() {
        let bits: Vec<u16> = (0..=u16::MAX).collect();
        let view = |dtype| TensorView {
            name: "w".into(),
            file: "memory",
            dtype,
            shape: &[1 << 16],
            data: bytemuck::cast_slice(&bits).into(),
        };

        let tensor = float_tensor(&view(Dtype::F16), FloatDtype::BF16, false).unwrap();
        for (bits, y) in bits.iter().zip(tensor.to_vec1::<bf16>().unwrap()) {
            let expected = bf16::from_f32(f16::from_bits(*bits).to_f32());
            assert!(y == expected || y.is_nan() && expected.is_nan());
        }

        let error = float_tensor(&view(Dtype::BF16), FloatDtype::F16, false).unwrap_err();
        assert!(error.to_string().contains("float16 (65504)"));
    }

    #[test]
    fn unaligned_bytes_are_read_correctly() {
        let mut bytes = vec![0u8];
        bytes.extend([1.5f32, -2.0].iter().flat_map(|x| x.to_le_bytes()));
        let view = TensorView {
            name: "w".into(),
            file: "memory",
            dtype: Dtype::F32,
            shape: &[2],
            data: (&bytes[1..]).into(),
        };

        let tensor = float_tensor(&view, FloatDtype::F32, false).unwrap();
        assert_eq!(tensor.to_vec1::<f32>().unwrap(), [1.5, -2.0]);
    }
}
