//! Weights, norms and tables in device memory. Linear layers with the same input are fused: their
//! weight rows are stacked in one matrix, so that one launch computes them all. Each row is
//! quantised by itself, so fusing changes no result.

use super::float_type;
use crate::decoder::Decoder;
use crate::error::{DecoderError, Result};
use crate::plan::{Layer, LinearStep, Rows, Step};
use crate::slot::{ModelSlot, Part, PartSlot, Parts};
use llm_int8_cuda::ops::{FloatMatrix, Int8Matrix, NormParts, Through};
use llm_int8_cuda::{Buffer, Device};
use llm_int8_nn::layers::{HeadNorms, Norm, NormKind};
use llm_int8_nn::linear::{Int8Config, Linear};
use llm_int8_nn::parameter::FloatParameter;
use std::sync::Arc;

/// A matrix on the device, for one or more linear layers. Clones share its memory.
#[derive(Debug, Clone)]
pub(super) enum Weight {
    Int8(Arc<Int8Matrix>, Int8Config),
    Float(Arc<FloatMatrix>),
}

impl Weight {
    /// Allocates a matrix `[out_features, in_features]` that stores weights as `like` does.
    fn declare(
        device: &Device,
        like: &Linear,
        out_features: usize,
        in_features: usize,
    ) -> Result<Self> {
        match like {
            Linear::Int8(linear) => {
                let matrix = Int8Matrix::new(device, out_features, in_features)?;
                Ok(Self::Int8(Arc::new(matrix), linear.config()))
            }
            Linear::Float(linear) => {
                let dtype = float_type(linear.weight().dtype());
                let matrix = FloatMatrix::new(device, dtype, out_features, in_features)?;
                Ok(Self::Float(Arc::new(matrix)))
            }
        }
    }
}

/// Linear layers that one launch computes.
#[derive(Debug)]
pub(super) struct FusedLinear {
    pub(super) weight: Weight,
    pub(super) bias: Option<Buffer<f32>>,
    /// Where its outputs begin in an output row of the group.
    pub(super) offset: usize,
    pub(super) out_features: usize,
}

/// Where a layer's rows are in a group.
#[derive(Debug, Clone, Copy)]
struct Member<S> {
    slot: S,
    /// Index of the fused layer.
    fused: usize,
    first_row: usize,
}

/// The layers of a linear step: the same input, outputs side by side. Int8 layers of the same
/// config are fused; float layers stay on their own.
#[derive(Debug)]
pub(super) struct LinearGroup<S> {
    pub(super) fused: Vec<FusedLinear>,
    members: Vec<Member<S>>,
}

impl<S: PartSlot> LinearGroup<S> {
    /// Allocates the layers of a step.
    fn declare(device: &Device, parts: &Parts<S>, layers: &[Layer<S>]) -> Result<Self> {
        let found = |layer: &Layer<S>| parts.linear(layer.slot).map(|linear| (layer.slot, linear));
        let layers: Option<Vec<(S, &Linear)>> = layers.iter().map(found).collect();
        let layers = layers.ok_or(DecoderError::Bug {
            what: "a linear layer",
        })?;

        let config = |linear: &Linear| match linear {
            Linear::Int8(linear) => Some(linear.config()),
            Linear::Float(_) => None,
        };
        let fuses = |a: &Linear, b: &Linear| config(a).is_some() && config(a) == config(b);

        let mut group = Self {
            fused: Vec::new(),
            members: Vec::new(),
        };
        let mut offset = 0;
        for layers in layers.chunk_by(|(_, a), (_, b)| fuses(a, b)) {
            offset += group.push(device, layers, offset)?;
        }
        Ok(group)
    }

    /// Allocates layers that are fused, and returns their number of outputs.
    fn push(&mut self, device: &Device, layers: &[(S, &Linear)], offset: usize) -> Result<usize> {
        let fused = self.fused.len();
        let mut out_features = 0;
        for (slot, linear) in layers {
            self.members.push(Member {
                slot: *slot,
                fused,
                first_row: out_features,
            });
            out_features += linear.out_features();
        }

        let (_, first) = layers[0];
        let has_bias = layers.iter().any(|(_, linear)| linear.has_bias());
        self.fused.push(FusedLinear {
            weight: Weight::declare(device, first, out_features, first.in_features())?,
            bias: has_bias.then(|| device.zeros(out_features)).transpose()?,
            offset,
            out_features,
        });
        Ok(out_features)
    }

    /// The matrix that holds a slot's weight, and the first of its rows there.
    pub(super) fn weight_of(&self, slot: S) -> Option<(Weight, usize)> {
        let member = self.members.iter().find(|member| member.slot == slot)?;
        let weight = self.fused[member.fused].weight.clone();
        Some((weight, member.first_row))
    }

    /// Uploads the biases of its layers.
    fn upload_biases(&self, parts: &Parts<S>) -> Result<()> {
        for member in &self.members {
            let bias = match parts.linear(member.slot) {
                Some(Linear::Int8(linear)) => linear.bias(),
                Some(Linear::Float(linear)) => linear.bias(),
                None => None,
            };

            if let (Some(bias), Some(target)) = (bias, &self.fused[member.fused].bias) {
                let bias = FloatParameter::f32_values(bias)?;
                target
                    .part(member.first_row..member.first_row + bias.len())?
                    .write(bias)?;
            }
        }
        Ok(())
    }

    pub(super) fn has_float(&self) -> bool {
        self.fused
            .iter()
            .any(|fused| matches!(fused.weight, Weight::Float(_)))
    }
}

/// A norm of rows, or of the heads of a row. Its parameters are f32 on the device.
#[derive(Debug)]
pub(super) struct DeviceNorm {
    weight: Buffer<f32>,
    bias: Option<Buffer<f32>>,
    /// LayerNorm; otherwise RMSNorm.
    is_layer: bool,
    eps: f32,
    /// Values that are normalised together.
    pub(super) width: usize,
    /// Whether each head has weights of its own.
    pub(super) own_weights: bool,
}

impl DeviceNorm {
    /// One norm, or the norms of all heads, whose weights lie one after the other.
    fn upload(device: &Device, norms: &[&Norm]) -> Result<Option<Self>> {
        let Some(first) = norms.first() else {
            return Ok(None);
        };

        let mut weight = Vec::new();
        let mut bias = Vec::new();
        for norm in norms {
            weight.extend_from_slice(norm.weight_values()?);
            bias.extend_from_slice(norm.bias_values()?);
        }

        Ok(Some(Self {
            weight: device.upload(&weight)?,
            bias: (!bias.is_empty())
                .then(|| device.upload(&bias))
                .transpose()?,
            is_layer: matches!(first.kind(), NormKind::Layer | NormKind::LayerWithoutBias),
            eps: first.eps() as f32,
            width: first.width(),
            own_weights: norms.len() > 1,
        }))
    }

    /// The norm, for a kernel that applies it to its input.
    pub(super) fn through(&self) -> Through<'_, f32> {
        let parts = NormParts {
            weight: self.weight.all(),
            bias: self.bias.as_ref().map(Buffer::all),
            eps: self.eps,
        };
        if self.is_layer {
            Through::LayerNorm(parts)
        } else {
            Through::RmsNorm(parts)
        }
    }
}

/// The linear layers and norms of a list of steps.
#[derive(Debug)]
pub(super) struct DeviceParts<S> {
    /// One for each linear step.
    groups: Vec<LinearGroup<S>>,
    norms: Vec<(S, DeviceNorm)>,
}

impl<S: PartSlot> DeviceParts<S> {
    /// Allocates the linear layers of these steps; norms come with
    /// [`DeviceParts::upload_small_parts`].
    pub(super) fn declare<'s>(
        device: &Device,
        parts: &Parts<S>,
        steps: impl Iterator<Item = &'s Step<S>>,
    ) -> Result<Self> {
        let mut groups = Vec::new();
        for step in steps {
            if let Step::Linear(step) = step {
                groups.push(LinearGroup::declare(device, parts, &step.layers)?);
            }
        }
        Ok(Self {
            groups,
            norms: Vec::new(),
        })
    }

    /// The layers of a linear step.
    pub(super) fn group(&self, step: &LinearStep<S>) -> Result<&LinearGroup<S>> {
        let first = step.layers.first().map(|layer| layer.slot);
        let found = self
            .groups
            .iter()
            .find(|group| group.members.first().map(|member| member.slot) == first);
        found.ok_or(DecoderError::Bug {
            what: "a linear layer on the device",
        })
    }

    pub(super) fn norm(&self, slot: S) -> Result<&DeviceNorm> {
        let found = self.norms.iter().find(|(known, _)| *known == slot);
        found.map(|(_, norm)| norm).ok_or(DecoderError::Bug {
            what: "a norm on the device",
        })
    }

    /// The matrix that holds a slot's weight, and the first of its rows there.
    pub(super) fn weight_of(&self, slot: S) -> Option<(Weight, usize)> {
        self.groups.iter().find_map(|group| group.weight_of(slot))
    }

    /// Uploads the norms of these steps and all biases, which were read into the CPU's parts.
    pub(super) fn upload_small_parts<'s>(
        &mut self,
        device: &Device,
        parts: &Parts<S>,
        steps: impl Iterator<Item = &'s Step<S>>,
    ) -> Result<()> {
        for slot in steps.filter_map(Step::norm) {
            if self.norms.iter().any(|(known, _)| *known == slot) {
                continue;
            }

            let norm = match parts.get(slot) {
                Some(Part::Norm(norm)) => DeviceNorm::upload(device, &[norm])?,
                Some(Part::HeadNorms(heads)) => {
                    DeviceNorm::upload(device, &HeadNorms::norms(heads).collect::<Vec<_>>())?
                }
                _ => None,
            };
            self.norms.extend(norm.map(|norm| (slot, norm)));
        }

        self.groups
            .iter()
            .try_for_each(|group| group.upload_biases(parts))
    }
}

/// A token or position table.
#[derive(Debug, Clone)]
pub(super) enum TableWeight {
    Float(Arc<FloatMatrix>),
    Int8(Arc<Int8Matrix>),
}

/// Embeddings and head.
#[derive(Debug)]
pub(super) struct DeviceHead {
    tables: Vec<(ModelSlot, TableWeight)>,
    pub(super) parts: DeviceParts<ModelSlot>,
}

impl DeviceHead {
    pub(super) fn declare(device: &Device, decoder: &Decoder) -> Result<Self> {
        let model = &decoder.model;
        let plan = decoder.execution_plan();
        let is_tied = decoder.spec().tied_head;

        let mut tables = Vec::new();
        for slot in [ModelSlot::Tokens, ModelSlot::Positions] {
            tables.extend(table(device, model, slot)?.map(|table| (slot, table)));
        }

        let head = plan.head.iter().filter(|step| !(is_tied && is_head(step)));
        let mut parts = DeviceParts::declare(device, model, plan.embed.iter().chain(head))?;

        let tokens = tables.iter().find(|(slot, _)| *slot == ModelSlot::Tokens);
        if let (true, Some((_, tokens))) = (is_tied, tokens) {
            parts.groups.push(tied_head(device, model, tokens)?);
        }
        Ok(Self { tables, parts })
    }

    pub(super) fn table(&self, slot: ModelSlot) -> Result<&TableWeight> {
        let found = self.tables.iter().find(|(known, _)| *known == slot);
        found.map(|(_, table)| table).ok_or(DecoderError::Bug {
            what: "a table on the device",
        })
    }
}

fn is_head(step: &Step<ModelSlot>) -> bool {
    matches!(step, Step::Linear(step) if step.into == Rows::Logits)
}

fn table(
    device: &Device,
    parts: &Parts<ModelSlot>,
    slot: ModelSlot,
) -> Result<Option<TableWeight>> {
    let Some(Part::Embedding(table)) = parts.get(slot) else {
        return Ok(None);
    };
    let [rows, width] = table.shape();
    Ok(Some(if table.is_int8() {
        TableWeight::Int8(Arc::new(Int8Matrix::new(device, rows, width)?))
    } else {
        let dtype = float_type(table.weight().dtype());
        TableWeight::Float(Arc::new(FloatMatrix::new(device, dtype, rows, width)?))
    }))
}

/// A head that shares the token table's memory.
fn tied_head(
    device: &Device,
    parts: &Parts<ModelSlot>,
    tokens: &TableWeight,
) -> Result<LinearGroup<ModelSlot>> {
    let slot = ModelSlot::Head;
    let head = parts
        .linear(slot)
        .ok_or(DecoderError::Bug { what: "the head" })?;

    let weight = match (tokens, head) {
        (TableWeight::Float(table), Linear::Float(_)) => Weight::Float(Arc::clone(table)),
        (TableWeight::Int8(table), Linear::Int8(linear)) => {
            Weight::Int8(Arc::clone(table), linear.config())
        }
        _ => {
            return Err(DecoderError::Bug {
                what: "a head like the token table",
            });
        }
    };
    let out_features = head.out_features();
    let bias = head.has_bias().then(|| device.zeros(out_features));
    Ok(LinearGroup {
        fused: vec![FusedLinear {
            weight,
            bias: bias.transpose()?,
            offset: 0,
            out_features,
        }],
        members: vec![Member {
            slot,
            fused: 0,
            first_row: 0,
        }],
    })
}
