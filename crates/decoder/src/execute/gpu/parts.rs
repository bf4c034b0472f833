//! A block's weights on a device. Layers with the same input lie in one matrix, one after the
//! other, so that a launch computes them all; what each weight row holds does not change by that.

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
struct Member<S> {
    slot: S,
    product: usize,
    first_row: usize,
}

/// Layers with the same input, whose outputs lie side by side.
#[derive(Debug)]
pub(super) struct Group<S> {
    pub(super) products: Vec<Product>,
    members: Vec<Member<S>>,
    pub(super) width: usize,
    pub(super) in_features: usize,
}

impl<S: PartSlot> Group<S> {
    /// Memory for the layers of a step.
    fn declare(device: &Device, parts: &Parts<S>, layers: &[Layer<S>]) -> Result<Self> {
        let of = |layer: &Layer<S>| parts.linear(layer.slot).map(|linear| (layer.slot, linear));
        let layers: Option<Vec<(S, &Linear)>> = layers.iter().map(of).collect();
        let layers = layers.ok_or(DecoderError::Bug {
            what: "a linear layer",
        })?;
        let config = |linear: &Linear| match linear {
            Linear::Int8(linear) => Some(linear.config()),
            Linear::Float(_) => None,
        };
        let mut group = Self {
            products: Vec::new(),
            members: Vec::new(),
            width: 0,
            in_features: 0,
        };
        for together in layers.chunk_by(|a, b| config(a.1).is_some() && config(a.1) == config(b.1))
        {
            let in_features = together[0].1.in_features();
            let width = together
                .iter()
                .map(|(_, linear)| linear.out_features())
                .sum();
            let has_bias = together.iter().any(|(_, linear)| linear.has_bias());
            let weight = match together[0].1 {
                Linear::Int8(linear) => Weight::Int8(
                    Arc::new(Int8Matrix::new(device, width, in_features)?),
                    linear.config(),
                ),
                Linear::Float(linear) => {
                    let dtype = float_type(linear.weight().dtype());
                    Weight::Float(Arc::new(FloatMatrix::new(
                        device,
                        dtype,
                        width,
                        in_features,
                    )?))
                }
            };
            let mut first_row = 0;
            for (slot, linear) in together {
                group.members.push(Member {
                    slot: *slot,
                    product: group.products.len(),
                    first_row,
                });
                first_row += linear.out_features();
            }
            let bias = has_bias.then(|| device.zeros(width)).transpose()?;
            group.products.push(Product {
                weight,
                bias,
                offset: group.width,
                width,
            });
            group.width += width;
            group.in_features = in_features;
        }
        Ok(group)
    }

    /// The matrix of a slot and its first row there.
    pub(super) fn weight_of(&self, slot: S) -> Option<(Weight, usize)> {
        let member = self.members.iter().find(|member| member.slot == slot)?;
        Some((
            self.products[member.product].weight.clone(),
            member.first_row,
        ))
    }

    /// Puts a layer's bias where it belongs.
    pub(super) fn write_bias(&self, slot: S, bias: &[f32]) -> Result<()> {
        for member in self.members.iter().filter(|member| member.slot == slot) {
            if let Some(target) = &self.products[member.product].bias {
                target
                    .part(member.first_row..member.first_row + bias.len())?
                    .write(bias)?;
            }
        }
        Ok(())
    }

    pub(super) fn has_float(&self) -> bool {
        self.products
            .iter()
            .any(|product| matches!(product.weight, Weight::Float(_)))
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
        let Some(first) = norms.first() else {
            return Ok(None);
        };
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
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

    /// As a source goes through it.
    pub(super) fn through(&self) -> Through<'_, f32> {
        let bias = self.bias.as_ref().map(Buffer::all);
        let parts = NormParts {
            weight: self.weight.all(),
            bias,
            eps: self.eps,
        };
        if self.is_layer {
            Through::LayerNorm(parts)
        } else {
            Through::RmsNorm(parts)
        }
    }
}

/// The layers and norms that a list of steps needs.
#[derive(Debug)]
pub(super) struct DeviceParts<S> {
    /// Those of each linear step.
    groups: Vec<Group<S>>,
    norms: Vec<(S, DeviceNorm)>,
}

impl<S: PartSlot> DeviceParts<S> {
    /// Memory for the layers of these steps; norms come with [`DeviceParts::take_small_parts`].
    pub(super) fn declare<'s>(
        device: &Device,
        parts: &Parts<S>,
        steps: impl Iterator<Item = &'s Step<S>>,
    ) -> Result<Self> {
        let mut groups = Vec::new();
        for step in steps {
            if let Step::Linear(step) = step {
                groups.push(Group::declare(device, parts, &step.layers)?);
            }
        }
        Ok(Self {
            groups,
            norms: Vec::new(),
        })
    }

    /// The layers of a linear step.
    pub(super) fn group(&self, step: &LinearStep<S>) -> Result<&Group<S>> {
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

    /// The matrix of a slot and its first row there.
    pub(super) fn weight_of(&self, slot: S) -> Option<(Weight, usize)> {
        self.groups.iter().find_map(|group| group.weight_of(slot))
    }

    /// Takes the norms of these steps and all biases from the parts of the CPU, which are small and
    /// were read.
    pub(super) fn take_small_parts<'s>(
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
            .try_for_each(|group| take_biases(group, parts))
    }
}

fn take_biases<S: PartSlot>(group: &Group<S>, parts: &Parts<S>) -> Result<()> {
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

/// Embeddings and head.
#[derive(Debug)]
pub(super) struct DeviceHead {
    tables: Vec<(ModelSlot, TableWeight)>,
    pub(super) parts: DeviceParts<ModelSlot>,
}

impl DeviceHead {
    pub(super) fn declare(device: &Device, decoder: &Decoder) -> Result<Self> {
        let (model, plan) = (&decoder.model, decoder.execution_plan());
        let mut tables = Vec::new();
        for slot in [ModelSlot::Tokens, ModelSlot::Positions] {
            tables.extend(table(device, model, slot)?.map(|table| (slot, table)));
        }
        let tokens = tables.iter().find(|(slot, _)| *slot == ModelSlot::Tokens);

        // A tied head has no memory of its own.
        let is_own = |step: &&Step<ModelSlot>| !(decoder.spec().tied_head && is_head(step));
        let mut parts = DeviceParts::declare(
            device,
            model,
            plan.embed.iter().chain(plan.head.iter().filter(is_own)),
        )?;
        if let (true, Some((_, tokens))) = (decoder.spec().tied_head, tokens) {
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
fn tied_head(
    device: &Device,
    parts: &Parts<ModelSlot>,
    tokens: &TableWeight,
) -> Result<Group<ModelSlot>> {
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
    let width = head.out_features();
    let bias = head.has_bias().then(|| device.zeros(width)).transpose()?;
    Ok(Group {
        products: vec![Product {
            weight,
            bias,
            offset: 0,
            width,
        }],
        members: vec![Member {
            slot,
            product: 0,
            first_row: 0,
        }],
        width,
        in_features: head.in_features(),
    })
}
