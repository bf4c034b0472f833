//! Row-wise absmax quantisation of weights, as bitsandbytes does it (`Int8Params._quantize`,
//! `int8_vectorwise_quant`).
//!
//! - A weight is rounded to f16 first. That is part of the format: quantising straight from f32
//!   gives other codes in a few places.
//! - The absmax is an integer maximum over the f16 *bits*: positive floats are ordered like their
//!   bits, and NaN and infinity compare above everything finite.
//! - Codes are rounded half to even, in the vector versions by the CPU's own conversion.
//! - A weight stored `[in, out]` (GPT-2's `Conv1D`) is transposed in f16 tiles of 64 columns, 8 × 8
//!   values in registers at a time, so that no full-size temporary exists.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "aarch64")]
mod neon;

use crate::aligned::LINE;
use crate::isa::Width;
use crate::matrix::expect;
use crate::simd::{for_every_width, prefetch_ahead};
use crate::{Element, Isa, KernelError, MatMut, MatRef};
use half::f16;
use rayon::prelude::*;

/// The f16 bits of infinity: larger or equal magnitudes are not finite.
const INFINITY_BITS: u16 = 0x7c00;
/// Columns of an `[in, out]` weight that are transposed together: a tile of 5,120 rows is 640 kB.
const TILE: usize = 64;
/// Rows that are converted to f16 before they are transposed.
const TILE_ROWS: usize = 32;

/// Quantises the rows of `source` `[out, in]`: `codes = rint(f16(w) · (1 / absmax · 127))`, half to
/// even.
///
/// `absmax[o]` is the absmax of row `o` after rounding to f16. A row of zeros gets the codes 0.
///
/// ```
/// use llm_int8_kernels::{Isa, MatMut, MatRef, quantize_weight};
/// let (mut codes, mut absmax) = ([0i8; 8], [0f32]);
/// let row = [127., 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 63.5f32];
/// quantize_weight(Isa::detect(), MatRef::new(&row, 1, 8)?, MatMut::new(&mut codes, 1, 8)?, &mut absmax)?;
/// assert_eq!(codes, [127, 0, 2, 2, 0, -2, -2, 64]);
/// assert_eq!(absmax, [127.0]);
/// # Ok::<(), llm_int8_kernels::KernelError>(())
/// ```
///
/// # Errors
/// [`KernelError::NonFiniteWeight`] for NaN, infinity or a value that overflows f16;
/// [`KernelError::WrongDimension`].
pub fn quantize_weight<T: Element>(
    isa: Isa,
    source: MatRef<'_, T>,
    codes: MatMut<'_, i8>,
    absmax: &mut [f32],
) -> Result<(), KernelError> {
    let rows = source.rows();
    let cols = source.cols();
    codes.expect(rows, cols, ["rows of codes", "columns of codes"])?;
    expect("length of absmax", rows, absmax.len())?;

    if cols == 0 {
        absmax.fill(0.0);
        return Ok(());
    }

    (codes
        .into_data()
        .par_chunks_mut(cols)
        .zip(absmax)
        .enumerate())
    .try_for_each_init(
        || vec![f16::ZERO; cols],
        |row16, (row, (codes, absmax))| {
            T::to_f16_slice(source.row(row), row16);
            *absmax = quantize_finite_row(isa, row16, codes).map_err(|column| {
                let value = source.row(row)[column].to_f32();
                KernelError::NonFiniteWeight { row, column, value }
            })?;

            Ok(())
        },
    )
}

/// [`quantize_weight`] for a weight stored `[in, out]`; the codes are `[out, in]`.
///
/// ```
/// use llm_int8_kernels::{Isa, MatMut, MatRef, quantize_weight_transposed};
/// let stored = [1.0f32, 4.0, 0.5, -2.0]; // in 2 × out 2
/// let (mut codes, mut absmax) = ([0i8; 4], [0f32; 2]);
/// quantize_weight_transposed(Isa::detect(), MatRef::new(&stored, 2, 2)?, MatMut::new(&mut codes, 2, 2)?, &mut absmax)?;
/// assert_eq!((codes, absmax), ([127, 64, 127, -64], [1.0, 4.0]));
/// # Ok::<(), llm_int8_kernels::KernelError>(())
/// ```
///
/// # Errors
/// Those of [`quantize_weight`]; `row` and `column` in the error refer to `[out, in]`.
pub fn quantize_weight_transposed<T: Element>(
    isa: Isa,
    source: MatRef<'_, T>,
    codes: MatMut<'_, i8>,
    absmax: &mut [f32],
) -> Result<(), KernelError> {
    let inputs = source.rows();
    let outputs = source.cols();
    codes.expect(outputs, inputs, ["rows of codes", "columns of codes"])?;
    expect("length of absmax", outputs, absmax.len())?;

    if inputs == 0 {
        absmax.fill(0.0);
        return Ok(());
    }

    let tiles = codes
        .into_data()
        .par_chunks_mut(TILE * inputs)
        .zip(absmax.par_chunks_mut(TILE));
    tiles.enumerate().try_for_each_init(
        || vec![f16::ZERO; TILE * inputs],
        |transposed, (tile, (codes, absmax))| {
            let first = tile * TILE;
            transpose_tile(isa, source, first, absmax.len(), transposed);
            for (i, (codes, absmax)) in codes.chunks_mut(inputs).zip(absmax).enumerate() {
                let row16 = &transposed[i * inputs..][..inputs];
                *absmax = quantize_finite_row(isa, row16, codes).map_err(|column| {
                    let value = source.row(column)[first + i].to_f32();
                    KernelError::NonFiniteWeight {
                        row: first + i,
                        column,
                        value,
                    }
                })?;
            }

            Ok(())
        },
    )
}

/// Rows from those being converted to those being prefetched: every row lies in another page, so
/// hardware prefetchers do not find the next one.
const AHEAD_ROWS: usize = 2 * TILE_ROWS;

/// Some rows of an `[in, out]` weight, in f16.
type Block = [[f16; TILE]; TILE_ROWS];

/// Transposes columns `first..first + width` of an `[in, out]` weight into f16 rows of `in` values.
fn transpose_tile<T: Element>(
    isa: Isa,
    source: MatRef<'_, T>,
    first: usize,
    width: usize,
    transposed: &mut [f16],
) {
    let inputs = source.rows();
    let mut block: Block = [[f16::ZERO; TILE]; TILE_ROWS];
    for start in (0..inputs).step_by(TILE_ROWS) {
        let rows = TILE_ROWS.min(inputs - start);
        for row in start + AHEAD_ROWS..inputs.min(start + AHEAD_ROWS + TILE_ROWS) {
            let piece = &source.row(row)[first..first + width];
            prefetch_ahead(piece.as_ptr().cast(), 0, size_of_val(piece) + LINE - 1);
        }
        for (r, line) in block.iter_mut().enumerate().take(rows) {
            T::to_f16_slice(
                &source.row(start + r)[first..first + width],
                &mut line[..width],
            );
        }

        match isa.width() {
            #[cfg(target_arch = "x86_64")]
            Width::V256 | Width::V512 if rows == TILE_ROWS && width == TILE => {
                avx2::transpose_block(isa, &block, &mut transposed[start..], inputs);
            }
            _ => {
                for c in 0..width {
                    let out = &mut transposed[c * inputs + start..][..rows];
                    out.iter_mut()
                        .zip(&block)
                        .for_each(|(y, line)| *y = line[c]);
                }
            }
        }
    }
}

/// Writes a row's codes and returns its absmax, or as the error the first column that is not
/// finite.
fn quantize_finite_row(isa: Isa, row16: &[f16], codes: &mut [i8]) -> Result<f32, usize> {
    let largest = largest_bits(isa, row16);
    if largest >= INFINITY_BITS {
        return Err(row16
            .iter()
            .position(|x| !x.is_finite())
            .unwrap_or_default());
    }

    let absmax = f16::from_bits(largest).to_f32();
    quantize_row(isa, row16, absmax, codes);

    Ok(absmax)
}

/// Writes the codes of a row with this absmax; all 0 if that is 0 or not finite.
pub(crate) fn quantize_row(isa: Isa, row16: &[f16], absmax: f32, codes: &mut [i8]) {
    if absmax == 0.0 || !absmax.is_finite() {
        codes.fill(0);
        return;
    }

    let inv_step = inv_step(absmax);

    match isa.width() {
        Width::Scalar => round_codes(row16, inv_step, codes),
        #[cfg(target_arch = "x86_64")]
        Width::V256 | Width::V512 => avx2::round_codes(isa, row16, inv_step, codes),
        #[cfg(target_arch = "aarch64")]
        Width::Neon => neon::round_codes(row16, inv_step, codes),
    }
}

for_every_width! {
    /// The absmax of a row as f16 bits. NaN compares above infinity, and infinity above finite
    /// values.
    pub(crate) fn largest_bits(row16: &[f16]) -> u16 = largest_magnitude
}

fn round_codes(row16: &[f16], inv_step: f32, codes: &mut [i8]) {
    for (code, x) in codes.iter_mut().zip(row16) {
        *code = (Element::to_f32(*x) * inv_step).round_ties_even() as i8;
    }
}

#[inline(always)]
pub(crate) fn largest_magnitude(row16: &[f16]) -> u16 {
    row16
        .iter()
        .fold(0, |largest, x| largest.max(x.to_bits() & 0x7fff))
}

/// `out = code · absmax / 127`: f32 `[out, in]`.
///
/// ```
/// use llm_int8_kernels::{Isa, MatMut, MatRef, dequantize};
/// let mut out = [0f32; 2];
/// dequantize(Isa::detect(), MatRef::new(&[127i8, -127], 1, 2)?, &[2.0], MatMut::new(&mut out, 1, 2)?)?;
/// assert_eq!(out, [2.0, -2.0]);
/// # Ok::<(), llm_int8_kernels::KernelError>(())
/// ```
///
/// # Errors
/// [`KernelError::WrongDimension`].
pub fn dequantize(
    _isa: Isa,
    codes: MatRef<'_, i8>,
    absmax: &[f32],
    out: MatMut<'_, f32>,
) -> Result<(), KernelError> {
    out.expect(
        codes.rows(),
        codes.cols(),
        ["rows of the result", "columns of the result"],
    )?;
    expect("length of absmax", codes.rows(), absmax.len())?;

    if codes.cols() == 0 {
        return Ok(());
    }

    out.into_data()
        .par_chunks_mut(codes.cols())
        .zip(absmax)
        .enumerate()
        .for_each(|(row, (out, absmax))| {
            out.iter_mut()
                .zip(codes.row(row))
                .for_each(|(y, &code)| *y = dequantized(code, *absmax));
        });
    Ok(())
}

/// The factor from values to codes. PyTorch computes `127.0 / absmax` as `absmax.reciprocal() *
/// 127.0`; the extra rounding decides codes at ties, so it is part of the format.
pub(crate) fn inv_step(absmax: f32) -> f32 {
    absmax.recip() * 127.0
}

/// The value of a code, computed in bitsandbytes' order: `code · absmax` is exact if absmax is an
/// f16.
#[inline(always)]
pub(crate) fn dequantized(code: i8, absmax: f32) -> f32 {
    const INV_CODES: f32 = 1.0 / 127.0;
    f32::from(code) * absmax * INV_CODES
}

/// Checks that the codes of a foreign checkpoint are in -127..=127, the range that row-wise
/// quantisation writes.
///
/// ```
/// use llm_int8_kernels::check_codes;
/// assert!(check_codes(&[-127, 0, 127]).is_ok());
/// assert!(check_codes(&[0, -128]).unwrap_err().to_string().starts_with("code 1 is -128"));
/// ```
///
/// # Errors
/// [`KernelError::CodeOutOfRange`] with the index of the first -128.
pub fn check_codes(codes: &[i8]) -> Result<(), KernelError> {
    // `contains` on large pieces vectorises; a parallel search byte by byte does not.
    const PIECE: usize = 1 << 16;
    match codes
        .par_chunks(PIECE)
        .position_first(|piece| piece.contains(&i8::MIN))
    {
        Some(piece) => {
            let before = codes[piece * PIECE..]
                .iter()
                .take_while(|code| **code != i8::MIN)
                .count();
            Err(KernelError::CodeOutOfRange {
                index: piece * PIECE + before,
            })
        }
        None => Ok(()),
    }
}
