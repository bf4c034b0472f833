//! Keys and values of one text on one device.

use crate::error::Result;
use llm_int8_cuda::ops::{HeadLayout, RowShape, Strided, copy_rows};
use llm_int8_cuda::{Buffer, Device};

/// Positions a cache begins with.
const FIRST: usize = 256;

/// One piece of memory for all blocks of a device, so that a graph needs nothing but its address.
/// The layout is that of `attention.cu`.
#[derive(Debug)]
pub(crate) struct DeviceCache {
    device: Device,
    layout: HeadLayout,
    layers: usize,
    /// Positions a text may have.
    most: usize,
    memory: Option<Buffer<u8>>,
    capacity: usize,
}

impl DeviceCache {
    pub(super) fn new(device: Device, layout: HeadLayout, layers: usize, most: usize) -> Self {
        Self {
            device,
            layout,
            layers,
            most,
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

    /// Makes room for `positions` positions, of which the first `kept` stay. It grows by doubling,
    /// so that graphs, which are made for a number of chunks, serve for long.
    pub(super) fn reserve(&mut self, positions: usize, kept: usize) -> Result<()> {
        if positions <= self.capacity {
            return Ok(());
        }
        let capacity = positions
            .next_power_of_two()
            .max(FIRST)
            .min(self.most.max(positions));
        let memory = self
            .device
            .allocate::<u8>(self.layout.cache_bytes(self.layers, capacity))?;
        if let Some(old) = self.memory.as_ref().filter(|_| kept > 0) {
            let (heads, bytes) = (self.layout.kv_heads, self.layout.dtype.bytes());
            // Each layer has rows of keys, a group of values for each position, then rows of
            // values, a whole head for each position.
            let groups = self.layout.padded() / HeadLayout::GROUP;
            let half = |capacity: usize| heads * capacity * self.layout.padded() * bytes;
            for layer in 0..self.layers {
                for (part, rows, width) in [
                    (0, heads * groups, HeadLayout::GROUP),
                    (1, heads, self.layout.padded()),
                ] {
                    let place = |capacity: usize| (2 * layer + part) * half(capacity);
                    let pitch = |capacity: usize| capacity * width * bytes;
                    let from =
                        old.part(place(self.capacity)..place(self.capacity) + half(self.capacity))?;
                    let to = memory.part(place(capacity)..place(capacity) + half(capacity))?;
                    copy_rows(
                        Strided {
                            values: from,
                            stride: pitch(self.capacity),
                        },
                        Strided {
                            values: to,
                            stride: pitch(capacity),
                        },
                        RowShape {
                            rows,
                            width: kept * width * bytes,
                        },
                    )?;
                }
            }
        }
        self.memory = Some(memory);
        self.capacity = capacity;
        Ok(())
    }
}
