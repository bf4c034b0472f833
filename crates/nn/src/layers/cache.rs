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
        let count = rows.len();
        match &mut self.values {
            CacheValues::F16(values) => values.append(self.len, k, v, rows, rope),
            CacheValues::BF16(values) => values.append(self.len, k, v, rows, rope),
            CacheValues::F32(values) => values.append(self.len, k, v, rows, rope),
        }

        self.len += count;
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

    /// Writes rows at positions `len..len + rows.len()`.
    fn append(
        &mut self,
        len: usize,
        k: &Heads<'_>,
        v: &Heads<'_>,
        rows: Range<usize>,
        rope: Option<&RopeTable>,
    ) {
        let size = k.size();
        let width = padded(size);
        self.reserve(len + rows.len(), k.count(), size);

        let fill = |head: usize, keys: &mut [T], values: &mut [T]| {
            let mut key = vec![0f32; size];
            let mut stored = vec![T::of(0.0); size];
            for (t, row) in rows.clone().enumerate() {
                key.copy_from_slice(k.get(row, head));
                if let Some(rope) = rope {
                    rope.rotate(t, &mut key);
                }

                T::of_slice(&key, &mut stored);
                // Keys lie in panels of positions, so one key has a stride of a panel's width.
                let first = key_place(len + t, 0, size);
                keys[first..]
                    .iter_mut()
                    .step_by(PANEL)
                    .zip(&stored)
                    .for_each(|(y, x)| *y = *x);

                T::of_slice(v.get(row, head), &mut values[(len + t) * width..][..size]);
            }
        };

        let keys_len = self.capacity * size;
        let values_len = self.capacity * width;
        if rows.len() >= PARALLEL_POSITIONS {
            self.keys
                .par_chunks_mut(keys_len)
                .zip(self.values.par_chunks_mut(values_len))
                .enumerate()
                .for_each(|(head, (keys, values))| fill(head, keys, values));
        } else {
            self.keys
                .chunks_mut(keys_len)
                .zip(self.values.chunks_mut(values_len))
                .enumerate()
                .for_each(|(head, (keys, values))| fill(head, keys, values));
        }
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

            cache.truncate(10);
            assert_eq!((cache.len(), cache.is_empty()), (10, false));
        }
    }
}
