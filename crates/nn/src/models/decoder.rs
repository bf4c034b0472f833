//! The one decoder: embeddings, blocks, final norm, head.
//!
//! `x = tokens[ids] + positions[…]`; in each block `x += out(attend(qkv(norm(x))))` and
//! `x += down(act(up(norm(x))))`; the logits are `head(norm(x))`. Arithmetic is f32; what the weights
//! are stored in is each layer's own business.

use super::spec::{BlockSlot, DecoderSpec, Slot};
use crate::dtype::FloatDtype;
use crate::error::{NnError, Result};
use crate::layers::attention::causal_mask;
use crate::layers::{Embedding, LayerCache, Norm, attend};
use crate::linear::{FloatLinear, Linear, LinearClass};
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
    len: usize,
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
}

/// One block.
#[derive(Debug, Clone)]
struct Block {
    attention_norm: Norm,
    qkv: Linear,
    attention_out: Linear,
    mlp_norm: Norm,
    up: Linear,
    down: Linear,
}

/// A causal language model.
#[derive(Debug, Clone)]
pub struct Decoder {
    spec: DecoderSpec,
    dtype: FloatDtype,
    tokens: Embedding,
    positions: Embedding,
    blocks: Vec<Block>,
    final_norm: Norm,
    head: Linear,
}

/// A part with parameters, to be looked at.
#[derive(Debug, Clone, Copy)]
pub(super) enum PartRef<'a> {
    Embedding(&'a Embedding),
    Norm(&'a Norm),
    Linear(&'a Linear),
}

/// A part with parameters, to be filled.
#[derive(Debug)]
pub(super) enum PartMut<'a> {
    Embedding(&'a mut Embedding),
    Norm(&'a mut Norm),
    Linear(&'a mut Linear),
}

impl Decoder {
    /// A decoder without values; `dtype` is what its float parameters will be stored in.
    pub fn declared(spec: DecoderSpec, dtype: FloatDtype, isa: Isa) -> Self {
        let (hidden, middle) = (spec.hidden_size, spec.intermediate_size);
        let norm = || Norm::declared(hidden, spec.norm_eps, dtype);
        let linear = |shape: [usize; 2]| {
            Linear::Float(FloatLinear::declared(spec.linear_class, shape, true, dtype, isa))
        };
        let block = || Block {
            attention_norm: norm(),
            qkv: linear([3 * hidden, hidden]),
            attention_out: linear([hidden, hidden]),
            mlp_norm: norm(),
            up: linear([middle, hidden]),
            down: linear([hidden, middle]),
        };
        let head = FloatLinear::declared(LinearClass::Linear, [spec.vocab_size, hidden], false, dtype, isa);
        Self {
            tokens: Embedding::declared([spec.vocab_size, hidden], dtype),
            positions: Embedding::declared([spec.positions, hidden], dtype),
            blocks: (0..spec.layers).map(|_| block()).collect(),
            final_norm: norm(),
            head: Linear::Float(head),
            spec,
            dtype,
        }
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
        let cached = cache.len;
        let requested = cached + tokens;
        if requested > self.spec.positions {
            return Err(NnError::ContextExceeded { requested, available: self.spec.positions });
        }
        let numbers = Tensor::arange(cached as u32, requested as u32, &Device::Cpu)?;
        let mut x = self.tokens.forward(ids)?.broadcast_add(&self.positions.forward(&numbers)?)?;
        let mask = causal_mask(tokens, cached)?;
        for ((block, cache), &factor) in
            self.blocks.iter().zip(&mut cache.layers).zip(&self.spec.attention_factors)
        {
            x = self.attention(block, x, factor, mask.as_ref(), cache)?;
            x = self.mlp(block, x)?;
        }
        cache.len = requested;
        let x = match wanted {
            LogitPositions::All => x,
            LogitPositions::Last => x.narrow(1, tokens - 1, 1)?,
        };
        self.head.forward(&self.final_norm.forward(&x)?)
    }

    fn attention(
        &self,
        block: &Block,
        x: Tensor,
        factor: f64,
        mask: Option<&Tensor>,
        cache: &mut LayerCache,
    ) -> Result<Tensor> {
        let (batch, tokens, hidden) = x.dims3()?;
        let qkv = block.qkv.forward(&block.attention_norm.forward(&x)?)?;
        // [B, T, 3·C] → three times [B, H, T, D].
        let heads = |part: usize| -> Result<Tensor> {
            let part = qkv.narrow(2, part * hidden, hidden)?;
            Ok(part.reshape((batch, tokens, self.spec.heads, self.spec.head_size()))?.transpose(1, 2)?)
        };
        let (q, k, v) = (heads(0)?, heads(1)?, heads(2)?);
        let mixed = attend([&q, &k, &v], factor, mask, cache)?;
        Ok((x + block.attention_out.forward(&mixed)?)?)
    }

    fn mlp(&self, block: &Block, x: Tensor) -> Result<Tensor> {
        let up = block.up.forward(&block.mlp_norm.forward(&x)?)?;
        Ok((x + block.down.forward(&self.spec.activation.forward(&up)?)?)?)
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
        let largest = ids.flatten_all()?.max(0)?.to_scalar::<u32>()?;
        if largest as usize >= self.spec.vocab_size {
            return error(format!(
                "token id {largest} is beyond the vocabulary of {}; is the tokenizer this model's?",
                self.spec.vocab_size
            ));
        }
        Ok(tokens)
    }

    /// An empty cache.
    pub fn new_cache(&self) -> KvCache {
        KvCache { layers: vec![LayerCache::new(); self.blocks.len()], len: 0 }
    }

    /// The description the decoder was built from.
    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// What the float parameters are stored in.
    pub fn dtype(&self) -> FloatDtype {
        self.dtype
    }

    /// Lets the head share the token table's values, where it does.
    pub(super) fn tie_head(&mut self) {
        if let (true, Linear::Float(head)) = (self.spec.tied_head, &mut self.head) {
            *head.weight_mut() = self.tokens.weight().clone();
        }
    }

    pub(super) fn part(&self, slot: Slot) -> PartRef<'_> {
        match slot {
            Slot::Tokens => PartRef::Embedding(&self.tokens),
            Slot::Positions => PartRef::Embedding(&self.positions),
            Slot::FinalNorm => PartRef::Norm(&self.final_norm),
            Slot::Head => PartRef::Linear(&self.head),
            Slot::Block(layer, slot) => {
                let block = &self.blocks[layer];
                match slot {
                    BlockSlot::AttentionNorm => PartRef::Norm(&block.attention_norm),
                    BlockSlot::Qkv => PartRef::Linear(&block.qkv),
                    BlockSlot::AttentionOut => PartRef::Linear(&block.attention_out),
                    BlockSlot::MlpNorm => PartRef::Norm(&block.mlp_norm),
                    BlockSlot::Up => PartRef::Linear(&block.up),
                    BlockSlot::Down => PartRef::Linear(&block.down),
                }
            }
        }
    }

    pub(super) fn part_mut(&mut self, slot: Slot) -> PartMut<'_> {
        match slot {
            Slot::Tokens => PartMut::Embedding(&mut self.tokens),
            Slot::Positions => PartMut::Embedding(&mut self.positions),
            Slot::FinalNorm => PartMut::Norm(&mut self.final_norm),
            Slot::Head => PartMut::Linear(&mut self.head),
            Slot::Block(layer, slot) => {
                let block = &mut self.blocks[layer];
                match slot {
                    BlockSlot::AttentionNorm => PartMut::Norm(&mut block.attention_norm),
                    BlockSlot::Qkv => PartMut::Linear(&mut block.qkv),
                    BlockSlot::AttentionOut => PartMut::Linear(&mut block.attention_out),
                    BlockSlot::MlpNorm => PartMut::Norm(&mut block.mlp_norm),
                    BlockSlot::Up => PartMut::Linear(&mut block.up),
                    BlockSlot::Down => PartMut::Linear(&mut block.down),
                }
            }
        }
    }
}
