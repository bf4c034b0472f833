//! Conversions with NEON, which every AArch64 CPU has: `fcvtl` and `fcvtn` convert four values
//! between f16 and f32.

#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

use half::{bf16, f16};
use std::arch::aarch64::*;

/// Values converted per step.
pub(crate) const LANES: usize = 8;

/// Vector loads with conversion to f32.
pub trait Load: Copy {
    /// The eight values at `from`.
    ///
    /// # Safety
    /// Eight values are readable at `from`.
    unsafe fn load8(from: *const Self) -> float32x4x2_t;
}

impl Load for f32 {
    #[inline(always)]
    unsafe fn load8(from: *const Self) -> float32x4x2_t {
        // SAFETY: the caller guarantees eight readable values.
        unsafe { float32x4x2_t(vld1q_f32(from), vld1q_f32(from.add(4))) }
    }
}

impl Load for f16 {
    #[inline(always)]
    unsafe fn load8(from: *const Self) -> float32x4x2_t {
        // SAFETY: the caller guarantees eight readable values; an f16 is two bytes.
        unsafe {
            let halves = vreinterpretq_f16_u16(vld1q_u16(from.cast()));
            let low = vcvt_f32_f16(vget_low_f16(halves));
            float32x4x2_t(low, vcvt_high_f32_f16(halves))
        }
    }
}

impl Load for bf16 {
    #[inline(always)]
    unsafe fn load8(from: *const Self) -> float32x4x2_t {
        // SAFETY: the caller guarantees eight readable values; a bf16 is two bytes, the upper half
        // of an f32.
        unsafe {
            let upper = vld1q_u16(from.cast());
            let wide = [vmovl_u16(vget_low_u16(upper)), vmovl_high_u16(upper)];
            let [low, high] = wide.map(|x| vreinterpretq_f32_u32(vshlq_n_u32::<16>(x)));
            float32x4x2_t(low, high)
        }
    }
}

impl Load for i8 {
    #[inline(always)]
    unsafe fn load8(from: *const Self) -> float32x4x2_t {
        // SAFETY: the caller guarantees eight readable bytes.
        unsafe {
            let wide = vmovl_s8(vld1_s8(from));
            let low = vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
            float32x4x2_t(low, vcvtq_f32_s32(vmovl_high_s16(wide)))
        }
    }
}

/// The value of one f16.
#[inline(always)]
pub(super) fn one_to_f32(x: f16) -> f32 {
    // SAFETY: every AArch64 CPU has NEON.
    unsafe {
        let halves = vreinterpret_f16_u16(vcreate_u16(x.to_bits().into()));
        vgetq_lane_f32::<0>(vcvt_f32_f16(halves))
    }
}

/// Converts all whole groups of eight values and returns how many values that was.
pub(super) fn to_f32<T: Load>(source: &[T], out: &mut [f32]) -> usize {
    let source = source.as_chunks::<LANES>().0;
    let out = out.as_chunks_mut::<LANES>().0;
    for (x, y) in source.iter().zip(out) {
        // SAFETY: both hold eight values.
        unsafe {
            let float32x4x2_t(low, high) = T::load8(x.as_ptr());
            vst1q_f32(y.as_mut_ptr(), low);
            vst1q_f32(y.as_mut_ptr().add(4), high);
        }
    }

    source.len() * LANES
}

/// Converts all whole groups of eight values, ties to even, and returns how many values that was.
pub(super) fn to_f16<T: Load>(source: &[T], out: &mut [f16]) -> usize {
    let source = source.as_chunks::<LANES>().0;
    let out = out.as_chunks_mut::<LANES>().0;
    for (x, y) in source.iter().zip(out) {
        // SAFETY: both hold eight values, and an f16 is two bytes.
        unsafe {
            let float32x4x2_t(low, high) = T::load8(x.as_ptr());
            let halves = vcvt_high_f16_f32(vcvt_f16_f32(low), high);
            vst1q_u16(y.as_mut_ptr().cast(), vreinterpretq_u16_f16(halves));
        }
    }

    source.len() * LANES
}
