//! Rounding to codes with NEON.

#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

use crate::element::neon::{LANES, Load};
use half::f16;
use std::arch::aarch64::*;

/// `codes = rint(row16 · inv_step)`, half to even. Every value's code must be in -127..=127.
pub(super) fn round_codes(row16: &[f16], inv_step: f32, codes: &mut [i8]) {
    let (whole16, rest16) = row16.as_chunks::<LANES>();
    let (whole, rest) = codes.as_chunks_mut::<LANES>();

    for (x, code) in whole16.iter().zip(whole) {
        // SAFETY: every AArch64 CPU has NEON; `x` and `code` hold eight values.
        unsafe {
            let float32x4x2_t(low, high) = f16::load8(x.as_ptr());
            let rounded = |x| vmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(x, inv_step)));
            let codes = vcombine_s16(rounded(low), rounded(high));
            vst1_s8(code.as_mut_ptr(), vmovn_s16(codes));
        }
    }

    super::round_codes(rest16, inv_step, rest);
}
