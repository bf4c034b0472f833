//! Causal attention over a key/value cache, for every family: grouped heads, windows, rotations,
//! biases, soft caps.

use super::cache::{CacheValues, KeysAndValues};
use super::{Alibi, LayerCache, RopeTable};
use llm_int8_kernels::attention::{Query, Scratch, attend as attend_head};
use llm_int8_kernels::{Element, Isa, team};
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
    pub fn in_order(
        values: &'a [f32],
        row: usize,
        start: usize,
        count: usize,
        size: usize,
    ) -> Self {
        Self {
            values,
            row,
            offsets: (0..count).map(|head| start + head * size).collect(),
            size,
        }
    }

    /// Queries, keys and values of one product `[rows, (heads + 2 · kv_heads) · size]`.
    pub fn split(
        values: &'a [f32],
        layout: QkvLayout,
        [heads, kv_heads, size]: [usize; 3],
    ) -> [Self; 3] {
        let row = (heads + 2 * kv_heads) * size;
        let group = heads / kv_heads;
        let offsets: [Vec<usize>; 3] = match layout {
            QkvLayout::Blocks => [
                0..heads,
                heads..heads + kv_heads,
                heads + kv_heads..heads + 2 * kv_heads,
            ]
            .map(|places| places.map(|place| place * size).collect()),
            QkvLayout::Grouped => [
                (0..heads)
                    .map(|head| (head / group * (group + 2) + head % group) * size)
                    .collect(),
                (0..kv_heads)
                    .map(|head| (head * (group + 2) + group) * size)
                    .collect(),
                (0..kv_heads)
                    .map(|head| (head * (group + 2) + group + 1) * size)
                    .collect(),
            ],
        };
        offsets.map(|offsets| Self {
            values,
            row,
            offsets,
            size,
        })
    }

    /// How many heads.
    pub(super) fn count(&self) -> usize {
        self.offsets.len()
    }

    /// Values of a head.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// The vector of a head.
    pub(super) fn get(&self, row: usize, head: usize) -> &'a [f32] {
        &self.values[row * self.row + self.offsets[head]..][..self.size]
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
}

/// One sequence of a pass: which rows of the products are its new positions, and what was seen of
/// it.
#[derive(Debug)]
pub struct AttendedSequence<'a> {
    /// Its rows.
    pub rows: Range<usize>,
    /// Its keys and values of this layer.
    pub cache: &'a mut LayerCache,
    /// Rotations of its new positions.
    pub rope: Option<&'a RopeTable>,
}

/// Positions whose queries a task takes.
const TASK_POSITIONS: usize = 32;

/// `softmax(cap(q · kᵀ · factor) + bias) · v` over everything cached and the new keys and values,
/// which are added to the caches. A row's result does not depend on the others, nor on how many
/// positions of its sequence came at once.
///
/// # Shapes
/// `q` `[rows, H heads of D]`, `k` and `v` `[rows, KV heads of D]` of the new positions of all
/// sequences, one sequence after the other; `out` `[rows, H · D]`, row-major.
pub fn attend(
    isa: Isa,
    [q, k, v]: [&Heads<'_>; 3],
    rule: &AttentionRule<'_>,
    sequences: &mut [AttendedSequence<'_>],
    out: &mut [f32],
) {
    let (heads, kv_heads, size) = (q.offsets.len(), k.offsets.len(), q.size);
    let group = heads / kv_heads;
    for sequence in sequences.iter_mut() {
        sequence
            .cache
            .append([k, v], sequence.rows.clone(), sequence.rope);
    }
    let mut tasks = Vec::new();
    let mut rest = out;
    for sequence in sequences.iter() {
        let (mine, others) = rest.split_at_mut(sequence.rows.len() * heads * size);
        rest = others;
        for (block, out) in mine.chunks_mut(TASK_POSITIONS * heads * size).enumerate() {
            let first = tasks.len();
            tasks
                .extend((0..kv_heads).map(|kv| (sequence, block * TASK_POSITIONS, kv, Vec::new())));
            for (i, out) in out.chunks_mut(group * size).enumerate() {
                tasks[first + i % kv_heads].3.push(out);
            }
        }
    }
    let task = |scratch: &mut (Vec<f32>, Scratch), (sequence, first, kv, outs): Task<'_, '_>| {
        let sequence: &AttendedSequence<'_> = sequence;
        let queries = Queries {
            q,
            rule,
            sequence,
            first,
            heads: kv * group..(kv + 1) * group,
        };
        match sequence.cache.values() {
            CacheValues::F16(cache) => queries.attend(isa, cache, outs, scratch),
            CacheValues::BF16(cache) => queries.attend(isa, cache, outs, scratch),
            CacheValues::F32(cache) => queries.attend(isa, cache, outs, scratch),
        }
    };
    team::for_each(tasks, task);
}

/// A sequence, the first of some of its new positions, a head of keys, and where each position's
/// results go.
type Task<'a, 'b> = (&'a AttendedSequence<'b>, usize, usize, Vec<&'a mut [f32]>);

/// Queries of a task: those of some new positions that share a head of keys.
struct Queries<'a> {
    q: &'a Heads<'a>,
    rule: &'a AttentionRule<'a>,
    sequence: &'a AttendedSequence<'a>,
    first: usize,
    heads: Range<usize>,
}

impl Queries<'_> {
    fn attend<T: Element>(
        &self,
        isa: Isa,
        cache: &KeysAndValues<T>,
        outs: Vec<&mut [f32]>,
        (vectors, scratch): &mut (Vec<f32>, Scratch),
    ) {
        let size = self.q.size;
        vectors.clear();
        for t in self.first..self.first + outs.len() {
            for head in self.heads.clone() {
                let start = vectors.len();
                vectors.extend_from_slice(self.q.get(self.sequence.rows.start + t, head));
                let query = &mut vectors[start..];
                if let Some(rope) = self.sequence.rope {
                    rope.rotate(t, query);
                }
                query.iter_mut().for_each(|x| *x *= self.rule.factor);
            }
        }
        let cached = self.sequence.cache.len() - self.sequence.rows.len() + self.first;
        let mut queries = Vec::with_capacity(outs.len() * self.heads.len());
        let mut vectors = vectors.chunks(size);
        for (position, out) in (cached..).zip(outs) {
            let start = self
                .rule
                .window
                .map_or(0, |window| (position + 1).saturating_sub(window));
            for ((head, out), query) in self
                .heads
                .clone()
                .zip(out.chunks_mut(size))
                .zip(vectors.by_ref())
            {
                queries.push(Query {
                    query,
                    seen: start..position + 1,
                    head,
                    out,
                });
            }
        }
        let rescore = |head, first, scores: &mut [f32]| self.rule.rescore(head, first, scores);
        let kv = self.heads.start / self.heads.len();
        attend_head(isa, cache.head(kv, size), &mut queries, rescore, scratch);
    }
}

impl AttentionRule<'_> {
    /// The scores of one query with keys of which the first has the position `first`.
    fn rescore(&self, head: usize, first: usize, scores: &mut [f32]) {
        if let Some(cap) = self.softcap {
            scores
                .iter_mut()
                .for_each(|score| *score = cap * (*score / cap).tanh());
        }
        if let Some(alibi) = self.alibi {
            scores
                .iter_mut()
                .enumerate()
                .for_each(|(i, score)| *score += alibi.bias(head, first + i));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FloatDtype;
    use crate::layers::Rope;

    fn noise(count: usize, seed: usize) -> Vec<f32> {
        (0..count)
            .map(|i| ((i + seed * 31) as f32 * 1.7).sin())
            .collect()
    }

    fn rule<'a>() -> AttentionRule<'a> {
        AttentionRule {
            factor: 0.5,
            softcap: None,
            window: None,
            alibi: None,
        }
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
        let mut out = vec![0f32; tokens * 12];
        let mut sequence = [AttendedSequence {
            rows: 0..tokens,
            cache,
            rope: table.as_ref(),
        }];
        attend(Isa::detect(), [&q, &k, &v], &rule, &mut sequence, &mut out);
        out
    }

    fn empty() -> LayerCache {
        LayerCache::new(FloatDtype::F32)
    }

    #[test]
    fn one_by_one_gives_the_bits_that_all_at_once_give() {
        let (alibi, rope) = (Alibi::bloom(4), Rope::plain(100.0, 2));
        for rule in [
            rule(),
            AttentionRule {
                softcap: Some(0.7),
                ..rule()
            },
            AttentionRule {
                window: Some(2),
                ..rule()
            },
            AttentionRule {
                alibi: Some(&alibi),
                ..rule()
            },
        ] {
            for rope in [None, Some(&rope)] {
                let whole = run(0..5, rule, rope, &mut empty());
                let mut cache = empty();
                let parts: Vec<f32> = (0..5)
                    .flat_map(|t| run(t..t + 1, rule, rope, &mut cache))
                    .collect();
                assert_eq!(whole, parts);
            }
        }
    }

    #[test]
    fn a_window_of_one_gives_the_value_itself() {
        let out = run(
            0..5,
            AttentionRule {
                window: Some(1),
                ..rule()
            },
            None,
            &mut empty(),
        );
        let values = noise(5 * 6, 19);
        assert_eq!(out[4 * 12..4 * 12 + 3], values[4 * 6..4 * 6 + 3]);
    }

    #[test]
    fn sequences_side_by_side_give_what_each_gives_alone() {
        let (q, k, v) = (noise(5 * 12, 0), noise(5 * 6, 7), noise(5 * 6, 19));
        let heads = |values, row, count| Heads::in_order(values, row, 0, count, 3);
        let alone = [
            run(0..2, rule(), None, &mut empty()),
            run(2..5, rule(), None, &mut empty()),
        ]
        .concat();
        let mut caches = [empty(), empty()];
        let [first, second] = &mut caches;
        let mut sequences = [
            AttendedSequence {
                rows: 0..2,
                cache: first,
                rope: None,
            },
            AttendedSequence {
                rows: 2..5,
                cache: second,
                rope: None,
            },
        ];
        let mut out = vec![0f32; 5 * 12];
        let qkv = [&heads(&q, 12, 4), &heads(&k, 6, 2), &heads(&v, 6, 2)];
        attend(Isa::detect(), qkv, &rule(), &mut sequences, &mut out);
        assert_eq!(out, alone);
        assert_eq!((caches[0].len(), caches[1].len()), (2, 3));
    }

    #[test]
    fn layouts_find_every_head() {
        // 4 heads of queries, 2 of keys, one value each: queries 0..4, keys 10 11, values 20 21.
        let blocks = [0., 1., 2., 3., 10., 11., 20., 21.];
        let grouped = [0., 1., 10., 20., 2., 3., 11., 21.];
        for (layout, row) in [(QkvLayout::Blocks, blocks), (QkvLayout::Grouped, grouped)] {
            let [q, k, v] = Heads::split(&row, layout, [4, 2, 1]);
            assert_eq!([0, 1, 2, 3].map(|head| q.get(0, head)[0]), [0., 1., 2., 3.]);
            assert_eq!(
                [0, 1].map(|head| (k.get(0, head)[0], v.get(0, head)[0])),
                [(10., 20.), (11., 21.)]
            );
        }
    }
}
