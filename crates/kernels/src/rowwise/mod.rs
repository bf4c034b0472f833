//! Row-wise absmax quantisation of weights, as bitsandbytes does it (`Int8Params._quantize`,
//! `int8_vectorwise_quant`).
//!
//! Ladder: a weight goes through f16 (part of the format: quantising straight from f32 gives other
//! codes in a few places), the largest magnitude is found on the f16 *bits* (for positive floats
//! the order of the bits is the order of the values, so an integer maximum does it, and NaN and
//! infinity come out on top), and codes are rounded half to even, by the CPU's own conversion in
//! the AVX2 version. A stored `[in, out]` weight (GPT-2's `Conv1D`) is turned in tiles of 64
//! columns as f16, 8 × 8 values in registers at a time, so that no full-size temporary exists.

#[cfg(target_arch = "x86_64")]
mod avx2;

use crate::isa::Width;
use crate::matrix::expect;
use crate::simd::for_every_width;
use crate::{Element, Isa, KernelError, MatMut, MatRef};
use half::f16;
use rayon::prelude::*;

/// f16 bits of infinity: anything from here on is not finite.
const INFINITY_BITS: u16 = 0x7c00;
/// Columns of a stored `[in, out]` weight that are turned together: a tile of 5,120 rows is 640 kB.
const TILE: usize = 64;
/// Rows that are converted before they are turned.
const TILE_ROWS: usize = 32;

/// Quantises the rows of `source` `[out, in]`: `codes = rint(f16(w) · (1 / absmax · 127))`, half to
/// even.
///
/// `absmax[o]` is the largest magnitude of row `o` after rounding to f16; a row of zeros gets codes
/// 0.
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
/// [`KernelError::NonFiniteWeight`] for NaN, infinity or what overflows f16;
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

/// Quantises a weight stored `[in, out]` into rows `[out, in]`; otherwise [`quantize_weight`].
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
/// As [`quantize_weight`]; `row` and `column` of the error are those of `[out, in]`.
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
        |turned, (tile, (codes, absmax))| {
            let first = tile * TILE;
            turn_tile(isa, source, first, absmax.len(), turned);
            for (i, (codes, absmax)) in codes.chunks_mut(inputs).zip(absmax).enumerate() {
                let row16 = &turned[i * inputs..][..inputs];
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

/// Some f16 rows of a stored weight.
type Block = [[f16; TILE]; TILE_ROWS];

/// Columns `first..first + width` of `[in, out]`, as f16 rows of `in` values.
fn turn_tile<T: Element>(
    isa: Isa,
    source: MatRef<'_, T>,
    first: usize,
    width: usize,
    turned: &mut [f16],
) {
    let inputs = source.rows();
    let mut block: Block = [[f16::ZERO; TILE]; TILE_ROWS];
    for start in (0..inputs).step_by(TILE_ROWS) {
        let rows = TILE_ROWS.min(inputs - start);
        for (r, line) in block.iter_mut().enumerate().take(rows) {
            T::to_f16_slice(
                &source.row(start + r)[first..first + width],
                &mut line[..width],
            );
        }

        match isa.width() {
            #[cfg(target_arch = "x86_64")]
            Width::V256 | Width::V512 if rows == TILE_ROWS && width == TILE => {
                avx2::turn_block(isa, &block, &mut turned[start..], inputs);
            }
            _ => {
                for c in 0..width {
                    let out = &mut turned[c * inputs + start..][..rows];
                    out.iter_mut()
                        .zip(&block)
                        .for_each(|(y, line)| *y = line[c]);
                }
            }
        }
    }
}

/// Codes and absmax of a row, or the first column that is not finite.
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

/// Codes of a row whose absmax is known; all 0 where it is 0 or not finite.
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
    }
}

for_every_width! {
    /// The largest magnitude of a row, as f16 bits; NaN above infinity above everything finite.
    pub(crate) fn largest_bits(row16: &[f16]) -> u16 = largest_magnitude
}

fn round_codes(row16: &[f16], inv_step: f32, codes: &mut [i8]) {
    for (code, x) in codes.iter_mut().zip(row16) {
        *code = (x.to_f32() * inv_step).round_ties_even() as i8;
    }
}

#[inline(always)]
fn largest_magnitude(row16: &[f16]) -> u16 {
    row16
        .iter()
        .fold(0, |largest, x| largest.max(x.to_bits() & 0x7fff))
}

/// `code · absmax / 127`: f32 `[out, in]`.
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

/// What a value is multiplied with to become a code. PyTorch computes `127.0 / absmax` as
/// `absmax.reciprocal() * 127.0`; the extra rounding decides codes at ties, so it is part of the
/// format.
pub(crate) fn inv_step(absmax: f32) -> f32 {
    absmax.recip() * 127.0
}

/// What a code stands for, in bitsandbytes' order: `code · absmax` is exact where absmax is an f16.
#[inline(always)]
pub(crate) fn dequantized(code: i8, absmax: f32) -> f32 {
    const INV_CODES: f32 = 1.0 / 127.0;
    f32::from(code) * absmax * INV_CODES
}

/// Checks that codes of a foreign checkpoint are in -127..=127, the range row-wise quantisation
/// writes.
///
/// ```
/// use llm_int8_kernels::check_codes;
/// assert!(check_codes(&[-127, 0, 127]).is_ok());
/// assert!(check_codes(&[0, -128]).unwrap_err().to_string().starts_with("code 1 is -128"));
/// ```
///
/// # Errors
/// [`KernelError::CodeOutOfRange`] with the place of the first -128.
pub fn check_codes(codes: &[i8]) -> Result<(), KernelError> {
    // Large pieces: `contains` is vectorised, a search shared between threads byte by byte is not.
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
