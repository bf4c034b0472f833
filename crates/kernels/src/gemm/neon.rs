//! Matmul with NEON: signed by signed codes, so that no offset is needed.
//!
//! - `sdot` of the dot-product extension (ARMv8.4, many CPUs before) adds the products of four codes
//!   to each sum. std's intrinsic for it is unstable, so the instruction itself is assembly.
//! - Every other AArch64 CPU multiplies eight codes into 16 bits (`smull`) and adds pairs of products
//!   to 32-bit sums (`sadalp`): four instructions for sixteen codes instead of one. `smlal` would
//!   save one, but two products of -128 by -128 overflow 16 bits.
//!
//! Run only under emulation so far: correctness is tested, speed is unknown.

#![expect(
    unsafe_code,
    reason = "assembly, vector loads through pointers, and calls into functions compiled for NEON"
)]

use super::panels::{LANES as PANEL_LANES, STEP_BYTES, Tile, Weights};
use crate::Isa;
use crate::isa::{Kind, Width};
use std::arch::aarch64::*;
use std::arch::asm;
use std::hint::black_box;

/// Codes of a register.
const LANES: usize = size_of::<int8x16_t>();
/// Registers in a step of a panel.
const PARTS: usize = STEP_BYTES / LANES;

/// Four sums, each of the products of four codes. Methods are inlined into functions compiled for
/// the instructions of the implementing type.
trait Sums: Copy {
    /// Registers that the sums take.
    const REGISTERS: usize;

    fn zero() -> Self;

    /// Adds the products of sixteen codes.
    ///
    /// # Safety
    /// The CPU supports the instructions of the implementing type.
    unsafe fn add(self, x: int8x16_t, y: int8x16_t) -> Self;

    /// The four sums; the `i`-th is that of codes `4 · i` to `4 · i + 3`.
    fn lanes(self) -> int32x4_t;
}

/// `sdot`: four products at once.
#[derive(Clone, Copy)]
struct Sdot(int32x4_t);

impl Sums for Sdot {
    const REGISTERS: usize = 1;

    #[inline(always)]
    fn zero() -> Self {
        // SAFETY: every AArch64 CPU has NEON.
        Self(unsafe { vdupq_n_s32(0) })
    }

    #[inline(always)]
    unsafe fn add(mut self, x: int8x16_t, y: int8x16_t) -> Self {
        // SAFETY: the caller guarantees `sdot`, which reads its operands and writes only the sums.
        unsafe {
            asm!(
                "sdot {sums:v}.4s, {x:v}.16b, {y:v}.16b",
                sums = inout(vreg) self.0,
                x = in(vreg) x,
                y = in(vreg) y,
                options(pure, nomem, nostack, preserves_flags),
            );
        }

        self
    }

    #[inline(always)]
    fn lanes(self) -> int32x4_t {
        self.0
    }
}

/// `smull` and `sadalp`: the sums of pairs of products, of the first eight codes and of the last.
#[derive(Clone, Copy)]
struct Smull(int32x4_t, int32x4_t);

impl Sums for Smull {
    const REGISTERS: usize = 2;

    #[inline(always)]
    fn zero() -> Self {
        // SAFETY: every AArch64 CPU has NEON.
        unsafe { Self(vdupq_n_s32(0), vdupq_n_s32(0)) }
    }

    #[inline(always)]
    unsafe fn add(self, x: int8x16_t, y: int8x16_t) -> Self {
        // SAFETY: every AArch64 CPU has NEON.
        unsafe {
            Self(
                vpadalq_s16(self.0, vmull_s8(vget_low_s8(x), vget_low_s8(y))),
                vpadalq_s16(self.1, vmull_high_s8(x, y)),
            )
        }
    }

    #[inline(always)]
    fn lanes(self) -> int32x4_t {
        // SAFETY: every AArch64 CPU has NEON.
        unsafe { vpaddq_s32(self.0, self.1) }
    }
}

/// `sums[m · N + n] = Σ a[m][k] · w[n · K + k]`, exact.
pub(super) fn dots<const M: usize>(isa: Isa, a: [&[i8]; M], w: &[i8], sums: &mut [i32]) {
    let length = a[0].len();
    let outputs = sums.len() / M;
    assert!(isa.width() == Width::Neon && a.iter().all(|a| a.len() == length));
    assert!(w.len() == outputs * length && sums.len() == outputs * M);

    // SAFETY: an `Isa` of kind NeonDot exists only on CPUs with `sdot`; the lengths were checked.
    unsafe {
        if isa.kind() == Kind::NeonDot {
            sdot_dots(a, w, sums);
        } else {
            dots_with::<Smull, M>(a, w, sums);
        }
    }
}

/// # Safety
/// The CPU has `sdot`; `w` and `sums` have the lengths that [`dots`] checks.
#[target_feature(enable = "neon,dotprod")]
unsafe fn sdot_dots<const M: usize>(a: [&[i8]; M], w: &[i8], sums: &mut [i32]) {
    // SAFETY: the caller guarantees `sdot` and the lengths.
    unsafe { dots_with::<Sdot, M>(a, w, sums) }
}

/// # Safety
/// The CPU supports the instructions of `S`; `w` and `sums` have the lengths that [`dots`] checks.
#[inline(always)]
unsafe fn dots_with<S: Sums, const M: usize>(a: [&[i8]; M], w: &[i8], sums: &mut [i32]) {
    let length = a[0].len();
    let outputs = sums.len() / M;

    for n in 0..outputs {
        let row = &w[n * length..][..length];

        // SAFETY: the caller guarantees the instructions; every slice has `length` codes.
        let found = unsafe {
            match M {
                1 => dot::<S, M, 8>(a, row),
                2 => dot::<S, M, 4>(a, row),
                3 | 4 => dot::<S, M, 2>(a, row),
                _ => dot::<S, M, 1>(a, row),
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
/// The CPU supports the instructions of `S`; all slices have the same length.
#[inline(always)]
unsafe fn dot<S: Sums, const M: usize, const P: usize>(a: [&[i8]; M], w: &[i8]) -> [i32; M] {
    let step = P * LANES;
    let whole = w.len() / step * step;

    let mut sums = [[S::zero(); M]; P];
    for k in (0..whole).step_by(step) {
        for (part, sums) in sums.iter_mut().enumerate() {
            let at = k + part * LANES;

            // SAFETY: at + 16 ≤ whole ≤ length of `w` and of each `a`; the caller guarantees the
            // instructions.
            unsafe {
                let y = vld1q_s8(w.as_ptr().add(at));
                for (sum, a) in sums.iter_mut().zip(a) {
                    *sum = sum.add(vld1q_s8(a.as_ptr().add(at)), y);
                }
            }
        }
    }

    let mut out = [0; M];
    for m in 0..M {
        // SAFETY: every AArch64 CPU has NEON.
        let total = unsafe {
            let total = sums.iter().fold(vdupq_n_s32(0), |total, sums| {
                vaddq_s32(total, sums[m].lanes())
            });
            vaddvq_s32(total)
        };
        let tail = a[m][whole..]
            .iter()
            .zip(&w[whole..])
            .map(|(&x, &y)| i32::from(x) * i32::from(y));
        out[m] = total + tail.sum::<i32>();
    }

    out
}

/// Fills `tile` with the sums of panels `a`, each `panel` bytes.
pub(super) fn tile(isa: Isa, a: &[u8], panel: usize, w: &Weights<'_>, tile: &mut Tile) {
    assert!(
        isa.width() == Width::Neon
            && panel >= w.steps * STEP_BYTES
            && a.len().is_multiple_of(panel)
    );
    assert!(w.rows >= 1 && w.data.len() >= (w.rows - 1) * w.stride + w.steps * 4);
    assert!(w.rows <= tile.len() && a.len() / panel * PANEL_LANES <= tile[0].len());

    // SAFETY: an `Isa` of kind NeonDot exists only on CPUs with `sdot`; the lengths were checked.
    unsafe {
        if isa.kind() == Kind::NeonDot {
            sdot_tile(a, panel, w, tile);
        } else {
            tile_with::<Smull>(a, panel, w, tile);
        }
    }
}

/// # Safety
/// The CPU has `sdot`; the lengths are as [`tile`] checks.
#[target_feature(enable = "neon,dotprod")]
unsafe fn sdot_tile(a: &[u8], panel: usize, w: &Weights<'_>, tile: &mut Tile) {
    // SAFETY: the caller guarantees `sdot` and the lengths.
    unsafe { tile_with::<Sdot>(a, panel, w, tile) }
}

/// # Safety
/// The CPU supports the instructions of `S`; the lengths are as [`tile`] checks.
#[inline(always)]
unsafe fn tile_with<S: Sums>(a: &[u8], panel: usize, w: &Weights<'_>, tile: &mut Tile) {
    for (p, panel) in a.chunks_exact(panel).enumerate() {
        let mut n = 0;
        while n < w.rows {
            // 24 of the 32 registers hold sums.
            let most = 6 / S::REGISTERS;

            // SAFETY: the caller guarantees the instructions and the lengths, and `n < w.rows`.
            n += unsafe {
                match most.min(w.rows - n) {
                    1 => strip::<S, 1>(panel, w, n, p, tile),
                    2 => strip::<S, 2>(panel, w, n, p, tile),
                    3 => strip::<S, 3>(panel, w, n, p, tile),
                    4 => strip::<S, 4>(panel, w, n, p, tile),
                    _ => strip::<S, 6>(panel, w, n, p, tile),
                }
            };
        }
    }
}

/// Sums of panel `p` for `N` outputs from `first` on. Outputs past the last repeat it; the rows of
/// the tile that they land in are never read.
///
/// # Safety
/// The CPU supports the instructions of `S`; `panel` has `w.steps` steps, each row of `w` as many
/// dwords.
#[inline(always)]
unsafe fn strip<S: Sums, const N: usize>(
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

    let mut sums = [[S::zero(); PARTS]; N];
    for k in 0..w.steps {
        // SAFETY: k < w.steps; a step is 64 bytes of the panel and a dword of each row. The caller
        // guarantees the instructions.
        unsafe {
            let at: *const i8 = panel.as_ptr().add(k * STEP_BYTES).cast();
            let x: [int8x16_t; PARTS] = std::array::from_fn(|i| vld1q_s8(at.add(i * LANES)));
            for n in 0..N {
                let y = vdupq_n_s32(rows[n].add(k * 4).cast::<i32>().read_unaligned());
                let y = vreinterpretq_s8_s32(y);
                for i in 0..PARTS {
                    sums[n][i] = sums[n][i].add(x[i], y);
                }
            }
        }
    }

    for (sums, tile) in sums.iter().zip(&mut tile[first..]) {
        let out = tile[p * PANEL_LANES..][..PANEL_LANES].chunks_exact_mut(4);
        for (out, sums) in out.zip(sums) {
            // SAFETY: `out` has four values.
            unsafe { vst1q_s32(out.as_mut_ptr(), sums.lanes()) }
        }
    }

    N
}

/// Runs `rounds` rounds of twelve independent multiplications with `sdot`, all operands in
/// registers, and returns the number of multiply-adds.
///
/// # Safety
/// The CPU has `sdot`.
#[target_feature(enable = "neon,dotprod")]
pub(crate) unsafe fn sdot_multiply_adds(rounds: u64) -> u64 {
    // SAFETY: the caller guarantees `sdot`.
    unsafe { multiply_adds::<Sdot>(rounds) }
}

/// The same with `smull` and `sadalp`.
pub(crate) fn smull_multiply_adds(rounds: u64) -> u64 {
    // SAFETY: every AArch64 CPU has NEON.
    unsafe { multiply_adds::<Smull>(rounds) }
}

/// # Safety
/// The CPU supports the instructions of `S`.
#[inline(always)]
unsafe fn multiply_adds<S: Sums>(rounds: u64) -> u64 {
    // SAFETY: the caller guarantees the instructions. The assembly is empty; it only makes the
    // compiler assume that `x` changed, so that no product is computed once for several sums.
    unsafe {
        let mut sums = [S::zero(); 12];
        let mut x = vdupq_n_s8(1);
        let y = vdupq_n_s8(1);
        for _ in 0..rounds {
            for sum in &mut sums {
                asm!("/* {0:v} */", inout(vreg) x, options(nomem, nostack, pure, preserves_flags));
                *sum = sum.add(x, y);
            }
        }

        black_box(sums.map(S::lanes));
    }

    rounds * 12 * LANES as u64
}
