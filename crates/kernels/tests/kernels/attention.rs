//! Attention against its formula in f64, and bit for bit against itself: queries alone and in
//! groups.

use super::{Noise, bits};
use half::{bf16, f16};
use llm_int8_kernels::attention::{HeadCache, PANEL, Query, Scratch, attend, key_place, padded};
use llm_int8_kernels::{Element, Isa};
use std::ops::Range;

/// Keys and values of a head: in the kernels' layout, and plain, `[positions][size]`, rounded to
/// `T`.
struct Head<T> {
    keys: Vec<T>,
    values: Vec<T>,
    plain: [Vec<Vec<f32>>; 2],
    size: usize,
}

impl<T: Element> Head<T> {
    fn new(noise: &mut Noise, positions: usize, size: usize) -> Self {
        let capacity = positions.next_multiple_of(PANEL);
        let rounded = |x: Vec<f32>| x.into_iter().map(|x| T::of(x).to_f32()).collect::<Vec<_>>();
        let plain = [0, 1].map(|_| {
            (0..positions)
                .map(|_| rounded(noise.normals(size, 1.0)))
                .collect::<Vec<_>>()
        });

        // NaN past the last position: it must not matter.
        let mut keys = vec![T::of(f32::NAN); capacity * size];
        let mut values = vec![T::of(f32::NAN); capacity * padded(size)];
        for position in 0..positions {
            for d in 0..size {
                keys[key_place(position, d, size)] = T::of(plain[0][position][d]);
                values[position * padded(size) + d] = T::of(plain[1][position][d]);
            }

            values[position * padded(size)..][size..padded(size)].fill(T::of(0.0));
        }

        Self {
            keys,
            values,
            plain,
            size,
        }
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
        let cache = HeadCache::new(&self.keys, &self.values, self.size);
        attend(isa, cache, &mut queries, rescore, &mut Scratch::default());
        out
    }

    fn expected(&self, head: usize, query: &[f32], seen: Range<usize>) -> Vec<f64> {
        let [keys, values] = &self.plain;
        let dot = |key: &[f32]| {
            query
                .iter()
                .zip(key)
                .map(|(x, y)| f64::from(*x) * f64::from(*y))
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
                .map(|(i, p)| p * f64::from(values[i][d]))
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

fn check<T: Element>(size: usize, seen: &[Range<usize>]) {
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
    }
}

#[test]
fn queries_give_the_same_bits_in_any_group() {
    let mut noise = Noise(42);
    let head = Head::<f16>::new(&mut noise, 70, 64);
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
