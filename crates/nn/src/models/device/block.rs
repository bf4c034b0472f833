//! The parts of a decoder on a device, as `models/forward.rs` has them on the CPU.
//!
//! A block is five launches for one token: the product of queries, keys and values with the norm and the
//! quantising of its input in it; attention with rotation and cache; its output with the residual; the first
//! products of the MLP with norm, quantising and function; the second with gate, quantising and residual.

use super::super::spec::{BlockSlot, DecoderSpec, LayerSpec, ModelSlot, Residual as Joining};
use super::memory::{HeadMemory, Inputs, Workspace};
use super::parts::{DeviceBlock, DeviceModel, Group, TableWeight, Weight};
use super::pass::StagePass;
use crate::error::{NnError, Result};
use crate::layers::{Activation, QkvLayout};
use crate::linear::OutlierScope;
use llm_int8_cuda::ops::{
    self, Activation as Function, Attention, AttentionRule, Combined, Cut, Output, Parts, Products, Residual,
    Rotation, Source, Table, TableRows, Through,
};
use llm_int8_cuda::{Buffer, View};

/// A pass with its memory.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) pass: &'a StagePass<'a>,
    pub(super) memory: &'a Workspace,
    pub(super) inputs: Inputs<'a>,
    /// Rows.
    pub(super) count: usize,
}

impl<'a> At<'a> {
    fn spec(&self) -> &'a DecoderSpec {
        self.pass.spec
    }

    /// Rows that lie one after the other.
    fn rows(&self, x: View<'a, f32>, width: usize) -> Source<'a, f32> {
        Source::plain(x, self.count, width)
    }

    /// Rows of the tables become the stream.
    pub(super) fn embed(&self, model: &'a DeviceModel) -> Result<()> {
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

    /// Logits of the rows `x`.
    pub(super) fn logits(
        &self,
        model: &'a DeviceModel,
        x: View<'a, f32>,
        head: &'a HeadMemory,
    ) -> Result<()> {
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
    pub(super) fn block(&self, block: &'a DeviceBlock, layer: &LayerSpec, index: usize) -> Result<()> {
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
        let activation = function(self.spec().activation).map(|function| (function, activated));
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

/// The function as kernels name it; none for the one that changes nothing.
fn function(activation: Activation) -> Option<Function> {
    use llm_int8_kernels::Activation as Cpu;
    Some(match activation.kernel() {
        Cpu::Gelu => Function::Gelu,
        Cpu::GeluTanh => Function::GeluTanh,
        Cpu::QuickGelu => Function::QuickGelu,
        Cpu::Relu => Function::Relu,
        Cpu::ReluSquared => Function::ReluSquared,
        Cpu::Silu => Function::Silu,
        Cpu::Tanh => Function::Tanh,
        Cpu::GeluClipped => Function::GeluClipped,
        Cpu::Laplace => Function::Laplace,
        Cpu::LeakyRelu => Function::LeakyRelu,
        Cpu::Linear => return None,
        Cpu::Mish => Function::Mish,
        Cpu::Relu6 => Function::Relu6,
        Cpu::Sigmoid => Function::Sigmoid,
    })
}
