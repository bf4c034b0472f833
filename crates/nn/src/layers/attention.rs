//! Causal attention over a key/value cache, for every family: grouped heads, windows, rotations, biases,
//! soft caps.

use super::{Alibi, RopeTable};
use crate::error::Result;
use rayon::prelude::*;
use std::ops::Range;

/// How queries, keys and values of all heads lie in a row of one product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkvLayout {
    /// All queries, all keys, all values.
    Blocks,
    /// For each head of keys: its queries, its key, its value.
    Grouped,
}

/// Rows of head vectors: of all rows, the head at `offsets[h]` of each.
#[derive(Debug, Clone)]
pub struct Heads<'a> {
    values: &'a [f32],
    row: usize,
    offsets: Vec<usize>,
    size: usize,
}

impl<'a> Heads<'a> {
    /// Heads of `size` values one after the other, from `start` on in rows of `row` values.
    pub fn in_order(values: &'a [f32], row: usize, start: usize, count: usize, size: usize) -> Self {
        Self { values, row, offsets: (0..count).map(|head| start + head * size).collect(), size }
    }

    /// Queries, keys and values of one product `[rows, (heads + 2 · kv_heads) · size]`.
    pub fn split(values: &'a [f32], layout: QkvLayout, [heads, kv_heads, size]: [usize; 3]) -> [Self; 3] {
        let row = (heads + 2 * kv_heads) * size;
        let group = heads / kv_heads;
        let offsets: [Vec<usize>; 3] = match layout {
            QkvLayout::Blocks => [0..heads, heads..heads + kv_heads, heads + kv_heads..heads + 2 * kv_heads]
                .map(|places| places.map(|place| place * size).collect()),
            QkvLayout::Grouped => [
                (0..heads).map(|head| (head / group * (group + 2) + head % group) * size).collect(),
                (0..kv_heads).map(|head| (head * (group + 2) + group) * size).collect(),
                (0..kv_heads).map(|head| (head * (group + 2) + group + 1) * size).collect(),
            ],
        };
        offsets.map(|offsets| Self { values, row, offsets, size })
    }

    fn get(&self, row: usize, head: usize) -> &'a [f32] {
        &self.values[row * self.row + self.offsets[head]..][..self.size]
    }
}

/// Keys and values of one layer for the positions seen so far: f32, for each batch row and head of keys
/// one position after the other.
#[derive(Debug, Clone, Default)]
pub struct LayerCache {
    keys: Vec<f32>,
    values: Vec<f32>,
    capacity: usize,
    len: usize,
}

/// Positions allocated at once: a conversation grows the cache a few times, not at every token.
const GROW_BY: usize = 256;

impl LayerCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes allocated for keys and values.
    pub fn bytes(&self) -> u64 {
        (size_of_val(self.keys.as_slice()) + size_of_val(self.values.as_slice())) as u64
    }

    /// Forgets all positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Makes room for `more` positions of `streams` (batch rows times heads) of `size` values.
    fn reserve(&mut self, more: usize, streams: usize, size: usize) {
        let wanted = self.len + more;
        if wanted <= self.capacity && !self.keys.is_empty() {
            return;
        }
        let capacity = wanted.next_multiple_of(GROW_BY);
        for buffer in [&mut self.keys, &mut self.values] {
            let mut grown = vec![0f32; streams * capacity * size];
            if self.len > 0 {
                let old = buffer.chunks(self.capacity * size);
                for (new, old) in grown.chunks_mut(capacity * size).zip(old) {
                    new[..self.len * size].copy_from_slice(&old[..self.len * size]);
                }
            }
            *buffer = grown;
        }
        self.capacity = capacity;
    }

    /// The positions of a stream.
    fn stream<'a>(
        &self,
        buffer: &'a [f32],
        stream: usize,
        positions: &Range<usize>,
        size: usize,
    ) -> &'a [f32] {
        let start = (stream * self.capacity + positions.start) * size;
        &buffer[start..start + positions.len() * size]
    }
}

/// How scores are made and which positions are seen.
#[derive(Debug, Clone, Copy)]
pub struct AttentionRule<'a> {
    /// What scores are multiplied with.
    pub factor: f32,
    /// `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// A position sees this many positions, itself included; none: all before it.
    pub window: Option<usize>,
    /// Biases of positions.
    pub alibi: Option<&'a Alibi>,
    /// Rotations of the new positions.
    pub rope: Option<&'a RopeTable>,
}

/// `softmax(cap(q · kᵀ · factor) + bias) · v` over everything cached and the new keys and values, which
/// are added to the cache. A row's result does not depend on the others of its batch.
///
/// # Shapes
/// `q` `[B · T, H heads of D]`, `k` and `v` `[B · T, KV heads of D]` of the `tokens` new positions of
/// each of `batch` rows; the result `[B, T, H · D]`, row-major.
///
/// # Errors
/// None today; what a device other than the CPU will give.
pub fn attend(
    [q, k, v]: [&Heads<'_>; 3],
    [batch, tokens]: [usize; 2],
    rule: &AttentionRule<'_>,
    cache: &mut LayerCache,
) -> Result<Vec<f32>> {
    let (heads, kv_heads, size) = (q.offsets.len(), k.offsets.len(), q.size);
    append([k, v], [batch, tokens], rule.rope, cache);
    let cached = cache.len - tokens;
    let group = heads / kv_heads;
    let mut out = vec![0f32; batch * tokens * heads * size];
    // A task is one new position and the queries that share a head of keys; few positions are seen by
    // the first ones, so tasks are taken one by one.
    let task = |scratch: &mut Scratch, (task, out): (usize, &mut [f32])| {
        let (row, kv) = (task / kv_heads, task % kv_heads);
        let (b, position) = (row / tokens, cached + row % tokens);
        let seen = rule.window.map_or(0, |window| (position + 1).saturating_sub(window))..position + 1;
        let keys = cache.stream(&cache.keys, b * kv_heads + kv, &seen, size);
        let values = cache.stream(&cache.values, b * kv_heads + kv, &seen, size);
        for (g, out) in out.chunks_mut(size).enumerate() {
            let head = kv * group + g;
            scratch.query.clear();
            scratch.query.extend_from_slice(q.get(row, head));
            if let Some(rope) = rule.rope {
                rope.rotate(row % tokens, &mut scratch.query);
            }
            scores(&scratch.query, keys, rule, head, seen.start, &mut scratch.scores);
            softmax(&mut scratch.scores);
            for (weight, value) in scratch.scores.iter().zip(values.chunks_exact(size)) {
                out.iter_mut().zip(value).for_each(|(y, x)| *y += weight * x);
            }
        }
    };
    out.par_chunks_mut(group * size).enumerate().for_each_init(Scratch::default, task);
    Ok(out)
}

#[derive(Default)]
struct Scratch {
    query: Vec<f32>,
    scores: Vec<f32>,
}

/// Adds the new keys, rotated, and values to the cache.
fn append(
    [k, v]: [&Heads<'_>; 2],
    [batch, tokens]: [usize; 2],
    rope: Option<&RopeTable>,
    cache: &mut LayerCache,
) {
    let (kv_heads, size) = (k.offsets.len(), k.size);
    cache.reserve(tokens, batch * kv_heads, size);
    for b in 0..batch {
        for head in 0..kv_heads {
            let start = ((b * kv_heads + head) * cache.capacity + cache.len) * size;
            let end = start + tokens * size;
            let (keys, values) = (&mut cache.keys[start..end], &mut cache.values[start..end]);
            for (t, (key, value)) in keys.chunks_mut(size).zip(values.chunks_mut(size)).enumerate() {
                key.copy_from_slice(k.get(b * tokens + t, head));
                value.copy_from_slice(v.get(b * tokens + t, head));
                if let Some(rope) = rope {
                    rope.rotate(t, key);
                }
            }
        }
    }
    cache.len += tokens;
}

/// The scores of one query with the keys it sees, of which the first has the position `first`.
fn scores(
    query: &[f32],
    keys: &[f32],
    rule: &AttentionRule<'_>,
    head: usize,
    first: usize,
    scores: &mut Vec<f32>,
) {
    scores.clear();
    scores.extend(keys.chunks_exact(query.len()).map(|key| dot(query, key) * rule.factor));
    if let Some(cap) = rule.softcap {
        scores.iter_mut().for_each(|score| *score = cap * (*score / cap).tanh());
    }
    if let Some(alibi) = rule.alibi {
        scores.iter_mut().enumerate().for_each(|(i, score)| *score += alibi.bias(head, first + i));
    }
}

/// Eight sums side by side, which a compiler turns into vector instructions.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 8;
    let (heads_a, tail_a) = a.as_chunks::<LANES>();
    let (heads_b, tail_b) = b.as_chunks::<LANES>();
    let mut sums = [0f32; LANES];
    for (a, b) in heads_a.iter().zip(heads_b) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    let tail: f32 = tail_a.iter().zip(tail_b).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + tail
}

fn softmax(scores: &mut [f32]) {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0f32;
    for score in scores.iter_mut() {
        *score = (*score - largest).exp();
        sum += *score;
    }
    scores.iter_mut().for_each(|score| *score /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::Rope;

    fn noise(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i + seed * 31) as f32 * 1.7).sin()).collect()
    }

    fn rule<'a>() -> AttentionRule<'a> {
        AttentionRule { factor: 0.5, softcap: None, window: None, alibi: None, rope: None }
    }

    /// q, k, v of five positions, 4 heads of which 2 share their keys, 3 values each.
    fn run(
        range: Range<usize>,
        rule: AttentionRule<'_>,
        rope: Option<&Rope>,
        cache: &mut LayerCache,
    ) -> Vec<f32> {
        let (q, k, v) = (noise(5 * 12, 0), noise(5 * 6, 7), noise(5 * 6, 19));
        let tokens = range.len();
        let table = rope.map(|rope| rope.table(range.start, tokens));
        let q = Heads::in_order(&q[range.start * 12..], 12, 0, 4, 3);
        let k = Heads::in_order(&k[range.start * 6..], 6, 0, 2, 3);
        let v = Heads::in_order(&v[range.start * 6..], 6, 0, 2, 3);
        let rule = AttentionRule { rope: table.as_ref(), ..rule };
        attend([&q, &k, &v], [1, tokens], &rule, cache).unwrap()
    }

    #[test]
    fn one_by_one_gives_the_bits_that_all_at_once_give() {
        let (alibi, rope) = (Alibi::bloom(4), Rope::plain(100.0, 2));
        for rule in [
            rule(),
            AttentionRule { softcap: Some(0.7), ..rule() },
            AttentionRule { window: Some(2), ..rule() },
            AttentionRule { alibi: Some(&alibi), ..rule() },
        ] {
            for rope in [None, Some(&rope)] {
                let whole = run(0..5, rule, rope, &mut LayerCache::new());
                let mut cache = LayerCache::new();
                let parts: Vec<f32> = (0..5).flat_map(|t| run(t..t + 1, rule, rope, &mut cache)).collect();
                assert_eq!(whole, parts);
            }
        }
    }

    #[test]
    fn a_window_of_one_gives_the_value_itself() {
        let out = run(0..5, AttentionRule { window: Some(1), ..rule() }, None, &mut LayerCache::new());
        let values = noise(5 * 6, 19);
        assert_eq!(out[4 * 12..4 * 12 + 3], values[4 * 6..4 * 6 + 3]);
    }

    #[test]
    fn a_cache_grows_without_losing_and_forgets_what_it_is_told_to() {
        let mut cache = LayerCache::new();
        let first = run(0..5, rule(), None, &mut cache);
        for _ in 0..60 {
            cache.truncate(0);
            (0..100).for_each(|_| drop(run(0..5, rule(), None, &mut cache)));
        }
        assert_eq!((cache.len, cache.capacity), (500, 512));
        cache.truncate(0);
        assert_eq!(run(0..5, rule(), None, &mut cache), first);
    }

    #[test]
    fn layouts_find_every_head() {
        // 4 heads of queries, 2 of keys, one value each: queries 0..4, keys 10 11, values 20 21.
        let blocks = [0., 1., 2., 3., 10., 11., 20., 21.];
        let grouped = [0., 1., 10., 20., 2., 3., 11., 21.];
        for (layout, row) in [(QkvLayout::Blocks, blocks), (QkvLayout::Grouped, grouped)] {
            let [q, k, v] = Heads::split(&row, layout, [4, 2, 1]);
            assert_eq!([0, 1, 2, 3].map(|head| q.get(0, head)[0]), [0., 1., 2., 3.]);
            assert_eq!([0, 1].map(|head| (k.get(0, head)[0], v.get(0, head)[0])), [(10., 20.), (11., 21.)]);
        }
    }
}
