//! One pass through the embeddings, blocks and head that lie on a device.

use super::Stage;
use super::cache::DeviceCache;
use super::inputs::{DeviceInputs, HostInputs};
use super::memory::{HeadMemory, Widths, Workspace};
use super::parts::DeviceHead;
use super::steps::Executor;
use crate::decoder::Decoder;
use crate::error::{DecoderError, Result};
use crate::plan::{Plan, Rows};
use llm_int8_cuda::{View, plan as kernel_plan};
use std::ops::Range;
use std::sync::{Arc, MutexGuard, PoisonError};

/// New positions of a sequence from which attention works on tiles of queries.
const TILED_FROM: usize = 9;

/// A workspace is allocated before a pass uses it.
const NO_MEMORY: DecoderError = DecoderError::Bug {
    what: "memory of a pass on a device",
};

/// What a device computes in a pass, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Work {
    /// The embeddings; otherwise the stream was written by [`StagePass::write_stream`].
    pub(crate) embeds: bool,
    /// These blocks.
    pub(crate) blocks: Range<usize>,
    /// The head, for all rows.
    pub(crate) computes_head: bool,
}

/// A pass in progress on a device. It has the stage's workspace to itself until it is dropped.
pub(crate) struct StagePass<'a> {
    pub(super) stage: &'a Stage,
    pub(super) decoder: &'a Decoder,
    workspace: MutexGuard<'a, Option<Workspace>>,
    /// Rows of the pass.
    pub(super) count: usize,
    /// CUDA blocks that share the positions of one row in attention.
    pub(super) splits: usize,
    /// Tiles of queries; 0 where attention works row by row.
    tiles: usize,
    /// Whether every row is the only new one of its sequence.
    pub(super) is_decode: bool,
}

impl Stage {
    /// Prepares a pass: makes room in the caches and in the workspace, and uploads the inputs.
    pub(crate) fn begin<'a>(
        &'a self,
        decoder: &'a Decoder,
        inputs: &HostInputs,
        caches: &mut [&mut DeviceCache],
    ) -> Result<StagePass<'a>> {
        inputs.reserve(caches)?;

        let count = inputs.count();
        let workspace = self.workspace_for(count)?;
        let tiles = self.query_tiles(&inputs.lengths);

        let memory = workspace.as_ref().ok_or(NO_MEMORY)?;
        memory.inputs.all().write(&inputs.bytes(caches, &tiles))?;

        let capacities = caches.iter().map(|cache| cache.capacity());
        let capacity = capacities.max().unwrap_or(0);
        Ok(StagePass {
            stage: self,
            decoder,
            count,
            splits: self.splits(capacity, count),
            tiles: tiles.len(),
            is_decode: inputs.is_decode(),
            workspace,
        })
    }

    /// The stage's workspace, grown to at least `count` rows.
    fn workspace_for(&self, count: usize) -> Result<MutexGuard<'_, Option<Workspace>>> {
        let mut workspace = self
            .workspace
            .lock()
            .unwrap_or_else(PoisonError::into_inner);

        if workspace.as_ref().is_none_or(|memory| memory.rows < count) {
            self.forget_graphs();
            // Free the old one first, so that both need not fit at once.
            *workspace = None;
            *workspace = Some(Workspace::new(
                &self.device,
                &self.widths,
                count.next_power_of_two(),
            )?);
        }
        Ok(workspace)
    }

    /// The tiles of queries for sequences of these numbers of new rows; none where attention works
    /// row by row.
    fn query_tiles(&self, lengths: &[usize]) -> Vec<[u32; 2]> {
        let padded = self.layout().padded();
        let has_prompt = lengths.iter().any(|length| *length >= TILED_FROM);
        // Blocks on Turing have too little shared memory for tiles of wide heads.
        let fits = padded <= kernel_plan::MAX_TILED_HEAD_SIZE
            && kernel_plan::attend_many_shared_bytes(padded) <= self.device.shared_bytes();

        if has_prompt && fits {
            kernel_plan::query_tiles(lengths)
        } else {
            Vec::new()
        }
    }

    /// An empty cache for a sequence of at most `positions` positions.
    pub(crate) fn new_cache(&self, positions: usize) -> DeviceCache {
        DeviceCache::new(
            self.device.clone(),
            self.layout(),
            self.blocks.len(),
            positions,
        )
    }

    /// Uploads norms and biases from the decoder's CPU parts, once those are read.
    pub(crate) fn upload_small_parts(&mut self, decoder: &Decoder) -> Result<()> {
        let shared = || DecoderError::Bug {
            what: "a stage of its own while the model is loaded",
        };
        let plan = decoder.execution_plan();

        let blocks = Arc::get_mut(&mut self.blocks).ok_or_else(shared)?;
        for (number, block) in (self.first..).zip(blocks) {
            let steps = plan.blocks[number].iter();
            block.upload_small_parts(&self.device, &decoder.blocks[number], steps)?;
        }

        if let Some(model) = &mut self.model {
            let model = Arc::get_mut(model).ok_or_else(shared)?;
            let steps = plan.embed.iter().chain(&plan.head);
            model
                .parts
                .upload_small_parts(&self.device, &decoder.model, steps)?;
        }
        Ok(())
    }
}

impl StagePass<'_> {
    pub(super) fn plan(&self) -> &Plan {
        self.decoder.execution_plan()
    }

    pub(super) fn widths(&self) -> &Widths {
        &self.stage.widths
    }

    /// Uploads the residual stream, f32 `[rows, hidden_size]`, that another stage or the CPU
    /// computed.
    pub(crate) fn write_stream(&self, stream: &[f32]) -> Result<()> {
        Ok(self.memory()?.stream.all().write(stream)?)
    }

    /// Downloads the residual stream, f32 `[rows, hidden_size]`.
    pub(crate) fn read_stream(&self) -> Result<Vec<f32>> {
        let mut stream = vec![0f32; self.count * self.plan().width(Rows::Stream)];
        self.memory()?.stream.all().read(&mut stream)?;
        Ok(stream)
    }

    /// Does the work: decode passes of few rows by a graph, others as single launches.
    pub(crate) fn run(&mut self, work: &Work) -> Result<()> {
        if work.computes_head {
            self.reserve_logits(self.count)?;
        }
        if self.fits_graph() {
            self.run_graph(work)
        } else {
            self.launch(work)
        }
    }

    /// The work as single launches.
    pub(super) fn launch(&self, work: &Work) -> Result<()> {
        // On an H100, 32 sequences are decoded 6 % faster without early starts, prompts 3 to 7 %
        // faster with them.
        if self.is_decode && self.count > kernel_plan::THIN_MAX_ROWS {
            let device = &self.stage.device;
            return device.without_overlap(|| self.launch_steps(work));
        }
        self.launch_steps(work)
    }

    fn launch_steps(&self, work: &Work) -> Result<()> {
        let memory = self.memory()?;
        let plan = self.plan();
        let executor = self.executor(memory, memory.stream.all(), self.count)?;

        if work.embeds {
            executor.model(&plan.embed, self.model()?)?;
        }

        for number in work.blocks.clone() {
            let index = number - self.stage.first;
            let parts = &self.stage.blocks[index];
            plan.blocks[number]
                .iter()
                .try_for_each(|step| executor.step(step, parts, index))?;
        }

        if work.computes_head {
            executor.model(&plan.head, self.model()?)?;
        }
        Ok(())
    }

    /// Computes the logits of these rows of the stream, always as single launches.
    pub(crate) fn logits_of(&mut self, requested: &[usize]) -> Result<()> {
        self.reserve_logits(requested.len())?;
        let memory = self.memory()?;
        let head = memory.head.as_ref().ok_or(NO_MEMORY)?;

        // One copy for each run of adjacent rows.
        let width = self.plan().width(Rows::Stream);
        let mut to = 0;
        for run in requested.chunk_by(|a, b| a + 1 == *b) {
            let from = run[0] * width..(run[0] + run.len()) * width;
            head.requested
                .part(to * width..)?
                .copy_from(&memory.stream.part(from)?)?;
            to += run.len();
        }

        let executor = self.executor(memory, head.requested.all(), requested.len())?;
        executor.model(&self.plan().head, self.model()?)
    }

    /// An executor for the first `count` rows of `stream`.
    fn executor<'s>(
        &'s self,
        memory: &'s Workspace,
        stream: View<'s, f32>,
        count: usize,
    ) -> Result<Executor<'s>> {
        Ok(Executor {
            pass: self,
            memory,
            inputs: DeviceInputs::new(&memory.inputs, self.widths(), self.count, self.tiles)?,
            stream,
            count,
        })
    }

    /// Makes room for the logits of `rows` rows.
    fn reserve_logits(&mut self, rows: usize) -> Result<()> {
        let stage = self.stage;
        let vocabulary = self.plan().width(Rows::Logits);
        let memory = self.workspace.as_mut().ok_or(NO_MEMORY)?;

        if memory.head.as_ref().is_none_or(|head| head.rows < rows) {
            stage.forget_graphs();
            memory.head = None;
            memory.head = Some(HeadMemory::new(
                &stage.device,
                &stage.widths,
                vocabulary,
                rows.next_power_of_two(),
            )?);
        }
        Ok(())
    }

    /// Memory of the head; its first values are the logits computed last, `[rows, vocabulary]`.
    pub(crate) fn head(&self) -> Result<&HeadMemory> {
        self.memory()?.head.as_ref().ok_or(NO_MEMORY)
    }

    fn memory(&self) -> Result<&Workspace> {
        self.workspace.as_ref().ok_or(NO_MEMORY)
    }

    fn model(&self) -> Result<&DeviceHead> {
        self.stage.model.as_deref().ok_or(DecoderError::Bug {
            what: "embeddings and head on the device",
        })
    }
}
