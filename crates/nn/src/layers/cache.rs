//! The key/value cache, in the layout that the attention kernels read.

use super::{Heads, RopeTable};
use crate::{CacheDtype, FloatDtype};
use bytemuck::Zeroable;
use half::{bf16, f16};
use llm_int8_kernels::attention::{CacheElement, HeadCache, PANEL, key_place, padded};
use llm_int8_kernels::{AlignedVec, Isa, team};
use std::ops::Range;

/// The keys and values of one layer for one sequence. Heads are stored one after the other, and
/// within a head the positions. In int8 each key and value is quantised once, when it is added, by
/// itself: its codes depend on nothing else.
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
    Int8(KeysAndValues<i8>),
}

/// The memory of one head, for whoever writes its new positions.
pub(super) enum HeadSlot<'a> {
    F16(HeadMut<'a, f16>),
    BF16(HeadMut<'a, bf16>),
    F32(HeadMut<'a, f32>),
    Int8(HeadMut<'a, i8>),
}

/// The keys and values of one head.
pub(super) struct HeadMut<'a, T> {
    keys: &'a mut [T],
    values: &'a mut [T],
    /// One for each position; empty for floats, as those of the values.
    key_scales: &'a mut [f32],
    value_scales: &'a mut [f32],
    size: usize,
}

/// New keys and values of one sequence.
#[derive(Clone)]
pub(super) struct NewPositions<'a> {
    pub(super) isa: Isa,
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
#[derive(Debug, Clone, Default)]
pub(super) struct KeysAndValues<T: Clone + Default> {
    keys: AlignedVec<T>,
    values: AlignedVec<T>,
    /// One for each position of each head; empty for floats, as those of the values.
    key_scales: AlignedVec<f32>,
    value_scales: AlignedVec<f32>,
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
    pub fn new(dtype: CacheDtype) -> Self {
        let values = match dtype {
            CacheDtype::Float(FloatDtype::F16) => CacheValues::F16(KeysAndValues::default()),
            CacheDtype::Float(FloatDtype::BF16) => CacheValues::BF16(KeysAndValues::default()),
            CacheDtype::Float(FloatDtype::F32) => CacheValues::F32(KeysAndValues::default()),
            CacheDtype::Int8 => CacheValues::Int8(KeysAndValues::default()),
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

    /// Bytes allocated for keys and values, their scales included.
    pub fn bytes(&self) -> u64 {
        match &self.values {
            CacheValues::F16(values) => values.bytes(),
            CacheValues::BF16(values) => values.bytes(),
            CacheValues::F32(values) => values.bytes(),
            CacheValues::Int8(values) => values.bytes(),
        }
    }

    /// Bytes that the cache of a layer with `kv_heads` heads of `size` values allocates for
    /// `positions` positions.
    pub fn bytes_for(dtype: CacheDtype, kv_heads: usize, size: usize, positions: usize) -> u64 {
        let position = Self::bytes_of_position(dtype, kv_heads, size);
        position * positions.next_multiple_of(GROW_BY) as u64
    }

    /// Bytes that one position takes in the cache of a layer with `kv_heads` heads of `size` values.
    pub fn bytes_of_position(dtype: CacheDtype, kv_heads: usize, size: usize) -> u64 {
        let head = (size + padded(size)) * dtype.size_in_bytes() + 2 * dtype.scale_bytes();
        (kv_heads * head) as u64
    }

    /// A copy of the first `len` positions, or of all if there are fewer. It has no more memory
    /// than they need.
    pub fn prefix(&self, len: usize) -> Self {
        let len = len.min(self.len);
        let values = match &self.values {
            CacheValues::F16(values) => CacheValues::F16(values.prefix(len)),
            CacheValues::BF16(values) => CacheValues::BF16(values.prefix(len)),
            CacheValues::F32(values) => CacheValues::F32(values.prefix(len)),
            CacheValues::Int8(values) => CacheValues::Int8(values.prefix(len)),
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

    /// Appends keys and values.
    pub(super) fn append(&mut self, new: &NewPositions<'_>) {
        let heads = self.extend(new.rows.len(), new.k.count(), new.k.size());
        let fill = |(head, slot): (usize, HeadSlot<'_>)| match slot {
            HeadSlot::F16(mut slot) => slot.fill(new, head, &mut Vec::new()),
            HeadSlot::BF16(mut slot) => slot.fill(new, head, &mut Vec::new()),
            HeadSlot::F32(mut slot) => slot.fill(new, head, &mut Vec::new()),
            HeadSlot::Int8(mut slot) => slot.fill(new, head, &mut Vec::new()),
        };
        if new.rows.len() >= PARALLEL_POSITIONS {
            let heads = heads.into_iter().enumerate().collect();
            team::for_each(heads, |_: &mut (), head| fill(head));
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
            CacheValues::Int8(values) => {
                let heads = values.heads_mut(positions, heads, size);
                heads.map(HeadSlot::Int8).collect()
            }
        }
    }
}

impl<T: CacheElement> HeadMut<'_, T> {
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
            let scale = T::scale_of(new.isa, key);
            let first = key_place(position, 0, size);
            let mut places = self.keys[first..].iter_mut().step_by(PANEL);
            for part in key.chunks(PANEL) {
                let mut stored = [T::default(); PANEL];
                let stored = &mut stored[..part.len()];
                T::store(new.isa, part, scale, stored);
                for (x, place) in stored.iter().zip(&mut places) {
                    *place = *x;
                }
            }

            let value = new.v.get(row, head);
            let value_scale = T::scale_of(new.isa, value);
            let stored = &mut self.values[position * width..][..size];
            T::store(new.isa, value, value_scale, stored);
            if T::IS_SCALED {
                self.key_scales[position] = scale;
                self.value_scales[position] = value_scale;
            }
        }
    }

    /// The head, to attend to.
    pub(super) fn cache(&self) -> HeadCache<'_, T> {
        let scales = [&*self.key_scales, &*self.value_scales];
        HeadCache::scaled(self.keys, self.values, scales, self.size)
    }
}

impl<T: CacheElement> KeysAndValues<T> {
    /// Scales of a key, and of a value.
    const SCALES: usize = T::IS_SCALED as usize;

    fn bytes(&self) -> u64 {
        let elements = size_of_val(&self.keys[..]) + size_of_val(&self.values[..]);
        let scales = size_of_val(&self.key_scales[..]) + size_of_val(&self.value_scales[..]);
        (elements + scales) as u64
    }

    pub(super) fn head(&self, head: usize, size: usize) -> HeadCache<'_, T> {
        let keys = self.capacity * size;
        let values = self.capacity * padded(size);
        let scales = self.capacity * Self::SCALES;
        let scales = head * scales..(head + 1) * scales;
        HeadCache::scaled(
            &self.keys[head * keys..][..keys],
            &self.values[head * values..][..values],
            [&self.key_scales[scales.clone()], &self.value_scales[scales]],
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
        // Without scales, every head has none.
        let none = || std::iter::repeat_with(<&mut [f32]>::default);
        let key_scales = self.key_scales.chunks_mut(self.capacity).chain(none());
        let value_scales = self.value_scales.chunks_mut(self.capacity).chain(none());

        let elements = keys.zip(values);
        elements.zip(key_scales.zip(value_scales)).map(
            move |((keys, values), (key_scales, value_scales))| HeadMut {
                keys,
                values,
                key_scales,
                value_scales,
                size,
            },
        )
    }

    /// Makes room for `positions` positions and keeps the content: the layout of a head's first
    /// positions does not depend on the capacity.
    fn reserve(&mut self, positions: usize, heads: usize, size: usize) {
        if positions > self.capacity {
            self.size = size;
            *self = self.with_capacity(positions.next_multiple_of(GROW_BY), heads);
        }
    }

    /// A copy of the first `len` positions.
    fn prefix(&self, len: usize) -> Self {
        if len == 0 || self.capacity == 0 {
            return Self::default();
        }

        let heads = self.values.len() / (self.capacity * padded(self.size));
        self.with_capacity(len.next_multiple_of(GROW_BY).min(self.capacity), heads)
    }

    /// A copy with room for `capacity` positions, of which it holds as many as it can.
    fn with_capacity(&self, capacity: usize, heads: usize) -> Self {
        let (size, width, scales) = (self.size, padded(self.size), Self::SCALES);
        let (from, to) = (self.capacity, capacity);
        Self {
            keys: resized(&self.keys, from * size, heads, to * size),
            values: resized(&self.values, from * width, heads, to * width),
            key_scales: resized(&self.key_scales, from * scales, heads, to * scales),
            value_scales: resized(&self.value_scales, from * scales, heads, to * scales),
            capacity,
            size,
        }
    }
}

/// A copy of `buffer`, of heads of `from` elements, with `to` elements in each head: as many as
/// there are, then zeros.
fn resized<T: Copy + Zeroable>(
    buffer: &AlignedVec<T>,
    from: usize,
    heads: usize,
    to: usize,
) -> AlignedVec<T> {
    let mut copy = AlignedVec::zeroed(heads * to);
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
    use llm_int8_kernels::reference::quantize_vector;

    fn append(cache: &mut LayerCache, all: &Heads<'_>, rows: Range<usize>) {
        cache.append(&NewPositions {
            isa: Isa::detect(),
            k: all,
            v: all,
            first: cache.len(),
            rows,
            rope: None,
        });
    }

    #[test]
    fn a_cache_keeps_its_content_as_it_grows_and_can_be_truncated() {
        let heads = 2;
        let size = 3;
        let rows: Vec<f32> = (0..600 * heads * size).map(|i| i as f32).collect();
        let all = Heads::in_order(&rows, heads * size, 0, heads, size);

        let floats = [FloatDtype::F32, FloatDtype::F16, FloatDtype::BF16];
        for dtype in floats
            .map(CacheDtype::from)
            .into_iter()
            .chain([CacheDtype::Int8])
        {
            let mut cache = LayerCache::new(dtype);
            for first in (0..600).step_by(40) {
                append(&mut cache, &all, first..first + 40);
            }

            assert_eq!(cache.len(), 600);
            // 768 positions of 2 heads: keys of 3 values, values padded to 16.
            let head = (3 + 16) * dtype.size_in_bytes() + 2 * dtype.scale_bytes();
            assert_eq!(cache.bytes(), (768 * 2 * head) as u64);
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
            append(&mut copy, &all, 257..600);
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

    /// Codes and scales of every position, as the reference has them.
    fn check_int8(cache: &LayerCache, all: &Heads<'_>) {
        let CacheValues::Int8(values) = cache.values() else {
            panic!("not an int8 cache");
        };
        for (position, head) in (0..cache.len()).flat_map(|i| (0..2).map(move |head| (i, head))) {
            let (codes, scale) = quantize_vector(all.get(position, head));
            let row = head * values.capacity + position;
            assert_eq!(
                [values.key_scales[row], values.value_scales[row]],
                [scale; 2]
            );
            let width = padded(values.size);
            assert_eq!(values.values[row * width..][..values.size], codes);
            let keys = &values.keys[head * values.capacity * values.size..];
            for (d, code) in codes.iter().enumerate() {
                assert_eq!(keys[key_place(position, d, values.size)], *code);
            }
        }
    }

    #[test]
    fn positions_are_quantised_as_by_the_reference_however_they_are_added() {
        let size = 19;
        let rows: Vec<f32> = (0..600 * 2 * size)
            .map(|i| (i as f32 * 0.7).sin() * (1 + i / size % 9) as f32)
            .collect();
        let all = Heads::in_order(&rows, 2 * size, 0, 2, size);
        for step in [1, 7, 40, 600] {
            let mut cache = LayerCache::new(CacheDtype::Int8);
            for first in (0..600).step_by(step) {
                append(&mut cache, &all, first..(first + step).min(600));
            }
            check_int8(&cache, &all);

            // What is dropped and added again, and a copy that goes on.
            cache.truncate(300);
            append(&mut cache, &all, 300..600);
            check_int8(&cache, &all);
            let mut copy = cache.prefix(513);
            check_int8(&copy, &all);
            append(&mut copy, &all, 513..600);
            check_int8(&copy, &all);
        }
    }
}
