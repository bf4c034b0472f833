//! Rounding to codes, and transposing tiles, with AVX2 and F16C.

#![expect(
    unsafe_code,
    reason = "vector loads through pointers, and calls into functions compiled for AVX2"
)]

use super::{Block, TILE, TILE_ROWS};
use crate::Isa;
use crate::element::avx2::{LANES, Load};
use crate::isa::Width;
use half::f16;
use std::arch::x86_64::*;

/// `codes = rint(row16 · inv_step)`, half to even. Every value's code must be in -127..=127.
pub(super) fn round_codes(isa: Isa, row16: &[f16], inv_step: f32, codes: &mut [i8]) {
    assert!(isa.width() != Width::Scalar);

    // SAFETY: an `Isa` with vectors exists only on CPUs with AVX2 and F16C.
    unsafe { round_codes_inner(row16, inv_step, codes) }
}

#[target_feature(enable = "avx2,f16c")]
fn round_codes_inner(row16: &[f16], inv_step: f32, codes: &mut [i8]) {
    let (whole16, rest16) = row16.as_chunks::<32>();
    let (whole, rest) = codes.as_chunks_mut::<32>();
    let factor = _mm256_set1_ps(inv_step);

    for (x, code) in whole16.iter().zip(whole) {
        let mut parts = [_mm256_setzero_si256(); 4];
        for (i, part) in parts.iter_mut().enumerate() {
            // SAFETY: `x` holds 32 values, and i < 4.
            let values = unsafe { f16::load8(x.as_ptr().add(i * LANES)) };

            // Rounds half to even, the default rounding mode.
            *part = _mm256_cvtps_epi32(_mm256_mul_ps(values, factor));
        }

        let [a, b, c, d] = parts;
        // `packs` works within 128-bit lanes; the permutation restores the order of the eight
        // groups of four.
        let mixed = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let bytes = _mm256_permutevar8x32_epi32(mixed, order);

        // SAFETY: `code` holds 32 bytes.
        unsafe { _mm256_storeu_si256(code.as_mut_ptr().cast(), bytes) };
    }

    super::round_codes(rest16, inv_step, rest);
}

/// `out[c · stride + r] = block[r][c]`.
pub(super) fn transpose_block(isa: Isa, block: &Block, out: &mut [f16], stride: usize) {
    assert!(isa.width() != Width::Scalar && out.len() >= (TILE - 1) * stride + TILE_ROWS);

    // SAFETY: an `Isa` with vectors exists only on CPUs with AVX2; the length of `out` was checked.
    unsafe { transpose_block_inner(block, out, stride) }
}

/// # Safety
/// The CPU has AVX2; `out` has at least (TILE - 1) · stride + TILE_ROWS values.
#[target_feature(enable = "avx2")]
unsafe fn transpose_block_inner(block: &Block, out: &mut [f16], stride: usize) {
    for c in (0..TILE).step_by(LANES) {
        for r in (0..TILE_ROWS).step_by(LANES) {
            let mut rows = [_mm_setzero_si128(); LANES];
            for (i, row) in rows.iter_mut().enumerate() {
                // SAFETY: r + i < TILE_ROWS and c + 8 ≤ TILE.
                *row = unsafe { _mm_loadu_si128(block[r + i].as_ptr().add(c).cast()) };
            }

            for (i, column) in transpose_8x8(rows).into_iter().enumerate() {
                // SAFETY: (c + i) · stride + r + 8 ≤ (TILE - 1) · stride + TILE_ROWS ≤ length of
                // `out`.
                unsafe {
                    _mm_storeu_si128(out.as_mut_ptr().add((c + i) * stride + r).cast(), column)
                };
            }
        }
    }
}

/// Transposes 8 × 8 values of 16 bits: pairs, then fours, then eights.
#[target_feature(enable = "avx2")]
fn transpose_8x8([a, b, c, d, e, f, g, h]: [__m128i; LANES]) -> [__m128i; LANES] {
    let ab = [_mm_unpacklo_epi16(a, b), _mm_unpackhi_epi16(a, b)];
    let cd = [_mm_unpacklo_epi16(c, d), _mm_unpackhi_epi16(c, d)];
    let ef = [_mm_unpacklo_epi16(e, f), _mm_unpackhi_epi16(e, f)];
    let gh = [_mm_unpacklo_epi16(g, h), _mm_unpackhi_epi16(g, h)];

    let mut out = [_mm_setzero_si128(); LANES];
    for i in 0..2 {
        let abcd = [
            _mm_unpacklo_epi32(ab[i], cd[i]),
            _mm_unpackhi_epi32(ab[i], cd[i]),
        ];
        let efgh = [
            _mm_unpacklo_epi32(ef[i], gh[i]),
            _mm_unpackhi_epi32(ef[i], gh[i]),
        ];

        for j in 0..2 {
            out[4 * i + 2 * j] = _mm_unpacklo_epi64(abcd[j], efgh[j]);
            out[4 * i + 2 * j + 1] = _mm_unpackhi_epi64(abcd[j], efgh[j]);
        }
    }

    out
}
