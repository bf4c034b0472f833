//! What differs between families, as data.

use crate::error::{NnError, Result};
use crate::layers::Activation;
use crate::linear::LinearClass;
use crate::models::ModelConfig;

/// A family: the `model_type` of its `config.json` and how it describes itself.
pub struct Family {
    /// `model_type`.
    pub model_type: &'static str,
    /// From `config.json` to a description.
    pub describe: fn(&ModelConfig) -> Result<DecoderSpec>,
}

/// Every family that can be loaded.
pub const FAMILIES: &[Family] = &[Family { model_type: "gpt2", describe: super::gpt2::describe }];

/// A decoder, described: dimensions, what its parts are, and what they are called.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderSpec {
    /// `model_type` of `config.json`.
    pub family: &'static str,
    /// Rows of the token table, V.
    pub vocab_size: usize,
    /// Width of the residual stream, C.
    pub hidden_size: usize,
    /// Number of blocks, L.
    pub layers: usize,
    /// Attention heads, H.
    pub heads: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Rows of the position table, P: the longest context.
    pub positions: usize,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// The MLP's function.
    pub activation: Activation,
    /// What the attention scores of each layer are multiplied with.
    pub attention_factors: Vec<f64>,
    /// The PyTorch class of the blocks' linear layers.
    pub linear_class: LinearClass,
    /// Whether the output head shares the token table.
    pub tied_head: bool,
    /// Names in the checkpoint and in PyTorch's text.
    pub names: Names,
}

/// What a family calls its parts. Paths are those of `named_parameters()` in transformers.
#[derive(Debug, Clone, PartialEq)]
pub struct Names {
    /// The tree in PyTorch's order.
    pub tree: Template,
    /// A prefix of every key that older or base-model checkpoints leave out (`transformer.`).
    pub optional_prefix: &'static str,
    /// Ends of keys that are buffers and not weights.
    pub ignored_suffixes: &'static [&'static str],
    /// Modules transformers never converts: the head and what is tied to it.
    pub never_converted: &'static [&'static str],
    /// Bytes-only facts of the buffers a block has in transformers.
    pub buffers: Vec<BufferSpec>,
}

/// A buffer transformers registers and counts, and we do not hold.
#[derive(Debug, Clone, PartialEq)]
pub struct BufferSpec {
    /// Its name inside the attention module.
    pub name: &'static str,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Whether it is a bool mask; otherwise it has the dtype of the unquantised weights.
    pub is_bool: bool,
}

/// A part of the decoder that has parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Slot {
    /// The token table `[V, C]`.
    Tokens,
    /// The position table `[P, C]`.
    Positions,
    /// The norm before the head.
    FinalNorm,
    /// The head `[V, C]`.
    Head,
    /// A part of a block.
    Block(usize, BlockSlot),
}

/// A part of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockSlot {
    /// The norm before attention.
    AttentionNorm,
    /// Queries, keys and values in one product.
    Qkv,
    /// The product after attention.
    AttentionOut,
    /// The norm before the MLP.
    MlpNorm,
    /// The first product of the MLP.
    Up,
    /// The second product of the MLP.
    Down,
}

/// The module tree as a family writes it down.
#[derive(Debug, Clone, PartialEq)]
pub enum Template {
    /// A module of modules: class and named children.
    Container(&'static str, Vec<(&'static str, Template)>),
    /// The blocks: `ModuleList`, every block of the same template.
    Blocks(Box<Template>),
    /// A part with parameters.
    Part(Slot),
    /// A part of the block this template stands in.
    BlockPart(BlockSlot),
    /// A module without parameters: class and what is printed between its brackets.
    Plain(String, String),
    /// The attention module of a block, which has the buffers.
    Attention(&'static str, Vec<(&'static str, Template)>),
}

impl DecoderSpec {
    /// The description of the model a `config.json` speaks of.
    ///
    /// # Errors
    /// [`NnError::UnsupportedFamily`], [`NnError::Config`].
    pub fn from_config(config: &ModelConfig) -> Result<Self> {
        let model_type = config.model_type()?;
        let family = FAMILIES.iter().find(|family| family.model_type == model_type).ok_or_else(|| {
            NnError::UnsupportedFamily {
                model_type: model_type.to_owned(),
                supported: FAMILIES.iter().map(|family| family.model_type).collect::<Vec<_>>().join(", "),
            }
        })?;
        let spec = (family.describe)(config)?;
        spec.check()?;
        Ok(spec)
    }

    /// Refuses dimensions no model has before anything is allocated for them.
    fn check(&self) -> Result<()> {
        let error = |reason: String| Err(NnError::Config { reason });
        let sizes = [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden size", self.hidden_size, 1 << 17),
            ("number of layers", self.layers, 1 << 12),
            ("number of heads", self.heads, 1 << 12),
            ("MLP size", self.intermediate_size, 1 << 20),
            ("number of positions", self.positions, 1 << 24),
        ];
        for (what, size, limit) in sizes {
            if size == 0 || size > limit {
                return error(format!("{what} is {size}; between 1 and {limit} was expected"));
            }
        }
        if !self.hidden_size.is_multiple_of(self.heads) {
            return error(format!(
                "a hidden size of {} cannot be divided among {} heads",
                self.hidden_size, self.heads
            ));
        }
        Ok(())
    }

    /// Width of a head, D.
    pub fn head_size(&self) -> usize {
        self.hidden_size / self.heads
    }
}
