//! One pass through the blocks of a device, as `models/forward.rs` does it on the CPU.
//!
//! A block is five launches for one token: the product of queries, keys and values with the norm and the
//! quantising of its input in it; attention with rotation and cache; its output with the residual; the first
//! products of the MLP with norm, quantising and function; the second with gate, quantising and residual. All of a token's
//! launches on a device are recorded once as a graph, for a number of rows and of chunks of positions, and
//! replayed.

use super::super::spec::{BlockSlot, DecoderSpec, LayerSpec, ModelSlot, Residual as Joining};
use super::Stage;
use super::cache::DeviceCache;
use super::memory::{HeadMemory, Inputs, Widths, Workspace};
use super::parts::{DeviceBlock, DeviceModel, Group, TableWeight, Weight};
use crate::error::{NnError, Result};
use crate::layers::{Activation, QkvLayout, RopeTable};
use crate::linear::OutlierScope;
use llm_int8_cuda::args::AttendedRow;
use llm_int8_cuda::ops::{
    self, Activation as Function, Attention, AttentionRule, Combined, Cut, Output, Parts, Products, Residual,
    Rotation, Source, Table, TableRows, Through,
};
use llm_int8_cuda::{Buffer, View, plan};
use std::ops::Range;
use std::sync::{MutexGuard, PoisonError};

/// Rows up to which a pass of single tokens is recorded.
const GRAPH_ROWS: usize = 64;
/// Graphs kept; beyond, all are forgotten.
const MOST_GRAPHS: usize = 64;
/// New positions of a text from which attention works tile by tile.
const TILED_FROM: usize = 9;

/// What a pass is told.
#[derive(Debug, Default)]
pub(in crate::models) struct PassRows {
    pub(in crate::models) ids: Vec<u32>,
    pub(in crate::models) position_rows: Vec<u32>,
    /// Each row's text and position.
    pub(in crate::models) positions: Vec<(usize, usize)>,
    /// New rows of each text.
    pub(in crate::models) lengths: Vec<usize>,
    /// Cosines and sines of all rows, for each rotation.
    pub(in crate::models) turns: Vec<(Vec<f32>, Vec<f32>)>,
}

impl PassRows {
    /// One more text, from its first new position on.
    pub(in crate::models) fn push(&mut self, first: usize, ids: &[u32], offset: usize, ropes: &[RopeTable]) {
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
pub(in crate::models) struct Work {
    /// Begin with the tables.
    pub(in crate::models) embeds: bool,
    /// Then these blocks.
    pub(in crate::models) blocks: Range<usize>,
    /// Then the head, for all rows.
    pub(in crate::models) heads: bool,
}

/// For what a graph was recorded: what it does, rows, and blocks that share positions.
pub(super) type GraphKey = (bool, usize, usize, bool, usize, usize);

/// One pass at work on a device.
pub(in crate::models) struct StagePass<'a> {
    stage: &'a Stage,
    spec: &'a DecoderSpec,
    widths: Widths,
    workspace: MutexGuard<'a, Option<Workspace>>,
    count: usize,
    splits: usize,
    tiles: usize,
    is_decode: bool,
}

impl Stage {
    /// Gets ready for a pass: room in the caches, memory to work in, and what the rows are.
    pub(in crate::models) fn begin<'a>(
        &'a self,
        spec: &'a DecoderSpec,
        widths: &Widths,
        rows: &PassRows,
        caches: &mut [&mut DeviceCache],
    ) -> Result<StagePass<'a>> {
        for (text, cache) in caches.iter_mut().enumerate() {
            let own =
                rows.positions.iter().filter(|(number, _)| *number == text).map(|(_, position)| *position);
            let (first, last) = (own.clone().min().unwrap_or(0), own.max().unwrap_or(0));
            cache.reserve(last + 1, first)?;
        }
        let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        let count = rows.count();
        if workspace.as_ref().is_none_or(|memory| memory.rows < count) {
            // Graphs know the old addresses.
            self.forget_graphs();
            *workspace = None;
            *workspace = Some(Workspace::new(&self.device, widths, count.next_power_of_two())?);
        }
        let is_tiled = rows.lengths.iter().any(|length| *length >= TILED_FROM)
            && spec.attention.head_size.next_multiple_of(8) <= plan::MOST_DIMS;
        let tiles = if is_tiled { plan::query_tiles(&rows.lengths) } else { Vec::new() };
        let memory = workspace.as_ref().ok_or(NnError::NotLoaded)?;
        memory.inputs.all().write(&rows.bytes(caches, &tiles))?;
        let capacity = caches.iter().map(|cache| cache.capacity()).max().unwrap_or(0);
        Ok(StagePass {
            stage: self,
            spec,
            widths: widths.clone(),
            count,
            splits: self.splits(widths, capacity, count),
            tiles: tiles.len(),
            is_decode: rows.lengths.iter().all(|length| *length == 1),
            workspace,
        })
    }

    fn forget_graphs(&self) {
        self.graphs.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// An empty cache.
    pub(in crate::models) fn new_cache(&self, spec: &DecoderSpec) -> DeviceCache {
        DeviceCache::new(self.device.clone(), self.layout(spec), self.blocks.len(), spec.positions)
    }

    /// Takes norms and biases from the CPU's parts, once those are read.
    pub(in crate::models) fn take_small_parts(&mut self, decoder: &super::Decoder) -> Result<()> {
        let shared = || NnError::NotLoaded;
        let blocks = std::sync::Arc::get_mut(&mut self.blocks).ok_or_else(shared)?;
        for (block, parts) in blocks.iter_mut().zip(&decoder.blocks[self.first..]) {
            block.take_small_parts(&self.device, parts)?;
        }
        if let Some(model) = &mut self.model {
            let model = std::sync::Arc::get_mut(model).ok_or_else(shared)?;
            model.take_small_parts(&self.device, &decoder.model)?;
        }
        Ok(())
    }
}

impl StagePass<'_> {
    /// The stream's rows come from elsewhere.
    pub(in crate::models) fn write(&self, x: &[f32]) -> Result<()> {
        Ok(self.memory()?.x.all().write(x)?)
    }

    /// The stream's rows go elsewhere: f32 `[rows, hidden_size]`.
    pub(in crate::models) fn read(&self) -> Result<Vec<f32>> {
        let mut x = vec![0f32; self.count * self.spec.hidden_size];
        self.memory()?.x.all().read(&mut x)?;
        Ok(x)
    }

    /// Does the work, by a graph where single tokens are computed: the first time by launches, which loads what
    /// they need, then recorded, then replayed.
    pub(in crate::models) fn run(&mut self, work: &Work) -> Result<()> {
        if work.heads {
            self.reserve_logits(self.count)?;
        }
        if !(self.stage.uses_graphs && self.is_decode && self.count <= GRAPH_ROWS) {
            return self.launch(work);
        }
        let key = (work.embeds, work.blocks.start, work.blocks.end, work.heads, self.count, self.splits);
        let mut graphs = self.stage.graphs.lock().unwrap_or_else(PoisonError::into_inner);
        if graphs.len() >= MOST_GRAPHS && !graphs.contains_key(&key) {
            graphs.clear();
        }
        match graphs.get(&key) {
            None => {
                graphs.insert(key, None);
                self.launch(work)
            }
            Some(Some(graph)) => Ok(graph.launch()?),
            Some(None) => {
                let graph = self.stage.device.record(|| self.launch(work))?;
                graph.launch()?;
                graphs.insert(key, Some(graph));
                Ok(())
            }
        }
    }

    fn launch(&self, work: &Work) -> Result<()> {
        let memory = self.memory()?;
        let inputs = Inputs::new(&memory.inputs, &self.widths, self.count, self.tiles)?;
        let at = At { pass: self, memory, inputs, count: self.count };
        if work.embeds {
            at.embed(self.model()?)?;
        }
        for number in work.blocks.clone() {
            let index = number - self.stage.first;
            let layer = &self.spec.layers[number];
            At { ..at }.block(&self.stage.blocks[index], layer, index)?;
        }
        if work.heads {
            let head = memory.head.as_ref().ok_or(NnError::NotLoaded)?;
            at.logits(self.model()?, memory.x.all(), head)?;
        }
        Ok(())
    }

    /// Logits of some rows of the stream, not by a graph.
    pub(in crate::models) fn logits_of(&mut self, wanted: &[usize]) -> Result<()> {
        self.reserve_logits(wanted.len())?;
        let (memory, width) = (self.memory()?, self.spec.hidden_size);
        let head = memory.head.as_ref().ok_or(NnError::NotLoaded)?;
        // Rows that follow each other go together.
        let mut to = 0;
        for together in wanted.chunk_by(|a, b| a + 1 == *b) {
            let from = together[0] * width..(together[0] + together.len()) * width;
            head.wanted.part(to * width..)?.copy_from(&memory.x.part(from)?)?;
            to += together.len();
        }
        let inputs = Inputs::new(&memory.inputs, &self.widths, self.count, self.tiles)?;
        let at = At { pass: self, memory, inputs, count: wanted.len() };
        at.logits(self.model()?, head.wanted.all(), head)
    }

    fn reserve_logits(&mut self, rows: usize) -> Result<()> {
        let vocabulary = self.spec.vocab_size();
        let (stage, widths) = (self.stage, self.widths.clone());
        let memory = self.workspace.as_mut().ok_or(NnError::NotLoaded)?;
        if memory.head.as_ref().is_none_or(|head| head.rows < rows) {
            stage.forget_graphs();
            memory.head = None;
            memory.head =
                Some(HeadMemory::new(&stage.device, &widths, vocabulary, rows.next_power_of_two())?);
        }
        Ok(())
    }

    /// With the logits last computed, `[rows, vocabulary]` from the beginning.
    pub(in crate::models) fn head(&self) -> Result<&HeadMemory> {
        self.memory()?.head.as_ref().ok_or(NnError::NotLoaded)
    }

    fn memory(&self) -> Result<&Workspace> {
        self.workspace.as_ref().ok_or(NnError::NotLoaded)
    }

    fn model(&self) -> Result<&DeviceModel> {
        self.stage.model.as_deref().ok_or(NnError::NotLoaded)
    }
}

/// A pass with its memory.
#[derive(Clone, Copy)]
struct At<'a> {
    pass: &'a StagePass<'a>,
    memory: &'a Workspace,
    inputs: Inputs<'a>,
    /// Rows.
    count: usize,
}

impl<'a> At<'a> {
    fn spec(&self) -> &'a DecoderSpec {
        self.pass.spec
    }

    /// Rows that lie one after the other.
    fn rows(&self, x: View<'a, f32>, width: usize) -> Source<'a, f32> {
        Source::plain(x, self.count, width)
    }

    fn embed(&self, model: &'a DeviceModel) -> Result<()> {
        let (spec, memory) = (self.spec(), self.memory);
        let table = match &model.tokens {
            TableWeight::Float(table) => Table::Float(table),
            TableWeight::Int8(table) => Table::Int8(table),
        };
        let positions = model.positions.as_deref();
        let is_narrower = !model.project_in.is_empty();
        let rows = TableRows {
            ids: self.inputs.ids,
            positions: positions.filter(|_| !is_narrower).map(|table| (table, self.inputs.position_rows)),
            rows: self.count,
            factor: spec.embedding_scale as f32,
        };
        let x = memory.x.all();
        if is_narrower {
            ops::embed(table, &rows, memory.branch.all())?;
            let source = self.rows(memory.branch.all(), model.project_in.in_features);
            self.project(&model.project_in, &source, Output::plain(x, spec.hidden_size))?;
            if let Some(positions) = positions {
                let rows = TableRows { ids: self.inputs.position_rows, positions: None, factor: 1.0, ..rows };
                ops::embed(Table::Float(positions), &rows, memory.branch.all())?;
                self.add(x, memory.branch.all(), 1.0)?;
            }
        } else {
            ops::embed(table, &rows, x)?;
        }
        match model.norms.get(ModelSlot::EmbeddingNorm as usize) {
            Some(norm) => {
                let source = Source { through: norm.through(), ..self.rows(x, spec.hidden_size) };
                Ok(ops::norm(&source, 1, false, x, spec.hidden_size)?)
            }
            None => Ok(()),
        }
    }

    fn logits(&self, model: &'a DeviceModel, x: View<'a, f32>, head: &'a HeadMemory) -> Result<()> {
        let (spec, width) = (self.spec(), self.spec().hidden_size);
        let mut source = self.rows(x, width);
        if let Some(norm) = model.norms.get(ModelSlot::FinalNorm as usize) {
            source.through = norm.through();
        }
        if !model.project_out.is_empty() {
            let narrower = model.project_out.width;
            self.project(&model.project_out, &source, Output::plain(head.projected.all(), narrower))?;
            source = self.rows(head.projected.all(), narrower);
        }
        let vocabulary = spec.vocab_size();
        self.project(&model.head, &source, Output::plain(head.logits.all(), vocabulary))?;
        if spec.logit_scale != 1.0 || spec.logit_softcap.is_some() {
            let logits = head.logits.part(..self.count * vocabulary)?;
            ops::softcap(logits, spec.logit_scale as f32, spec.logit_softcap.map(|cap| cap as f32))?;
        }
        Ok(())
    }

    /// Changes the residual stream.
    fn block(&self, block: &'a DeviceBlock, layer: &LayerSpec, index: usize) -> Result<()> {
        let (spec, memory) = (self.spec(), self.memory);
        let (x, branch, attended) = (memory.x.all(), memory.branch.all(), memory.attended.all());
        let scale = spec.residual_scale as f32;
        match spec.residual {
            Joining::Sequential => {
                self.mix(block, layer, index, &self.normed(block, BlockSlot::AttentionNorm))?;
                self.join(block, &block.attention_out, BlockSlot::AttentionPostNorm, &self.mixed())?;
                self.raise(block, &self.normed(block, BlockSlot::MlpNorm))?;
                self.join(block, &block.down, BlockSlot::MlpPostNorm, &self.raised(block))
            }
            Joining::Parallel => {
                let normed = self.normed(block, BlockSlot::AttentionNorm);
                self.mix(block, layer, index, &normed)?;
                self.project(&block.attention_out, &self.mixed(), Output::plain(attended, spec.hidden_size))?;
                let has_own = block.norms.get(BlockSlot::MlpNorm as usize).is_some();
                let normed = if has_own { self.normed(block, BlockSlot::MlpNorm) } else { normed };
                self.raise(block, &normed)?;
                self.add(x, attended, scale)?;
                self.join(block, &block.down, BlockSlot::MlpPostNorm, &self.raised(block))
            }
            Joining::NormAfter => {
                self.mix(block, layer, index, &self.rows(x, spec.hidden_size))?;
                self.project(&block.attention_out, &self.mixed(), Output::plain(branch, spec.hidden_size))?;
                self.add(x, branch, scale)?;
                self.norm_stream(block, BlockSlot::AttentionNorm, x)?;
                self.raise(block, &self.rows(x, spec.hidden_size))?;
                self.project(&block.down, &self.raised(block), Output::plain(branch, spec.hidden_size))?;
                self.add(x, branch, scale)?;
                self.norm_stream(block, BlockSlot::MlpNorm, x)
            }
        }
    }

    /// The stream through the norm of a slot, if there is one.
    fn normed(&self, block: &'a DeviceBlock, slot: BlockSlot) -> Source<'a, f32> {
        let through = block.norms.get(slot as usize).map_or(Through::Plain, |norm| norm.through());
        Source { through, ..self.rows(self.memory.x.all(), self.spec().hidden_size) }
    }

    /// What attention gave.
    fn mixed(&self) -> Source<'a, f32> {
        self.rows(self.memory.mixed.all(), self.pass.widths.queries)
    }

    /// What the first products of the MLP gave, gated where it is.
    fn raised(&self, block: &'a DeviceBlock) -> Source<'a, f32> {
        let up = self.memory.up.all();
        let (stride, width) = (block.up.width, block.down.in_features);
        let through = match (block.is_gated, up.part(width..)) {
            (true, Ok(partner)) => Through::Gated(partner),
            _ => Through::Plain,
        };
        Source { x: up, rows: self.count, cols: width, stride, through }
    }

    /// Normalises rows where they lie.
    fn norm_stream(&self, block: &'a DeviceBlock, slot: BlockSlot, x: View<'a, f32>) -> Result<()> {
        let Some(norm) = block.norms.get(slot as usize) else { return Ok(()) };
        let width = self.spec().hidden_size;
        Ok(ops::norm(&Source { through: norm.through(), ..self.rows(x, width) }, 1, false, x, width)?)
    }

    /// `x += scale · branch`.
    fn add(&self, x: View<'a, f32>, branch: View<'a, f32>, scale: f32) -> Result<()> {
        let width = self.spec().hidden_size;
        Ok(ops::combine(Combined::Sum(scale), (x, width), (branch, width), x, [self.count, width])?)
    }

    /// A product that joins the stream, through a norm where there is one.
    fn join(
        &self,
        block: &'a DeviceBlock,
        group: &'a Group,
        post: BlockSlot,
        source: &Source<'a, f32>,
    ) -> Result<()> {
        let (x, branch, width) = (self.memory.x.all(), self.memory.branch.all(), self.spec().hidden_size);
        let scale = self.spec().residual_scale as f32;
        if block.norms.get(post as usize).is_some() {
            self.project(group, source, Output::plain(branch, width))?;
            self.norm_stream(block, post, branch)?;
            return self.add(x, branch, scale);
        }
        let residual = Some(Residual { stream: x, stride: width, scale });
        self.project(group, source, Output { residual, ..Output::plain(x, width) })
    }

    /// From the source to `memory.up`.
    fn raise(&self, block: &'a DeviceBlock, source: &Source<'a, f32>) -> Result<()> {
        let width = block.up.width;
        let activated = if block.is_gated { width / 2 } else { width };
        let activation = Some((function(self.spec().activation), activated));
        self.project(&block.up, source, Output { activation, ..Output::plain(self.memory.up.all(), width) })
    }

    /// From the source through attention to `memory.mixed`.
    fn mix(
        &self,
        block: &'a DeviceBlock,
        layer: &LayerSpec,
        index: usize,
        source: &Source<'a, f32>,
    ) -> Result<()> {
        let (spec, memory) = (&self.spec().attention, self.memory);
        let (qkv, width) = (memory.qkv.all(), self.pass.widths.qkv);
        self.project(&block.qkv, source, Output::plain(qkv, width))?;
        self.norm_heads(block, BlockSlot::QueryNorm, BlockSlot::Query, spec.heads)?;
        self.norm_heads(block, BlockSlot::KeyNorm, BlockSlot::Key, spec.kv_heads)?;
        let attention = Attention {
            layout: self.pass.stage.layout(self.spec()),
            layer: index,
            rows: self.inputs.rows,
            count: self.count,
            queries: memory.queries.all(),
        };
        let turn = layer.rope.map(|number| -> Result<Rotation<'a>> {
            let (cos, sin) = self.inputs.turn(&self.pass.widths, number)?;
            let rope = &spec.ropes[number];
            Ok(Rotation { cos, sin, dims: rope.dims(), neighbours: rope.turns_neighbours() })
        });
        let turn = turn.transpose()?;
        let is_grouped =
            spec.layout == QkvLayout::Grouped && block.qkv.offset_of(BlockSlot::Qkv as usize).is_some();
        let clamp = spec.qkv_clamp.map(|limit| limit as f32);
        let products =
            Products { qkv, stride: width, is_grouped, rotation: turn, clamp, factor: layer.factor as f32 };
        let rule = AttentionRule {
            slopes: self.pass.stage.slopes.as_deref().map(Buffer::all),
            bias_factor: spec.alibi.as_ref().and_then(|alibi| alibi.rounded()),
            window: layer.window,
            softcap: spec.softcap.map(|cap| cap as f32),
        };
        let cut = match self.inputs.tiles {
            Some(tiles) => Cut::Tiles(tiles),
            None if self.pass.is_decode => Cut::New(self.pass.splits),
            None => Cut::Rows(self.pass.splits),
        };
        let parts = Parts { sums: memory.partial.all(), counters: memory.counters.all() };
        Ok(ops::attend(&attention, &products, &rule, &cut, &parts, memory.mixed.all())?)
    }

    /// The norm of queries or keys: of each head, or of all at once, as its width says.
    fn norm_heads(&self, block: &'a DeviceBlock, slot: BlockSlot, of: BlockSlot, heads: usize) -> Result<()> {
        let Some(norm) = block.norms.get(slot as usize) else { return Ok(()) };
        let first = block.qkv.offset_of(of as usize).ok_or(NnError::NotLoaded)?;
        let (x, stride) = (self.memory.qkv.part(first..)?, self.pass.widths.qkv);
        let together = heads * self.spec().attention.head_size / norm.width;
        let source = Source { x, rows: self.count, cols: norm.width, stride, through: norm.through() };
        Ok(ops::norm(&source, together, norm.own_weights, x, stride)?)
    }

    /// The layers of a group: int8 ones quantise their input once, with one row within the product itself.
    fn project(&self, group: &'a Group, source: &Source<'a, f32>, output: Output<'a, f32>) -> Result<()> {
        let memory = self.memory;
        let plain = if group.has_float() { self.made(source)? } else { *source };
        let mut quantized = None;
        for product in &group.products {
            let output = Output {
                out: output.out.part(product.offset..)?,
                bias: product.bias.as_ref().map(Buffer::all),
                activation: output.activation.and_then(|(function, count)| {
                    let count = count.saturating_sub(product.offset).min(product.width);
                    (count > 0).then_some((function, count))
                }),
                residual: match output.residual {
                    Some(residual) => {
                        Some(Residual { stream: residual.stream.part(product.offset..)?, ..residual })
                    }
                    None => None,
                },
                ..output
            };
            match &product.weight {
                Weight::Float(matrix) => ops::dense(&plain, matrix, &output)?,
                Weight::Int8(matrix, config) => {
                    let by_row = config.outlier_scope == OutlierScope::Row;
                    if self.count == 1 && ops::gemv(source, config.threshold, matrix, &output)? {
                        continue;
                    }
                    let found = match quantized {
                        Some((found, of)) if of == config => found,
                        _ => ops::quantize(source, config.threshold, by_row, &memory.quantized)?,
                    };
                    quantized = Some((found, config));
                    ops::product(&found, matrix, &output)?;
                }
            }
        }
        Ok(())
    }

    /// The source's values as they are.
    fn made(&self, source: &Source<'a, f32>) -> Result<Source<'a, f32>> {
        let made = self.memory.made.all();
        match source.through {
            Through::Plain => return Ok(*source),
            Through::Gated(up) => {
                let shape = [source.rows, source.cols];
                ops::combine(Combined::Product, (source.x, source.stride), (up, source.stride), made, shape)?;
            }
            _ => ops::norm(source, 1, false, made, source.cols)?,
        }
        Ok(self.rows(made, source.cols))
    }
}

/// The function as kernels name it.
fn function(activation: Activation) -> Function {
    use llm_int8_kernels::Activation as Cpu;
    match activation.kernel() {
        Cpu::Gelu => Function::Gelu,
        Cpu::GeluTanh => Function::GeluTanh,
        Cpu::QuickGelu => Function::QuickGelu,
        Cpu::Relu => Function::Relu,
        Cpu::ReluSquared => Function::ReluSquared,
        Cpu::Silu => Function::Silu,
        Cpu::Tanh => Function::Tanh,
    }
}
