//! Dot products in floating point, one register of columns per step. Weights are converted as they
//! are loaded, so one row of activations costs one pass over the stored bytes.

#![expect(
    unsafe_code,
    reason = "vector loads through pointers, and calls into functions compiled for vectors"
)]

use crate::aligned::LINE;
use crate::isa::Width;
use crate::simd::{Eight, Lanes, prefetch_ahead};
use crate::{Element, Isa};
#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::float32x4x2_t;

/// Prefetch distance in bytes where weights are read in the order of memory.
const AHEAD: usize = 4096;

/// `sums[n][m] = Σ a[m][k] · w[n][k]`. All slices must have the length of the first.
pub(super) fn dot<W: Element, const M: usize, const N: usize>(
    isa: Isa,
    a: [&[f32]; M],
    w: [&[W]; N],
) -> [[f32; M]; N] {
    let length = a.first().map_or(0, |a| a.len());
    assert!(a.iter().all(|a| a.len() == length) && w.iter().all(|w| w.len() == length));

    // SAFETY: `isa` proves that the CPU supports the instructions; the lengths are equal.
    unsafe {
        match isa.width() {
            Width::Scalar => dot_with::<Eight, W, M, N>(a, w),
            #[cfg(target_arch = "x86_64")]
            Width::V256 => x86::dot256(a, w),
            #[cfg(target_arch = "x86_64")]
            Width::V512 => x86::dot512(a, w),
            #[cfg(target_arch = "aarch64")]
            Width::Neon => dot_with::<float32x4x2_t, W, M, N>(a, w),
        }
    }
}

/// [`dot`] with registers `L`.
///
/// # Safety
/// The CPU supports the instructions of `L`; all slices have the same length.
#[inline(always)]
unsafe fn dot_with<L: Lanes, W: Element, const M: usize, const N: usize>(
    a: [&[f32]; M],
    w: [&[W]; N],
) -> [[f32; M]; N] {
    let length = a[0].len();
    let whole = length / L::COUNT * L::COUNT;

    // SAFETY: k + COUNT ≤ whole ≤ length of every slice.
    unsafe {
        let mut sums = [[L::splat(0.0); M]; N];
        let mut k = 0;
        while k < whole {
            let mut x = [L::splat(0.0); M];
            for m in 0..M {
                x[m] = L::load(a[m].as_ptr().add(k));
            }
            for n in 0..N {
                // Weights come from memory. One output at a time, they are read in its order.
                let bytes = L::COUNT * size_of::<W>();
                let place = w[n].as_ptr().wrapping_add(k).cast();
                if N == 1 && (k * size_of::<W>()).is_multiple_of(LINE) {
                    prefetch_ahead(place, AHEAD, LINE);
                } else if N > 1 && L::COUNT == 16 {
                    // The same columns of the next block, whose rows follow these.
                    prefetch_ahead(place, N * size_of_val(w[n]), bytes);
                }

                let y = L::load(w[n].as_ptr().add(k));
                for m in 0..M {
                    sums[n][m] = sums[n][m].add_mul(x[m], y);
                }
            }

            k += L::COUNT;
        }

        let mut out = [[0f32; M]; N];
        for n in 0..N {
            for m in 0..M {
                let mut tail = 0.0;
                for k in whole..length {
                    tail += a[m][k] * w[n][k].to_f32();
                }
                out[n][m] = sums[n][m].sum() + tail;
            }
        }

        out
    }
}

/// The x86 instantiations, compiled for their instruction sets.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::dot_with;
    use crate::Element;
    use std::arch::x86_64::{__m256, __m512};

    /// # Safety
    /// The CPU supports the instructions; all slices have the same length.
    #[target_feature(enable = "avx2,f16c,fma")]
    pub(super) unsafe fn dot256<W: Element, const M: usize, const N: usize>(
        a: [&[f32]; M],
        w: [&[W]; N],
    ) -> [[f32; M]; N] {
        // SAFETY: `target_feature` enables the instructions of the registers; the caller guarantees
        // equal lengths.
        unsafe { dot_with::<__m256, W, M, N>(a, w) }
    }

    /// # Safety
    /// The CPU supports the instructions; all slices have the same length.
    #[target_feature(enable = "avx2,f16c,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) unsafe fn dot512<W: Element, const M: usize, const N: usize>(
        a: [&[f32]; M],
        w: [&[W]; N],
    ) -> [[f32; M]; N] {
        // SAFETY: `target_feature` enables the instructions of the registers; the caller guarantees
        // equal lengths.
        unsafe { dot_with::<__m512, W, M, N>(a, w) }
    }
}
