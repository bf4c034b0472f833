//! Conversions with AVX2 and F16C. The half crate's slice conversions make a function call for
//! every 8 values; inlined, eight bf16 → f16 take 3 instructions.

#![expect(
    unsafe_code,
    reason = "vector loads through pointers, and calls into functions compiled for AVX2"
)]

use half::{bf16, f16};
use std::arch::x86_64::*;

/// Values converted per step.
pub(crate) const LANES: usize = 8;

/// Vector loads with conversion to f32. Trait methods cannot have a `target_feature`, so these must
/// be inlined into functions that do.
pub trait Load: Copy {
    /// The eight values at `from`.
    ///
    /// # Safety
    /// The CPU has AVX2 and F16C; eight values are readable at `from`.
    unsafe fn load8(from: *const Self) -> __m256;

    /// The sixteen values at `from`.
    ///
    /// # Safety
    /// The CPU has AVX-512; sixteen values are readable at `from`.
    unsafe fn load16(from: *const Self) -> __m512;
}

impl Load for f32 {
    #[inline(always)]
    unsafe fn load8(from: *const Self) -> __m256 {
        // SAFETY: the caller guarantees AVX2 and eight readable values.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load16(from: *const Self) -> __m512 {
        // SAFETY: the caller guarantees AVX-512 and sixteen readable values.
        unsafe { _mm512_loadu_ps(from) }
    }
}

impl Load for f16 {
    #[inline(always)]
    unsafe fn load8(from: *const Self) -> __m256 {
        // SAFETY: the caller guarantees AVX2, F16C and eight readable values; an f16 is two bytes.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load16(from: *const Self) -> __m512 {
        // SAFETY: the caller guarantees AVX-512 and sixteen readable values; an f16 is two bytes.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
}

impl Load for bf16 {
    #[inline(always)]
    unsafe fn load8(from: *const Self) -> __m256 {
        // SAFETY: the caller guarantees AVX2 and eight readable values; a bf16 is two bytes, the
        // upper half of an f32.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn load16(from: *const Self) -> __m512 {
        // SAFETY: the caller guarantees AVX-512 and sixteen readable values; a bf16 is two bytes,
        // the upper half of an f32.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
}

impl Load for i8 {
    #[inline(always)]
    unsafe fn load8(from: *const Self) -> __m256 {
        // SAFETY: the caller guarantees AVX2 and eight readable bytes.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadu_si64(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load16(from: *const Self) -> __m512 {
        // SAFETY: the caller guarantees AVX-512 and sixteen readable bytes.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }
}

/// Whether this CPU has AVX2 and F16C. std caches the answer.
pub(crate) fn available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")
}

/// Converts all whole groups of eight values and returns how many values that was: none without AVX2.
pub(super) fn to_f32<T: Load>(source: &[T], out: &mut [f32]) -> usize {
    if !available() {
        return 0;
    }

    // SAFETY: the CPU has AVX2 and F16C, as was just checked.
    unsafe { to_f32_inner(source, out) }
}

#[target_feature(enable = "avx2,f16c")]
fn to_f32_inner<T: Load>(source: &[T], out: &mut [f32]) -> usize {
    let source = source.as_chunks::<LANES>().0;
    let out = out.as_chunks_mut::<LANES>().0;
    for (x, y) in source.iter().zip(out) {
        // SAFETY: both hold eight values.
        unsafe { _mm256_storeu_ps(y.as_mut_ptr(), T::load8(x.as_ptr())) }
    }

    source.len() * LANES
}

/// Converts all whole groups of eight values and returns how many values that was: none without AVX2.
pub(super) fn to_f16<T: Load>(source: &[T], out: &mut [f16]) -> usize {
    if !available() {
        return 0;
    }

    // SAFETY: the CPU has AVX2 and F16C, as was just checked.
    unsafe { to_f16_inner(source, out) }
}

#[target_feature(enable = "avx2,f16c")]
fn to_f16_inner<T: Load>(source: &[T], out: &mut [f16]) -> usize {
    let source = source.as_chunks::<LANES>().0;
    let out = out.as_chunks_mut::<LANES>().0;
    for (x, y) in source.iter().zip(out) {
        // SAFETY: both hold eight values, and an f16 is two bytes.
        unsafe {
            let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(T::load8(x.as_ptr()));
            _mm_storeu_si128(y.as_mut_ptr().cast(), halves);
        }
    }

    source.len() * LANES
}
