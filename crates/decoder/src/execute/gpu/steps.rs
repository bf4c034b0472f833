//! Follows the steps of a plan on a device: each is one launch, or a few.
//!
//! A block of GPT-2 is five launches for one token: queries, keys and values with norm and
//! quantising in the same launch; attention with rotation and cache; its last layer with the
//! residual; the first layer of the MLP with norm, quantising and activation; the second with
//! quantising and residual.

use super::memory::{Inputs, Workspace};
use super::parts::{DeviceHead, DeviceParts, Group, TableWeight, Weight};
use super::pass::StagePass;
use crate::error::{DecoderError, Result};
use crate::plan::{
    Add, Attend, Embed, HeadNorm, Index, LinearStep, LogitsStep, NormStep, Rows, Step,
    Through as Input,
};
use crate::slot::{ModelSlot, PartSlot};
use llm_int8_cuda::ops::{
    self, Activation as Function, AttendScratch, Attention, AttentionRule, Combined, NormParts,
    Output, Partition, Qkv, Residual, Rotation, RowShape, Source, Strided, Table, TableRows,
    Through,
};
use llm_int8_cuda::{Buffer, View};
use llm_int8_nn::layers::{Activation, QkvLayout};
use llm_int8_nn::linear::OutlierScope;

/// Some rows of a pass and the memory they lie in.
#[derive(Clone, Copy)]
pub(super) struct Executor<'a> {
    pub(super) pass: &'a StagePass<'a>,
    pub(super) memory: &'a Workspace,
    pub(super) inputs: Inputs<'a>,
    /// The stream's rows: all of the pass, or a copy of those whose logits are requested.
    pub(super) stream: View<'a, f32>,
    /// How many.
    pub(super) count: usize,
}

impl<'a> Executor<'a> {
    /// Steps of the embeddings or the head.
    pub(super) fn model(&self, steps: &[Step<ModelSlot>], model: &'a DeviceHead) -> Result<()> {
        steps.iter().try_for_each(|step| match step {
            Step::Embed(step) => self.embed(step, model),
            step => self.step(step, &model.parts, 0),
        })
    }

    /// A step that needs no tables; `block` is the block's number on this device.
    pub(super) fn step<S: PartSlot>(
        &self,
        step: &Step<S>,
        parts: &'a DeviceParts<S>,
        block: usize,
    ) -> Result<()> {
        match step {
            Step::Embed(_) => Err(DecoderError::Bug {
                what: "a table of a block",
            }),
            Step::Linear(step) => self.linear(step, parts),
            Step::HeadNorm(step) => self.head_norm(step, parts),
            Step::Attend(step) => self.attend(step, block),
            Step::Norm(step) => self.norm(step, parts),
            Step::Add(step) => self.add(step),
            Step::Logits(step) => self.logits(step),
        }
    }

    /// Where rows lie, and how many values each has.
    fn rows(&self, rows: Rows) -> Result<(View<'a, f32>, usize)> {
        let memory = self.memory;
        let head = || {
            memory.head.as_ref().ok_or(DecoderError::Bug {
                what: "memory of logits",
            })
        };
        let view = match rows {
            Rows::Stream => self.stream,
            // Nothing is added before the rows of the token table have become the stream.
            Rows::Branch | Rows::Embedded => memory.branch.all(),
            Rows::Attended => memory.attended.all(),
            Rows::Qkv => memory.qkv.all(),
            Rows::Mixed => memory.mixed.all(),
            Rows::Raised => memory.raised.all(),
            Rows::Projected => head()?.projected.all(),
            Rows::Logits => head()?.logits.all(),
        };
        Ok((view, self.pass.plan().width(rows)))
    }

    fn source(&self, rows: Rows) -> Result<Source<'a, f32>> {
        let (view, width) = self.rows(rows)?;
        Ok(Source::plain(view, self.count, width))
    }

    fn embed(&self, step: &Embed<ModelSlot>, model: &'a DeviceHead) -> Result<()> {
        let table = match model.table(step.table)? {
            TableWeight::Float(table) => Table::Float(table),
            TableWeight::Int8(table) => Table::Int8(table),
        };
        let positions = match step.positions.map(|slot| model.table(slot)).transpose()? {
            Some(TableWeight::Float(table)) => Some((&**table, self.inputs.position_rows)),
            Some(TableWeight::Int8(_)) => {
                return Err(DecoderError::Bug {
                    what: "a position table of floats",
                });
            }
            None => None,
        };
        let ids = match step.index {
            Index::Token => self.inputs.ids,
            Index::Position => self.inputs.position_rows,
        };
        let rows = TableRows {
            ids,
            positions,
            rows: self.count,
            factor: step.scale as f32,
        };
        Ok(ops::embed(table, &rows, self.rows(step.into)?.0)?)
    }

    fn linear<S: PartSlot>(&self, step: &LinearStep<S>, parts: &'a DeviceParts<S>) -> Result<()> {
        let mut source = self.source(step.input)?;
        source.through = match step.through {
            Input::Plain => Through::Plain,
            Input::Norm(slot) => parts.norm(slot)?.through(),
            Input::Gate => Through::Gated(source.x.part(step.in_features..)?),
        };
        source.cols = step.in_features;

        let (into, stride) = self.rows(step.into)?;
        let activation = step.activation.and_then(|activated| {
            function(activated.function).map(|function| (function, activated.outputs))
        });
        let residual = step.adds.map(|scale| Residual {
            stream: into,
            stride,
            scale: scale as f32,
        });
        let output = Output {
            activation,
            residual,
            ..Output::plain(into, stride)
        };
        self.project(parts.group(step)?, &source, output)
    }

    fn head_norm<S: PartSlot>(&self, step: &HeadNorm<S>, parts: &'a DeviceParts<S>) -> Result<()> {
        let norm = parts.norm(step.norm)?;
        let (rows, stride) = self.rows(step.rows)?;
        let x = rows.part(step.of.offset..)?;
        let heads = step.of.out_features / norm.width;
        let source = Source {
            x,
            rows: self.count,
            cols: norm.width,
            stride,
            through: norm.through(),
        };
        Ok(ops::norm(&source, heads, norm.own_weights, x, stride)?)
    }

    fn norm<S: PartSlot>(&self, step: &NormStep<S>, parts: &'a DeviceParts<S>) -> Result<()> {
        let source = Source {
            through: parts.norm(step.norm)?.through(),
            ..self.source(step.rows)?
        };
        Ok(ops::norm(&source, 1, false, source.x, source.cols)?)
    }

    fn add(&self, step: &Add) -> Result<()> {
        let ((stream, width), (from, _)) = (self.rows(Rows::Stream)?, self.rows(step.from)?);
        let sum = Combined::Sum(step.scale as f32);
        Ok(ops::combine(
            sum,
            Strided {
                values: stream,
                stride: width,
            },
            Strided {
                values: from,
                stride: width,
            },
            stream,
            RowShape {
                rows: self.count,
                width,
            },
        )?)
    }

    fn logits(&self, step: &LogitsStep) -> Result<()> {
        let (logits, width) = self.rows(Rows::Logits)?;
        let logits = logits.part(..self.count * width)?;
        Ok(ops::softcap(
            logits,
            step.scale as f32,
            step.softcap.map(|cap| cap as f32),
        )?)
    }

    fn attend(&self, step: &Attend, block: usize) -> Result<()> {
        let memory = self.memory;
        let spec = &self.pass.decoder.spec().attention;
        let attention = Attention {
            layout: self.pass.stage.layout(),
            layer: block,
            rows: self.inputs.rows,
            count: self.count,
            queries: memory.queries.all(),
        };
        let rotation = step.rope.map(|number| -> Result<Rotation<'a>> {
            let (cos, sin) = self.inputs.turn(self.pass.widths(), number)?;
            let rope = &spec.ropes[number];
            Ok(Rotation {
                cos,
                sin,
                dims: rope.dims(),
                neighbours: rope.rotates_neighbours(),
            })
        });
        let (values, stride) = self.rows(Rows::Qkv)?;
        let qkv = Qkv {
            values,
            stride,
            is_grouped: step.layout == QkvLayout::Grouped,
            rotation: rotation.transpose()?,
            clamp: step.clamp.map(|limit| limit as f32),
            factor: step.scale as f32,
        };
        let alibi = spec.alibi.as_ref().filter(|_| step.alibi);
        let rule = AttentionRule {
            slopes: alibi.and(self.pass.stage.slopes.as_deref().map(Buffer::all)),
            bias_factor: alibi.and_then(|alibi| alibi.rounded()),
            window: step.window,
            softcap: step.softcap.map(|cap| cap as f32),
        };
        let splits = self.pass.splits;
        let partition = match self.inputs.tiles {
            Some(tiles) => Partition::Tiles(tiles),
            None if self.pass.is_decode => Partition::Decode { splits },
            None => Partition::Rows { splits },
        };
        let scratch = AttendScratch {
            sums: memory.partial.all(),
            counters: memory.counters.all(),
        };
        Ok(ops::attend(
            &attention,
            &qkv,
            &rule,
            &partition,
            &scratch,
            memory.mixed.all(),
        )?)
    }

    /// The layers of a group: int8 ones quantise their input once, with one row within the matmul
    /// itself.
    fn project<S: PartSlot>(
        &self,
        group: &'a Group<S>,
        source: &Source<'a, f32>,
        output: Output<'a, f32>,
    ) -> Result<()> {
        let memory = self.memory;
        let plain = if group.has_float() {
            self.made(source)?
        } else {
            *source
        };
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
                    Some(residual) => Some(Residual {
                        stream: residual.stream.part(product.offset..)?,
                        ..residual
                    }),
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
                    ops::matmul(&found, matrix, &output)?;
                }
            }
        }
        Ok(())
    }

    /// The source's values as rows of their own.
    fn made(&self, source: &Source<'a, f32>) -> Result<Source<'a, f32>> {
        let made = self.memory.made.all();
        match source.through {
            Through::Plain => return Ok(*source),
            Through::Gated(up) => {
                let strided = |values| Strided {
                    values,
                    stride: source.stride,
                };
                let shape = RowShape {
                    rows: source.rows,
                    width: source.cols,
                };
                let (x, up) = (strided(source.x), strided(up));
                ops::combine(Combined::Product, x, up, made, shape)?;
            }
            Through::LayerNorm(NormParts { .. }) | Through::RmsNorm(NormParts { .. }) => {
                ops::norm(source, 1, false, made, source.cols)?;
            }
        }
        Ok(Source::plain(made, self.count, source.cols))
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
