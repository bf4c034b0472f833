//! One pass through the blocks of a device.
//!
//! All of a token's launches on a device are recorded once as a graph, for a number of rows and of
//! blocks that share positions, and replayed: what changes from token to token lies in memory.

use super::Stage;
use super::cache::DeviceCache;
use super::memory::{HeadMemory, Inputs, Widths, Workspace};
use super::parts::DeviceHead;
use super::steps::Executor;
use crate::decoder::Decoder;
use crate::error::{DecoderError, Result};
use crate::plan::{Plan, Rows};
use llm_int8_cuda::args::AttendedRow;
use llm_int8_cuda::{Graph, plan};
use llm_int8_nn::layers::RopeTable;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

/// Rows up to which a pass of single tokens is recorded.
const GRAPH_ROWS: usize = 64;
/// Graphs kept; beyond, all are forgotten.
const MOST_GRAPHS: usize = 64;
/// New positions of a text from which attention works tile by tile.
const TILED_FROM: usize = 9;

/// Memory is reserved before it is used.
const NO_MEMORY: DecoderError = DecoderError::Bug {
    what: "memory of a pass on a device",
};

/// What a pass is told.
#[derive(Debug, Default)]
pub(crate) struct PassRows {
    pub(crate) ids: Vec<u32>,
    pub(crate) position_rows: Vec<u32>,
    /// Each row's text and position.
    pub(crate) positions: Vec<(usize, usize)>,
    /// New rows of each text.
    pub(crate) lengths: Vec<usize>,
    /// Cosines and sines of all rows, for each rotation.
    pub(crate) turns: Vec<(Vec<f32>, Vec<f32>)>,
}

impl PassRows {
    /// One more text, from its first new position on.
    pub(crate) fn push(&mut self, first: usize, ids: &[u32], offset: usize, ropes: &[RopeTable]) {
        let text = self.lengths.len();
        self.lengths.push(ids.len());
        self.ids.extend_from_slice(ids);
        for position in first..first + ids.len() {
            self.position_rows.push((position + offset) as u32);
            self.positions.push((text, position));
        }
        self.turns.resize_with(ropes.len(), Default::default);
        for ((cos, sin), rope) in self.turns.iter_mut().zip(ropes) {
            cos.extend_from_slice(rope.cos());
            sin.extend_from_slice(rope.sin());
        }
    }

    fn count(&self) -> usize {
        self.ids.len()
    }

    fn bytes(&self, caches: &[&mut DeviceCache], tiles: &[[u32; 2]]) -> Vec<u8> {
        let row = |(text, position): &(usize, usize)| AttendedRow {
            cache: caches[*text].address(),
            capacity: caches[*text].capacity() as u32,
            position: *position as u32,
        };
        let rows: Vec<AttendedRow> = self.positions.iter().map(row).collect();
        let mut bytes: Vec<u8> = bytemuck::cast_slice(&rows).to_vec();
        bytes.extend_from_slice(bytemuck::cast_slice(&self.ids));
        bytes.extend_from_slice(bytemuck::cast_slice(&self.position_rows));
        for (cos, sin) in &self.turns {
            bytes.extend_from_slice(bytemuck::cast_slice(cos));
            bytes.extend_from_slice(bytemuck::cast_slice(sin));
        }
        bytes.extend_from_slice(bytemuck::cast_slice(tiles));
        bytes
    }
}

/// What a device is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Work {
    /// Begin with the tables.
    pub(crate) embeds: bool,
    /// Then these blocks.
    pub(crate) blocks: Range<usize>,
    /// Then the head, for all rows.
    pub(crate) heads: bool,
}

/// How far a graph is.
#[derive(Debug)]
pub(super) enum GraphState {
    /// Its launches were made once, which loaded what they need.
    Once,
    /// It is there.
    Recorded(Graph),
    /// The driver did not let it be recorded.
    Refused,
}

/// For what a graph was recorded: what it does, rows, and blocks that share positions.
pub(super) type GraphKey = (bool, usize, usize, bool, usize, usize);

/// One pass at work on a device.
pub(crate) struct StagePass<'a> {
    pub(super) stage: &'a Stage,
    pub(super) decoder: &'a Decoder,
    workspace: MutexGuard<'a, Option<Workspace>>,
    count: usize,
    /// Blocks that share the positions of a row.
    pub(super) splits: usize,
    tiles: usize,
    /// Whether every row is the only new one of its text.
    pub(super) is_decode: bool,
}

impl Stage {
    /// Gets ready for a pass: room in the caches, memory to work in, and what the rows are.
    pub(crate) fn begin<'a>(
        &'a self,
        decoder: &'a Decoder,
        rows: &PassRows,
        caches: &mut [&mut DeviceCache],
    ) -> Result<StagePass<'a>> {
        for (text, cache) in caches.iter_mut().enumerate() {
            let own = rows
                .positions
                .iter()
                .filter(|(number, _)| *number == text)
                .map(|(_, position)| *position);
            let (first, last) = (own.clone().min().unwrap_or(0), own.max().unwrap_or(0));
            cache.reserve(last + 1, first)?;
        }
        let mut workspace = self
            .workspace
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let count = rows.count();
        if workspace.as_ref().is_none_or(|memory| memory.rows < count) {
            // Graphs know the old addresses.
            self.forget_graphs();
            *workspace = None;
            *workspace = Some(Workspace::new(
                &self.device,
                &self.widths,
                count.next_power_of_two(),
            )?);
        }
        let padded = self.layout().padded();
        // Turing's blocks have too little shared memory for tiles of wide heads.
        let is_tiled = rows.lengths.iter().any(|length| *length >= TILED_FROM)
            && padded <= plan::MAX_TILED_HEAD_SIZE
            && plan::attend_many_shared_bytes(padded) <= self.device.shared_bytes();
        let tiles = if is_tiled {
            plan::query_tiles(&rows.lengths)
        } else {
            Vec::new()
        };
        let memory = workspace.as_ref().ok_or(NO_MEMORY)?;
        memory.inputs.all().write(&rows.bytes(caches, &tiles))?;
        let capacity = caches
            .iter()
            .map(|cache| cache.capacity())
            .max()
            .unwrap_or(0);
        Ok(StagePass {
            stage: self,
            decoder,
            count,
            splits: self.splits(capacity, count),
            tiles: tiles.len(),
            is_decode: rows.lengths.iter().all(|length| *length == 1),
            workspace,
        })
    }

    /// Graphs recorded so far, those among them that were forgotten.
    pub(crate) fn graph_count(&self) -> usize {
        self.recorded.load(Ordering::Relaxed)
    }

    fn forget_graphs(&self) {
        self.graphs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// An empty cache.
    pub(crate) fn new_cache(&self, positions: usize) -> DeviceCache {
        DeviceCache::new(
            self.device.clone(),
            self.layout(),
            self.blocks.len(),
            positions,
        )
    }

    /// Takes norms and biases from the CPU's parts, once those are read.
    pub(crate) fn take_small_parts(&mut self, decoder: &Decoder) -> Result<()> {
        let shared = || DecoderError::Bug {
            what: "a stage of its own while the model is loaded",
        };
        let (plan, first) = (decoder.execution_plan(), self.first);
        let blocks = Arc::get_mut(&mut self.blocks).ok_or_else(shared)?;
        for (number, block) in blocks.iter_mut().enumerate() {
            let steps = plan.blocks[first + number].iter();
            block.take_small_parts(&self.device, &decoder.blocks[first + number], steps)?;
        }
        if let Some(model) = &mut self.model {
            let model = Arc::get_mut(model).ok_or_else(shared)?;
            let steps = plan.embed.iter().chain(&plan.head);
            model
                .parts
                .take_small_parts(&self.device, &decoder.model, steps)?;
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

    /// The stream's rows come from elsewhere.
    pub(crate) fn write(&self, x: &[f32]) -> Result<()> {
        Ok(self.memory()?.x.all().write(x)?)
    }

    /// The stream's rows go elsewhere: f32 `[rows, hidden_size]`.
    pub(crate) fn read(&self) -> Result<Vec<f32>> {
        let mut x = vec![0f32; self.count * self.plan().width(Rows::Stream)];
        self.memory()?.x.all().read(&mut x)?;
        Ok(x)
    }

    /// Does the work, by a graph where single tokens are computed: the first time by launches,
    /// which loads what they need, then recorded, then replayed.
    pub(crate) fn run(&mut self, work: &Work) -> Result<()> {
        if work.heads {
            self.reserve_logits(self.count)?;
        }
        if !(self.stage.uses_graphs && self.is_decode && self.count <= GRAPH_ROWS) {
            return self.launch(work);
        }
        let key = (
            work.embeds,
            work.blocks.start,
            work.blocks.end,
            work.heads,
            self.count,
            self.splits,
        );
        let mut graphs = self
            .stage
            .graphs
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if graphs.len() >= MOST_GRAPHS && !graphs.contains_key(&key) {
            graphs.clear();
        }
        let state = graphs.remove(&key);
        let next = match state {
            None => {
                self.launch(work)?;
                GraphState::Once
            }
            Some(GraphState::Once) => match self.record(work) {
                Ok(graph) => {
                    self.stage.recorded.fetch_add(1, Ordering::Relaxed);
                    graph.launch()?;
                    GraphState::Recorded(graph)
                }
                Err(error) => {
                    log::warn!(
                        "{}: single launches instead of a graph: {error}",
                        self.stage.device.name()
                    );
                    self.launch(work)?;
                    GraphState::Refused
                }
            },
            Some(GraphState::Recorded(graph)) => {
                graph.launch()?;
                GraphState::Recorded(graph)
            }
            Some(GraphState::Refused) => {
                self.launch(work)?;
                GraphState::Refused
            }
        };
        graphs.insert(key, next);
        Ok(())
    }

    /// The work as a graph. Where the driver does not take early starts into a graph, the graph is
    /// without them.
    fn record(&self, work: &Work) -> Result<Graph> {
        let device = &self.stage.device;
        match device.record(|| self.launch(work)) {
            Err(error) if device.overlaps_kernels() => {
                log::warn!("{}: a graph without early starts: {error}", device.name());
                device.without_overlap(|| device.record(|| self.launch(work)))
            }
            recorded => recorded,
        }
    }

    fn launch(&self, work: &Work) -> Result<()> {
        // On an H100, 32 sequences are decoded 6 % faster without early starts, prompts 3 to 7 %
        // faster with them.
        if self.is_decode && self.count > plan::THIN_MAX_ROWS {
            return self
                .stage
                .device
                .without_overlap(|| self.launch_steps(work));
        }
        self.launch_steps(work)
    }

    fn launch_steps(&self, work: &Work) -> Result<()> {
        let (memory, plan) = (self.memory()?, self.plan());
        let inputs = Inputs::new(&memory.inputs, self.widths(), self.count, self.tiles)?;
        let rows = Executor {
            pass: self,
            memory,
            inputs,
            stream: memory.x.all(),
            count: self.count,
        };
        if work.embeds {
            rows.model(&plan.embed, self.model()?)?;
        }
        for number in work.blocks.clone() {
            let index = number - self.stage.first;
            let parts = &self.stage.blocks[index];
            plan.blocks[number]
                .iter()
                .try_for_each(|step| rows.step(step, parts, index))?;
        }
        if work.heads {
            rows.model(&plan.head, self.model()?)?;
        }
        Ok(())
    }

    /// Logits of some rows of the stream, not by a graph.
    pub(crate) fn logits_of(&mut self, wanted: &[usize]) -> Result<()> {
        self.reserve_logits(wanted.len())?;
        let (memory, width) = (self.memory()?, self.plan().width(Rows::Stream));
        let head = memory.head.as_ref().ok_or(NO_MEMORY)?;
        // Rows that follow each other go together.
        let mut to = 0;
        for together in wanted.chunk_by(|a, b| a + 1 == *b) {
            let from = together[0] * width..(together[0] + together.len()) * width;
            head.wanted
                .part(to * width..)?
                .copy_from(&memory.x.part(from)?)?;
            to += together.len();
        }
        let inputs = Inputs::new(&memory.inputs, self.widths(), self.count, self.tiles)?;
        let stream = head.wanted.all();
        let rows = Executor {
            pass: self,
            memory,
            inputs,
            stream,
            count: wanted.len(),
        };
        rows.model(&self.plan().head, self.model()?)
    }

    fn reserve_logits(&mut self, rows: usize) -> Result<()> {
        let (stage, vocabulary) = (self.stage, self.plan().width(Rows::Logits));
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

    /// With the logits last computed, `[rows, vocabulary]` from the beginning.
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
