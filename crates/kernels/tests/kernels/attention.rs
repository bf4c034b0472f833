//! Attention against its formula in f64, and bit for bit against itself: queries alone and in
//! groups.

use super::{Noise, bits};
use half::{bf16, f16};
use llm_int8_kernels::attention::{
    CacheElement, HeadCache, PANEL, Query, Scratch, attend, key_place, padded,
};
use llm_int8_kernels::{Isa, reference};
use std::ops::Range;

/// Keys and values of a head: in the kernels' layout, and plain, `[positions][size]`, as `T` stores
/// them.
struct Head<T> {
    keys: Vec<T>,
    values: Vec<T>,
    scales: [Vec<f32>; 2],
    plain: [Vec<Vec<f64>>; 2],
    size: usize,
}

impl<T: CacheElement> Head<T> {
    fn new(noise: &mut Noise, positions: usize, size: usize) -> Self {
        let isa = Isa::detect();
        let capacity = positions.next_multiple_of(PANEL);
        let plain = [0, 1].map(|_| vec![vec![0.0; size]; positions]);

        // NaN past the last position: it must not matter.
        let mut nan = [T::default()];
        T::store(isa, &[f32::NAN], 1.0, &mut nan);
        let scales = if T::IS_SCALED { capacity } else { 0 };
        let mut head = Self {
            keys: vec![nan[0]; capacity * size],
            values: vec![nan[0]; capacity * padded(size)],
            scales: [0, 1].map(|_| vec![f32::NAN; scales]),
            plain,
            size,
        };

        for position in 0..positions {
            let mut stored = vec![T::default(); size];
            for which in [0, 1] {
                let vector = noise.normals(size, 1.0);
                let scale = T::scale_of(isa, &vector);
                T::store(isa, &vector, scale, &mut stored);
                if T::IS_SCALED {
                    head.scales[which][position] = scale;
                }
                let plain = stored.iter();
                let plain = plain.map(|x| f64::from(x.widened()) * f64::from(scale));
                head.plain[which][position] = plain.collect();

                if which == 0 {
                    for (d, key) in stored.iter().enumerate() {
                        head.keys[key_place(position, d, size)] = *key;
                    }
                } else {
                    let values = &mut head.values[position * padded(size)..][..padded(size)];
                    values[..size].copy_from_slice(&stored);
                    values[size..].fill(T::default());
                }
            }
        }

        head
    }

    fn run(&self, isa: Isa, queries: &[(Vec<f32>, Range<usize>)]) -> Vec<f32> {
        let mut out = vec![f32::NAN; queries.len() * self.size];
        let mut queries: Vec<Query<'_>> =
            (queries.iter().enumerate().zip(out.chunks_mut(self.size)))
                .map(|((head, (query, seen)), out)| Query {
                    query,
                    seen: seen.clone(),
                    head,
                    out,
                })
                .collect();
        let scales = [&self.scales[0][..], &self.scales[1][..]];
        let cache = HeadCache::scaled(&self.keys, &self.values, scales, self.size);
        attend(isa, cache, &mut queries, rescore, &mut Scratch::default());
        out
    }

    fn expected(&self, head: usize, query: &[f32], seen: Range<usize>) -> Vec<f64> {
        let [keys, values] = &self.plain;
        let dot = |key: &[f64]| {
            query
                .iter()
                .zip(key)
                .map(|(x, y)| f64::from(*x) * y)
                .sum::<f64>()
        };

        let scores: Vec<f64> = seen
            .clone()
            .map(|i| dot(&keys[i]) + bias(head, i))
            .collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let powers: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let total: f64 = powers.iter().sum();
        let value = |d: usize| {
            seen.clone()
                .zip(&powers)
                .map(|(i, p)| p * values[i][d])
                .sum::<f64>()
        };

        (0..self.size).map(|d| value(d) / total).collect()
    }
}

/// The bias that `rescore` adds to the score of a position.
fn bias(head: usize, position: usize) -> f64 {
    0.25 * (head * position % 3) as f64
}

fn rescore(head: usize, first: usize, scores: &mut [f32]) {
    scores
        .iter_mut()
        .enumerate()
        .for_each(|(i, score)| *score += bias(head, first + i) as f32);
}

fn check<T: CacheElement>(size: usize, seen: &[Range<usize>]) {
    let mut noise = Noise(41);
    let positions = seen.iter().map(|seen| seen.end).max().unwrap();
    let head = Head::<T>::new(&mut noise, positions, size);
    let deviation = 1.0 / (size as f32).sqrt();
    let queries: Vec<_> = seen
        .iter()
        .map(|seen| (noise.normals(size, deviation), seen.clone()))
        .collect();
    for isa in Isa::available() {
        let found = head.run(isa, &queries);
        for (i, ((query, seen), found)) in queries.iter().zip(found.chunks(size)).enumerate() {
            let expected = head.expected(i, query, seen.clone());

            // Each sum, over `size` and over positions, adds some units of f32 to the error.
            let bound = f64::from(f32::EPSILON) * (size + seen.len() + 16) as f64 * 4.0;
            let far = found
                .iter()
                .zip(&expected)
                .find(|(x, y)| (f64::from(**x) - **y).abs() > bound);
            assert!(far.is_none(), "{isa:?} {size} {seen:?}: {far:?}");
        }

        // The bias depends on the query's number as its head, so only query 0 has the same bias
        // when it runs alone.
        let first = head.run(isa, &queries[..1]);
        assert_eq!(
            bits(&first),
            bits(&found[..size]),
            "{isa:?}: a query depends on the others in its group"
        );
    }
}

#[test]
fn every_size_and_length_matches_the_formula() {
    for size in [1, 3, 16, 20, 64, 80, 96] {
        check::<f32>(size, &[0..1, 0..2]);
        check::<f32>(size, &[0..15, 0..16, 0..17]);
        check::<f16>(size, &(1..12).map(|end| 0..end).collect::<Vec<_>>());
        check::<bf16>(size, &[3..40, 0..40, 17..41, 39..42, 0..100]);
        check::<f16>(size, &[0..3, 10..14, 20..33]);
        check::<i8>(size, &[0..1, 0..2]);
        check::<i8>(size, &(1..12).map(|end| 0..end).collect::<Vec<_>>());
        check::<i8>(size, &[3..40, 0..40, 17..41, 39..42, 0..100]);
        check::<i8>(size, &[0..3, 10..14, 20..33]);
    }
}

#[test]
fn queries_give_the_same_bits_in_any_group() {
    check_groups::<f16>();
    check_groups::<i8>();
}

fn check_groups<T: CacheElement>() {
    let mut noise = Noise(42);
    let head = Head::<T>::new(&mut noise, 70, 64);
    let query = noise.normals(64, 0.1);

    for isa in Isa::available() {
        let alone = |seen: Range<usize>| bits(&head.run(isa, &[(query.clone(), seen)]));

        // The query is always the first of its group, so that its head, and bias, are the same.
        for others in 1..20 {
            for first in [0..30, 12..50] {
                let rest = (0..others).map(|i| (noise.normals(64, 0.1), i..i + 31));
                let all: Vec<_> = std::iter::once((query.clone(), first.clone()))
                    .chain(rest)
                    .collect();
                assert_eq!(
                    bits(&head.run(isa, &all)[..64]),
                    alone(first),
                    "{isa:?} {others}"
                );
            }
        }
    }
}

#[test]
fn codes_and_scales_are_those_of_the_reference_on_every_instruction_set() {
    let mut noise = Noise(43);
    for size in (0..70).chain([80, 96, 128, 255, 256]) {
        for deviation in [1e-44, 1e-37, 1e-3, 1.0, 1e30, 3e37] {
            let vector = noise.normals(size, deviation);
            check_codes(&vector);
        }
    }

    // Halves, both zeros, the largest and the smallest numbers, and what is no number.
    let halves: Vec<f32> = (-254..=254).map(|i| i as f32 * 0.5).collect();
    check_codes(&halves);
    check_codes(&[0.0, -0.0]);
    check_codes(&[f32::MAX, f32::MIN, f32::MIN_POSITIVE]);
    check_codes(&[f32::MIN_POSITIVE * 126.0, 1e-40]);
    check_codes(&[f32::MIN_POSITIVE * 128.0, 1e-40]);
    for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for place in [0, 15, 16, 33] {
            let mut vector = noise.normals(34, 1.0);
            vector[place] = bad;
            check_codes(&vector);
        }
    }
}

fn check_codes(vector: &[f32]) {
    let (codes, scale) = reference::quantize_vector(vector);
    for isa in Isa::available() {
        let found = i8::scale_of(isa, vector);
        assert_eq!(
            found.to_bits(),
            scale.to_bits(),
            "{isa:?}: {found} {scale} of {vector:?}"
        );
        // In parts too: keys are stored panel by panel.
        for part in [1, PANEL, vector.len().max(1)] {
            let mut found = vec![99i8; vector.len()];
            for (x, y) in vector.chunks(part).zip(found.chunks_mut(part)) {
                i8::store(isa, x, scale, y);
            }
            assert_eq!(found, codes, "{isa:?}: {vector:?}");
        }
    }
}

/// A component that is no number must show in the output of whoever attends to it, and of nobody
/// else.
#[test]
fn what_is_not_finite_is_not_hidden_by_its_code() {
    let size = 20;
    let mut noise = Noise(44);
    for which in [0, 1] {
        let mut head = Head::<i8>::new(&mut noise, 20, size);
        head.scales[which][7] = i8::scale_of(Isa::detect(), &[1.0, f32::INFINITY]);
        let query = noise.normals(size, 0.1);
        for isa in Isa::available() {
            let run = |seen| head.run(isa, &[(query.clone(), seen)]);
            assert!(run(0..8).iter().all(|x| x.is_nan()), "{isa:?}");
            assert!(run(0..7).iter().all(|x| x.is_finite()), "{isa:?}");
            assert!(run(8..20).iter().all(|x| x.is_finite()), "{isa:?}");
        }
    }
}
