//! Attention of queries that share one head of keys and values.
//!
//! Keys lie in panels of sixteen positions, one value of all sixteen after the other, so that
//! scores come out in registers without sums across them; values lie position after position. Up to
//! eight queries pass over keys and values together, because turning f16 into f32 costs as much as
//! multiplying. Every score runs over the head's values and every output over positions, one after
//! the other: a query gives the same bits alone and together with others, at once and token by
//! token.

#![allow(
    clippy::needless_range_loop,
    reason = "several arrays of registers are indexed side by side"
)]
#![expect(
    unsafe_code,
    reason = "vector loads through pointers, and calls into functions compiled for vectors"
)]

use crate::activation::exp_all;
use crate::isa::Width;
use crate::simd::{Eight, Lanes, for_every_width};
use crate::{Element, Isa};
use std::ops::Range;

/// Positions of a panel of keys; heads are filled up to a multiple of it.
pub const PANEL: usize = 16;

/// Most queries that pass over keys together.
const MOST: usize = 8;

/// Keys and values of one head for some positions.
#[derive(Debug, Clone, Copy)]
pub struct HeadCache<'a, T> {
    keys: &'a [T],
    values: &'a [T],
    size: usize,
}

/// A query and what it sees.
#[derive(Debug)]
pub struct Query<'a> {
    /// Rotated and multiplied with what scores are multiplied with; of the head's size.
    pub query: &'a [f32],
    /// The positions it sees.
    pub seen: Range<usize>,
    /// Its head, for `rescore`.
    pub head: usize,
    /// Where the result goes, of the head's size.
    pub out: &'a mut [f32],
}

/// Memory reused from call to call.
#[derive(Debug, Default)]
pub struct Scratch {
    scores: Vec<f32>,
    sums: Vec<f32>,
}

/// Values of a head as they lie in memory: its size, filled up.
///
/// ```
/// assert_eq!([1, 16, 20].map(llm_int8_kernels::attention::padded), [16, 16, 32]);
/// ```
pub fn padded(size: usize) -> usize {
    size.next_multiple_of(PANEL)
}

/// Where value `d` of the key of a position lies in a head's keys.
///
/// ```
/// use llm_int8_kernels::attention::key_place;
/// assert_eq!((key_place(3, 0, 64), key_place(3, 1, 64), key_place(16, 0, 64)), (3, 19, 1024));
/// ```
pub fn key_place(position: usize, d: usize, size: usize) -> usize {
    (position / PANEL * size + d) * PANEL + position % PANEL
}

impl<'a, T: Element> HeadCache<'a, T> {
    /// Keys and values of a head of `size` values: both hold as many positions, a multiple of
    /// [`PANEL`]; keys by [`key_place`], values [`padded`] and one position after the other.
    ///
    /// # Panics
    /// Where the lengths are not those.
    pub fn new(keys: &'a [T], values: &'a [T], size: usize) -> Self {
        let positions = values.len() / padded(size).max(1);
        assert!(positions.is_multiple_of(PANEL) && values.len() == positions * padded(size));
        assert!(keys.len() == positions * size);

        Self { keys, values, size }
    }
}

/// `softmax(rescore(q · kᵀ)) · v` of each query over the positions it sees. `rescore` gets a
/// query's head, the first position and the scores, and may change these.
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
/// Where a query sees positions that the cache does not hold, or is not of the head's size.
pub fn attend<T: Element>(
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
        Width::V512 => MOST,
    };

    for queries in queries.chunks_mut(most) {
        match queries.len() {
            1 => together::<T, 1>(isa, cache, queries, &rescore, scratch),
            2 => together::<T, 2>(isa, cache, queries, &rescore, scratch),
            3 => together::<T, 3>(isa, cache, queries, &rescore, scratch),
            4 => together::<T, 4>(isa, cache, queries, &rescore, scratch),
            5 => together::<T, 5>(isa, cache, queries, &rescore, scratch),
            6 => together::<T, 6>(isa, cache, queries, &rescore, scratch),
            7 => together::<T, 7>(isa, cache, queries, &rescore, scratch),
            _ => together::<T, MOST>(isa, cache, queries, &rescore, scratch),
        }
    }
}

fn together<T: Element, const Q: usize>(
    isa: Isa,
    cache: HeadCache<'_, T>,
    queries: &mut [Query<'_>],
    rescore: &impl Fn(usize, usize, &mut [f32]),
    scratch: &mut Scratch,
) {
    let first = queries.iter().map(|q| q.seen.start).min().unwrap_or(0) / PANEL;
    let last = queries
        .iter()
        .map(|q| q.seen.end)
        .max()
        .unwrap_or(0)
        .div_ceil(PANEL);
    let length = (last - first) * PANEL;
    let width = padded(cache.size);
    scratch.scores.resize(Q * length, 0.0);
    let vectors: [&[f32]; Q] = std::array::from_fn(|i| queries[i].query);
    scores(isa, vectors, cache, first..last, &mut scratch.scores);

    scratch.sums.clear();
    scratch.sums.resize(Q * width, 0.0);
    let offset = first * PANEL;

    let mut totals = [0f32; Q];
    for (i, query) in queries.iter().enumerate() {
        let seen = query.seen.start - offset..query.seen.end - offset;
        let row = &mut scratch.scores[i * length..][seen];
        rescore(query.head, query.seen.start, row);
        totals[i] = exp_all(isa, row, largest(isa, row));
    }

    // What all see is passed together, what only some see one by one, and positions stay in order.
    let start = queries.iter().map(|q| q.seen.start).max().unwrap_or(0);
    let end = queries
        .iter()
        .map(|q| q.seen.end)
        .min()
        .unwrap_or(0)
        .max(start);
    let one = |i: usize, places: Range<usize>, scratch: &mut Scratch| {
        if !places.is_empty() {
            let weights =
                [&scratch.scores[i * length..][places.start - offset..places.end - offset]];
            mix(
                isa,
                weights,
                cache,
                places.start,
                &mut scratch.sums[i * width..][..width],
            );
        }
    };

    for (i, query) in queries.iter().enumerate() {
        one(i, query.seen.start..start.min(query.seen.end), scratch);
    }
    if start < end {
        let weights: [&[f32]; Q] =
            std::array::from_fn(|i| &scratch.scores[i * length..][start - offset..end - offset]);
        mix(isa, weights, cache, start, &mut scratch.sums);
    }

    for (i, query) in queries.iter_mut().enumerate() {
        one(i, end.max(query.seen.start)..query.seen.end, scratch);
        let inverse = totals[i].recip();
        let sums = &scratch.sums[i * width..];
        query
            .out
            .iter_mut()
            .zip(sums)
            .for_each(|(y, x)| *y = x * inverse);
    }
}

for_every_width! {
    fn largest(values: &[f32]) -> f32 = largest_of
}

/// The largest value; NaN counts for nothing here and shows in the sum of powers.
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

/// Scores of `Q` queries with all positions of some panels: `out[q][position]`.
fn scores<T: Element, const Q: usize>(
    isa: Isa,
    queries: [&[f32]; Q],
    cache: HeadCache<'_, T>,
    panels: Range<usize>,
    out: &mut [f32],
) {
    let keys = &cache.keys[panels.start * PANEL * cache.size..panels.end * PANEL * cache.size];
    assert!(out.len() == Q * panels.len() * PANEL && queries.iter().all(|q| q.len() == cache.size));

    // SAFETY: `isa` proves that the CPU has the instructions; the lengths were checked.
    unsafe {
        match isa.width() {
            Width::Scalar => scores_with::<Eight, T, Q>(queries, keys, out),
            #[cfg(target_arch = "x86_64")]
            Width::V256 => x86::scores256(queries, keys, out),
            #[cfg(target_arch = "x86_64")]
            Width::V512 => x86::scores512(queries, keys, out),
        }
    }
}

/// # Safety
/// As [`scores`] checks, and the CPU has the instructions of `L`.
#[inline(always)]
unsafe fn scores_with<L: Lanes, T: Element, const Q: usize>(
    queries: [&[f32]; Q],
    keys: &[T],
    out: &mut [f32],
) {
    let size = queries[0].len();
    let parts = PANEL / L::COUNT;
    let length = out.len() / Q;

    for p in 0..length / PANEL {
        // SAFETY: every load and store lies in a panel of `size` · 16 keys or of 16 scores.
        unsafe {
            let mut sums = [[L::splat(0.0); 2]; Q];
            for d in 0..size {
                let at = keys.as_ptr().add((p * size + d) * PANEL);
                let mut key = [L::splat(0.0); 2];
                for part in 0..parts {
                    key[part] = L::load(at.add(part * L::COUNT));
                }
                for q in 0..Q {
                    let x = L::splat(*queries[q].get_unchecked(d));
                    for part in 0..parts {
                        sums[q][part] = sums[q][part].add_product(x, key[part]);
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

/// `sums[q] += Σ weights[q][i] · values[first + i]`, one position after the other.
fn mix<T: Element, const Q: usize>(
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

    // SAFETY: `isa` proves that the CPU has the instructions; the lengths were checked.
    unsafe {
        match isa.width() {
            Width::Scalar => mix_with::<Eight, T, Q>(weights, values, sums),
            #[cfg(target_arch = "x86_64")]
            Width::V256 => x86::mix256(weights, values, sums),
            #[cfg(target_arch = "x86_64")]
            Width::V512 => x86::mix512(weights, values, sums),
        }
    }
}

/// # Safety
/// As [`mix`] checks, and the CPU has the instructions of `L`.
#[inline(always)]
unsafe fn mix_with<L: Lanes, T: Element, const Q: usize>(
    weights: [&[f32]; Q],
    values: &[T],
    sums: &mut [f32],
) {
    let width = sums.len() / Q;

    // As many sums as there are registers for: 32 of 512 bits, 16 of 256.
    let is_wide = if L::COUNT == 16 { Q <= 4 } else { Q <= 2 };

    let mut d = 0;
    while d < width {
        // SAFETY: d and the registers after it lie in a position of `width` values, a multiple of
        // 16.
        unsafe {
            d += if is_wide && d + 4 * L::COUNT <= width {
                mix_chunk::<L, T, Q, 4>(weights, values, sums, d)
            } else if d + 2 * L::COUNT <= width {
                mix_chunk::<L, T, Q, 2>(weights, values, sums, d)
            } else {
                mix_chunk::<L, T, Q, 1>(weights, values, sums, d)
            };
        }
    }
}

/// `C` registers of values from `d` on; returns how many values that was.
///
/// # Safety
/// As [`mix_with`] has it.
#[inline(always)]
unsafe fn mix_chunk<L: Lanes, T: Element, const Q: usize, const C: usize>(
    weights: [&[f32]; Q],
    values: &[T],
    sums: &mut [f32],
    d: usize,
) -> usize {
    let width = sums.len() / Q;

    // SAFETY: the caller's promise.
    unsafe {
        let mut registers = [[L::splat(0.0); C]; Q];
        for q in 0..Q {
            for c in 0..C {
                registers[q][c] = L::load(sums.as_ptr().add(q * width + d + c * L::COUNT));
            }
        }

        for i in 0..weights[0].len() {
            let mut value = [L::splat(0.0); C];
            for c in 0..C {
                value[c] = L::load(values.as_ptr().add(i * width + d + c * L::COUNT));
            }
            for q in 0..Q {
                let weight = L::splat(*weights[q].get_unchecked(i));
                for c in 0..C {
                    registers[q][c] = registers[q][c].add_product(weight, value[c]);
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

/// The same for the vectors of x86.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{mix_with, scores_with};
    use crate::Element;
    use std::arch::x86_64::{__m256, __m512};

    macro_rules! compiled {
        ($scores:ident, $mix:ident, $lanes:ty, $features:literal) => {
            /// # Safety
            /// As [`super::scores`] checks.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $scores<T: Element, const Q: usize>(
                q: [&[f32]; Q],
                keys: &[T],
                out: &mut [f32],
            ) {
                // SAFETY: the caller's promise, and this function's instructions.
                unsafe { scores_with::<$lanes, T, Q>(q, keys, out) }
            }

            /// # Safety
            /// As [`super::mix`] checks.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $mix<T: Element, const Q: usize>(
                w: [&[f32]; Q],
                values: &[T],
                sums: &mut [f32],
            ) {
                // SAFETY: the caller's promise, and this function's instructions.
                unsafe { mix_with::<$lanes, T, Q>(w, values, sums) }
            }
        };
    }
    compiled!(scores256, mix256, __m256, "avx2,f16c,fma");
    compiled!(
        scores512,
        mix512,
        __m512,
        "avx2,f16c,fma,avx512f,avx512bw,avx512dq,avx512vl"
    );
}
