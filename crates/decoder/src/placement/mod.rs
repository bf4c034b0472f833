//! Which part of a model lies on which device: how large parts are, where they go, where they went.

pub mod map;

pub use map::{DeviceBudget, DeviceMap, Place, Placement};

use crate::decoder::Decoder;
use crate::error::{DecoderError, Result};
use crate::execute::gpu::{Stage, Widths};
use crate::slot::{ModelSlot, Part, Slot};
use llm_int8_cuda::{Device, MemoryInfo};
use llm_int8_nn::linear::{Linear, OutlierWeights};
use map::Sizes;
use std::ops::Range;
use std::time::Instant;

/// Rows of a pass that memory is kept free for.
const RESERVED_ROWS: usize = 512;

/// Bytes of a copy that is timed.
const COPIED: u64 = 512 << 20;

/// What lies in one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedPart {
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// What the device is: `NVIDIA H200`.
    pub hardware: String,
    /// Whether tables, norms outside of blocks and the head are here.
    pub has_head: bool,
    /// The blocks.
    pub blocks: Range<usize>,
    /// Bytes of weights.
    pub bytes: u64,
}

impl Decoder {
    /// What lies where, in the order in which a token goes through it.
    pub fn placed(&self) -> Vec<PlacedPart> {
        let devices: Vec<Device> = self
            .stages
            .iter()
            .map(|stage| stage.device().clone())
            .collect();
        let ranges = self
            .stages
            .iter()
            .map(|stage| (stage.has_head(), stage.range()));
        self.parts_of(&devices, &ranges.collect::<Vec<_>>())
    }

    /// What would lie where, with a model that was not loaded.
    ///
    /// # Errors
    /// As [`Decoder::load`](crate::Decoder::load) for a placement that cannot be.
    pub fn planned(&self, placement: &Placement) -> Result<Vec<PlacedPart>> {
        let ranges = self.ranges(placement, &self.map_for(placement)?);
        let devices: Vec<Device> = ranges
            .iter()
            .map(|(number, ..)| placement.devices[*number].device.clone())
            .collect();
        let ranges: Vec<_> = ranges
            .into_iter()
            .map(|(_, has_head, range)| (has_head, range))
            .collect();
        Ok(self.parts_of(&devices, &ranges))
    }

    fn parts_of(&self, devices: &[Device], ranges: &[(bool, Range<usize>)]) -> Vec<PlacedPart> {
        let bytes = |range: Range<usize>, has_head: bool| {
            let blocks: u64 = range.map(|block| self.block_bytes(block)).sum();
            blocks + if has_head { self.head_bytes() } else { 0 }
        };
        let mut placed: Vec<PlacedPart> = Vec::new();
        for (device, (has_head, blocks)) in devices.iter().zip(ranges) {
            placed.push(PlacedPart {
                device: device.name().to_owned(),
                hardware: device.model().to_owned(),
                has_head: *has_head,
                blocks: blocks.clone(),
                bytes: bytes(blocks.clone(), *has_head),
            });
        }
        let first = ranges.last().map_or(0, |(_, range)| range.end);
        let has_head = !ranges.iter().any(|(has_head, _)| *has_head);
        if has_head || first < self.blocks.len() {
            let blocks = first..self.blocks.len();
            let (device, hardware, bytes) = (
                "cpu".into(),
                self.isa().name().into(),
                bytes(blocks.clone(), has_head),
            );
            placed.push(PlacedPart {
                device,
                hardware,
                has_head,
                blocks,
                bytes,
            });
        }
        placed
    }

    /// Turns graphs on or off; results are the same.
    pub fn set_graphs(&mut self, uses_graphs: bool) {
        self.stages
            .iter_mut()
            .for_each(|stage| stage.set_graphs(uses_graphs));
    }

    /// Graphs recorded so far.
    pub fn graph_count(&self) -> usize {
        self.stages.iter().map(Stage::graph_count).sum()
    }

    /// Bytes of a block's weights.
    fn block_bytes(&self, block: usize) -> u64 {
        self.blocks[block]
            .iter()
            .map(|(_, part)| self.part_bytes(part))
            .sum()
    }

    /// Bytes of embeddings and head; a tied head has none of its own.
    fn head_bytes(&self) -> u64 {
        let is_own = |slot| !(slot == ModelSlot::Head && self.spec().tied_head);
        self.model
            .iter()
            .filter(|(slot, _)| is_own(*slot))
            .map(|(_, part)| self.part_bytes(part))
            .sum()
    }

    /// Bytes of a part as it lies on a device.
    fn part_bytes(&self, part: &Part) -> u64 {
        let elements = |shape: &[usize]| shape.iter().product::<usize>();
        let float = self.dtype().candle().size_in_bytes();
        let bytes = match part {
            Part::Linear(linear @ Linear::Int8(_)) => {
                linear.out_features() * (llm_int8_cuda::plan::pitch(linear.in_features()) + 4)
            }
            Part::Linear(linear) => linear.out_features() * linear.in_features() * float,
            Part::Embedding(table) if table.is_int8() => {
                elements(&table.shape()) + 4 * table.shape()[0]
            }
            Part::Embedding(table) => elements(&table.shape()) * float,
            // Norms are f32 on devices.
            Part::Norm(norm) => {
                4 * norm
                    .parameters()
                    .map(|(_, one)| elements(one.shape()))
                    .sum::<usize>()
            }
            Part::HeadNorms(norms) => {
                4 * norms
                    .parameters()
                    .map(|(_, one)| elements(one.shape()))
                    .sum::<usize>()
            }
        };
        bytes as u64
    }

    fn sizes(&self, placement: &Placement) -> Sizes {
        let positions = placement.reserved_positions.min(self.spec().positions);
        let cache = Stage::cache_bytes(self, positions);
        let units = placement
            .devices
            .iter()
            .map(|budget| budget.device.multiprocessors())
            .max()
            .unwrap_or(0);
        let rows = RESERVED_ROWS.min(positions.max(1));
        Sizes {
            head: self.head_bytes() + 4 * 2 * self.spec().vocab_size() as u64,
            blocks: (0..self.blocks.len())
                .map(|block| self.block_bytes(block) + cache)
                .collect(),
            pass: Widths::of(self).bytes(rows, units),
        }
    }

    /// Memory of each device that has a part of the model.
    ///
    /// # Errors
    /// [`DecoderError::Cuda`].
    pub fn device_memory(&self) -> Result<Vec<(String, MemoryInfo)>> {
        let of = |stage: &Stage| Ok((stage.device().name().to_owned(), stage.device().memory()?));
        self.stages.iter().map(of).collect()
    }

    /// Bytes a second that a copy within the first device reads and writes; none where everything
    /// is on the CPU.
    ///
    /// # Errors
    /// [`DecoderError::Cuda`].
    pub fn copy_rate(&self) -> Result<Option<f64>> {
        const TIMES: u32 = 8;
        let Some(stage) = self.stages.first() else {
            return Ok(None);
        };
        let device = stage.device();
        let bytes = (device.memory()?.free / 16).min(COPIED) as usize;
        let (from, to) = (device.zeros::<u8>(bytes)?, device.zeros::<u8>(bytes)?);
        device.synchronize()?;
        let started = Instant::now();
        (0..TIMES).try_for_each(|_| to.all().copy_from(&from.all()))?;
        device.synchronize()?;
        Ok(Some(
            2.0 * f64::from(TIMES) * bytes as f64 / started.elapsed().as_secs_f64(),
        ))
    }

    fn map_for(&self, placement: &Placement) -> Result<DeviceMap> {
        DeviceMap::check(placement)?;
        let original = |part: &Part| match part {
            Part::Linear(Linear::Int8(linear)) => {
                linear.config().outlier_weights == OutlierWeights::Original
            }
            _ => false,
        };
        if !placement.devices.is_empty() && self.all_parts().any(original) {
            return Err(DecoderError::OriginalWeightsOnDevice);
        }
        let map = DeviceMap::of(placement, &self.sizes(placement))?;
        let on_cpu = map
            .blocks
            .iter()
            .enumerate()
            .filter(|(_, place)| **place == Place::Cpu);
        let head = if map.head == Place::Cpu {
            self.head_bytes()
        } else {
            0
        };
        let bytes = head
            + on_cpu
                .map(|(block, _)| self.block_bytes(block))
                .sum::<u64>();
        match placement.most_on_cpu {
            Some(most) if bytes > most => Err(DecoderError::Placement {
                reason: format!(
                    "{bytes} bytes do not fit on the devices, and the CPU may take {most}; allow more memory"
                ),
            }),
            _ => Ok(map),
        }
    }

    /// Of each device that gets something: its number, whether that is what stands outside of
    /// blocks, its blocks.
    fn ranges(&self, placement: &Placement, map: &DeviceMap) -> Vec<(usize, bool, Range<usize>)> {
        let runs = map.runs();
        let (mut ranges, mut next) = (Vec::new(), 0);
        for number in 0..placement.devices.len() {
            let place = Place::Device(number);
            let run = runs
                .iter()
                .find(|(found, _)| *found == place)
                .map(|(_, range)| range.clone());
            let has_head = map.head == place;
            if run.is_some() || has_head {
                let range = run.unwrap_or(next..next);
                next = range.end;
                ranges.push((number, has_head, range));
            }
        }
        ranges
    }

    /// Declares the decoder's parts where the placement wants them; values are read later.
    pub(super) fn place(&mut self, placement: &Placement) -> Result<()> {
        let map = self.map_for(placement)?;
        for (number, has_head, range) in self.ranges(placement, &map) {
            let device = &placement.devices[number].device;
            device.set_overlap(placement.overlaps_kernels);
            let stage = Stage::declare(device, self, range, has_head, placement.uses_graphs)?;
            self.stages.push(stage);
        }
        Ok(())
    }

    /// Once all is read: norms and biases follow their weights, and each device is done with what
    /// it was given.
    pub(super) fn finish_stages(&mut self) -> Result<()> {
        let mut stages = std::mem::take(&mut self.stages);
        stages
            .iter_mut()
            .try_for_each(|stage| stage.take_small_parts(self))?;
        stages
            .iter()
            .try_for_each(|stage| stage.device().synchronize())?;
        self.stages = stages;
        Ok(())
    }

    /// The stage that has a slot.
    pub(super) fn stage_of(&self, slot: Slot) -> Option<&Stage> {
        self.stages.iter().find(|stage| stage.has(slot))
    }
}
