//! Matmul with `sdot` of NEON's dot-product extension: four signed by four signed codes, summed, so
//! that no offset is needed. std's intrinsic for it is unstable, so the instruction itself is
//! assembly.
//!
//! Run only under emulation so far: correctness is tested, speed is unknown.

#![expect(
    unsafe_code,
    reason = "assembly, vector loads through pointers, and calls into functions compiled for NEON"
)]

use super::panels::{LANES as PANEL_LANES, STEP_BYTES, Tile, Weights};
use crate::Isa;
use crate::isa::Kind;
use std::arch::aarch64::*;
use std::arch::asm;

/// Codes of a register.
const LANES: usize = size_of::<int8x16_t>();
/// Registers in a step of a panel.
const PARTS: usize = STEP_BYTES / LANES;

/// Adds the dot product of four codes to each sum.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn dot_add(mut sums: int32x4_t, x: int8x16_t, y: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction reads its operands and writes only the sums.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {x:v}.16b, {y:v}.16b",
            sums = inout(vreg) sums,
            x = in(vreg) x,
            y = in(vreg) y,
            options(pure, nomem, nostack, preserves_flags),
        );
    }

    sums
}

/// `sums[m · N + n] = Σ a[m][k] · w[n · K + k]`, exact.
pub(super) fn dots<const M: usize>(isa: Isa, a: [&[i8]; M], w: &[i8], sums: &mut [i32]) {
    let length = a[0].len();
    let outputs = sums.len() / M;
    assert!(isa.kind() == Kind::NeonDot && a.iter().all(|a| a.len() == length));
    assert!(w.len() == outputs * length && sums.len() == outputs * M);

    for n in 0..outputs {
        let row = &w[n * length..][..length];

        // SAFETY: an `Isa` of kind NeonDot exists only on CPUs with `sdot`; every slice has
        // `length` codes.
        let found = unsafe {
            match M {
                1 => dot::<M, 8>(a, row),
                2 => dot::<M, 4>(a, row),
                3 | 4 => dot::<M, 2>(a, row),
                _ => dot::<M, 1>(a, row),
            }
        };

        found
            .iter()
            .enumerate()
            .for_each(|(m, sum)| sums[m * outputs + n] = *sum);
    }
}

/// `Σ a[m][k] · w[k]` for each row `m`, in `P` independent sums.
///
/// # Safety
/// The CPU has `sdot`; all slices have the same length.
#[target_feature(enable = "neon,dotprod")]
unsafe fn dot<const M: usize, const P: usize>(a: [&[i8]; M], w: &[i8]) -> [i32; M] {
    let step = P * LANES;
    let whole = w.len() / step * step;

    let mut sums = [[vdupq_n_s32(0); M]; P];
    for k in (0..whole).step_by(step) {
        for (part, sums) in sums.iter_mut().enumerate() {
            let at = k + part * LANES;

            // SAFETY: at + 16 ≤ whole ≤ length of `w`.
            let y = unsafe { vld1q_s8(w.as_ptr().add(at)) };

            for (sum, a) in sums.iter_mut().zip(a) {
                // SAFETY: at + 16 ≤ whole ≤ length of `a`.
                let x = unsafe { vld1q_s8(a.as_ptr().add(at)) };
                *sum = dot_add(*sum, x, y);
            }
        }
    }

    let mut out = [0; M];
    for m in 0..M {
        let total = sums
            .iter()
            .fold(vdupq_n_s32(0), |total, sums| vaddq_s32(total, sums[m]));
        let tail = a[m][whole..]
            .iter()
            .zip(&w[whole..])
            .map(|(&x, &y)| i32::from(x) * i32::from(y));
        out[m] = vaddvq_s32(total) + tail.sum::<i32>();
    }

    out
}

/// Fills `tile` with the sums of panels `a`, each `panel` bytes.
pub(super) fn tile(isa: Isa, a: &[u8], panel: usize, w: &Weights<'_>, tile: &mut Tile) {
    assert!(
        isa.kind() == Kind::NeonDot
            && panel >= w.steps * STEP_BYTES
            && a.len().is_multiple_of(panel)
    );
    assert!(w.rows >= 1 && w.data.len() >= (w.rows - 1) * w.stride + w.steps * 4);
    assert!(w.rows <= tile.len() && a.len() / panel * PANEL_LANES <= tile[0].len());

    for (p, panel) in a.chunks_exact(panel).enumerate() {
        let mut n = 0;
        while n < w.rows {
            // SAFETY: an `Isa` of kind NeonDot exists only on CPUs with `sdot`; the lengths were
            // checked above.
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

/// Sums of panel `p` for `N` outputs from `first` on. Outputs past the last repeat it; the rows of
/// the tile that they land in are never read.
///
/// # Safety
/// The CPU has `sdot`; `panel` has `w.steps` steps, each row of `w` as many dwords.
#[target_feature(enable = "neon,dotprod")]
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

    let mut sums = [[vdupq_n_s32(0); PARTS]; N];
    for k in 0..w.steps {
        // SAFETY: k < w.steps; a step is 64 bytes of the panel and a dword of each row.
        unsafe {
            let at: *const i8 = panel.as_ptr().add(k * STEP_BYTES).cast();
            let x: [int8x16_t; PARTS] = std::array::from_fn(|i| vld1q_s8(at.add(i * LANES)));
            for n in 0..N {
                let y = vdupq_n_s32(rows[n].add(k * 4).cast::<i32>().read_unaligned());
                let y = vreinterpretq_s8_s32(y);
                for i in 0..PARTS {
                    sums[n][i] = dot_add(sums[n][i], x[i], y);
                }
            }
        }
    }

    for (sums, tile) in sums.iter().zip(&mut tile[first..]) {
        let out = tile[p * PANEL_LANES..][..PANEL_LANES].chunks_exact_mut(4);
        for (out, sums) in out.zip(sums) {
            // SAFETY: `out` has four values.
            unsafe { vst1q_s32(out.as_mut_ptr(), *sums) }
        }
    }

    N
}

/// Runs `rounds` rounds of twelve independent multiplications and returns the number of
/// multiply-adds.
///
/// # Safety
/// The CPU has `sdot`.
#[target_feature(enable = "neon,dotprod")]
pub(crate) unsafe fn multiply_adds(rounds: u64) -> u64 {
    // SAFETY: every register changed is declared as clobbered; the inputs' values do not matter.
    unsafe {
        asm!(
            "2:",
            "sdot v0.4s, v16.16b, v17.16b", "sdot v1.4s, v16.16b, v17.16b",
            "sdot v2.4s, v16.16b, v17.16b", "sdot v3.4s, v16.16b, v17.16b",
            "sdot v4.4s, v16.16b, v17.16b", "sdot v5.4s, v16.16b, v17.16b",
            "sdot v6.4s, v16.16b, v17.16b", "sdot v7.4s, v16.16b, v17.16b",
            "sdot v18.4s, v16.16b, v17.16b", "sdot v19.4s, v16.16b, v17.16b",
            "sdot v20.4s, v16.16b, v17.16b", "sdot v21.4s, v16.16b, v17.16b",
            "subs {rounds}, {rounds}, #1",
            "b.ne 2b",
            rounds = inout(reg) rounds => _,
            out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _,
            out("v6") _, out("v7") _, out("v18") _, out("v19") _, out("v20") _, out("v21") _,
            options(nomem, nostack),
        );
    }

    rounds * 12 * LANES as u64
}
