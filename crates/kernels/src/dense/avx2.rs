//! The dot products with AVX2, F16C and fused multiply-adds: 8 columns a step. Weights are read in
//! whichever type they have, so that one row of activations costs one pass over the stored bytes.

#![expect(unsafe_code, reason = "vector loads through pointers, and calls into functions compiled for AVX2")]

use crate::element::avx2::LANES;
use crate::isa::Kind;
use crate::{Element, Isa};
use std::arch::x86_64::*;

/// How far ahead of its use a weight is fetched, in values.
const AHEAD: usize = 2048;

/// `sums[n][m] = Σ a[m][k] · w[n][k]`. All slices must have the length of the first.
pub(super) fn dot<W: Element, const M: usize, const N: usize>(
    isa: Isa,
    a: [&[f32]; M],
    w: [&[W]; N],
) -> [[f32; M]; N] {
    let length = a.first().map_or(0, |a| a.len());
    assert!(
        isa.kind() == Kind::Avx2
            && a.iter().all(|a| a.len() == length)
            && w.iter().all(|w| w.len() == length)
    );
    // SAFETY: an `Isa` of kind Avx2 is only made where the CPU has AVX2, F16C and FMA; the lengths are equal.
    unsafe { inner(a, w, length) }
}

/// # Safety
/// Every slice has `length` elements.
#[target_feature(enable = "avx2,f16c,fma")]
unsafe fn inner<W: Element, const M: usize, const N: usize>(
    a: [&[f32]; M],
    w: [&[W]; N],
    length: usize,
) -> [[f32; M]; N] {
    let mut sums = [[_mm256_setzero_ps(); M]; N];
    let whole = length / LANES * LANES;
    let mut k = 0;
    while k < whole {
        // A loop: the closure of `array::from_fn` would be compiled without AVX and called.
        let mut x = [_mm256_setzero_ps(); M];
        for m in 0..M {
            // SAFETY: k + 8 ≤ whole ≤ length of every slice, and unaligned loads are used.
            x[m] = unsafe { _mm256_loadu_ps(a[m].as_ptr().add(k)) };
        }
        for n in 0..N {
            if M == 1 {
                // A hint that may point behind the last weight: it reads nothing there.
                _mm_prefetch::<_MM_HINT_T0>(w[n].as_ptr().wrapping_add(k + AHEAD).cast());
            }
            // SAFETY: as above.
            let y = unsafe { W::load8(w[n].as_ptr().add(k)) };
            for m in 0..M {
                sums[n][m] = _mm256_fmadd_ps(x[m], y, sums[n][m]);
            }
        }
        k += LANES;
    }
    let mut out = [[0f32; M]; N];
    for n in 0..N {
        for m in 0..M {
            let mut tail = 0.0;
            for k in whole..length {
                tail += a[m][k] * w[n][k].to_f32();
            }
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
