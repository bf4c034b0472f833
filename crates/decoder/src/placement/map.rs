//! Which part of a model goes where: `device_map="auto"` of transformers, with int8 on every side.

use crate::error::{DecoderError, Result};
use llm_int8_cuda::Device;

/// A device and how much of it the model may take.
#[derive(Debug, Clone)]
pub struct DeviceBudget {
    /// The device.
    pub device: Device,
    /// Bytes at most; none: what is free.
    pub most: Option<u64>,
}

/// Where a model is put.
#[derive(Debug, Clone, Default)]
pub struct Placement {
    /// Devices in the order in which they are filled; none: the CPU does all.
    pub devices: Vec<DeviceBudget>,
    /// Whether blocks that do not fit go to the CPU; else everything goes to the first device, or
    /// loading fails.
    pub spills: bool,
    /// Decode by graphs recorded once, and not by single launches.
    pub uses_graphs: bool,
    /// Let kernels start while the one before still runs ([`Device::set_overlap`]).
    pub overlaps_kernels: bool,
    /// Positions of one text that memory is kept free for.
    pub reserved_positions: usize,
    /// Bytes that may go to the CPU; none: all.
    pub most_on_cpu: Option<u64>,
}

impl Placement {
    /// Everything on the CPU.
    pub fn cpu() -> Self {
        Self::default()
    }

    /// Everything on one device, with graphs.
    pub fn on(device: Device) -> Self {
        let devices = vec![DeviceBudget { device, most: None }];
        Self {
            devices,
            spills: false,
            ..Self::auto(Vec::new())
        }
    }

    /// Whole blocks on these devices, as many as fit, the rest on the CPU.
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

/// Positions that memory is kept free for where nothing else is said.
const RESERVED_POSITIONS: usize = 2048;

/// Where a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Memory of the machine.
    Cpu,
    /// A device, by its number among those of the placement.
    Device(usize),
}

/// Where everything is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceMap {
    /// Tables, norms outside of blocks, the head.
    pub head: Place,
    /// Each block; those of a device lie side by side, those of the CPU come last.
    pub blocks: Vec<Place>,
}

/// Bytes of what is placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes {
    /// Tables, norms outside of blocks, the head.
    pub head: u64,
    /// Each block, with the keys and values that room is kept for.
    pub blocks: Vec<u64>,
    /// What a pass works in, on each device that has blocks.
    pub pass: u64,
}

impl DeviceMap {
    /// The map for devices with so many bytes for us.
    ///
    /// What stands outside of blocks goes to the first device if it fits: the head is the largest
    /// matrix and read for every token, and a token's row of it is all that crosses the bus. Then
    /// blocks fill one device after the other.
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

    /// The map of a placement.
    pub(crate) fn of(placement: &Placement, sizes: &Sizes) -> Result<Self> {
        let count = sizes.blocks.len();
        if placement.devices.is_empty() {
            return Ok(Self {
                head: Place::Cpu,
                blocks: vec![Place::Cpu; count],
            });
        }
        if !placement.spills {
            return Ok(Self {
                head: Place::Device(0),
                blocks: vec![Place::Device(0); count],
            });
        }
        let budgets = placement.devices.iter().map(|budget| -> Result<u64> {
            let free = budget.device.memory()?.free;
            // A twentieth for what drivers keep for themselves and for rounding of allocations.
            Ok(budget.most.unwrap_or(u64::MAX).min(free - free / 20))
        });
        Ok(Self::plan(sizes, &budgets.collect::<Result<Vec<_>>>()?))
    }

    /// The blocks of each place, one after the other.
    pub(crate) fn runs(&self) -> Vec<(Place, std::ops::Range<usize>)> {
        let mut runs: Vec<(Place, std::ops::Range<usize>)> = Vec::new();
        for (number, place) in self.blocks.iter().enumerate() {
            match runs.last_mut() {
                Some((last, range)) if last == place => range.end += 1,
                _ => runs.push((*place, number..number + 1)),
            }
        }
        runs
    }

    /// Refuses a device that is there twice.
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
                reason: format!("the device {name} is there twice"),
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
    fn devices_are_filled_one_after_the_other_and_the_rest_is_the_cpus() {
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
    fn what_fits_nowhere_is_the_cpus() {
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
    fn a_small_device_is_passed_over() {
        let map = DeviceMap::plan(&sizes(), &[8, 30]);
        assert_eq!(map.blocks, [Device(1), Device(1), Cpu, Cpu, Cpu]);
    }
}
