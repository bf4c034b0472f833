//! Slots: names for the parts of a decoder that have parameters, those of a block and those of the
//! embeddings and head. A family's template fills some of them.

use llm_int8_nn::layers::{Embedding, HeadNorms, Norm};
use llm_int8_nn::linear::Linear;
use llm_int8_nn::lora::LoraUpdate;
use std::fmt::Debug;

/// A part of the decoder that has parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Slot {
    /// A part of the embeddings or the head.
    Model(ModelSlot),
    /// A part of the block of this number.
    Block(usize, BlockSlot),
}

/// A part of the embeddings or the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ModelSlot {
    /// The token table `[V, C]`.
    Tokens,
    /// The position table `[P, C]`.
    Positions,
    /// A norm of the embeddings (BLOOM).
    EmbeddingNorm,
    /// The linear layer from the token table's width to the blocks' (OPT 350m).
    ProjectIn,
    /// The linear layer back to the token table's width.
    ProjectOut,
    /// The norm before the head.
    FinalNorm,
    /// The head `[V, C]`.
    Head,
}

/// A part of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockSlot {
    /// The norm before attention.
    AttentionNorm,
    /// Queries, keys and values in one linear layer.
    Qkv,
    /// Queries.
    Query,
    /// Keys.
    Key,
    /// Values.
    Value,
    /// The norm of queries: of each head, or of all heads together if it is as wide as they are.
    QueryNorm,
    /// The norm of keys, likewise.
    KeyNorm,
    /// Attention's output projection.
    AttentionOut,
    /// The norm of attention's output, before it is added to the residual stream.
    AttentionPostNorm,
    /// The norm before the MLP.
    MlpNorm,
    /// The linear layer whose activated output gates that of [`BlockSlot::Up`].
    Gate,
    /// Gate and up in one linear layer, gate first.
    GateUp,
    /// The first linear layer of the MLP.
    Up,
    /// The second linear layer of the MLP.
    Down,
    /// The norm of the MLP's output, before it is added to the residual stream.
    MlpPostNorm,
}

/// A kind of slot. Parts are indexed by one kind, so that a slot of the other does not compile.
pub trait PartSlot: Copy + Eq + Debug + 'static {
    /// Its index among the slots of its kind.
    fn number(self) -> usize;
}

impl PartSlot for ModelSlot {
    fn number(self) -> usize {
        self as usize
    }
}

impl PartSlot for BlockSlot {
    fn number(self) -> usize {
        self as usize
    }
}

/// A part with parameters.
#[derive(Debug, Clone)]
pub(super) enum Part {
    Embedding(Embedding),
    Norm(Norm),
    HeadNorms(HeadNorms),
    Linear(Linear),
}

/// The parts of a block, or of the embeddings and head, by slot.
#[derive(Debug, Clone)]
pub(super) struct Parts<S> {
    parts: Vec<Option<(S, Part)>>,
    /// What an adapter adds to linear layers; empty without one.
    updates: Vec<Option<LoraUpdate>>,
}

impl<S> Default for Parts<S> {
    fn default() -> Self {
        Self {
            parts: Vec::new(),
            updates: Vec::new(),
        }
    }
}

impl<S: PartSlot> Parts<S> {
    pub(super) fn insert(&mut self, slot: S, part: Part) {
        if self.parts.len() <= slot.number() {
            self.parts.resize_with(slot.number() + 1, || None);
        }
        self.parts[slot.number()] = Some((slot, part));
    }

    pub(super) fn get(&self, slot: S) -> Option<&Part> {
        let found = self.parts.get(slot.number())?.as_ref();
        found.map(|(_, part)| part)
    }

    pub(super) fn get_mut(&mut self, slot: S) -> Option<&mut Part> {
        let found = self.parts.get_mut(slot.number())?.as_mut();
        found.map(|(_, part)| part)
    }

    /// The filled slots and their parts.
    pub(super) fn iter(&self) -> impl Iterator<Item = (S, &Part)> {
        let filled = self.parts.iter().flatten();
        filled.map(|(slot, part)| (*slot, part))
    }

    /// What an adapter adds to the linear layer of a slot.
    pub(super) fn update(&self, slot: S) -> Option<&LoraUpdate> {
        self.updates.get(slot.number())?.as_ref()
    }

    pub(super) fn set_update(&mut self, slot: S, update: LoraUpdate) {
        if self.updates.len() <= slot.number() {
            self.updates.resize_with(slot.number() + 1, || None);
        }
        self.updates[slot.number()] = Some(update);
    }

    /// What an adapter adds, layer by layer.
    pub(super) fn updates(&self) -> impl Iterator<Item = &LoraUpdate> {
        self.updates.iter().flatten()
    }

    pub(super) fn linear(&self, slot: S) -> Option<&Linear> {
        match self.get(slot) {
            Some(Part::Linear(linear)) => Some(linear),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use llm_int8_nn::dtype::FloatDtype;
    use llm_int8_nn::layers::NormKind;

    #[test]
    fn a_part_is_found_only_by_its_slot() {
        let norm = Norm::declared("LayerNorm", NormKind::Layer, 8, 1e-5, FloatDtype::F32);
        let mut parts = Parts::default();
        parts.insert(BlockSlot::MlpNorm, Part::Norm(norm));

        assert!(
            parts.get(BlockSlot::MlpNorm).is_some() && parts.get_mut(BlockSlot::MlpNorm).is_some()
        );
        assert!(
            parts.get(BlockSlot::AttentionNorm).is_none()
                && parts.get(BlockSlot::MlpPostNorm).is_none()
        );
        assert!(parts.linear(BlockSlot::MlpNorm).is_none(), "it is a norm");
        assert_eq!(
            parts.iter().map(|(slot, _)| slot).collect::<Vec<_>>(),
            [BlockSlot::MlpNorm]
        );
    }
}
