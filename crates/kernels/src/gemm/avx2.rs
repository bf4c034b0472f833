//! The dot products with AVX2: 16 codes a step, widened to i16, multiplied and added in pairs
//! (`vpmaddwd`), which is exact: |sum of two products| ≤ 2·128² < 2³¹.
//!
//! `vpmaddubsw` on |a| and w·sign(a) would need no widening, but it is wrong for a code of -128 and
//! not faster: it takes a sign and a second multiplication a step, and multiplications are the limit.

#![expect(unsafe_code, reason = "vector loads through pointers, and calls into functions compiled for AVX2")]

use crate::Isa;
use crate::isa::Kind;
use std::arch::x86_64::*;

/// Codes of one step.
const LANES: usize = 16;
/// How far ahead of its use a weight is fetched while there is one row of activations, in bytes.
const AHEAD: usize = 4096;

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
        // A loop: the closure of `array::from_fn` would be compiled without AVX2 and called.
        let mut x = [_mm256_setzero_si256(); M];
        for m in 0..M {
            // SAFETY: k + 16 ≤ whole ≤ length of every slice, and unaligned loads are used.
            x[m] = unsafe { _mm256_loadu_si256(a[m].as_ptr().add(k).cast()) };
        }
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
            out[n][m] = horizontal_sum(sums[n][m]);
            for k in whole..length {
                out[n][m] += i32::from(a[m][k]) * i32::from(w[n][k]);
            }
        }
    }
    out
}

/// One row of activations against the rows of `w`, which lie one after the other.
pub(super) fn dot_rows(isa: Isa, a: &[i16], w: &[i8], sums: &mut [i32]) {
    assert!(isa.kind() == Kind::Avx2 && w.len() == a.len() * sums.len());
    // SAFETY: an `Isa` of kind Avx2 is only made where the CPU has AVX2; `w` has a row for each sum.
    unsafe { inner_rows(a, w, sums) }
}

/// # Safety
/// `w` has `sums.len()` rows of `a.len()` codes.
#[target_feature(enable = "avx2")]
unsafe fn inner_rows(a: &[i16], w: &[i8], sums: &mut [i32]) {
    const STEP: usize = 4 * LANES;
    let length = a.len();
    let whole = length / STEP * STEP;
    for (n, sum) in sums.iter_mut().enumerate() {
        let row = &w[n * length..][..length];
        let mut parts = [_mm256_setzero_si256(); 4];
        let mut k = 0;
        while k < whole {
            // A hint that may point behind the last weight: it reads nothing there.
            _mm_prefetch::<_MM_HINT_T0>(row.as_ptr().wrapping_add(k + AHEAD));
            for (i, part) in parts.iter_mut().enumerate() {
                // SAFETY: k + 64 ≤ whole ≤ length of both slices, and unaligned loads are used.
                let (x, y) = unsafe {
                    let at = k + i * LANES;
                    (
                        _mm256_loadu_si256(a.as_ptr().add(at).cast()),
                        _mm256_cvtepi8_epi16(_mm_loadu_si128(row.as_ptr().add(at).cast())),
                    )
                };
                *part = _mm256_add_epi32(*part, _mm256_madd_epi16(x, y));
            }
            k += STEP;
        }
        let [p, q, r, s] = parts;
        let tail: i32 =
            a[whole..].iter().zip(&row[whole..]).map(|(&x, &y)| i32::from(x) * i32::from(y)).sum();
        *sum = tail + horizontal_sum(_mm256_add_epi32(_mm256_add_epi32(p, q), _mm256_add_epi32(r, s)));
    }
}

#[target_feature(enable = "avx2")]
fn horizontal_sum(x: __m256i) -> i32 {
    let four = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
    let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
    let one = _mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two));
    _mm_cvtsi128_si32(one)
}

/// [`super::thin::add_scaled`] compiled for AVX2: the same operations in the same order.
pub(super) fn add_scaled(isa: Isa, places: &[u32], values: &[f32], weights: &[f32], y: &mut [f32]) {
    #[target_feature(enable = "avx2")]
    fn inner(places: &[u32], values: &[f32], weights: &[f32], y: &mut [f32]) {
        super::thin::add_scaled(places, values, weights, y);
    }
    assert!(isa.kind() == Kind::Avx2);
    // SAFETY: an `Isa` of kind Avx2 is only made where the CPU has AVX2.
    unsafe { inner(places, values, weights, y) }
}
