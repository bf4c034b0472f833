//! The dot products with AVX2: 16 codes a step, widened to i16, multiplied and added in pairs
//! (`vpmaddwd`), which is exact: |sum of two products| ≤ 2·128² < 2³¹.

#![expect(unsafe_code, reason = "vector loads through pointers, and calls into functions compiled for AVX2")]

use crate::Isa;
use crate::isa::Kind;
use std::arch::x86_64::*;

/// Codes of one step.
const LANES: usize = 16;

/// `sums[n][m] = Σ a[m][k] · w[n][k]`, exact. All slices must have the length of the first.
pub(super) fn dot<const M: usize, const N: usize>(isa: Isa, a: [&[i16]; M], w: [&[i8]; N]) -> [[i32; M]; N] {
    let length = a.first().map_or(0, |a| a.len());
    assert!(
        isa.kind() == Kind::Avx2
            && a.iter().all(|a| a.len() == length)
            && w.iter().all(|w| w.len() == length)
    );
    // SAFETY: an `Isa` of kind Avx2 is only made where the CPU has AVX2; the lengths are equal.
    unsafe { inner(a, w, length) }
}

/// # Safety
/// Every slice has `length` elements.
#[target_feature(enable = "avx2")]
unsafe fn inner<const M: usize, const N: usize>(
    a: [&[i16]; M],
    w: [&[i8]; N],
    length: usize,
) -> [[i32; M]; N] {
    let mut sums = [[_mm256_setzero_si256(); M]; N];
    let whole = length / LANES * LANES;
    let mut k = 0;
    while k < whole {
        // SAFETY: k + 16 ≤ whole ≤ length of every slice, and unaligned loads are used.
        let x: [__m256i; M] =
            std::array::from_fn(|m| unsafe { _mm256_loadu_si256(a[m].as_ptr().add(k).cast()) });
        for n in 0..N {
            // SAFETY: as above; 16 bytes are read.
            let y = unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(w[n].as_ptr().add(k).cast())) };
            for m in 0..M {
                sums[n][m] = _mm256_add_epi32(sums[n][m], _mm256_madd_epi16(x[m], y));
            }
        }
        k += LANES;
    }
    let mut out = [[0i32; M]; N];
    for n in 0..N {
        for m in 0..M {
            let tail: i32 = (whole..length).map(|k| i32::from(a[m][k]) * i32::from(w[n][k])).sum();
            out[n][m] = horizontal_sum(sums[n][m]) + tail;
        }
    }
    out
}

#[target_feature(enable = "avx2")]
fn horizontal_sum(x: __m256i) -> i32 {
    let four = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
    let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
    let one = _mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two));
    _mm_cvtsi128_si32(one)
}
