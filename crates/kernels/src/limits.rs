//! Roofline of this machine, to compare results with: memory read bandwidth, and int8 multiply-adds
//! per second with all operands in registers.

#![allow(
    unsafe_code,
    reason = "empty assembly that keeps the compiler from hoisting the work out of a loop"
)]

use crate::Isa;
use crate::aligned::elements_before_line;
use crate::isa::Kind;
use crate::pages::prefer_large;
use crate::simd::for_every_width;
use rayon::prelude::*;
use std::hint::black_box;
use std::time::Instant;

/// Bytes to read: much more than the LLC holds.
const BUFFER: usize = 512 << 20;
/// Prefetch distance in bytes.
const AHEAD: usize = 1024;
/// Measurements per instruction set. The best one counts, because other load on the machine only
/// slows a run down.
const TRIES: usize = 7;

/// Bytes per second that all threads together read from `memory`, with the loads of whichever
/// instruction set is fastest. On shared machines the physical location of memory changes this by
/// up to a third, so a model's limit is measured on its own weights.
///
/// ```no_run
/// println!("{:.1} GB/s", llm_int8_kernels::limits::read_rate(&[&[0i8; 1 << 20]]) / 1e9);
/// ```
pub fn read_rate(memory: &[&[i8]]) -> f64 {
    // The access pattern of weights: aligned to a cache line, one contiguous share per thread.
    let pieces: Vec<&[u64]> = (memory.iter())
        .filter_map(|part| part.get(elements_before_line(part)..))
        .flat_map(|part| {
            bytemuck::cast_slice::<i8, u64>(&part[..part.len() / 8 * 8]).chunks(1 << 17)
        })
        .collect();
    let bytes: usize = pieces.iter().map(|piece| size_of_val(*piece)).sum();
    let share = pieces.len().div_ceil(rayon::current_num_threads()).max(1);

    let seconds = |isa| {
        let started = Instant::now();
        let total: u64 = (pieces.par_chunks(share))
            .map(|pieces| {
                pieces
                    .iter()
                    .fold(0, |total, piece| sum(isa, piece).wrapping_add(total))
            })
            .reduce(|| 0, u64::wrapping_add);
        black_box(total);
        started.elapsed().as_secs_f64()
    };

    let tries = Isa::available()
        .into_iter()
        .flat_map(|isa| std::iter::repeat_n(isa, TRIES));
    bytes as f64 / tries.map(seconds).fold(f64::INFINITY, f64::min)
}

/// [`read_rate`] of freshly allocated huge pages.
///
/// ```no_run
/// println!("{:.1} GB/s", llm_int8_kernels::limits::read_rate_of_new_memory() / 1e9);
/// ```
pub fn read_rate_of_new_memory() -> f64 {
    let mut buffer = vec![0i8; BUFFER];
    prefer_large(&mut buffer);
    buffer.par_chunks_mut(1 << 19).for_each(|part| part.fill(1));
    read_rate(&[&buffer])
}

for_every_width! {
    fn sum(values: &[u64]) -> u64 = sum_of
}

#[inline(always)]
fn sum_of(values: &[u64]) -> u64 {
    const LANES: usize = 32;
    let mut sums = [0u64; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();

    for chunk in chunks {
        // Hardware prefetchers keep up less well with 512-bit loads.
        crate::simd::prefetch_ahead(chunk.as_ptr().cast(), AHEAD, size_of_val(chunk));
        sums.iter_mut()
            .zip(chunk)
            .for_each(|(sum, x)| *sum = sum.wrapping_add(*x));
    }

    sums.iter()
        .chain(rest)
        .fold(0, |sum, x| sum.wrapping_add(*x))
}

/// Int8 multiply-adds per second of all threads together, with all operands in registers.
///
/// ```no_run
/// let rate = llm_int8_kernels::limits::multiply_rate(llm_int8_kernels::Isa::detect());
/// println!("{:.0} G multiply-adds/s", rate / 1e9);
/// ```
pub fn multiply_rate(isa: Isa) -> f64 {
    let threads = rayon::current_num_threads();
    let seconds = || {
        let started = Instant::now();
        let done: u64 = (0..threads).into_par_iter().map(|_| multiply(isa)).sum();
        done as f64 / started.elapsed().as_secs_f64()
    };

    (0..TRIES).map(|_| seconds()).fold(0.0, f64::max)
}

/// Multiplies for some milliseconds on one thread and returns the number of multiply-adds.
fn multiply(isa: Isa) -> u64 {
    // SAFETY: `isa` proves that the CPU supports the instructions.
    unsafe {
        match isa.kind() {
            Kind::Scalar => scalar(),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => x86::avx2(),
            #[cfg(target_arch = "x86_64")]
            Kind::AvxVnni => x86::avx_vnni(),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Vnni => x86::avx512_vnni(),
            #[cfg(target_arch = "x86_64")]
            Kind::Amx => crate::gemm::amx_multiply_adds(ROUNDS),
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => crate::gemm::neon::smull_multiply_adds(ROUNDS),
            #[cfg(target_arch = "aarch64")]
            Kind::NeonDot => crate::gemm::neon::sdot_multiply_adds(ROUNDS),
        }
    }
}

/// Iterations of the inner loop, each of a dozen independent multiplications (AMX: four).
const ROUNDS: u64 = 4_000_000;

fn scalar() -> u64 {
    let a = black_box([3i8; 64]);
    let b = black_box([5i8; 64]);
    for _ in 0..ROUNDS / 16 {
        black_box(
            a.iter()
                .zip(black_box(&b))
                .map(|(&x, &y)| i32::from(x) * i32::from(y))
                .sum::<i32>(),
        );
    }

    ROUNDS / 16 * 64
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::ROUNDS;
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Twelve independent accumulators, enough to hide the latency of a multiply-add.
    macro_rules! rounds {
        ($name:ident, $features:literal, $class:ident, $register:ty, $zero:ident, $ones:expr, $codes:literal, $step:expr) => {
            /// # Safety
            /// The CPU supports the instructions.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name() -> u64 {
                let mut sums = [$zero(); 12];
                let mut x = $ones;
                let y = $ones;

                for _ in 0..ROUNDS {
                    // SAFETY: the assembly is empty; it only makes the compiler assume that x
                    // changed.
                    unsafe { asm!("/* {0} */", inout($class) x, options(nomem, nostack, pure, preserves_flags)) };
                    for sum in &mut sums {
                        *sum = $step(*sum, x, y);
                    }
                }

                black_box(sums);
                ROUNDS * 12 * $codes
            }
        };
    }

    // `vpmaddwd` takes the sum as a factor: with constant factors the compiler would multiply once
    // for all twelve.
    rounds!(
        avx2,
        "avx2",
        ymm_reg,
        __m256i,
        _mm256_setzero_si256,
        _mm256_set1_epi16(1),
        16,
        |s, x, _| { _mm256_add_epi32(s, _mm256_madd_epi16(x, s)) }
    );
    rounds!(
        avx_vnni,
        "avx2,avxvnni",
        ymm_reg,
        __m256i,
        _mm256_setzero_si256,
        _mm256_set1_epi8(1),
        32,
        |s, x, y| { _mm256_dpbusd_avx_epi32(s, x, y) }
    );
    rounds!(
        avx512_vnni,
        "avx512f,avx512bw,avx512vnni",
        zmm_reg,
        __m512i,
        _mm512_setzero_si512,
        _mm512_set1_epi8(1),
        64,
        |s, x, y| _mm512_dpbusd_epi32(s, x, y)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_isa_multiplies() {
        for isa in Isa::available() {
            assert!(multiply(isa) > 1_000_000, "{isa:?}");
        }
        assert_eq!(sum(Isa::detect(), &[1; 101]), 101);
    }
}
