//! Executes the steps of a plan on a device: one launch each, or a few.
//!
//! Decoding one token, a block of GPT-2 is five launches:
//! 1. norm, quantisation, and queries, keys and values;
//! 2. attention, with rotation and the write to the KV cache;
//! 3. the output projection, with quantisation and the residual;
//! 4. norm, quantisation, the MLP's first layer and the activation;
//! 5. the MLP's second layer, with quantisation and the residual.

use super::inputs::DeviceInputs;
use super::memory::Workspace;
use super::parts::{DeviceHead, DeviceParts, FusedLinear, LinearGroup, TableWeight, Weight};
use super::pass::StagePass;
use crate::error::{DecoderError, Result};
use crate::plan::{
    Add, Attend, Embed, HeadNorm, Index, LinearStep, LogitsStep, NormStep, Rows, Step,
    Through as StepThrough,
};
use crate::slot::{ModelSlot, PartSlot};
use llm_int8_cuda::ops::{
    self, Activation as DeviceActivation, AttendScratch, Attention, AttentionRule, Combined,
    NormParts, Outliers, Output, Partition, Qkv, Residual, Rotation, RowShape, Source, Strided,
    Table, TableRows, Through,
};
use llm_int8_cuda::{Buffer, View};
use llm_int8_nn::layers::{Activation, QkvLayout};
use llm_int8_nn::linear::{OutlierRule, OutlierScope};

/// Executes steps on rows of a pass.
#[derive(Clone, Copy)]
pub(super) struct Executor<'a> {
    pub(super) pass: &'a StagePass<'a>,
    pub(super) memory: &'a Workspace,
    pub(super) inputs: DeviceInputs<'a>,
    /// The residual stream: all rows of the pass, or a copy of those whose logits are requested.
    pub(super) stream: View<'a, f32>,
    /// Rows of `stream`.
    pub(super) count: usize,
}

impl<'a> Executor<'a> {
    /// Executes the steps of the embeddings or of the head.
    pub(super) fn model(&self, steps: &[Step<ModelSlot>], model: &'a DeviceHead) -> Result<()> {
        steps.iter().try_for_each(|step| match step {
            Step::Embed(step) => self.embed(step, model),
            step => self.step(step, &model.parts, 0),
        })
    }

    /// Executes a step that needs no table. `block` is the block's number on this device, which is
    /// its layer in the cache.
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

    /// The memory of rows, and the values of each.
    fn rows(&self, rows: Rows) -> Result<(View<'a, f32>, usize)> {
        let memory = self.memory;
        let head = || {
            memory.head.as_ref().ok_or(DecoderError::Bug {
                what: "memory of logits",
            })
        };
        let view = match rows {
            Rows::Stream => self.stream,
            // One buffer for both: the first branch is written after the last use of the embedded
            // rows.
            Rows::Branch | Rows::Embedded => memory.branch.all(),
            Rows::Attended => memory.attended.all(),
            Rows::Qkv => memory.qkv.all(),
            Rows::Heads => memory.heads.all(),
            Rows::Mlp => memory.mlp.all(),
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
            StepThrough::Plain => Through::Plain,
            StepThrough::Norm(slot) => parts.norm(slot)?.through(),
            StepThrough::Gate => Through::Gated(source.x.part(step.in_features..)?),
        };
        source.cols = step.in_features;

        let (into, stride) = self.rows(step.into)?;
        let activation = step.activation.and_then(|activated| {
            let function = device_activation(activated.function)?;
            Some((function, activated.outputs))
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
        let (stream, width) = self.rows(Rows::Stream)?;
        let (from, _) = self.rows(step.from)?;

        let sum = Combined::Sum(step.scale as f32);
        let strided = |values| Strided {
            values,
            stride: width,
        };
        let shape = RowShape {
            rows: self.count,
            width,
        };
        Ok(ops::combine(
            sum,
            strided(stream),
            strided(from),
            stream,
            shape,
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
        let attention = Attention {
            layout: self.pass.stage.layout(),
            layer: block,
            rows: self.inputs.rows,
            count: self.count,
            queries: memory.queries.all(),
        };

        let rotation = step.rope.map(|number| self.rotation(number));
        let (values, stride) = self.rows(Rows::Qkv)?;
        let qkv = Qkv {
            values,
            stride,
            is_grouped: step.layout == QkvLayout::Grouped,
            rotation: rotation.transpose()?,
            clamp: step.clamp.map(|limit| limit as f32),
            factor: step.scale as f32,
        };

        let alibi = self.pass.decoder.spec().attention.alibi.as_ref();
        let alibi = alibi.filter(|_| step.alibi);
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
            memory.heads.all(),
        )?)
    }

    fn rotation(&self, number: usize) -> Result<Rotation<'a>> {
        let rope = &self.pass.decoder.spec().attention.ropes[number];
        let (cos, sin) = self.inputs.rotation(self.pass.widths(), number)?;
        Ok(Rotation {
            cos,
            sin,
            dims: rope.dims(),
            neighbours: rope.rotates_neighbours(),
        })
    }

    /// Computes the layers of a group. For one row, int8 layers quantise the input within the
    /// matmul's launch; for more, once for all layers of the same config.
    fn project<S: PartSlot>(
        &self,
        group: &'a LinearGroup<S>,
        source: &Source<'a, f32>,
        output: Output<'a, f32>,
    ) -> Result<()> {
        let float_input = if group.has_float() {
            self.materialized(source)?
        } else {
            *source
        };

        let mut quantized = None;
        for fused in &group.fused {
            let output = output_of(fused, output)?;
            match &fused.weight {
                Weight::Float(matrix) => ops::dense(&float_input, matrix, &output)?,
                Weight::Int8(matrix, config) => {
                    let outliers = outliers_of(config.outliers);
                    if self.count == 1 && ops::gemv(source, outliers, matrix, &output)? {
                        continue;
                    }

                    let memory = &self.memory.quantized;
                    let input = match quantized {
                        Some((input, of)) if of == config => input,
                        _ => ops::quantize(source, outliers, memory)?,
                    };
                    quantized = Some((input, config));
                    ops::matmul(&input, matrix, &output)?;
                }
            }
        }
        Ok(())
    }

    /// The source after its norm or gate, written to memory: the float kernels take plain rows.
    fn materialized(&self, source: &Source<'a, f32>) -> Result<Source<'a, f32>> {
        let out = self.memory.layer_input.all();
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
                ops::combine(Combined::Product, x, up, out, shape)?;
            }
            Through::LayerNorm(NormParts { .. }) | Through::RmsNorm(NormParts { .. }) => {
                ops::norm(source, 1, false, out, source.cols)?;
            }
        }
        Ok(Source::plain(out, self.count, source.cols))
    }
}

/// The part of a group's output that a fused layer writes.
fn output_of<'a>(fused: &'a FusedLinear, group: Output<'a, f32>) -> Result<Output<'a, f32>> {
    let activation = group.activation.and_then(|(function, count)| {
        let count = count.saturating_sub(fused.offset).min(fused.out_features);
        (count > 0).then_some((function, count))
    });
    let residual = match group.residual {
        Some(residual) => Some(Residual {
            stream: residual.stream.part(fused.offset..)?,
            ..residual
        }),
        None => None,
    };
    Ok(Output {
        out: group.out.part(fused.offset..)?,
        bias: fused.bias.as_ref().map(Buffer::all),
        activation,
        residual,
        ..group
    })
}

/// The rule as the CUDA kernels name it.
fn outliers_of(rule: OutlierRule) -> Outliers {
    match rule {
        OutlierRule::Absolute { threshold, scope } => Outliers::Absolute {
            threshold,
            by_row: scope == OutlierScope::Row,
        },
        OutlierRule::RowRms { factor } => Outliers::RowRms { factor },
    }
}

/// The function as the CUDA kernels name it; none for the identity.
fn device_activation(activation: Activation) -> Option<DeviceActivation> {
    use llm_int8_kernels::Activation as Cpu;
    Some(match activation.kernel() {
        Cpu::Gelu => DeviceActivation::Gelu,
        Cpu::GeluTanh => DeviceActivation::GeluTanh,
        Cpu::QuickGelu => DeviceActivation::QuickGelu,
        Cpu::Relu => DeviceActivation::Relu,
        Cpu::ReluSquared => DeviceActivation::ReluSquared,
        Cpu::Silu => DeviceActivation::Silu,
        Cpu::Tanh => DeviceActivation::Tanh,
        Cpu::GeluClipped => DeviceActivation::GeluClipped,
        Cpu::Laplace => DeviceActivation::Laplace,
        Cpu::LeakyRelu => DeviceActivation::LeakyRelu,
        Cpu::Linear => return None,
        Cpu::Mish => DeviceActivation::Mish,
        Cpu::Relu6 => DeviceActivation::Relu6,
        Cpu::Sigmoid => DeviceActivation::Sigmoid,
    })
}
