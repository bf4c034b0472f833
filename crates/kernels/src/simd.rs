//! Tools for floating-point kernels: one body, compiled for every vector width.
//!
//! [`for_every_width!`] compiles a plain function for every vector width of x86-64 and dispatches on
//! [`Isa`](crate::Isa); the compiler vectorises its loops over slices, and neither reorders nor
//! fuses operations, so results are bit-identical on every instruction set. On AArch64 one version
//! is enough: the compiler may use NEON everywhere, because every CPU has it. [`Lanes`] names
//! registers explicitly; its [`add_mul`](Lanes::add_mul) is fused where the CPU can, so kernels
//! that use it differ in the last bits.

#![expect(
    unsafe_code,
    reason = "calls into functions compiled for instruction sets, and vector loads"
)]

use crate::attention::CacheElement;
#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Whether this CPU supports what is compiled for 512 bits. std caches the answer.
#[cfg(target_arch = "x86_64")]
pub(crate) fn avx512_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

/// Prefetches `bytes` into L2.
pub(crate) fn prefetch(bytes: &[i8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        // SAFETY: a prefetch never faults, and every x86-64 CPU supports SSE.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

/// Prefetches into L1 the `count` bytes that lie `ahead` bytes after `place`. They may lie past the
/// end of the allocation: a prefetch is a hint and never faults.
#[inline(always)]
pub(crate) fn prefetch_ahead(place: *const i8, ahead: usize, count: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..count).step_by(64) {
        // SAFETY: a prefetch never faults, and every x86-64 CPU supports SSE.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(place.wrapping_add(ahead + line)) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (place, ahead, count);
}

/// `fn name(isa, …) = body` compiles `body`, which must be `#[inline(always)]`, for every vector
/// width and dispatches on `isa`.
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
                // SAFETY: an `Isa` of width V256 exists only on CPUs with AVX2, F16C and FMA.
                #[cfg(target_arch = "x86_64")]
                crate::isa::Width::V256 => unsafe { v256($($argument),*) },
                // SAFETY: an `Isa` of width V512 exists only on CPUs with these AVX-512 extensions.
                #[cfg(target_arch = "x86_64")]
                crate::isa::Width::V512 => unsafe { v512($($argument),*) },
                // Plain Rust, which the compiler vectorises with NEON on AArch64.
                _ => $body($($argument),*),
            }
        }
    };
}
pub(crate) use for_every_width;

/// The sum of accumulators, from the first to the last.
#[inline(always)]
pub(crate) fn total<const N: usize>(sums: [f32; N]) -> f32 {
    // On AArch64, LLVM 22 sees the additions below and gives every accumulator its own register in the
    // loop before them. It vectorises that loop if it must store the accumulators side by side.
    #[cfg(target_arch = "aarch64")]
    let sums = std::hint::black_box(sums);
    sums.iter().sum()
}

/// A register of f32. Trait methods cannot have a `target_feature`, so these must be inlined into
/// functions that do.
pub(crate) trait Lanes: Copy {
    /// Values of a register.
    const COUNT: usize;

    /// All values `x`.
    ///
    /// # Safety
    /// The CPU supports the instructions of the implementing type, as for every method below.
    unsafe fn splat(x: f32) -> Self;

    /// The values at `from`, as f32.
    ///
    /// # Safety
    /// `COUNT` values are readable at `from`.
    unsafe fn load<T: CacheElement>(from: *const T) -> Self;

    /// Writes all values to `to`.
    ///
    /// # Safety
    /// `COUNT` values are writable at `to`.
    unsafe fn store(self, to: *mut f32);

    /// `self + a · b`: one rounding in vectors (FMA), two in plain Rust.
    ///
    /// # Safety
    /// The CPU supports the instructions.
    unsafe fn add_mul(self, a: Self, b: Self) -> Self;

    /// The sum of all values.
    ///
    /// # Safety
    /// The CPU supports the instructions.
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
    unsafe fn load<T: CacheElement>(from: *const T) -> Self {
        // SAFETY: the caller guarantees eight readable values.
        Self(std::array::from_fn(|i| unsafe { (*from.add(i)).widened() }))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller guarantees eight writable values.
        (0..8).for_each(|i| unsafe { *to.add(i) = self.0[i] });
    }

    #[inline(always)]
    unsafe fn add_mul(self, a: Self, b: Self) -> Self {
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
        // SAFETY: the caller guarantees AVX2.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load<T: CacheElement>(from: *const T) -> Self {
        // SAFETY: the caller guarantees eight readable values, and AVX2 and F16C.
        unsafe { T::load8(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller guarantees eight writable values, and AVX2.
        unsafe { _mm256_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn add_mul(self, a: Self, b: Self) -> Self {
        // SAFETY: the caller guarantees FMA.
        unsafe { _mm256_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller guarantees AVX2.
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
        // SAFETY: the caller guarantees AVX-512.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load<T: CacheElement>(from: *const T) -> Self {
        // SAFETY: the caller guarantees sixteen readable values, and AVX-512.
        unsafe { T::load16(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller guarantees sixteen writable values, and AVX-512.
        unsafe { _mm512_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn add_mul(self, a: Self, b: Self) -> Self {
        // SAFETY: the caller guarantees AVX-512.
        unsafe { _mm512_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller guarantees AVX-512.
        unsafe { _mm512_reduce_add_ps(self) }
    }
}

/// Eight values, as on AVX2: a pair of registers, of which AArch64 has 32.
#[cfg(target_arch = "aarch64")]
impl Lanes for float32x4x2_t {
    const COUNT: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: every AArch64 CPU has NEON.
        unsafe { Self(vdupq_n_f32(x), vdupq_n_f32(x)) }
    }

    #[inline(always)]
    unsafe fn load<T: CacheElement>(from: *const T) -> Self {
        // SAFETY: the caller guarantees eight readable values.
        unsafe { T::load8(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller guarantees eight writable values.
        unsafe {
            vst1q_f32(to, self.0);
            vst1q_f32(to.add(4), self.1);
        }
    }

    #[inline(always)]
    unsafe fn add_mul(self, a: Self, b: Self) -> Self {
        // SAFETY: every AArch64 CPU has NEON.
        unsafe { Self(vfmaq_f32(self.0, a.0, b.0), vfmaq_f32(self.1, a.1, b.1)) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: every AArch64 CPU has NEON.
        unsafe { vaddvq_f32(vaddq_f32(self.0, self.1)) }
    }
}
