//! What kernels in floating point are written with: one body, compiled for every width of vectors.
//!
//! [`for_every_width!`] compiles a plain function three times and picks by [`Isa`](crate::Isa);
//! loops over slices become vector instructions by themselves. [`Lanes`] is for the few places
//! where registers must be named. Nothing here fuses or reorders what the body does not.

#![expect(
    unsafe_code,
    reason = "calls into functions compiled for instruction sets, and vector loads"
)]

use crate::Element;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Whether this CPU runs what is compiled for 512 bits; std remembers the answer.
#[cfg(target_arch = "x86_64")]
pub(crate) fn avx512_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

/// Fetches bytes into L2.
pub(crate) fn prefetch(bytes: &[i8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        // SAFETY: a hint; every x86-64 CPU has it.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

/// Fetches `count` bytes that lie `ahead` of a place into the first cache. They may lie behind the
/// end of what is there: a hint reads nothing.
#[inline(always)]
pub(crate) fn prefetch_ahead(place: *const i8, ahead: usize, count: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..count).step_by(64) {
        // SAFETY: a hint; every x86-64 CPU has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(place.wrapping_add(ahead + line)) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (place, ahead, count);
}

/// `fn name(isa, …) = body`: `body`, which must be `#[inline(always)]`, compiled for every width.
macro_rules! for_every_width {
    ($(#[$attribute:meta])* $vis:vis fn $name:ident $(<$generic:ident: $bound:path>)?
        ($($argument:ident: $type:ty),* $(,)?) $(-> $out:ty)? = $body:expr) => {
        $(#[$attribute])*
        #[allow(unsafe_code, reason = "calls into functions compiled for wider vectors")]
        $vis fn $name $(<$generic: $bound>)? (isa: crate::Isa, $($argument: $type),*) $(-> $out)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,f16c,fma")]
            fn v256 $(<$generic: $bound>)? ($($argument: $type),*) $(-> $out)? {
                $body($($argument),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,f16c,fma,avx512f,avx512bw,avx512dq,avx512vl")]
            fn v512 $(<$generic: $bound>)? ($($argument: $type),*) $(-> $out)? {
                $body($($argument),*)
            }
            match isa.width() {
                crate::isa::Width::Scalar => $body($($argument),*),
                // SAFETY: an `Isa` of this width is only made where the CPU has these instructions.
                #[cfg(target_arch = "x86_64")]
                crate::isa::Width::V256 => unsafe { v256($($argument),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                crate::isa::Width::V512 => unsafe { v512($($argument),*) },
            }
        }
    };
}
pub(crate) use for_every_width;

/// A register of f32. Its functions have no `target_feature` of their own (a trait's cannot): they
/// are inlined into functions that have.
pub(crate) trait Lanes: Copy {
    /// How many values.
    const COUNT: usize;

    /// # Safety
    /// The CPU has the instructions of the implementing type, here and below.
    unsafe fn splat(x: f32) -> Self;

    /// The values at `from`, as f32.
    ///
    /// # Safety
    /// `COUNT` values can be read.
    unsafe fn load<T: Element>(from: *const T) -> Self;

    /// # Safety
    /// `COUNT` values can be written.
    unsafe fn store(self, to: *mut f32);

    /// `self + a · b`, fused where there are instructions for it.
    ///
    /// # Safety
    /// As [`Lanes::splat`].
    unsafe fn add_product(self, a: Self, b: Self) -> Self;

    /// The sum of all values.
    ///
    /// # Safety
    /// As [`Lanes::splat`].
    unsafe fn sum(self) -> f32;
}

/// Eight values in plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Eight([f32; 8]);

impl Lanes for Eight {
    const COUNT: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; 8])
    }

    #[inline(always)]
    unsafe fn load<T: Element>(from: *const T) -> Self {
        // SAFETY: the caller's promise.
        Self(std::array::from_fn(|i| unsafe { (*from.add(i)).to_f32() }))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        (0..8).for_each(|i| unsafe { *to.add(i) = self.0[i] });
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + a.0[i] * b.0[i]))
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }
}

#[cfg(target_arch = "x86_64")]
impl Lanes for __m256 {
    const COUNT: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the CPU has AVX2, F16C and FMA, here and below.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load<T: Element>(from: *const T) -> Self {
        // SAFETY: the caller's promise.
        unsafe { T::load8(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: as in `splat`.
        unsafe { _mm256_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: as in `splat`.
        unsafe {
            let four = _mm_add_ps(
                _mm256_castps256_ps128(self),
                _mm256_extractf128_ps::<1>(self),
            );
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Lanes for __m512 {
    const COUNT: usize = 16;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the CPU has AVX-512, here and below.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load<T: Element>(from: *const T) -> Self {
        // SAFETY: the caller's promise.
        unsafe { T::load16(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: as in `splat`.
        unsafe { _mm512_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_reduce_add_ps(self) }
    }
}
