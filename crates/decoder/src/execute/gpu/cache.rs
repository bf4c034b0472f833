//! The KV cache of one sequence on one device.

use crate::error::Result;
use llm_int8_cuda::ops::{HeadLayout, RowShape, Strided, copy_rows};
use llm_int8_cuda::{Buffer, Device};

/// Positions that a cache has room for at first.
const FIRST_CAPACITY: usize = 256;

/// Keys and values of all blocks of a stage, in one buffer, so that its address is all that a
/// recorded graph has to look up. `attention.cu` documents the layout.
#[derive(Debug)]
pub(crate) struct DeviceCache {
    device: Device,
    layout: HeadLayout,
    layers: usize,
    /// Positions that a sequence may have.
    max_positions: usize,
    memory: Option<Buffer<u8>>,
    /// Positions that there is room for.
    capacity: usize,
}

impl DeviceCache {
    pub(super) fn new(
        device: Device,
        layout: HeadLayout,
        layers: usize,
        max_positions: usize,
    ) -> Self {
        Self {
            device,
            layout,
            layers,
            max_positions,
            memory: None,
            capacity: 0,
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.memory.as_ref().map_or(0, Buffer::bytes)
    }

    pub(super) fn address(&self) -> u64 {
        self.memory.as_ref().map_or(0, Buffer::address)
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Makes room for `positions` positions and keeps the first `kept`. The capacity doubles:
    /// attention's number of splits, which is part of a graph's key, then changes rarely.
    pub(super) fn reserve(&mut self, positions: usize, kept: usize) -> Result<()> {
        if positions <= self.capacity {
            return Ok(());
        }
        let capacity = self.capacity_for(positions);
        let memory = self
            .device
            .allocate::<u8>(self.layout.cache_bytes(self.layers, capacity))?;
        if let Some(old) = self.memory.as_ref().filter(|_| kept > 0) {
            self.copy_positions(old, &memory, capacity, kept)?;
        }

        self.memory = Some(memory);
        self.capacity = capacity;
        Ok(())
    }

    /// The capacity that a cache grows to for `positions` positions.
    fn capacity_for(&self, positions: usize) -> usize {
        positions
            .next_power_of_two()
            .max(FIRST_CAPACITY)
            .min(self.max_positions.max(positions))
    }

    /// Bytes of a cache with room for `positions` positions.
    pub(super) fn bytes_for(&self, positions: usize) -> u64 {
        let capacity = self.capacity_for(positions);
        self.layout.cache_bytes(self.layers, capacity) as u64
    }

    /// A copy of the first `len` positions, which must be cached.
    pub(crate) fn prefix(&self, len: usize) -> Result<Self> {
        let layout = self.layout;
        let mut copy = Self::new(self.device.clone(), layout, self.layers, self.max_positions);
        if let Some(memory) = self.memory.as_ref().filter(|_| len > 0) {
            let capacity = self.capacity_for(len);
            let bytes = layout.cache_bytes(self.layers, capacity);
            let new = self.device.allocate::<u8>(bytes)?;
            self.copy_positions(memory, &new, capacity, len)?;
            copy.memory = Some(new);
            copy.capacity = capacity;
        }
        Ok(copy)
    }

    /// Copies the first `kept` positions of every layer to memory of another capacity.
    ///
    /// Each layer has its keys first, for each head and group of [`HeadLayout::GROUP`] values a row
    /// `[capacity, GROUP]`; then its values, for each head a row `[capacity, padded]`. Both halves
    /// have the same size.
    fn copy_positions(
        &self,
        old: &Buffer<u8>,
        new: &Buffer<u8>,
        new_capacity: usize,
        kept: usize,
    ) -> Result<()> {
        let heads = self.layout.kv_heads;
        let padded = self.layout.padded();
        let value = self.layout.dtype.bytes();
        let groups = padded / HeadLayout::GROUP;

        let keys = (heads * groups, HeadLayout::GROUP * value);
        let values = (heads, padded * value);
        let half_bytes = |capacity: usize| heads * capacity * padded * value;

        for layer in 0..self.layers {
            for (half, (rows, position_bytes)) in [keys, values].into_iter().enumerate() {
                let range = |capacity: usize| {
                    let start = (2 * layer + half) * half_bytes(capacity);
                    start..start + half_bytes(capacity)
                };
                let from = Strided {
                    values: old.part(range(self.capacity))?,
                    stride: self.capacity * position_bytes,
                };
                let to = Strided {
                    values: new.part(range(new_capacity))?,
                    stride: new_capacity * position_bytes,
                };
                let shape = RowShape {
                    rows,
                    width: kept * position_bytes,
                };
                copy_rows(from, to, shape)?;
            }
        }
        Ok(())
    }
}
