//! Attention of queries that share one head of keys and values.
//!
//! - Layout: keys lie in panels of sixteen positions, and within a panel one component of all
//!   sixteen after the other, so that sixteen scores fill a register without horizontal sums.
//!   Values lie position by position.
//! - Up to eight queries share one pass over keys and values, because converting f16 to f32 costs
//!   as much as multiplying.
//! - Int8 keys and values are multiplied as they are: a key's scale is applied to its score, and a
//!   value's to its weight, so that a position costs two multiplications more.
//! - Every score is summed over the head's components, and every output over positions, in a fixed
//!   order. So a query gives the same bits alone and in a group, in a prompt and token by token.

#![allow(
    clippy::needless_range_loop,
    reason = "several arrays of registers are indexed side by side"
)]
#![expect(
    unsafe_code,
    reason = "vector loads through pointers, and calls into functions compiled for vectors"
)]

mod cache;

pub use cache::{CacheElement, HeadCache, PANEL, key_place, padded};

use crate::Isa;
use crate::activation::exp_all;
use crate::aligned::LINE;
use crate::isa::Width;
use crate::simd::{Eight, Lanes, for_every_width, prefetch_ahead};
#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::float32x4x2_t;
use std::ops::Range;

/// Most queries that share a pass over keys and values.
const MAX_QUERIES: usize = 8;

/// A query, and the positions it attends to.
#[derive(Debug)]
pub struct Query<'a> {
    /// The query vector, of the head's size, after rotation and multiplied by the scale of the
    /// scores.
    pub query: &'a [f32],
    /// The positions it attends to.
    pub seen: Range<usize>,
    /// Its head, which is passed to `rescore`.
    pub head: usize,
    /// The output, of the head's size.
    pub out: &'a mut [f32],
}

/// Memory reused from call to call.
#[derive(Debug, Default)]
pub struct Scratch {
    scores: Vec<f32>,
    sums: Vec<f32>,
}

/// `out = softmax(rescore(q · kᵀ)) · v` of each query over the positions it attends to.
/// `rescore(head, first, scores)` may change the scores of the positions from `first` on.
///
/// ```
/// use llm_int8_kernels::{Isa, attention::*};
/// let (mut keys, mut values) = ([0f32; 16], [0f32; 16 * 16]); // 16 positions of heads of size 1
/// (values[0], values[16]) = (1.0, 3.0);
/// keys[key_place(1, 0, 1)] = 100.0;
/// let mut out = [0f32];
/// let query = Query { query: &[1.0], seen: 0..2, head: 0, out: &mut out };
/// attend(Isa::detect(), HeadCache::new(&keys, &values, 1), &mut [query], |_, _, _| (), &mut Scratch::default());
/// assert_eq!(out, [3.0]); // all attention is on position 1
/// ```
///
/// # Panics
/// If a query attends to no position or to one that the cache does not hold, or if its length is
/// not the head's size.
pub fn attend<T: CacheElement>(
    isa: Isa,
    cache: HeadCache<'_, T>,
    queries: &mut [Query<'_>],
    rescore: impl Fn(usize, usize, &mut [f32]),
    scratch: &mut Scratch,
) {
    let positions = cache.values.len() / padded(cache.size);
    for query in queries.iter() {
        assert!(query.query.len() == cache.size && query.out.len() == cache.size);
        assert!(query.seen.start < query.seen.end && query.seen.end <= positions);
    }

    // Narrower registers hold fewer sums.
    let most = match isa.width() {
        Width::Scalar => 1,
        #[cfg(target_arch = "x86_64")]
        Width::V256 => 4,
        #[cfg(target_arch = "x86_64")]
        Width::V512 => MAX_QUERIES,
        #[cfg(target_arch = "aarch64")]
        Width::Neon => 4,
    };

    for queries in queries.chunks_mut(most) {
        match queries.len() {
            1 => attend_group::<T, 1>(isa, cache, queries, &rescore, scratch),
            2 => attend_group::<T, 2>(isa, cache, queries, &rescore, scratch),
            3 => attend_group::<T, 3>(isa, cache, queries, &rescore, scratch),
            4 => attend_group::<T, 4>(isa, cache, queries, &rescore, scratch),
            5 => attend_group::<T, 5>(isa, cache, queries, &rescore, scratch),
            6 => attend_group::<T, 6>(isa, cache, queries, &rescore, scratch),
            7 => attend_group::<T, 7>(isa, cache, queries, &rescore, scratch),
            _ => attend_group::<T, MAX_QUERIES>(isa, cache, queries, &rescore, scratch),
        }
    }
}

/// Attention of `Q` queries in one pass over the keys and one over the values.
fn attend_group<T: CacheElement, const Q: usize>(
    isa: Isa,
    cache: HeadCache<'_, T>,
    queries: &mut [Query<'_>],
    rescore: &impl Fn(usize, usize, &mut [f32]),
    scratch: &mut Scratch,
) {
    // Scores of all panels that any query attends to.
    let start = queries.iter().map(|q| q.seen.start).min().unwrap_or(0);
    let end = queries.iter().map(|q| q.seen.end).max().unwrap_or(0);
    let panels = start / PANEL..end.div_ceil(PANEL);
    let offset = panels.start * PANEL;
    let length = panels.len() * PANEL;
    scratch.scores.resize(Q * length, 0.0);
    let vectors: [&[f32]; Q] = std::array::from_fn(|i| queries[i].query);
    scores(isa, vectors, cache, panels, &mut scratch.scores);

    // Softmax, without the division by the total.
    let mut totals = [0f32; Q];
    for (i, query) in queries.iter().enumerate() {
        let seen = query.seen.start - offset..query.seen.end - offset;
        let row = &mut scratch.scores[i * length..][seen];
        if T::IS_SCALED {
            scale(isa, row, &cache.key_scales[query.seen.clone()]);
        }
        rescore(query.head, query.seen.start, row);
        totals[i] = exp_all(isa, row, largest(isa, row));
        if T::IS_SCALED {
            scale(isa, row, &cache.value_scales[query.seen.clone()]);
        }
    }

    sum_values::<T, Q>(isa, cache, queries, offset, scratch);

    let width = padded(cache.size);
    for (i, query) in queries.iter_mut().enumerate() {
        let inverse = totals[i].recip();
        let sums = &scratch.sums[i * width..];
        query
            .out
            .iter_mut()
            .zip(sums)
            .for_each(|(y, x)| *y = x * inverse);
    }
}

/// Sums the values of each query, weighted by its scores, into `scratch.sums` `[Q, padded(size)]`.
/// `offset` is the position of the first score.
///
/// Positions that all queries attend to are read once for all, the others query by query. Each
/// query still sums its positions in ascending order.
fn sum_values<T: CacheElement, const Q: usize>(
    isa: Isa,
    cache: HeadCache<'_, T>,
    queries: &[Query<'_>],
    offset: usize,
    scratch: &mut Scratch,
) {
    let length = scratch.scores.len() / Q;
    let width = padded(cache.size);
    scratch.sums.clear();
    scratch.sums.resize(Q * width, 0.0);

    let scores = &scratch.scores[..];
    let sums = &mut scratch.sums[..];
    let weights = |i: usize, seen: &Range<usize>| {
        &scores[i * length..][seen.start - offset..seen.end - offset]
    };
    let sum_one = |i: usize, seen: Range<usize>, sums: &mut [f32]| {
        if !seen.is_empty() {
            let sums = &mut sums[i * width..][..width];
            weighted_sum(isa, [weights(i, &seen)], cache, seen.start, sums);
        }
    };

    let start = queries.iter().map(|q| q.seen.start).max().unwrap_or(0);
    let end = queries.iter().map(|q| q.seen.end).min().unwrap_or(0);
    let shared = start..end.max(start);

    for (i, query) in queries.iter().enumerate() {
        let before = query.seen.start..shared.start.min(query.seen.end);
        sum_one(i, before, sums);
    }

    if !shared.is_empty() {
        let weights: [&[f32]; Q] = std::array::from_fn(|i| weights(i, &shared));
        weighted_sum(isa, weights, cache, shared.start, sums);
    }

    for (i, query) in queries.iter().enumerate() {
        let after = shared.end.max(query.seen.start)..query.seen.end;
        sum_one(i, after, sums);
    }
}

for_every_width! {
    /// Multiplies each value by its scale.
    fn scale(values: &mut [f32], scales: &[f32]) = scale_each
}

#[inline(always)]
fn scale_each(values: &mut [f32], scales: &[f32]) {
    values.iter_mut().zip(scales).for_each(|(x, y)| *x *= y);
}

for_every_width! {
    fn largest(values: &[f32]) -> f32 = largest_of
}

/// The largest value. NaN is ignored here; it shows up in the sum of exponentials.
#[inline(always)]
fn largest_of(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = values.as_chunks::<16>();

    let mut lanes = [f32::NEG_INFINITY; 16];
    for chunk in chunks {
        lanes
            .iter_mut()
            .zip(chunk)
            .for_each(|(lane, x)| *lane = larger(*lane, *x));
    }

    lanes
        .iter()
        .chain(rest)
        .copied()
        .fold(f32::NEG_INFINITY, larger)
}

/// Bytes ahead of those in use that are prefetched.
const AHEAD: usize = 4096;

/// Whether prefetching pays: where a position takes longer than reading it, so for int8 with several
/// queries and for floats with many. Otherwise the CPU's own prefetching keeps up; on a Zen 5, ours
/// cost up to a quarter.
const fn prefetches<T, const Q: usize>() -> bool {
    Q > 4 || Q > 1 && size_of::<T>() == 1
}

/// Scores of `Q` queries with all positions of some panels: `out` `[Q, positions]`.
fn scores<T: CacheElement, const Q: usize>(
    isa: Isa,
    queries: [&[f32]; Q],
    cache: HeadCache<'_, T>,
    panels: Range<usize>,
    out: &mut [f32],
) {
    let keys = &cache.keys[panels.start * PANEL * cache.size..panels.end * PANEL * cache.size];
    assert!(out.len() == Q * panels.len() * PANEL && queries.iter().all(|q| q.len() == cache.size));

    // SAFETY: `isa` proves that the CPU supports the instructions; the lengths were checked.
    unsafe {
        match isa.width() {
            Width::Scalar => scores_with::<Eight, T, Q>(queries, keys, out),
            #[cfg(target_arch = "x86_64")]
            Width::V256 => x86::scores256(queries, keys, out),
            #[cfg(target_arch = "x86_64")]
            Width::V512 => x86::scores512(queries, keys, out),
            #[cfg(target_arch = "aarch64")]
            Width::Neon => scores_with::<float32x4x2_t, T, Q>(queries, keys, out),
        }
    }
}

/// [`scores`] with registers `L`.
///
/// # Safety
/// The CPU supports the instructions of `L`; the lengths are as [`scores`] checks.
#[inline(always)]
unsafe fn scores_with<L: Lanes, T: CacheElement, const Q: usize>(
    queries: [&[f32]; Q],
    keys: &[T],
    out: &mut [f32],
) {
    let size = queries[0].len();
    let parts = PANEL / L::COUNT;
    let length = out.len() / Q;

    for p in 0..length / PANEL {
        // SAFETY: p < panels and d < size, so every load lies in a panel of `size` · 16 keys, and
        // every store in 16 scores.
        unsafe {
            let mut sums = [[L::splat(0.0); 2]; Q];
            for d in 0..size {
                let at = keys.as_ptr().add((p * size + d) * PANEL);
                if prefetches::<T, Q>() && (d * PANEL * size_of::<T>()).is_multiple_of(LINE) {
                    prefetch_ahead(at.cast(), AHEAD, 1);
                }
                let mut key = [L::splat(0.0); 2];
                for part in 0..parts {
                    key[part] = L::load(at.add(part * L::COUNT));
                }
                for q in 0..Q {
                    let x = L::splat(*queries[q].get_unchecked(d));
                    for part in 0..parts {
                        sums[q][part] = sums[q][part].add_mul(x, key[part]);
                    }
                }
            }

            for q in 0..Q {
                for part in 0..parts {
                    sums[q][part].store(
                        out.as_mut_ptr()
                            .add(q * length + p * PANEL + part * L::COUNT),
                    );
                }
            }
        }
    }
}

/// `sums[q] += weights[q][i] · values[first + i]` for each position `i` in order.
fn weighted_sum<T: CacheElement, const Q: usize>(
    isa: Isa,
    weights: [&[f32]; Q],
    cache: HeadCache<'_, T>,
    first: usize,
    sums: &mut [f32],
) {
    let width = padded(cache.size);
    let count = weights[0].len();
    let values = &cache.values[first * width..(first + count) * width];
    assert!(sums.len() == Q * width && weights.iter().all(|w| w.len() == count));

    // SAFETY: `isa` proves that the CPU supports the instructions; the lengths were checked.
    unsafe {
        match isa.width() {
            Width::Scalar => weighted_sum_with::<Eight, T, Q>(weights, values, sums),
            #[cfg(target_arch = "x86_64")]
            Width::V256 => x86::weighted_sum256(weights, values, sums),
            #[cfg(target_arch = "x86_64")]
            Width::V512 => x86::weighted_sum512(weights, values, sums),
            #[cfg(target_arch = "aarch64")]
            Width::Neon => weighted_sum_with::<float32x4x2_t, T, Q>(weights, values, sums),
        }
    }
}

/// [`weighted_sum`] with registers `L`.
///
/// # Safety
/// The CPU supports the instructions of `L`; the lengths are as [`weighted_sum`] checks.
#[inline(always)]
unsafe fn weighted_sum_with<L: Lanes, T: CacheElement, const Q: usize>(
    weights: [&[f32]; Q],
    values: &[T],
    sums: &mut [f32],
) {
    let width = sums.len() / Q;

    // As many accumulators as fit the register file: 32 registers of 512 bits, 16 of 256, or 16 pairs
    // of 128.
    let is_wide = if L::COUNT == 16 { Q <= 4 } else { Q <= 2 };

    let mut d = 0;
    while d < width {
        // SAFETY: d + C · COUNT ≤ width: `width` is a multiple of 16, so one register always fits.
        unsafe {
            d += if is_wide && d + 4 * L::COUNT <= width {
                weighted_sum_chunk::<L, T, Q, 4>(weights, values, sums, d)
            } else if d + 2 * L::COUNT <= width {
                weighted_sum_chunk::<L, T, Q, 2>(weights, values, sums, d)
            } else {
                weighted_sum_chunk::<L, T, Q, 1>(weights, values, sums, d)
            };
        }
    }
}

/// The sums of the `C` registers of components from `d` on; returns how many components that was.
///
/// # Safety
/// As for [`weighted_sum_with`], and `d + C · L::COUNT` is at most the padded size.
#[inline(always)]
unsafe fn weighted_sum_chunk<L: Lanes, T: CacheElement, const Q: usize, const C: usize>(
    weights: [&[f32]; Q],
    values: &[T],
    sums: &mut [f32],
    d: usize,
) -> usize {
    let width = sums.len() / Q;

    // SAFETY: the caller guarantees that components d to d + C · COUNT are inside each row of
    // `sums` and each position of `values`.
    unsafe {
        let mut registers = [[L::splat(0.0); C]; Q];
        for q in 0..Q {
            for c in 0..C {
                registers[q][c] = L::load(sums.as_ptr().add(q * width + d + c * L::COUNT));
            }
        }

        for i in 0..weights[0].len() {
            let mut value = [L::splat(0.0); C];
            let at = values.as_ptr().add(i * width + d);
            if prefetches::<T, Q>() {
                prefetch_ahead(at.cast(), AHEAD, C * L::COUNT * size_of::<T>());
            }
            for c in 0..C {
                value[c] = L::load(at.add(c * L::COUNT));
            }
            for q in 0..Q {
                let weight = L::splat(*weights[q].get_unchecked(i));
                for c in 0..C {
                    registers[q][c] = registers[q][c].add_mul(weight, value[c]);
                }
            }
        }

        for q in 0..Q {
            for c in 0..C {
                registers[q][c].store(sums.as_mut_ptr().add(q * width + d + c * L::COUNT));
            }
        }
    }

    C * L::COUNT
}

/// The x86 instantiations, compiled for their instruction sets.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{CacheElement, scores_with, weighted_sum_with};
    use std::arch::x86_64::{__m256, __m512};

    macro_rules! compiled {
        ($scores:ident, $weighted_sum:ident, $lanes:ty, $features:literal) => {
            /// # Safety
            /// The CPU supports the instructions; the lengths are as [`super::scores`] checks.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $scores<T: CacheElement, const Q: usize>(
                q: [&[f32]; Q],
                keys: &[T],
                out: &mut [f32],
            ) {
                // SAFETY: `target_feature` enables the instructions of the registers; the caller
                // guarantees the lengths.
                unsafe { scores_with::<$lanes, T, Q>(q, keys, out) }
            }

            /// # Safety
            /// The CPU supports the instructions; the lengths are as [`super::weighted_sum`]
            /// checks.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $weighted_sum<T: CacheElement, const Q: usize>(
                w: [&[f32]; Q],
                values: &[T],
                sums: &mut [f32],
            ) {
                // SAFETY: `target_feature` enables the instructions of the registers; the caller
                // guarantees the lengths.
                unsafe { weighted_sum_with::<$lanes, T, Q>(w, values, sums) }
            }
        };
    }
    compiled!(scores256, weighted_sum256, __m256, "avx2,f16c,fma");
    compiled!(
        scores512,
        weighted_sum512,
        __m512,
        "avx2,f16c,fma,avx512f,avx512bw,avx512dq,avx512vl"
    );
}
