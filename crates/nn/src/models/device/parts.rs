//! A block's weights on a device. Layers with the same input lie in one matrix, one after the other, so that a
//! launch computes them all; what each weight row holds does not change by that.

use super::super::decoder::{Decoder, Part, Parts};
use super::super::spec::{BlockSlot, ModelSlot};
use super::float_type;
use crate::error::{NnError, Result};
use crate::layers::{HeadNorms, Norm, NormKind};
use crate::linear::{Int8Config, Linear};
use crate::parameter::FloatParameter;
use llm_int8_cuda::ops::{FloatMatrix, Int8Matrix, NormParts, Through};
use llm_int8_cuda::{Buffer, Device};
use std::sync::Arc;

/// Weights of some layers with the same input.
#[derive(Debug, Clone)]
pub(super) enum Weight {
    Int8(Arc<Int8Matrix>, Int8Config),
    Float(Arc<FloatMatrix>),
}

/// A matrix and where its outputs go in a row.
#[derive(Debug)]
pub(super) struct Product {
    pub(super) weight: Weight,
    pub(super) bias: Option<Buffer<f32>>,
    pub(super) offset: usize,
    pub(super) width: usize,
}

/// A layer's place in a group.
#[derive(Debug, Clone, Copy)]
struct Member {
    slot: usize,
    product: usize,
    first_row: usize,
}

/// Layers with the same input, whose outputs lie side by side.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) products: Vec<Product>,
    members: Vec<Member>,
    pub(super) width: usize,
    pub(super) in_features: usize,
}

impl Group {
    /// Memory for the layers of these slots, as far as there are any.
    fn declare(device: &Device, parts: &Parts, slots: &[usize]) -> Result<Self> {
        let layers: Vec<(usize, &Linear)> =
            slots.iter().filter_map(|slot| Some((*slot, parts.linear(*slot)?))).collect();
        let config = |linear: &Linear| match linear {
            Linear::Int8(linear) => Some(linear.config()),
            Linear::Float(_) => None,
        };
        let mut group = Self::default();
        for together in layers.chunk_by(|a, b| config(a.1).is_some() && config(a.1) == config(b.1)) {
            let in_features = together[0].1.in_features();
            let width = together.iter().map(|(_, linear)| linear.out_features()).sum();
            let has_bias = together.iter().any(|(_, linear)| linear.has_bias());
            let weight = match together[0].1 {
                Linear::Int8(linear) => {
                    Weight::Int8(Arc::new(Int8Matrix::new(device, width, in_features)?), linear.config())
                }
                Linear::Float(linear) => {
                    let dtype = float_type(linear.weight().dtype());
                    Weight::Float(Arc::new(FloatMatrix::new(device, dtype, width, in_features)?))
                }
            };
            let mut first_row = 0;
            for (slot, linear) in together {
                group.members.push(Member { slot: *slot, product: group.products.len(), first_row });
                first_row += linear.out_features();
            }
            let bias = has_bias.then(|| device.zeros(width)).transpose()?;
            group.products.push(Product { weight, bias, offset: group.width, width });
            group.width += width;
            group.in_features = in_features;
        }
        Ok(group)
    }

    /// The matrix of a slot and its first row there.
    pub(super) fn weight_of(&self, slot: usize) -> Option<(Weight, usize)> {
        let member = self.members.iter().find(|member| member.slot == slot)?;
        Some((self.products[member.product].weight.clone(), member.first_row))
    }

    /// Where a slot's outputs begin in a row.
    pub(super) fn offset_of(&self, slot: usize) -> Option<usize> {
        let member = self.members.iter().find(|member| member.slot == slot)?;
        Some(self.products[member.product].offset + member.first_row)
    }

    /// Puts a layer's bias where it belongs.
    pub(super) fn write_bias(&self, slot: usize, bias: &[f32]) -> Result<()> {
        for member in self.members.iter().filter(|member| member.slot == slot) {
            if let Some(target) = &self.products[member.product].bias {
                target.part(member.first_row..member.first_row + bias.len())?.write(bias)?;
            }
        }
        Ok(())
    }

    pub(super) fn has_float(&self) -> bool {
        self.products.iter().any(|product| matches!(product.weight, Weight::Float(_)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.products.is_empty()
    }
}

/// A norm of rows or of the heads of a row.
#[derive(Debug)]
pub(super) struct DeviceNorm {
    weight: Buffer<f32>,
    bias: Option<Buffer<f32>>,
    is_layer: bool,
    eps: f32,
    /// Values that are normalised together.
    pub(super) width: usize,
    /// Whether each head has weights of its own.
    pub(super) own_weights: bool,
}

impl DeviceNorm {
    fn upload(device: &Device, norms: &[&Norm]) -> Result<Option<Self>> {
        let Some(first) = norms.first() else { return Ok(None) };
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for norm in norms {
            weight.extend_from_slice(norm.values()?);
            bias.extend_from_slice(norm.bias_values()?);
        }
        Ok(Some(Self {
            weight: device.upload(&weight)?,
            bias: (!bias.is_empty()).then(|| device.upload(&bias)).transpose()?,
            is_layer: matches!(first.kind(), NormKind::Layer | NormKind::LayerWithoutBias),
            eps: first.eps() as f32,
            width: first.width(),
            own_weights: norms.len() > 1,
        }))
    }

    /// As a source goes through it.
    pub(super) fn through(&self) -> Through<'_, f32> {
        let bias = self.bias.as_ref().map(Buffer::all);
        let parts = NormParts { weight: self.weight.all(), bias, eps: self.eps };
        if self.is_layer { Through::LayerNorm(parts) } else { Through::RmsNorm(parts) }
    }
}

/// Norms by the number of their slot.
#[derive(Debug, Default)]
pub(super) struct Norms(Vec<(usize, DeviceNorm)>);

impl Norms {
    fn upload(device: &Device, parts: &Parts, slots: impl Iterator<Item = usize>) -> Result<Self> {
        let mut norms = Vec::new();
        for slot in slots {
            let found = match parts.get(slot) {
                Some(Part::Norm(norm)) => DeviceNorm::upload(device, &[norm])?,
                Some(Part::HeadNorms(heads)) => {
                    DeviceNorm::upload(device, &HeadNorms::norms(heads).collect::<Vec<_>>())?
                }
                _ => None,
            };
            norms.extend(found.map(|norm| (slot, norm)));
        }
        Ok(Self(norms))
    }

    pub(super) fn get(&self, slot: usize) -> Option<&DeviceNorm> {
        self.0.iter().find(|(number, _)| *number == slot).map(|(_, norm)| norm)
    }
}

/// One block.
#[derive(Debug)]
pub(super) struct DeviceBlock {
    pub(super) qkv: Group,
    pub(super) attention_out: Group,
    pub(super) up: Group,
    pub(super) down: Group,
    /// Whether the first half of what `up` gives gates the second.
    pub(super) is_gated: bool,
    pub(super) norms: Norms,
}

const QKV: [BlockSlot; 4] = [BlockSlot::Qkv, BlockSlot::Query, BlockSlot::Key, BlockSlot::Value];
const UP: [BlockSlot; 3] = [BlockSlot::GateUp, BlockSlot::Gate, BlockSlot::Up];
const NORMS: [BlockSlot; 6] = [
    BlockSlot::AttentionNorm,
    BlockSlot::QueryNorm,
    BlockSlot::KeyNorm,
    BlockSlot::AttentionPostNorm,
    BlockSlot::MlpNorm,
    BlockSlot::MlpPostNorm,
];

impl DeviceBlock {
    pub(super) fn declare(device: &Device, parts: &Parts) -> Result<Self> {
        let group = |slots: &[BlockSlot]| {
            Group::declare(device, parts, &slots.iter().map(|slot| *slot as usize).collect::<Vec<_>>())
        };
        let has = |slot: BlockSlot| parts.linear(slot as usize).is_some();
        let block = Self {
            qkv: group(&QKV)?,
            attention_out: group(&[BlockSlot::AttentionOut])?,
            up: group(&UP)?,
            down: group(&[BlockSlot::Down])?,
            is_gated: has(BlockSlot::GateUp) || has(BlockSlot::Gate),
            norms: Norms::default(),
        };
        match [&block.qkv, &block.attention_out, &block.up, &block.down].iter().any(|group| group.is_empty())
        {
            true => Err(NnError::NotLoaded),
            false => Ok(block),
        }
    }

    pub(super) fn groups(&self) -> [&Group; 4] {
        [&self.qkv, &self.attention_out, &self.up, &self.down]
    }

    /// Takes norms and biases from the parts of the CPU, which are small and were read.
    pub(super) fn take_small_parts(&mut self, device: &Device, parts: &Parts) -> Result<()> {
        self.norms = Norms::upload(device, parts, NORMS.into_iter().map(|slot| slot as usize))?;
        self.groups().into_iter().try_for_each(|group| take_biases(group, parts))
    }
}

fn take_biases(group: &Group, parts: &Parts) -> Result<()> {
    for member in &group.members {
        let bias = match parts.linear(member.slot) {
            Some(Linear::Int8(linear)) => linear.bias(),
            Some(Linear::Float(linear)) => linear.bias(),
            None => None,
        };
        if let Some(bias) = bias {
            group.write_bias(member.slot, FloatParameter::f32_values(bias)?)?;
        }
    }
    Ok(())
}

/// A token or position table.
#[derive(Debug, Clone)]
pub(super) enum TableWeight {
    Float(Arc<FloatMatrix>),
    Int8(Arc<Int8Matrix>),
}

/// What stands outside of blocks.
#[derive(Debug)]
pub(super) struct DeviceModel {
    pub(super) tokens: TableWeight,
    pub(super) positions: Option<Arc<FloatMatrix>>,
    pub(super) project_in: Group,
    pub(super) project_out: Group,
    pub(super) head: Group,
    pub(super) norms: Norms,
}

impl DeviceModel {
    pub(super) fn declare(device: &Device, decoder: &Decoder) -> Result<Self> {
        let parts = &decoder.model;
        let group = |slot: ModelSlot| Group::declare(device, parts, &[slot as usize]);
        let tokens = table(device, parts, ModelSlot::Tokens)?.ok_or(NnError::NotLoaded)?;
        let positions = match table(device, parts, ModelSlot::Positions)? {
            Some(TableWeight::Float(table)) => Some(table),
            _ => None,
        };
        let head = if decoder.spec().tied_head {
            tied_head(device, parts, &tokens)?
        } else {
            group(ModelSlot::Head)?
        };
        Ok(Self {
            tokens,
            positions,
            project_in: group(ModelSlot::ProjectIn)?,
            project_out: group(ModelSlot::ProjectOut)?,
            head,
            norms: Norms::default(),
        })
    }

    pub(super) fn groups(&self) -> [&Group; 3] {
        [&self.project_in, &self.project_out, &self.head]
    }

    pub(super) fn take_small_parts(&mut self, device: &Device, parts: &Parts) -> Result<()> {
        let slots = [ModelSlot::EmbeddingNorm, ModelSlot::FinalNorm];
        self.norms = Norms::upload(device, parts, slots.into_iter().map(|slot| slot as usize))?;
        self.groups().into_iter().try_for_each(|group| take_biases(group, parts))
    }
}

fn table(device: &Device, parts: &Parts, slot: ModelSlot) -> Result<Option<TableWeight>> {
    let Some(Part::Embedding(table)) = parts.get(slot as usize) else { return Ok(None) };
    let [rows, cols] = table.shape();
    Ok(Some(match table.is_int8() {
        true => TableWeight::Int8(Arc::new(Int8Matrix::new(device, rows, cols)?)),
        false => {
            let dtype = float_type(table.weight().dtype());
            TableWeight::Float(Arc::new(FloatMatrix::new(device, dtype, rows, cols)?))
        }
    }))
}

/// A head that shares the token table's memory.
fn tied_head(device: &Device, parts: &Parts, tokens: &TableWeight) -> Result<Group> {
    let slot = ModelSlot::Head as usize;
    let head = parts.linear(slot).ok_or(NnError::NotLoaded)?;
    let weight = match (tokens, head) {
        (TableWeight::Float(table), Linear::Float(_)) => Weight::Float(Arc::clone(table)),
        (TableWeight::Int8(table), Linear::Int8(linear)) => Weight::Int8(Arc::clone(table), linear.config()),
        _ => return Err(NnError::NotLoaded),
    };
    let width = head.out_features();
    let bias = head.has_bias().then(|| device.zeros(width)).transpose()?;
    Ok(Group {
        products: vec![Product { weight, bias, offset: 0, width }],
        members: vec![Member { slot, product: 0, first_row: 0 }],
        width,
        in_features: head.in_features(),
    })
}
