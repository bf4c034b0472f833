//! The one decoder: embeddings, blocks, final norm, head.
//!
//! Which parts a model has, its family's template says; what is done with them stands here once.
//! Arithmetic is f32; what the weights are stored in is each layer's own business.

use super::spec::{BlockSlot, DecoderSpec, LayerSpec, ModelSlot, Residual, Slot};
use super::template::PartSpec;
use crate::dtype::FloatDtype;
use crate::error::{NnError, Result};
use crate::layers::{
    AttentionRule, Embedding, HeadNorms, Heads, LayerCache, Norm, Rope, RopeTable, attend, with_f32,
};
use crate::linear::{FloatLinear, Int8Config, Linear};
use crate::module::ModulePath;
use candle_core::{DType, Device, Tensor};
use llm_int8_kernels::Isa;

/// Which positions logits are wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitPositions {
    /// Every position of the input: `[B, T, V]`.
    All,
    /// The last one, which is all that generating needs: `[B, 1, V]`.
    Last,
}

/// Keys and values of every block for the positions seen so far.
#[derive(Debug, Clone)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    /// The tokens seen, `[B, positions]`, where they may have to be computed again.
    seen: Option<Tensor>,
    len: usize,
    /// Whether its keys are rotated by the frequencies for long texts.
    is_long: bool,
}

impl KvCache {
    /// Positions seen.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(LayerCache::bytes).sum()
    }

    /// Forgets all positions from `len` on.
    ///
    /// # Errors
    /// [`NnError::Candle`] never for a cache of this decoder.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        if len < self.len {
            self.layers.iter_mut().for_each(|layer| layer.truncate(len));
            self.seen = match self.seen.take() {
                Some(seen) if len > 0 => Some(seen.narrow(1, 0, len)?),
                _ => None,
            };
            self.len = len;
        }
        Ok(())
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

impl Part {
    /// A part without values.
    fn declared(spec: &PartSpec, dtype: FloatDtype, isa: Isa) -> Self {
        match *spec {
            PartSpec::Embedding { ref class, rows, width, padding } => {
                Self::Embedding(Embedding::declared(class, [rows, width], padding, dtype))
            }
            PartSpec::Norm { ref class, kind, width, eps } => {
                Self::Norm(Norm::declared(class, kind, width, eps, dtype))
            }
            PartSpec::HeadNorms { ref norm, heads } => match Self::declared(norm, dtype, isa) {
                Self::Norm(norm) => Self::HeadNorms(HeadNorms::declared(&norm, heads)),
                other => other,
            },
            PartSpec::Linear { class, out_features, in_features, bias } => {
                let shape = [out_features, in_features];
                Self::Linear(Linear::Float(FloatLinear::declared(class, shape, bias, dtype, isa)))
            }
        }
    }
}

/// Parts by the number of their slot.
#[derive(Debug, Clone, Default)]
struct Parts(Vec<Option<Part>>);

impl Parts {
    fn insert(&mut self, slot: usize, part: Part) {
        if self.0.len() <= slot {
            self.0.resize_with(slot + 1, || None);
        }
        self.0[slot] = Some(part);
    }

    fn get(&self, slot: usize) -> Option<&Part> {
        self.0.get(slot).and_then(Option::as_ref)
    }

    fn norm(&self, slot: usize) -> Option<&Norm> {
        match self.get(slot) {
            Some(Part::Norm(norm)) => Some(norm),
            _ => None,
        }
    }

    fn linear(&self, slot: usize) -> Option<&Linear> {
        match self.get(slot) {
            Some(Part::Linear(linear)) => Some(linear),
            _ => None,
        }
    }
}

/// A causal language model.
#[derive(Debug, Clone)]
pub struct Decoder {
    spec: DecoderSpec,
    dtype: FloatDtype,
    model: Parts,
    blocks: Vec<Parts>,
}

impl Decoder {
    /// A decoder without values; `dtype` is what its float parameters will be stored in.
    pub fn declared(spec: DecoderSpec, dtype: FloatDtype, isa: Isa) -> Self {
        let (mut model, mut block) = (Parts::default(), Parts::default());
        for (slot, spec) in spec.tree.slots() {
            match slot {
                Slot::Model(slot) => model.insert(slot as usize, Part::declared(spec, dtype, isa)),
                Slot::Block(_, slot) => block.insert(slot as usize, Part::declared(spec, dtype, isa)),
            }
        }
        Self { model, blocks: vec![block; spec.layers.len()], spec, dtype }
    }

    /// Logits for the next token.
    ///
    /// # Shapes
    /// `ids` u32 `[B, T]`, the tokens after those in the cache; the result f32 `[B, T, V]`, or
    /// `[B, 1, V]` with [`LogitPositions::Last`].
    ///
    /// # Errors
    /// [`NnError::ContextExceeded`] where cache and input do not fit into the model's positions;
    /// [`NnError::Input`] for empty input or an id beyond the vocabulary; [`NnError::NotLoaded`].
    pub fn forward(&self, ids: &Tensor, cache: &mut KvCache, wanted: LogitPositions) -> Result<Tensor> {
        let tokens = self.check_ids(ids)?;
        let (cached, requested) = (cache.len, cache.len + tokens);
        if requested > self.spec.positions {
            return Err(NnError::ContextExceeded { requested, available: self.spec.positions });
        }
        let ropes = &self.spec.attention.ropes;
        let seen = match &cache.seen {
            _ if !ropes.iter().any(Rope::has_long) => None,
            Some(seen) => Some(Tensor::cat(&[seen, ids], 1)?),
            None => Some(ids.clone()),
        };
        let is_long = ropes.iter().any(|rope| rope.is_long(requested));
        if let (true, Some(all)) = (cached > 0 && is_long != cache.is_long, &seen) {
            // What is cached was rotated by frequencies that no longer hold.
            *cache = self.new_cache();
            let logits = self.forward(all, cache, wanted)?;
            return Ok(match wanted {
                LogitPositions::All => logits.narrow(1, cached, tokens)?,
                LogitPositions::Last => logits,
            });
        }
        let ropes: Vec<RopeTable> = ropes.iter().map(|rope| rope.table(cached, tokens)).collect();
        let mut x = self.embed(ids, cached)?;
        for (number, layer) in self.spec.layers.iter().enumerate() {
            let block = Block { decoder: self, parts: &self.blocks[number], layer, ropes: &ropes };
            x = block.forward(x, &mut cache.layers[number])?;
        }
        (cache.len, cache.seen, cache.is_long) = (requested, seen, is_long);
        let x = match wanted {
            LogitPositions::All => x,
            LogitPositions::Last => x.narrow(1, tokens - 1, 1)?.contiguous()?,
        };
        self.logits(x)
    }

    fn embed(&self, ids: &Tensor, cached: usize) -> Result<Tensor> {
        let tokens = ids.dim(1)?;
        let table = |slot: ModelSlot| match self.model.get(slot as usize) {
            Some(Part::Embedding(table)) => Some(table),
            _ => None,
        };
        let mut x = table(ModelSlot::Tokens).ok_or(NnError::NotLoaded)?.forward(ids)?;
        if self.spec.embedding_scale != 1.0 {
            x = (x * self.spec.embedding_scale)?;
        }
        if let Some(project) = self.model.linear(ModelSlot::ProjectIn as usize) {
            x = project.forward(&x)?;
        }
        if let Some(positions) = table(ModelSlot::Positions) {
            let first = (cached + self.spec.position_offset) as u32;
            let numbers = Tensor::arange(first, first + tokens as u32, &Device::Cpu)?;
            x = x.broadcast_add(&positions.forward(&numbers)?)?;
        }
        match self.model.norm(ModelSlot::EmbeddingNorm as usize) {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        }
    }

    fn logits(&self, mut x: Tensor) -> Result<Tensor> {
        if let Some(norm) = self.model.norm(ModelSlot::FinalNorm as usize) {
            x = norm.forward(&x)?;
        }
        if let Some(project) = self.model.linear(ModelSlot::ProjectOut as usize) {
            x = project.forward(&x)?;
        }
        let head = self.model.linear(ModelSlot::Head as usize).ok_or(NnError::NotLoaded)?;
        let mut logits = head.forward(&x)?;
        if self.spec.logit_scale != 1.0 {
            logits = (logits * self.spec.logit_scale)?;
        }
        match self.spec.logit_softcap {
            Some(cap) => Ok(((logits / cap)?.tanh()? * cap)?),
            None => Ok(logits),
        }
    }

    /// The number of new tokens, if the ids can be looked up.
    fn check_ids(&self, ids: &Tensor) -> Result<usize> {
        let error = |reason: String| Err(NnError::Input { layer: self.spec.family.into(), reason });
        let [_, tokens] = *ids.dims() else {
            return error(format!("token ids must be [batch, tokens], they are {:?}", ids.dims()));
        };
        if ids.elem_count() == 0 {
            return error("there are no token ids; give at least one".into());
        }
        if ids.dtype() != DType::U32 {
            return error(format!("token ids must be u32, they are {:?}", ids.dtype()));
        }
        let (largest, vocab_size) = (ids.flatten_all()?.max(0)?.to_scalar::<u32>()?, self.spec.vocab_size());
        if largest as usize >= vocab_size {
            return error(format!(
                "token id {largest} is beyond the vocabulary of {vocab_size}; is the tokenizer this model's?"
            ));
        }
        Ok(tokens)
    }

    /// An empty cache.
    pub fn new_cache(&self) -> KvCache {
        KvCache { layers: vec![LayerCache::new(); self.blocks.len()], seen: None, len: 0, is_long: false }
    }

    /// The description the decoder was built from.
    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// What the float parameters are stored in.
    pub fn dtype(&self) -> FloatDtype {
        self.dtype
    }

    /// How the int8 layers compute; none where no layer is int8.
    pub fn int8_config(&self) -> Option<Int8Config> {
        let parts = self.blocks.iter().chain([&self.model]).flat_map(|parts| parts.0.iter().flatten());
        parts.into_iter().find_map(|part| match part {
            Part::Linear(Linear::Int8(linear)) => Some(linear.config()),
            _ => None,
        })
    }

    /// The path of every part, in PyTorch's order.
    pub(super) fn paths(&self) -> Vec<(ModulePath, Slot)> {
        self.spec.tree.paths(self.spec.layers.len())
    }

    /// Lets the head share the token table's values, where it does.
    pub(super) fn tie_head(&mut self) {
        let Some(Part::Embedding(tokens)) = self.model.get(ModelSlot::Tokens as usize) else { return };
        let weight = tokens.weight().clone();
        if let (true, Some(Part::Linear(Linear::Float(head)))) =
            (self.spec.tied_head, self.part_mut(Slot::Model(ModelSlot::Head)))
        {
            *head.weight_mut() = weight;
        }
    }

    pub(super) fn part(&self, slot: Slot) -> Option<&Part> {
        match slot {
            Slot::Model(slot) => self.model.get(slot as usize),
            Slot::Block(layer, slot) => self.blocks.get(layer)?.get(slot as usize),
        }
    }

    pub(super) fn part_mut(&mut self, slot: Slot) -> Option<&mut Part> {
        match slot {
            Slot::Model(slot) => self.model.0.get_mut(slot as usize)?.as_mut(),
            Slot::Block(layer, slot) => self.blocks.get_mut(layer)?.0.get_mut(slot as usize)?.as_mut(),
        }
    }
}

/// One block at work.
struct Block<'a> {
    decoder: &'a Decoder,
    parts: &'a Parts,
    layer: &'a LayerSpec,
    ropes: &'a [RopeTable],
}

impl Block<'_> {
    fn forward(&self, x: Tensor, cache: &mut LayerCache) -> Result<Tensor> {
        let spec = &self.decoder.spec;
        match spec.residual {
            Residual::Sequential => {
                let attended = self.attention(&self.norm(BlockSlot::AttentionNorm, &x)?, cache)?;
                let x = self.add(x, &self.norm(BlockSlot::AttentionPostNorm, &attended)?)?;
                let mixed = self.mlp(&self.norm(BlockSlot::MlpNorm, &x)?)?;
                self.add(x, &self.norm(BlockSlot::MlpPostNorm, &mixed)?)
            }
            Residual::Parallel => {
                let normed = self.norm(BlockSlot::AttentionNorm, &x)?;
                let attended = self.attention(&normed, cache)?;
                let has_own = self.parts.norm(BlockSlot::MlpNorm as usize).is_some();
                let mixed = self.mlp(&if has_own { self.norm(BlockSlot::MlpNorm, &x)? } else { normed })?;
                self.add(self.add(x, &attended)?, &mixed)
            }
            Residual::NormAfter => {
                let attended = self.attention(&x, cache)?;
                let x = self.norm(BlockSlot::AttentionNorm, &self.add(x, &attended)?)?;
                let mixed = self.mlp(&x)?;
                self.norm(BlockSlot::MlpNorm, &self.add(x, &mixed)?)
            }
        }
    }

    /// The norm of a slot; without one the value itself.
    fn norm(&self, slot: BlockSlot, x: &Tensor) -> Result<Tensor> {
        match self.parts.get(slot as usize) {
            Some(Part::Norm(norm)) => norm.forward(x),
            Some(Part::HeadNorms(norms)) => norms.forward(x),
            _ => Ok(x.clone()),
        }
    }

    fn linear(&self, slot: BlockSlot) -> Result<&Linear> {
        self.parts.linear(slot as usize).ok_or(NnError::NotLoaded)
    }

    fn add(&self, x: Tensor, part: &Tensor) -> Result<Tensor> {
        match self.decoder.spec.residual_scale {
            1.0 => Ok((x + part)?),
            scale => Ok((x + (part * scale)?)?),
        }
    }

    fn attention(&self, x: &Tensor, cache: &mut LayerCache) -> Result<Tensor> {
        let attention = &self.decoder.spec.attention;
        let (heads, kv_heads, size) = (attention.heads, attention.kv_heads, attention.head_size);
        let (batch, tokens, _) = x.dims3()?;
        let rule = AttentionRule {
            factor: self.layer.factor as f32,
            softcap: attention.softcap.map(|cap| cap as f32),
            window: self.layer.window,
            alibi: attention.alibi.as_ref(),
            rope: self.layer.rope.map(|rope| &self.ropes[rope]),
        };
        let mixed = if let Some(qkv) = self.parts.linear(BlockSlot::Qkv as usize) {
            let qkv = self.clamped(qkv.forward(x)?)?;
            with_f32(&qkv, |qkv| {
                let [q, k, v] = Heads::split(qkv, attention.layout, [heads, kv_heads, size]);
                attend([&q, &k, &v], [batch, tokens], &rule, cache)
            })?
        } else {
            let project = |slot, norm| self.norm(norm, &self.clamped(self.linear(slot)?.forward(x)?)?);
            let q = project(BlockSlot::Query, BlockSlot::QueryNorm)?;
            let k = project(BlockSlot::Key, BlockSlot::KeyNorm)?;
            let v = self.clamped(self.linear(BlockSlot::Value)?.forward(x)?)?;
            with_f32(&q, |q| {
                with_f32(&k, |k| {
                    with_f32(&v, |v| {
                        let keys = |values| Heads::in_order(values, kv_heads * size, 0, kv_heads, size);
                        let (k, v) = (keys(k), keys(v));
                        let q = Heads::in_order(q, heads * size, 0, heads, size);
                        attend([&q, &k, &v], [batch, tokens], &rule, cache)
                    })
                })
            })?
        };
        let mixed = Tensor::from_vec(mixed, (batch, tokens, heads * size), &Device::Cpu)?;
        self.linear(BlockSlot::AttentionOut)?.forward(&mixed)
    }

    fn clamped(&self, x: Tensor) -> Result<Tensor> {
        match self.decoder.spec.attention.qkv_clamp {
            Some(limit) => Ok(x.clamp(-limit, limit)?),
            None => Ok(x),
        }
    }

    fn mlp(&self, x: &Tensor) -> Result<Tensor> {
        let activation = self.decoder.spec.activation;
        let middle = if let Some(gate_up) = self.parts.linear(BlockSlot::GateUp as usize) {
            let both = gate_up.forward(x)?.chunk(2, 2)?;
            (activation.forward(&both[0].contiguous()?)? * &both[1])?
        } else {
            let up = self.linear(BlockSlot::Up)?.forward(x)?;
            match self.parts.linear(BlockSlot::Gate as usize) {
                Some(gate) => (activation.forward(&gate.forward(x)?)? * up)?,
                None => activation.forward(&up)?,
            }
        };
        self.linear(BlockSlot::Down)?.forward(&middle)
    }
}
