//! Causal attention over a key/value cache, with what the model families need: grouped-query heads,
//! sliding windows, rotary positions, ALiBi biases, soft caps.

use super::cache::{CacheValues, HeadMut, HeadSlot, NewPositions};
use super::{Alibi, LayerCache, RopeTable};
use llm_int8_kernels::attention::{CacheElement, HeadCache, Query, Scratch, attend as attend_head};
use llm_int8_kernels::{Isa, team};
use std::ops::Range;

/// How the queries, keys and values of all heads are laid out in one row of a fused QKV output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkvLayout {
    /// All queries, then all keys, then all values.
    Blocks,
    /// For each key/value head: its queries, its key, its value.
    Grouped,
}

/// Number and size of attention heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadShape {
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key/value heads, each shared by `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Values in one head vector.
    pub size: usize,
}

/// A view of head vectors in a row-major matrix: head `h` of a row begins at `offsets[h]`.
#[derive(Debug, Clone)]
pub struct Heads<'a> {
    values: &'a [f32],
    /// Values in a row of the matrix.
    row_len: usize,
    offsets: Vec<usize>,
    size: usize,
}

/// The queries, keys and values of one attention call.
#[derive(Debug, Clone, Copy)]
pub struct Qkv<'a> {
    /// `[rows, H heads of D]`.
    pub q: &'a Heads<'a>,
    /// `[rows, KV heads of D]`.
    pub k: &'a Heads<'a>,
    /// `[rows, KV heads of D]`.
    pub v: &'a Heads<'a>,
}

impl<'a> Heads<'a> {
    /// Heads of `size` values, back to back from column `start` of rows of `row_len` values.
    pub fn in_order(
        values: &'a [f32],
        row_len: usize,
        start: usize,
        count: usize,
        size: usize,
    ) -> Self {
        Self {
            values,
            row_len,
            offsets: (0..count).map(|head| start + head * size).collect(),
            size,
        }
    }

    /// Splits a fused QKV output `[rows, (heads + 2 · kv_heads) · size]` into queries, keys and
    /// values.
    pub fn split(values: &'a [f32], layout: QkvLayout, shape: HeadShape) -> [Self; 3] {
        let HeadShape {
            heads,
            kv_heads,
            size,
        } = shape;

        let group = heads / kv_heads;
        // Which head-sized slots of a row belong to queries, keys and values.
        let slots: [Vec<usize>; 3] = match layout {
            QkvLayout::Blocks => [
                (0..heads).collect(),
                (heads..heads + kv_heads).collect(),
                (heads + kv_heads..heads + 2 * kv_heads).collect(),
            ],
            QkvLayout::Grouped => [
                (0..heads)
                    .map(|head| head / group * (group + 2) + head % group)
                    .collect(),
                (0..kv_heads)
                    .map(|head| head * (group + 2) + group)
                    .collect(),
                (0..kv_heads)
                    .map(|head| head * (group + 2) + group + 1)
                    .collect(),
            ],
        };

        slots.map(|slots| Self {
            values,
            row_len: (heads + 2 * kv_heads) * size,
            offsets: slots.into_iter().map(|slot| slot * size).collect(),
            size,
        })
    }

    /// Number of heads.
    pub(super) fn count(&self) -> usize {
        self.offsets.len()
    }

    /// Values in a head vector.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// One head vector.
    pub(super) fn get(&self, row: usize, head: usize) -> &'a [f32] {
        &self.values[row * self.row_len + self.offsets[head]..][..self.size]
    }
}

/// How scores are computed and which positions are visible.
#[derive(Debug, Clone, Copy)]
pub struct AttentionRule<'a> {
    /// Scale of the scores, often `1 / √size`.
    pub factor: f32,
    /// Soft cap: scores become `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// Sliding window: a position attends to this many positions, itself included. `None`: to all
    /// up to itself.
    pub window: Option<usize>,
    /// ALiBi biases, added to the scores.
    pub alibi: Option<&'a Alibi>,
}

/// One sequence of a batch: its new positions, and its cache.
#[derive(Debug)]
pub struct AttendedSequence<'a> {
    /// The rows of queries, keys and values that are its new positions.
    pub rows: Range<usize>,
    /// Its key/value cache for this layer.
    pub cache: &'a mut LayerCache,
    /// Rotary table of its new positions.
    pub rope: Option<&'a RopeTable>,
}

/// New positions whose queries one task handles.
const TASK_POSITIONS: usize = 32;

/// `softmax(cap(q · kᵀ · factor) + bias) · v` over the cached and the new positions. The new keys
/// and values are appended to the caches. A row's result does not depend on the other rows, nor on
/// how many positions of its sequence are processed in one call.
///
/// # Shapes
/// The rows of `qkv` are the new positions of all sequences, one sequence after the other; `out` is
/// `[rows, H · D]`, row-major.
pub fn attend(
    isa: Isa,
    qkv: Qkv<'_>,
    rule: &AttentionRule<'_>,
    sequences: &mut [AttendedSequence<'_>],
    out: &mut [f32],
) {
    let group = qkv.q.count() / qkv.k.count();
    let run = |scratch: &mut (Vec<f32>, Scratch), task: Task<'_>| {
        let queries = Queries {
            q: qkv.q,
            rule,
            new: &task.new,
            first: task.first,
            heads: task.kv_head * group..(task.kv_head + 1) * group,
        };
        let size = qkv.q.size;

        match task.head {
            Head::Filled(CacheValues::F16(cache)) => {
                queries.attend(isa, cache.head(task.kv_head, size), task.outs, scratch);
            }
            Head::Filled(CacheValues::BF16(cache)) => {
                queries.attend(isa, cache.head(task.kv_head, size), task.outs, scratch);
            }
            Head::Filled(CacheValues::F32(cache)) => {
                queries.attend(isa, cache.head(task.kv_head, size), task.outs, scratch);
            }
            Head::Filled(CacheValues::Int8(cache)) => {
                queries.attend(isa, cache.head(task.kv_head, size), task.outs, scratch);
            }
            Head::New(HeadSlot::F16(slot)) => {
                queries.fill_and_attend(isa, slot, task.kv_head, task.outs, scratch);
            }
            Head::New(HeadSlot::BF16(slot)) => {
                queries.fill_and_attend(isa, slot, task.kv_head, task.outs, scratch);
            }
            Head::New(HeadSlot::F32(slot)) => {
                queries.fill_and_attend(isa, slot, task.kv_head, task.outs, scratch);
            }
            Head::New(HeadSlot::Int8(slot)) => {
                queries.fill_and_attend(isa, slot, task.kv_head, task.outs, scratch);
            }
        }
    };

    team::for_each(tasks(isa, qkv, sequences, out), run);
}

/// One unit of parallel work: up to [`TASK_POSITIONS`] new positions of a sequence, and the query
/// heads that share one key/value head.
struct Task<'a> {
    new: NewPositions<'a>,
    /// The first of its new positions, counted from the first row of the sequence.
    first: usize,
    kv_head: usize,
    head: Head<'a>,
    /// The output of each position, `[heads of the group · D]`.
    outs: Vec<&'a mut [f32]>,
}

/// Where a task finds the keys and values of its head.
enum Head<'a> {
    /// In the cache, new positions included.
    Filled(&'a CacheValues),
    /// In the cache, but for the new positions, which the task writes first: the positions before
    /// them are read anyway, and by several threads at once.
    New(HeadSlot<'a>),
}

/// Splits the work, and `out` with it, into tasks. Sequences with many new positions are appended
/// to their caches here.
fn tasks<'a>(
    isa: Isa,
    qkv: Qkv<'a>,
    sequences: &'a mut [AttendedSequence<'_>],
    out: &'a mut [f32],
) -> Vec<Task<'a>> {
    let Qkv { q, k, v } = qkv;
    let kv_heads = k.count();
    let width = q.count() * q.size;
    let group_width = width / kv_heads;
    let mut tasks = Vec::new();
    let mut rest = out;

    for sequence in sequences {
        let cache = &mut *sequence.cache;
        let new = NewPositions {
            isa,
            k,
            v,
            rows: sequence.rows.clone(),
            first: cache.len(),
            rope: sequence.rope,
        };
        let (mine, others) = rest.split_at_mut(new.rows.len() * width);
        rest = others;

        // One block of positions: each head has one task.
        let heads: Vec<Head<'_>> = if new.rows.len() <= TASK_POSITIONS {
            let slots = cache.extend(new.rows.len(), kv_heads, k.size);
            slots.into_iter().map(Head::New).collect()
        } else {
            cache.append(&new);
            let blocks = new.rows.len().div_ceil(TASK_POSITIONS);
            let values = cache.values();
            (0..blocks * kv_heads)
                .map(|_| Head::Filled(values))
                .collect()
        };

        let mut heads = heads.into_iter();
        for (block, out) in mine.chunks_mut(TASK_POSITIONS * width).enumerate() {
            let first_task = tasks.len();
            let tasks_of_block = (0..kv_heads).zip(heads.by_ref());
            tasks.extend(tasks_of_block.map(|(kv_head, head)| Task {
                new: new.clone(),
                first: block * TASK_POSITIONS,
                kv_head,
                head,
                outs: Vec::new(),
            }));

            for (i, out) in out.chunks_mut(group_width).enumerate() {
                tasks[first_task + i % kv_heads].outs.push(out);
            }
        }
    }

    tasks
}

/// The queries of a task.
struct Queries<'a> {
    q: &'a Heads<'a>,
    rule: &'a AttentionRule<'a>,
    new: &'a NewPositions<'a>,
    /// The first new position, as in [`Task`].
    first: usize,
    /// Query heads that share a key/value head.
    heads: Range<usize>,
}

impl Queries<'_> {
    /// Writes the new positions of a head, then attends to it.
    fn fill_and_attend<T: CacheElement>(
        &self,
        isa: Isa,
        mut slot: HeadMut<'_, T>,
        kv_head: usize,
        outs: Vec<&mut [f32]>,
        scratch: &mut (Vec<f32>, Scratch),
    ) {
        slot.fill(self.new, kv_head, &mut scratch.0);
        self.attend(isa, slot.cache(), outs, scratch);
    }

    fn attend<T: CacheElement>(
        &self,
        isa: Isa,
        cache: HeadCache<'_, T>,
        outs: Vec<&mut [f32]>,
        (vectors, scratch): &mut (Vec<f32>, Scratch),
    ) {
        self.rotate_and_scale(outs.len(), vectors);

        let size = self.q.size;
        let mut queries = Vec::with_capacity(outs.len() * self.heads.len());
        let mut vectors = vectors.chunks(size);

        for (position, out) in (self.new.first + self.first..).zip(outs) {
            let start = match self.rule.window {
                Some(window) => (position + 1).saturating_sub(window),
                None => 0,
            };
            let heads = self.heads.clone().zip(out.chunks_mut(size));
            for ((head, out), query) in heads.zip(vectors.by_ref()) {
                queries.push(Query {
                    query,
                    seen: start..position + 1,
                    head,
                    out,
                });
            }
        }

        let rescore = |head, first, scores: &mut [f32]| self.rule.rescore(head, first, scores);
        attend_head(isa, cache, &mut queries, rescore, scratch);
    }

    /// Fills `vectors` with the rotated and scaled queries of `positions` positions, head by head
    /// within each position.
    fn rotate_and_scale(&self, positions: usize, vectors: &mut Vec<f32>) {
        vectors.clear();
        for t in self.first..self.first + positions {
            for head in self.heads.clone() {
                let start = vectors.len();
                vectors.extend_from_slice(self.q.get(self.new.rows.start + t, head));
                let query = &mut vectors[start..];
                if let Some(rope) = self.new.rope {
                    rope.rotate(t, query);
                }
                query.iter_mut().for_each(|x| *x *= self.rule.factor);
            }
        }
    }
}

impl AttentionRule<'_> {
    /// Applies soft cap and ALiBi to one query's scores with the keys from position `first` on.
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
mod tests;
