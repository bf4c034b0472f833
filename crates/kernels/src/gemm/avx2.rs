//! Matmul with AVX2: codes widened to i16, `vpmaddwd`.

#![expect(
    unsafe_code,
    reason = "vector loads through pointers, and calls into functions compiled for AVX2"
)]

use super::panels::{LANES as PANEL_LANES, STEP_BYTES, TILE, Tile, Weights};
use crate::Isa;
use crate::isa::Kind;
use std::arch::x86_64::*;

/// Sums of panels with weights in 256-bit registers: six outputs × sixteen rows at a time.
macro_rules! strips_of_256_bits {
    ($features:literal, $dot_add:path) => {
        /// Fills `tile` with the sums of all panels of `a`, each `panel` bytes.
        ///
        /// # Safety
        /// The CPU supports the instructions; each panel has `w.steps` steps, each row of `w` as
        /// many dwords, and `tile` has room for all sums.
        #[target_feature(enable = $features)]
        unsafe fn strips(a: &[u8], panel: usize, w: &Weights<'_>, tile: &mut Tile) {
            for (p, panel) in a.chunks_exact(panel).enumerate() {
                let mut n = 0;
                while n < w.rows {
                    // SAFETY: the caller guarantees the instructions and the lengths, and `n <
                    // w.rows`.
                    n += unsafe {
                        match w.rows - n {
                            1..=2 => strip::<2>(panel, w, n, p, tile),
                            3..=4 => strip::<4>(panel, w, n, p, tile),
                            _ => strip::<6>(panel, w, n, p, tile),
                        }
                    };
                }
            }
        }

        /// Sums of panel `p` for `N` outputs from `first` on. Outputs past the last repeat it and
        /// are not stored.
        ///
        /// # Safety
        /// The CPU supports the instructions; `panel` has `w.steps` steps, each row of `w` as many
        /// dwords.
        #[target_feature(enable = $features)]
        unsafe fn strip<const N: usize>(
            panel: &[u8],
            w: &Weights<'_>,
            first: usize,
            p: usize,
            tile: &mut Tile,
        ) -> usize {
            let mut rows = [w.data.as_ptr(); N];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = w.data[(first + i).min(w.rows - 1) * w.stride..].as_ptr();
            }

            let first_sum = |n: usize| w.first_sums[(first + n).min(TILE - 1)];
            let mut sums: [_; N] = std::array::from_fn(|n| [_mm256_set1_epi32(first_sum(n)); 2]);
            for k in 0..w.steps {
                // SAFETY: k < w.steps; a step is 64 bytes of the panel and a dword of each row.
                unsafe {
                    let at = panel.as_ptr().add(k * STEP_BYTES);
                    let x = [
                        _mm256_loadu_si256(at.cast()),
                        _mm256_loadu_si256(at.add(32).cast()),
                    ];

                    for n in 0..N {
                        let y =
                            _mm256_set1_epi32(rows[n].add(k * 4).cast::<i32>().read_unaligned());
                        sums[n][0] = $dot_add(sums[n][0], x[0], y);
                        sums[n][1] = $dot_add(sums[n][1], x[1], y);
                    }
                }
            }

            for (sums, tile) in sums.iter().zip(&mut tile[first..]) {
                let out = &mut tile[p * PANEL_LANES..][..PANEL_LANES];

                // SAFETY: `out` has sixteen values.
                unsafe {
                    _mm256_storeu_si256(out.as_mut_ptr().cast(), sums[0]);
                    _mm256_storeu_si256(out.as_mut_ptr().add(8).cast(), sums[1]);
                }
            }

            N
        }
    };
}
pub(super) use strips_of_256_bits;

/// Codes of a step.
const LANES: usize = 16;
/// Prefetch distance in bytes.
const AHEAD: usize = 1024;

/// `sums[m · N + n] = Σ a[m][k] · w[n · K + k]`, exact.
pub(super) fn dots<const M: usize>(isa: Isa, a: [&[i16]; M], w: &[i8], sums: &mut [i32]) {
    let length = a[0].len();
    let outputs = sums.len() / M;
    assert!(isa.kind() == Kind::Avx2 && a.iter().all(|a| a.len() == length));
    assert!(w.len() == outputs * length && sums.len() == outputs * M);

    for n in 0..outputs {
        // SAFETY: an `Isa` of kind Avx2 exists only on CPUs with AVX2; every slice has `length`
        // codes.
        let found = unsafe {
            let row = &w[n * length..][..length];
            if M == 1 {
                [one(a[0], row); M]
            } else {
                several(a, row)
            }
        };

        found
            .iter()
            .enumerate()
            .for_each(|(m, sum)| sums[m * outputs + n] = *sum);
    }
}

/// `Σ a[k] · w[k]`, in four independent sums.
///
/// # Safety
/// The CPU has AVX2; both slices have the same length.
#[target_feature(enable = "avx2")]
unsafe fn one(a: &[i16], w: &[i8]) -> i32 {
    const STEP: usize = 4 * LANES;
    let whole = a.len() / STEP * STEP;

    let mut parts = [_mm256_setzero_si256(); 4];
    for k in (0..whole).step_by(STEP) {
        // The address may be past the last weight: a prefetch is a hint and never faults.
        _mm_prefetch::<_MM_HINT_T0>(w.as_ptr().wrapping_add(k + AHEAD));
        for (i, part) in parts.iter_mut().enumerate() {
            // SAFETY: at + 16 ≤ k + 64 ≤ whole ≤ length of both slices; the loads are unaligned.
            let (x, y) = unsafe {
                let at = k + i * LANES;
                (
                    _mm256_loadu_si256(a.as_ptr().add(at).cast()),
                    _mm256_cvtepi8_epi16(_mm_loadu_si128(w.as_ptr().add(at).cast())),
                )
            };

            *part = _mm256_add_epi32(*part, _mm256_madd_epi16(x, y));
        }
    }

    let [p, q, r, s] = parts;
    let tail: i32 = a[whole..]
        .iter()
        .zip(&w[whole..])
        .map(|(&x, &y)| i32::from(x) * i32::from(y))
        .sum();
    tail + horizontal_sum(_mm256_add_epi32(
        _mm256_add_epi32(p, q),
        _mm256_add_epi32(r, s),
    ))
}

/// `Σ a[m][k] · w[k]` for each row `m`.
///
/// # Safety
/// The CPU has AVX2; all slices have the same length.
#[target_feature(enable = "avx2")]
unsafe fn several<const M: usize>(a: [&[i16]; M], w: &[i8]) -> [i32; M] {
    let whole = w.len() / LANES * LANES;
    let mut sums = [_mm256_setzero_si256(); M];
    for k in (0..whole).step_by(LANES) {
        _mm_prefetch::<_MM_HINT_T0>(w.as_ptr().wrapping_add(k + AHEAD));

        // SAFETY: k + 16 ≤ whole ≤ length of `w`; the load is unaligned.
        let y = unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(w.as_ptr().add(k).cast())) };

        for m in 0..M {
            // SAFETY: k + 16 ≤ whole ≤ length of `a[m]`; the load is unaligned.
            let x = unsafe { _mm256_loadu_si256(a[m].as_ptr().add(k).cast()) };
            sums[m] = _mm256_add_epi32(sums[m], _mm256_madd_epi16(x, y));
        }
    }

    let mut out = [0; M];
    for m in 0..M {
        let tail = a[m][whole..]
            .iter()
            .zip(&w[whole..])
            .map(|(&x, &y)| i32::from(x) * i32::from(y));
        out[m] = tail.sum::<i32>() + horizontal_sum(sums[m]);
    }

    out
}

/// The sum of eight i32.
#[target_feature(enable = "avx2")]
pub(super) fn horizontal_sum(x: __m256i) -> i32 {
    let four = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
    let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
    let one = _mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two));
    _mm_cvtsi128_si32(one)
}

/// Fills `tile` with the sums of panels `a`, each `panel` bytes, with widened weights.
pub(super) fn tile(isa: Isa, a: &[u8], panel: usize, w: &Weights<'_>, tile: &mut Tile) {
    assert!(
        isa.kind() == Kind::Avx2 && panel >= w.steps * STEP_BYTES && a.len().is_multiple_of(panel)
    );
    assert!(w.rows >= 1 && w.data.len() >= (w.rows - 1) * w.stride + w.steps * 4);
    assert!(w.rows <= tile.len() && a.len() / panel * PANEL_LANES <= tile[0].len());

    // SAFETY: an `Isa` of kind Avx2 exists only on CPUs with AVX2; the lengths were checked.
    unsafe { strips(a, panel, w, tile) }
}

/// Adds the dot product of two i16 pairs to each sum.
#[target_feature(enable = "avx2")]
fn dot_add(sums: __m256i, x: __m256i, y: __m256i) -> __m256i {
    _mm256_add_epi32(sums, _mm256_madd_epi16(x, y))
}

strips_of_256_bits!("avx2", dot_add);
