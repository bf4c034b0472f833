//! The dot products with AVX2 and fused multiply-adds.

#![expect(unsafe_code, reason = "vector loads through pointers, and calls into functions compiled for AVX2")]

use crate::Isa;
use crate::isa::Kind;
use std::arch::x86_64::*;

const LANES: usize = 8;

/// `sums[n][m] = Σ a[m][k] · w[n][k]`. All slices must have the length of the first.
pub(super) fn dot<const M: usize, const N: usize>(isa: Isa, a: [&[f32]; M], w: [&[f32]; N]) -> [[f32; M]; N] {
    let length = a.first().map_or(0, |a| a.len());
    assert!(
        isa.kind() == Kind::Avx2
            && a.iter().all(|a| a.len() == length)
            && w.iter().all(|w| w.len() == length)
    );
    // SAFETY: an `Isa` of kind Avx2 is only made where the CPU has AVX2 and FMA; the lengths are equal.
    unsafe { inner(a, w, length) }
}

/// # Safety
/// Every slice has `length` elements.
#[target_feature(enable = "avx2,fma")]
unsafe fn inner<const M: usize, const N: usize>(
    a: [&[f32]; M],
    w: [&[f32]; N],
    length: usize,
) -> [[f32; M]; N] {
    let mut sums = [[_mm256_setzero_ps(); M]; N];
    let whole = length / LANES * LANES;
    let mut k = 0;
    while k < whole {
        // SAFETY: k + 8 ≤ whole ≤ length of every slice, and unaligned loads are used.
        let x: [__m256; M] = std::array::from_fn(|m| unsafe { _mm256_loadu_ps(a[m].as_ptr().add(k)) });
        for n in 0..N {
            // SAFETY: as above.
            let y = unsafe { _mm256_loadu_ps(w[n].as_ptr().add(k)) };
            for m in 0..M {
                sums[n][m] = _mm256_fmadd_ps(x[m], y, sums[n][m]);
            }
        }
        k += LANES;
    }
    let mut out = [[0f32; M]; N];
    for n in 0..N {
        for m in 0..M {
            let tail: f32 = (whole..length).map(|k| a[m][k] * w[n][k]).sum();
            out[n][m] = horizontal_sum(sums[n][m]) + tail;
        }
    }
    out
}

#[target_feature(enable = "avx2")]
fn horizontal_sum(x: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    let one = _mm_add_ss(two, _mm_shuffle_ps::<1>(two, two));
    _mm_cvtss_f32(one)
}
