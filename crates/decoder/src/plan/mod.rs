//! What a decoder does with rows of values, as data: a list of steps that an executor follows.
//!
//! Everything in which families differ is decided here, once: residuals, gates, fused layers, norms
//! before, between and after. The executors (`execute/cpu.rs` for the CPU, `device/steps.rs` for
//! GPUs) know steps and no families. What no executor can do is refused when the plan is made.
//!
//! | step | does |
//! |---|---|
//! | `Step::Embed` | rows of a table |
//! | `Step::Linear` | layers with the same input: through a norm or a gate, activated, added to the stream |
//! | `Step::HeadNorm` | norm of queries or keys |
//! | `Step::Attend` | rotation, cache, attention |
//! | `Step::Norm` | norm of rows where they lie |
//! | `Step::Add` | a branch joins the stream |
//! | `Step::Logits` | scale and soft cap |

mod build;
mod text;

use crate::slot::{BlockSlot, ModelSlot, PartSlot};
use llm_int8_nn::layers::{Activation, QkvLayout};
use llm_int8_nn::module::ModulePath;
use std::collections::BTreeMap;

/// What a decoder does, from token ids to logits. Printed, it has one line a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub(super) embed: Vec<Step<ModelSlot>>,
    /// The steps of each block.
    pub(super) blocks: Vec<Vec<Step<BlockSlot>>>,
    /// From the stream's rows whose logits are requested.
    pub(super) head: Vec<Step<ModelSlot>>,
    pub(super) widths: BTreeMap<Rows, usize>,
    /// For printing: the path of each part, from its block on for those of blocks.
    model_paths: Vec<(ModelSlot, ModulePath)>,
    block_paths: Vec<(BlockSlot, ModulePath)>,
}

/// Rows of f32 values that steps read and write, one a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rows {
    /// The residual stream.
    Stream,
    /// What will be added to the stream.
    Branch,
    /// What attention gave, where it joins the stream together with the MLP.
    Attended,
    /// Queries, keys and values.
    Qkv,
    /// What attention found, before its last layer.
    Mixed,
    /// What the first layers of the MLP give: gate and up side by side, or up alone.
    Raised,
    /// Rows of a token table of another width than the stream's.
    Embedded,
    /// Rows of that width before the head.
    Projected,
    Logits,
}

impl Rows {
    /// How many kinds there are.
    pub(super) const COUNT: usize = Self::Logits as usize + 1;
}

/// One thing to do with rows.
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

/// Which rows of a table are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Index {
    Token,
    Position,
}

/// Layers with the same input, whose outputs lie side by side: `into = f(layers(through(input)))`,
/// or `into += scale · layers(through(input))`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LinearStep<S> {
    pub(super) input: Rows,
    pub(super) through: Through<S>,
    pub(super) in_features: usize,
    pub(super) layers: Vec<Layer<S>>,
    pub(super) activation: Option<Activated>,
    pub(super) into: Rows,
    /// The scale with which it is added to what is there; none: it replaces that.
    pub(super) adds: Option<f64>,
}

/// What happens to the input of layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Through<S> {
    Plain,
    Norm(S),
    /// The first half of a row is multiplied with the second.
    Gate,
}

/// A layer and where its outputs lie in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layer<S> {
    pub(super) slot: S,
    pub(super) offset: usize,
    pub(super) out_features: usize,
}

/// The function of the first `outputs` of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Activated {
    pub(super) function: Activation,
    pub(super) outputs: usize,
}

/// The norm of a layer's outputs where they lie: of each head, or of all at once, as the norm's
/// width says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HeadNorm<S> {
    pub(super) norm: S,
    pub(super) rows: Rows,
    /// The layer among those that wrote the rows.
    pub(super) layer: usize,
    pub(super) of: Layer<S>,
}

/// Causal attention from [`Rows::Qkv`] to [`Rows::Mixed`], over the cache of the block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Attend {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_size: usize,
    /// How queries, keys and values lie in a row.
    pub(super) layout: QkvLayout,
    /// Queries, keys and values are kept in `-clamp..=clamp`.
    pub(super) clamp: Option<f64>,
    /// Which of the model's rotations.
    pub(super) rope: Option<usize>,
    /// What scores are multiplied with.
    pub(super) scale: f64,
    pub(super) window: Option<usize>,
    /// `cap · tanh(score / cap)`.
    pub(super) softcap: Option<f64>,
    /// Whether scores have position biases.
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
    /// Values of a row.
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

    /// The norm it goes through.
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
