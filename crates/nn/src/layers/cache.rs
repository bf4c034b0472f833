//! The key/value cache, in the layout that the attention kernels read.

use super::{Heads, RopeTable};
use crate::FloatDtype;
use half::{bf16, f16};
use llm_int8_kernels::attention::{HeadCache, PANEL, key_place, padded};
use llm_int8_kernels::{AlignedVec, Element};
use rayon::prelude::*;
use std::ops::Range;

/// The keys and values of one layer for one sequence, in the model's float dtype as in
/// transformers. Heads are stored one after the other, and within a head the positions.
#[derive(Debug, Clone)]
pub struct LayerCache {
    values: CacheValues,
    len: usize,
}

#[derive(Debug, Clone)]
pub(super) enum CacheValues {
    F16(KeysAndValues<f16>),
    BF16(KeysAndValues<bf16>),
    F32(KeysAndValues<f32>),
}

/// The memory of one head, for whoever writes its new positions.
pub(super) enum HeadSlot<'a> {
    F16(HeadMut<'a, f16>),
    BF16(HeadMut<'a, bf16>),
    F32(HeadMut<'a, f32>),
}

/// The keys and values of one head.
pub(super) struct HeadMut<'a, T> {
    keys: &'a mut [T],
    values: &'a mut [T],
    size: usize,
}

/// New keys and values of one sequence.
#[derive(Clone)]
pub(super) struct NewPositions<'a> {
    pub(super) k: &'a Heads<'a>,
    pub(super) v: &'a Heads<'a>,
    /// Their rows in `k` and `v`.
    pub(super) rows: Range<usize>,
    /// The position of the first.
    pub(super) first: usize,
    /// Rotates the keys.
    pub(super) rope: Option<&'a RopeTable>,
}

/// Keys and values head by head; [`HeadCache`] describes the layout of one head.
#[derive(Debug, Clone)]
pub(super) struct KeysAndValues<T> {
    keys: AlignedVec<T>,
    values: AlignedVec<T>,
    /// Positions allocated, a multiple of [`PANEL`].
    capacity: usize,
    /// Values in a key; 0 before the first position.
    size: usize,
}

/// The cache grows by this many positions at a time, so that reallocation is rare.
const GROW_BY: usize = 256;
const _: () = assert!(GROW_BY.is_multiple_of(PANEL));

/// From this many new positions on, heads are filled in parallel.
const PARALLEL_POSITIONS: usize = 8;

impl LayerCache {
    /// An empty cache.
    pub fn new(dtype: FloatDtype) -> Self {
        let values = match dtype {
            FloatDtype::F16 => CacheValues::F16(KeysAndValues::new()),
            FloatDtype::BF16 => CacheValues::BF16(KeysAndValues::new()),
            FloatDtype::F32 => CacheValues::F32(KeysAndValues::new()),
        };
        Self { values, len: 0 }
    }

    /// Positions it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes allocated for keys and values.
    pub fn bytes(&self) -> u64 {
        match &self.values {
            CacheValues::F16(values) => values.bytes(),
            CacheValues::BF16(values) => values.bytes(),
            CacheValues::F32(values) => values.bytes(),
        }
    }

    /// Bytes that the cache of a layer with `kv_heads` heads of `size` values allocates for
    /// `positions` positions.
    pub fn bytes_for(dtype: FloatDtype, kv_heads: usize, size: usize, positions: usize) -> u64 {
        let values = kv_heads * positions.next_multiple_of(GROW_BY) * (size + padded(size));
        (values * dtype.candle().size_in_bytes()) as u64
    }

    /// A copy of the first `len` positions, or of all if there are fewer. It has no more memory
    /// than they need.
    pub fn prefix(&self, len: usize) -> Self {
        let len = len.min(self.len);
        let values = match &self.values {
            CacheValues::F16(values) => CacheValues::F16(values.prefix(len)),
            CacheValues::BF16(values) => CacheValues::BF16(values.prefix(len)),
            CacheValues::F32(values) => CacheValues::F32(values.prefix(len)),
        };
        Self { values, len }
    }

    /// Drops all positions from `len` on. Keeps the memory.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    pub(super) fn values(&self) -> &CacheValues {
        &self.values
    }

    /// Appends keys and values of some rows. `rope` rotates the keys.
    pub(super) fn append(
        &mut self,
        k: &Heads<'_>,
        v: &Heads<'_>,
        rows: Range<usize>,
        rope: Option<&RopeTable>,
    ) {
        let new = NewPositions {
            k,
            v,
            rows,
            first: self.len,
            rope,
        };

        let heads = self.extend(new.rows.len(), k.count(), k.size());
        let fill = |(head, slot): (usize, HeadSlot<'_>)| match slot {
            HeadSlot::F16(mut slot) => slot.fill(&new, head, &mut Vec::new()),
            HeadSlot::BF16(mut slot) => slot.fill(&new, head, &mut Vec::new()),
            HeadSlot::F32(mut slot) => slot.fill(&new, head, &mut Vec::new()),
        };
        if new.rows.len() >= PARALLEL_POSITIONS {
            heads.into_par_iter().enumerate().for_each(fill);
        } else {
            heads.into_iter().enumerate().for_each(fill);
        }
    }

    /// Adds `count` positions and returns the memory of each head, whose new positions have yet to
    /// be filled.
    pub(super) fn extend(&mut self, count: usize, heads: usize, size: usize) -> Vec<HeadSlot<'_>> {
        let positions = self.len + count;
        self.len = positions;
        match &mut self.values {
            CacheValues::F16(values) => {
                let heads = values.heads_mut(positions, heads, size);
                heads.map(HeadSlot::F16).collect()
            }
            CacheValues::BF16(values) => {
                let heads = values.heads_mut(positions, heads, size);
                heads.map(HeadSlot::BF16).collect()
            }
            CacheValues::F32(values) => {
                let heads = values.heads_mut(positions, heads, size);
                heads.map(HeadSlot::F32).collect()
            }
        }
    }
}

impl<T: Element> HeadMut<'_, T> {
    /// Writes the keys and values of `head` in new positions. `key` is scratch memory.
    pub(super) fn fill(&mut self, new: &NewPositions<'_>, head: usize, key: &mut Vec<f32>) {
        let size = self.size;
        let width = padded(size);
        for (t, row) in new.rows.clone().enumerate() {
            let position = new.first + t;
            key.clear();
            key.extend_from_slice(new.k.get(row, head));
            if let Some(rope) = new.rope {
                rope.rotate(t, key);
            }

            // Keys lie in panels of positions, so one key has a stride of a panel's width.
            let first = key_place(position, 0, size);
            let mut places = self.keys[first..].iter_mut().step_by(PANEL);
            for part in key.chunks(PANEL) {
                let mut stored = [T::of(0.0); PANEL];
                let stored = &mut stored[..part.len()];
                T::of_slice(part, stored);
                for (x, place) in stored.iter().zip(&mut places) {
                    *place = *x;
                }
            }

            let value = &mut self.values[position * width..][..size];
            T::of_slice(new.v.get(row, head), value);
        }
    }

    /// The head, to attend to.
    pub(super) fn cache(&self) -> HeadCache<'_, T> {
        HeadCache::new(self.keys, self.values, self.size)
    }
}

impl<T: Element> KeysAndValues<T> {
    fn new() -> Self {
        let empty = || AlignedVec::filled(0, T::of(0.0));
        Self {
            keys: empty(),
            values: empty(),
            capacity: 0,
            size: 0,
        }
    }

    fn bytes(&self) -> u64 {
        (size_of_val(&self.keys[..]) + size_of_val(&self.values[..])) as u64
    }

    pub(super) fn head(&self, head: usize, size: usize) -> HeadCache<'_, T> {
        let keys_len = self.capacity * size;
        let values_len = self.capacity * padded(size);
        HeadCache::new(
            &self.keys[head * keys_len..][..keys_len],
            &self.values[head * values_len..][..values_len],
            size,
        )
    }

    /// The memory of each head, with room for `positions` positions.
    fn heads_mut(
        &mut self,
        positions: usize,
        heads: usize,
        size: usize,
    ) -> impl Iterator<Item = HeadMut<'_, T>> {
        self.reserve(positions, heads, size);
        let keys = self.keys.chunks_mut(self.capacity * size);
        let values = self.values.chunks_mut(self.capacity * padded(size));
        keys.zip(values)
            .map(move |(keys, values)| HeadMut { keys, values, size })
    }

    /// Makes room for `positions` positions and keeps the content: the layout of a head's first
    /// positions does not depend on the capacity.
    fn reserve(&mut self, positions: usize, heads: usize, size: usize) {
        if positions > self.capacity {
            self.size = size;
            let capacity = positions.next_multiple_of(GROW_BY);
            self.keys = resized(&self.keys, self.capacity * size, heads, capacity * size);
            let width = padded(size);
            self.values = resized(&self.values, self.capacity * width, heads, capacity * width);
            self.capacity = capacity;
        }
    }

    /// A copy of the first `len` positions.
    fn prefix(&self, len: usize) -> Self {
        if len == 0 || self.capacity == 0 {
            return Self::new();
        }

        let (size, width) = (self.size, padded(self.size));
        let heads = self.values.len() / (self.capacity * width);
        let capacity = len.next_multiple_of(GROW_BY).min(self.capacity);
        let copy = |buffer, width| resized(buffer, self.capacity * width, heads, capacity * width);
        Self {
            keys: copy(&self.keys, size),
            values: copy(&self.values, width),
            capacity,
            size,
        }
    }
}

/// A copy of `buffer`, of heads of `from` elements, with `to` elements in each head: as many as
/// there are, then zeros.
fn resized<T: Element>(
    buffer: &AlignedVec<T>,
    from: usize,
    heads: usize,
    to: usize,
) -> AlignedVec<T> {
    let mut copy = AlignedVec::filled(heads * to, T::of(0.0));
    if from > 0 {
        let kept = from.min(to);
        copy.chunks_mut(to)
            .zip(buffer.chunks(from))
            .for_each(|(new, old)| new[..kept].copy_from_slice(&old[..kept]));
    }

    copy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_keeps_its_content_as_it_grows_and_can_be_truncated() {
        let heads = 2;
        let size = 3;
        let rows: Vec<f32> = (0..600 * heads * size).map(|i| i as f32).collect();
        let all = Heads::in_order(&rows, heads * size, 0, heads, size);

        for dtype in [FloatDtype::F32, FloatDtype::F16, FloatDtype::BF16] {
            let mut cache = LayerCache::new(dtype);
            for first in (0..600).step_by(40) {
                cache.append(&all, &all, first..first + 40, None);
            }

            assert_eq!(cache.len(), 600);
            // 768 positions of 2 heads: keys of 3 values, values padded to 16.
            let bytes = if dtype == FloatDtype::F32 { 4 } else { 2 };
            assert_eq!(cache.bytes(), 768 * 2 * (3 + 16) * bytes);
            if let CacheValues::F32(values) = cache.values() {
                for (position, head, d) in [(0, 0, 0), (255, 1, 2), (256, 0, 1), (599, 1, 0)] {
                    let expected = ((position * heads + head) * size + d) as f32;
                    assert_eq!(
                        values.keys[head * 768 * size + key_place(position, d, size)],
                        expected
                    );
                    assert_eq!(values.values[(head * 768 + position) * 16 + d], expected);
                }
            }

            assert_eq!(
                cache.bytes(),
                LayerCache::bytes_for(dtype, heads, size, 600)
            );

            for len in [0, 1, 16, 257, 600, 9000] {
                let copy = cache.prefix(len);
                assert_eq!(copy.len(), len.min(600));
                let bytes = LayerCache::bytes_for(dtype, heads, size, copy.len());
                assert_eq!(copy.bytes(), bytes);
            }

            let mut copy = cache.prefix(257);
            copy.append(&all, &all, 257..600, None);
            if let (CacheValues::F32(copy), CacheValues::F32(values)) =
                (copy.values(), cache.values())
            {
                // Values past the last position may differ.
                for place in (0..600).flat_map(|at| (0..size).map(move |d| key_place(at, d, size)))
                {
                    for head in 0..heads {
                        let place = head * 768 * size + place;
                        assert_eq!(copy.keys[place], values.keys[place]);
                    }
                }
                let last = (768 + 599) * 16;
                assert_eq!(copy.values[..600 * 16], values.values[..600 * 16]);
                assert_eq!(
                    copy.values[last..last + size],
                    values.values[last..last + size]
                );
            }

            cache.truncate(10);
            assert_eq!((cache.len(), cache.is_empty()), (10, false));
        }
    }
}
