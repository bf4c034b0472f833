//! Which part of a model lies on which device: the sizes of parts, where they go, and where they
//! went.

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

/// Rows of the passes that memory is kept free for.
const RESERVED_ROWS: usize = 512;

/// Maximum bytes of the copy that [`Decoder::copy_rate`] times.
const TIMED_COPY_BYTES: u64 = 512 << 20;

/// The part of a model that lies on one device or on the CPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedPart {
    /// The device's name: `cpu`, `cuda:0`.
    pub device: String,
    /// What the device is: `NVIDIA H200`; of the CPU its instruction set.
    pub hardware: String,
    /// Whether the embeddings and the head lie here.
    pub has_head: bool,
    /// Numbers of the blocks.
    pub blocks: Range<usize>,
    /// Bytes of weights.
    pub bytes: u64,
}

/// The part of a model that a device holds, or is going to hold.
struct DevicePart<'a> {
    device: &'a Device,
    has_head: bool,
    blocks: Range<usize>,
}

impl Decoder {
    /// Where each part of the model lies, in the order in which a token goes through them.
    pub fn placed(&self) -> Vec<PlacedPart> {
        let parts = self.stages.iter().map(|stage| DevicePart {
            device: stage.device(),
            has_head: stage.has_head(),
            blocks: stage.range(),
        });
        self.with_cpu_part(parts.collect())
    }

    /// Where each part of the model would lie, for a model without values.
    ///
    /// # Errors
    /// As [`Decoder::load`](crate::Decoder::load) for a placement that is impossible.
    pub fn planned(&self, placement: &Placement) -> Result<Vec<PlacedPart>> {
        let map = self.map_for(placement)?;
        Ok(self.with_cpu_part(device_parts(placement, &map)))
    }

    /// The parts on devices, with what is left for the CPU at the end.
    fn with_cpu_part(&self, parts: Vec<DevicePart<'_>>) -> Vec<PlacedPart> {
        let bytes = |blocks: Range<usize>, has_head: bool| {
            let blocks: u64 = blocks.map(|block| self.block_bytes(block)).sum();
            blocks + if has_head { self.head_bytes() } else { 0 }
        };

        let first_on_cpu = parts.last().map_or(0, |part| part.blocks.end);
        let has_head = !parts.iter().any(|part| part.has_head);

        let on_devices = parts.into_iter().map(|part| PlacedPart {
            device: part.device.name().to_owned(),
            hardware: part.device.model().to_owned(),
            has_head: part.has_head,
            bytes: bytes(part.blocks.clone(), part.has_head),
            blocks: part.blocks,
        });
        let mut placed: Vec<PlacedPart> = on_devices.collect();

        let blocks = first_on_cpu..self.blocks.len();
        if has_head || !blocks.is_empty() {
            placed.push(PlacedPart {
                device: "cpu".into(),
                hardware: self.isa().name().into(),
                has_head,
                bytes: bytes(blocks.clone(), has_head),
                blocks,
            });
        }
        placed
    }

    /// Turns CUDA graphs on or off. Results are the same.
    pub fn set_graphs(&mut self, uses_graphs: bool) {
        self.stages
            .iter_mut()
            .for_each(|stage| stage.set_graphs(uses_graphs));
    }

    /// CUDA graphs recorded so far.
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

    /// Bytes of a part in device memory, without biases.
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

    /// What each part needs on a device of this placement, KV cache and workspace included.
    fn sizes(&self, placement: &Placement) -> Sizes {
        let positions = placement.reserved_positions.min(self.spec().positions);
        let cache = Stage::cache_bytes(self, positions);
        let blocks = (0..self.blocks.len()).map(|block| self.block_bytes(block) + cache);

        let two_rows_of_logits = 2 * size_of::<f32>() * self.spec().vocab_size();
        let head = self.head_bytes() + two_rows_of_logits as u64;

        let multiprocessors = placement
            .devices
            .iter()
            .map(|budget| budget.device.multiprocessors())
            .max()
            .unwrap_or(0);
        let rows = RESERVED_ROWS.min(positions.max(1));

        Sizes {
            head,
            blocks: blocks.collect(),
            pass: Widths::of(self).bytes(rows, multiprocessors),
        }
    }

    /// Name and memory of each device that holds a part of the model.
    ///
    /// # Errors
    /// [`DecoderError::Cuda`].
    pub fn device_memory(&self) -> Result<Vec<(String, MemoryInfo)>> {
        let memory =
            |stage: &Stage| Ok((stage.device().name().to_owned(), stage.device().memory()?));
        self.stages.iter().map(memory).collect()
    }

    /// Measures the memory bandwidth of the first device by a copy: bytes read and written a
    /// second. None if everything is on the CPU.
    ///
    /// # Errors
    /// [`DecoderError::Cuda`].
    pub fn copy_rate(&self) -> Result<Option<f64>> {
        const TIMES: u32 = 8;
        let Some(stage) = self.stages.first() else {
            return Ok(None);
        };
        let device = stage.device();

        let bytes = (device.memory()?.free / 16).min(TIMED_COPY_BYTES) as usize;
        let from = device.zeros::<u8>(bytes)?;
        let to = device.zeros::<u8>(bytes)?;
        device.synchronize()?;

        let started = Instant::now();
        (0..TIMES).try_for_each(|_| to.all().copy_from(&from.all()))?;
        device.synchronize()?;
        let seconds = started.elapsed().as_secs_f64();

        let read_and_written = 2.0 * f64::from(TIMES) * bytes as f64;
        Ok(Some(read_and_written / seconds))
    }

    /// The map of a placement.
    ///
    /// # Errors
    /// [`DecoderError::Placement`] for a device that is named twice, or if more than
    /// `most_on_cpu` is left for the CPU; [`DecoderError::OriginalWeightsOnDevice`],
    /// [`DecoderError::AdapterOnDevice`], [`DecoderError::CacheDtypeOnDevice`]; [`DecoderError::Cuda`].
    fn map_for(&self, placement: &Placement) -> Result<DeviceMap> {
        DeviceMap::check(placement)?;
        let keeps_original = |part: &Part| match part {
            Part::Linear(Linear::Int8(linear)) => {
                linear.config().outlier_weights != OutlierWeights::Dequantized
            }
            _ => false,
        };
        if !placement.devices.is_empty() && self.all_parts().any(keeps_original) {
            return Err(DecoderError::OriginalWeightsOnDevice);
        }

        if !placement.devices.is_empty() && self.has_adapter() {
            return Err(DecoderError::AdapterOnDevice);
        }

        self.check_cache_dtype(self.cache_dtype(), !placement.devices.is_empty())?;

        let map = DeviceMap::of(placement, &self.sizes(placement))?;
        let on_cpu = self.bytes_on_cpu(&map);
        match placement.most_on_cpu {
            Some(most) if on_cpu > most => Err(DecoderError::Placement {
                reason: format!(
                    "{on_cpu} bytes do not fit on the devices, and the CPU may take {most}; allow more memory"
                ),
            }),
            _ => Ok(map),
        }
    }

    /// Bytes of weights that a map leaves on the CPU.
    fn bytes_on_cpu(&self, map: &DeviceMap) -> u64 {
        let blocks: u64 = map
            .blocks
            .iter()
            .enumerate()
            .filter(|(_, place)| **place == Place::Cpu)
            .map(|(block, _)| self.block_bytes(block))
            .sum();

        match map.head {
            Place::Cpu => blocks + self.head_bytes(),
            Place::Device(_) => blocks,
        }
    }

    /// Allocates the parts that the placement puts on devices; their values are read later.
    pub(super) fn place(&mut self, placement: &Placement) -> Result<()> {
        let map = self.map_for(placement)?;
        for part in device_parts(placement, &map) {
            part.device.set_overlap(placement.overlaps_kernels);
            let stage = Stage::declare(
                part.device,
                self,
                part.blocks,
                part.has_head,
                placement.uses_graphs,
            )?;
            self.stages.push(stage);
        }
        Ok(())
    }

    /// Completes the stages once all tensors are read: uploads norms and biases, and waits for the
    /// devices.
    pub(super) fn finish_stages(&mut self) -> Result<()> {
        let mut stages = std::mem::take(&mut self.stages);
        stages
            .iter_mut()
            .try_for_each(|stage| stage.upload_small_parts(self))?;
        stages
            .iter()
            .try_for_each(|stage| stage.device().synchronize())?;
        self.stages = stages;
        Ok(())
    }

    /// The stage that a slot lies on; none: it lies on the CPU.
    pub(super) fn stage_of(&self, slot: Slot) -> Option<&Stage> {
        self.stages.iter().find(|stage| stage.has(slot))
    }
}

/// The part of each device that holds one, in the order of the blocks.
fn device_parts<'a>(placement: &'a Placement, map: &DeviceMap) -> Vec<DevicePart<'a>> {
    let runs = map.runs();
    let mut parts = Vec::new();
    let mut next = 0;

    for (number, budget) in placement.devices.iter().enumerate() {
        let place = Place::Device(number);
        let has_head = map.head == place;
        let run = runs.iter().find(|(found, _)| *found == place);

        if run.is_some() || has_head {
            let blocks = run.map_or(next..next, |(_, blocks)| blocks.clone());
            next = blocks.end;
            parts.push(DevicePart {
                device: &budget.device,
                has_head,
                blocks,
            });
        }
    }
    parts
}
