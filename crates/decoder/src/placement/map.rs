//! Decides which part of a model goes where, like `device_map="auto"` of transformers, but with
//! int8 on the CPU too.

use crate::error::{DecoderError, Result};
use llm_int8_cuda::Device;
use std::ops::Range;

/// A device and how much of its memory the model may take.
#[derive(Debug, Clone)]
pub struct DeviceBudget {
    /// The device.
    pub device: Device,
    /// Maximum bytes that the model may take; none: what is free.
    pub most: Option<u64>,
}

/// On which devices a model is put, and how they run it.
#[derive(Debug, Clone, Default)]
pub struct Placement {
    /// Devices in the order in which they are filled; empty: everything is on the CPU.
    pub devices: Vec<DeviceBudget>,
    /// Whether blocks that do not fit on the devices go to the CPU; otherwise everything goes to
    /// the first device, or loading fails.
    pub spills: bool,
    /// Whether decoding replays CUDA graphs instead of launching kernels one by one.
    pub uses_graphs: bool,
    /// Whether a kernel may start while the one before still runs ([`Device::set_overlap`]).
    pub overlaps_kernels: bool,
    /// Positions of one sequence whose keys and values memory is kept free for.
    pub reserved_positions: usize,
    /// Maximum bytes of weights that may go to the CPU; none: no limit.
    pub most_on_cpu: Option<u64>,
}

impl Placement {
    /// Everything on the CPU.
    pub fn cpu() -> Self {
        Self::default()
    }

    /// Everything on one device, with CUDA graphs.
    pub fn on(device: Device) -> Self {
        let devices = vec![DeviceBudget { device, most: None }];
        Self {
            devices,
            spills: false,
            ..Self::auto(Vec::new())
        }
    }

    /// As many blocks on these devices as fit, and the rest on the CPU.
    pub fn auto(devices: Vec<DeviceBudget>) -> Self {
        Self {
            devices,
            spills: true,
            uses_graphs: true,
            overlaps_kernels: true,
            reserved_positions: RESERVED_POSITIONS,
            most_on_cpu: None,
        }
    }
}

/// Default of [`Placement::reserved_positions`].
const RESERVED_POSITIONS: usize = 2048;

/// Where a part lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The CPU.
    Cpu,
    /// A device, by its index in [`Placement::devices`].
    Device(usize),
}

/// Where each part of a model lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceMap {
    /// The embeddings and the head.
    pub head: Place,
    /// Each block. The blocks of a device are consecutive; those of the CPU come last.
    pub blocks: Vec<Place>,
}

/// Bytes that each part of a model needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes {
    /// The embeddings and the head.
    pub head: u64,
    /// Each block, with its share of the KV cache.
    pub blocks: Vec<u64>,
    /// The workspace of a pass, on each device that has blocks.
    pub pass: u64,
}

impl DeviceMap {
    /// The map for devices whose memory for the model is `budgets`, in bytes.
    ///
    /// Embeddings and head go to the first device if they fit there: the head is the largest matrix
    /// and is read for every token, while one row of activations is all that it moves over the bus.
    /// Then blocks fill one device after the other.
    ///
    /// ```
    /// use llm_int8_decoder::placement::map::Sizes;
    /// use llm_int8_decoder::{DeviceMap, Place};
    /// let sizes = Sizes { head: 10, blocks: vec![5; 4], pass: 1 };
    /// let map = DeviceMap::plan(&sizes, &[17, 7]);
    /// assert_eq!(map.head, Place::Device(0));
    /// assert_eq!(map.blocks, [Place::Device(0), Place::Device(1), Place::Cpu, Place::Cpu]);
    /// ```
    pub fn plan(sizes: &Sizes, budgets: &[u64]) -> Self {
        let mut left: Vec<u64> = budgets
            .iter()
            .map(|budget| budget.saturating_sub(sizes.pass))
            .collect();

        let head = match left.first_mut() {
            Some(first) if *first >= sizes.head => {
                *first -= sizes.head;
                Place::Device(0)
            }
            _ => Place::Cpu,
        };

        let mut number = 0;
        let mut place = |block: &u64| {
            while let Some(left) = left.get_mut(number) {
                if *left >= *block {
                    *left -= block;
                    return Place::Device(number);
                }
                number += 1;
            }
            Place::Cpu
        };
        Self {
            head,
            blocks: sizes.blocks.iter().map(&mut place).collect(),
        }
    }

    /// The map of a placement, by the memory that is free on its devices now.
    pub(crate) fn of(placement: &Placement, sizes: &Sizes) -> Result<Self> {
        let all_on = |place: Place| Self {
            head: place,
            blocks: vec![place; sizes.blocks.len()],
        };
        if placement.devices.is_empty() {
            return Ok(all_on(Place::Cpu));
        }
        if !placement.spills {
            return Ok(all_on(Place::Device(0)));
        }

        let budgets = placement.devices.iter().map(|budget| -> Result<u64> {
            let free = budget.device.memory()?.free;
            // 5 % is left for the driver's own use and for the rounding of allocations.
            Ok(budget.most.unwrap_or(u64::MAX).min(free - free / 20))
        });
        Ok(Self::plan(sizes, &budgets.collect::<Result<Vec<_>>>()?))
    }

    /// Runs of consecutive blocks in the same place.
    pub(crate) fn runs(&self) -> Vec<(Place, Range<usize>)> {
        let mut runs: Vec<(Place, Range<usize>)> = Vec::new();
        for (number, place) in self.blocks.iter().enumerate() {
            match runs.last_mut() {
                Some((last, range)) if last == place => range.end += 1,
                _ => runs.push((*place, number..number + 1)),
            }
        }
        runs
    }

    /// Refuses a placement that names a device twice.
    pub(crate) fn check(placement: &Placement) -> Result<()> {
        let names: Vec<&str> = placement
            .devices
            .iter()
            .map(|budget| budget.device.name())
            .collect();

        let twice = names
            .iter()
            .enumerate()
            .find(|(i, name)| names[..*i].contains(name));
        match twice {
            Some((_, name)) => Err(DecoderError::Placement {
                reason: format!("the device {name} is named twice"),
            }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Place::{Cpu, Device};

    fn sizes() -> Sizes {
        Sizes {
            head: 100,
            blocks: vec![10; 5],
            pass: 5,
        }
    }

    #[test]
    fn devices_are_filled_in_turn_and_the_rest_goes_to_the_cpu() {
        let map = DeviceMap::plan(&sizes(), &[130, 25]);
        assert_eq!(
            map.blocks,
            [Device(0), Device(0), Device(1), Device(1), Cpu]
        );
        assert_eq!(
            map.runs(),
            [(Device(0), 0..2), (Device(1), 2..4), (Cpu, 4..5)]
        );
    }

    #[test]
    fn a_head_that_does_not_fit_leaves_room_for_blocks() {
        let map = DeviceMap::plan(&sizes(), &[40]);
        assert_eq!(
            (map.head, map.blocks),
            (Cpu, vec![Device(0), Device(0), Device(0), Cpu, Cpu])
        );
    }

    #[test]
    fn what_fits_on_no_device_goes_to_the_cpu() {
        let all = DeviceMap {
            head: Cpu,
            blocks: vec![Cpu; 5],
        };
        assert_eq!(DeviceMap::plan(&sizes(), &[]), all);
        assert_eq!(DeviceMap::plan(&sizes(), &[4]), all);
        let everything = DeviceMap::plan(&sizes(), &[155]);
        assert_eq!(
            everything,
            DeviceMap {
                head: Device(0),
                blocks: vec![Device(0); 5]
            }
        );
    }

    #[test]
    fn a_device_too_small_for_a_block_is_skipped() {
        let map = DeviceMap::plan(&sizes(), &[8, 30]);
        assert_eq!(map.blocks, [Device(1), Device(1), Cpu, Cpu, Cpu]);
    }
}
