//! What a decoder computes, as data: a list of steps that an executor follows.
//!
//! Everything in which families differ is decided here, once: residuals, gates, fused layers, where
//! the norms are. The executors (`execute/cpu.rs` for the CPU, `execute/gpu/steps.rs` for GPUs)
//! know steps and no families. A plan that no executor can follow is refused when it is built.
//!
//! | step | computes |
//! |---|---|
//! | `Step::Embed` | a lookup in a table |
//! | `Step::Linear` | linear layers with the same input, with the norm or gate before them, the activation and the residual |
//! | `Step::HeadNorm` | a norm of queries or keys |
//! | `Step::Attend` | rotation, KV cache, attention |
//! | `Step::Norm` | a norm in place |
//! | `Step::Add` | a residual |
//! | `Step::Logits` | scale and soft cap |

mod block;
mod build;
mod text;

use crate::slot::{BlockSlot, ModelSlot, PartSlot};
use llm_int8_nn::layers::{Activation, QkvLayout};
use llm_int8_nn::module::ModulePath;
use std::collections::BTreeMap;

/// What a decoder computes, from token ids to logits. It prints as one line per step.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub(super) embed: Vec<Step<ModelSlot>>,
    /// The steps of each block.
    pub(super) blocks: Vec<Vec<Step<BlockSlot>>>,
    /// For the rows of the stream whose logits are requested.
    pub(super) head: Vec<Step<ModelSlot>>,
    /// Values of a row in each buffer.
    pub(super) widths: BTreeMap<Rows, usize>,
    /// The module path of each part, for printing; those of blocks as of block 0.
    model_paths: Vec<(ModelSlot, ModulePath)>,
    block_paths: Vec<(BlockSlot, ModulePath)>,
}

/// A buffer of f32 `[rows, width]` that steps read and write, one row per token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rows {
    /// The residual stream.
    Stream,
    /// What is about to be added to the stream.
    Branch,
    /// Attention after its output projection, where it waits to be added together with the MLP
    /// (parallel residuals).
    Attended,
    /// Queries, keys and values.
    Qkv,
    /// The outputs of all attention heads, before the output projection.
    Heads,
    /// The output of the MLP's first layers: gate and up side by side, or up alone.
    Mlp,
    /// Token embeddings, where they are not as wide as the stream (OPT 350m).
    Embedded,
    /// The stream projected back to that width, the input of the head.
    Projected,
    Logits,
}

impl Rows {
    /// How many kinds there are.
    pub(super) const COUNT: usize = Self::Logits as usize + 1;
}

/// One operation on rows; `S` is the kind of slot that its parts have.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step<S> {
    Embed(Embed<S>),
    Linear(LinearStep<S>),
    HeadNorm(HeadNorm<S>),
    Attend(Attend),
    Norm(NormStep<S>),
    Add(Add),
    Logits(LogitsStep),
}

/// `into = scale · table[index] + positions[position + offset]`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Embed<S> {
    pub(super) table: S,
    pub(super) index: Index,
    pub(super) scale: f64,
    pub(super) positions: Option<S>,
    /// What is added to a position before its row is taken (OPT: 2).
    pub(super) offset: usize,
    pub(super) into: Rows,
}

/// What a table is indexed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Index {
    Token,
    Position,
}

/// Linear layers with the same input, whose outputs lie side by side:
/// `into = f(layers(through(input)))`, or `into += scale · layers(through(input))`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LinearStep<S> {
    pub(super) input: Rows,
    pub(super) through: Through<S>,
    pub(super) in_features: usize,
    pub(super) layers: Vec<Layer<S>>,
    pub(super) activation: Option<Activated>,
    pub(super) into: Rows,
    /// The scale with which the outputs are added to `into`; none: they replace it.
    pub(super) adds: Option<f64>,
}

/// What the input of linear layers goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Through<S> {
    Plain,
    Norm(S),
    /// The first half of a row times the second, element by element.
    Gate,
}

/// A linear layer and where its outputs lie in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layer<S> {
    pub(super) slot: S,
    pub(super) offset: usize,
    pub(super) out_features: usize,
}

/// An activation function, applied to the first `outputs` values of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Activated {
    pub(super) function: Activation,
    pub(super) outputs: usize,
}

/// A norm of a layer's outputs in place: of each head, or of all heads together if the norm is as
/// wide as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HeadNorm<S> {
    pub(super) norm: S,
    pub(super) rows: Rows,
    /// Index of the layer among those that wrote the rows.
    pub(super) layer: usize,
    pub(super) of: Layer<S>,
}

/// Causal attention from [`Rows::Qkv`] to [`Rows::Heads`], over the block's KV cache.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Attend {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_size: usize,
    /// How queries, keys and values lie in a row.
    pub(super) layout: QkvLayout,
    /// Queries, keys and values are clamped to `-clamp..=clamp`.
    pub(super) clamp: Option<f64>,
    /// Index into the model's rotations.
    pub(super) rope: Option<usize>,
    /// Factor of the scores.
    pub(super) scale: f64,
    /// Positions that each row sees, itself included; none: all before it.
    pub(super) window: Option<usize>,
    /// `cap · tanh(score / cap)`.
    pub(super) softcap: Option<f64>,
    /// Whether scores have ALiBi's position biases.
    pub(super) alibi: bool,
}

/// `rows = norm(rows)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NormStep<S> {
    pub(super) norm: S,
    pub(super) rows: Rows,
}

/// `stream += scale · from`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Add {
    pub(super) from: Rows,
    pub(super) scale: f64,
}

/// `logits = cap · tanh(scale · logits / cap)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct LogitsStep {
    pub(super) scale: f64,
    pub(super) softcap: Option<f64>,
}

impl Plan {
    /// Values of a row; 0 for rows that the plan does not use.
    pub(super) fn width(&self, rows: Rows) -> usize {
        self.widths.get(&rows).copied().unwrap_or(0)
    }

    /// The widest input of a linear step.
    pub(super) fn widest_input(&self) -> usize {
        let model = self
            .embed
            .iter()
            .chain(&self.head)
            .filter_map(Step::in_features);
        let blocks = self.blocks.iter().flatten().filter_map(Step::in_features);
        model.chain(blocks).max().unwrap_or(0)
    }
}

impl<S: PartSlot> Step<S> {
    fn in_features(&self) -> Option<usize> {
        match self {
            Self::Linear(step) => Some(step.in_features),
            _ => None,
        }
    }

    /// The norm it applies.
    pub(super) fn norm(&self) -> Option<S> {
        match self {
            Self::Linear(LinearStep {
                through: Through::Norm(norm),
                ..
            }) => Some(*norm),
            Self::HeadNorm(step) => Some(step.norm),
            Self::Norm(step) => Some(step.norm),
            _ => None,
        }
    }
}
