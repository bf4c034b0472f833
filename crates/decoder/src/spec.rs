//! The description of a decoder: everything in which families differ, as data.

use crate::error::{DecoderError, Result};
use crate::families::FAMILIES;
use crate::plan::Plan;
use crate::slot::{ModelSlot, Slot};
use crate::template::{PartSpec, Template};
use llm_int8_nn::config::{ConfigClass, ModelConfig};
use llm_int8_nn::layers::{Activation, Alibi, QkvLayout, Rope};
use llm_int8_nn::module::ModulePath;

/// A family of models: its `model_type`, its classes in transformers, and the function that
/// describes a model of it.
pub struct Family {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// The class of its causal language model, as `architectures` in `config.json` names it.
    pub architecture: &'static str,
    /// Its configuration class: keys, defaults and aliases.
    pub class: ConfigClass,
    /// Builds the description from a configuration.
    pub describe: fn(&ModelConfig) -> Result<DecoderSpec>,
}

/// The description of a decoder: its parts, and what is computed with them.
///
/// The [`Template`] says which parts there are, and the [`Plan`] follows from that. A block with
/// [`BlockSlot::Gate`](crate::slot::BlockSlot::Gate) has a gated MLP; one with
/// [`BlockSlot::QueryNorm`](crate::slot::BlockSlot::QueryNorm) normalises queries; in one of
/// parallel residuals without [`BlockSlot::MlpNorm`](crate::slot::BlockSlot::MlpNorm), the MLP has
/// the same input as attention.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderSpec {
    /// `model_type` of `config.json`.
    pub family: &'static str,
    /// The module tree, in PyTorch's order.
    pub tree: Template,
    /// Width of the residual stream, C.
    pub hidden_size: usize,
    /// Positions of the longest context.
    pub positions: usize,
    /// Factor of the token embeddings.
    pub embedding_scale: f64,
    /// The row of the position table that position 0 has (OPT: 2).
    pub position_offset: usize,
    /// The attention heads.
    pub attention: AttentionSpec,
    /// What differs between blocks; one for each block.
    pub layers: Vec<LayerSpec>,
    /// The MLP's activation function.
    pub activation: Activation,
    /// How attention and MLP are added to the residual stream.
    pub residual: Residual,
    /// The factor with which they are added.
    pub residual_scale: f64,
    /// Factor of the logits.
    pub logit_scale: f64,
    /// `cap · tanh(logits / cap)`.
    pub logit_softcap: Option<f64>,
    /// Whether the head shares the token table's weight.
    pub tied_head: bool,
    /// A prefix of tensor names that older checkpoints, and those of the base model, leave out
    /// (`transformer.`).
    pub optional_prefix: &'static str,
    /// Suffixes of tensor names that are buffers and not weights.
    pub ignored_suffixes: &'static [&'static str],
}

/// The attention of every block.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionSpec {
    /// Query heads, H.
    pub heads: usize,
    /// Heads of keys and values; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of a head, D.
    pub head_size: usize,
    /// The order of queries, keys and values in the output of
    /// [`BlockSlot::Qkv`](crate::slot::BlockSlot::Qkv).
    pub layout: QkvLayout,
    /// Queries, keys and values are clamped to `-clamp..=clamp` (MPT).
    pub qkv_clamp: Option<f64>,
    /// The rotations that layers choose from.
    pub ropes: Vec<Rope>,
    /// Position biases instead of a rotation (BLOOM, Falcon, MPT).
    pub alibi: Option<Alibi>,
    /// `cap · tanh(score / cap)` (Gemma 2).
    pub softcap: Option<f64>,
}

impl AttentionSpec {
    /// Multi-head or grouped-query attention without any of the options.
    pub fn new(heads: usize, kv_heads: usize, head_size: usize) -> Self {
        Self {
            heads,
            kv_heads,
            head_size,
            layout: QkvLayout::Blocks,
            qkv_clamp: None,
            ropes: Vec::new(),
            alibi: None,
            softcap: None,
        }
    }
}

/// What differs between blocks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerSpec {
    /// Factor of the attention scores.
    pub factor: f64,
    /// Positions that each position sees, itself included; none: all before it.
    pub window: Option<usize>,
    /// Index into [`AttentionSpec::ropes`]; none: no rotation.
    pub rope: Option<usize>,
}

/// How attention `a` and MLP `m` are added to the residual stream `x`, with norms `n`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residual {
    /// `x += a(n(x))`, then `x += m(n(x))`.
    Sequential,
    /// `x += a(n(x)) + m(n(x))`, both from the same `x`.
    Parallel,
    /// `x = n(x + a(x))`, then `x = n(x + m(x))` (OPT 350m).
    NormAfter,
}

impl DecoderSpec {
    /// The description of the model in a `config.json`.
    ///
    /// # Errors
    /// [`DecoderError::UnsupportedFamily`]; [`DecoderError::Config`] for values that are missing,
    /// invalid, or not supported.
    pub fn from_config(config: &ModelConfig) -> Result<Self> {
        let model_type = config.model_type()?;
        let family = FAMILIES
            .iter()
            .find(|family| family.model_type == model_type)
            .ok_or_else(|| DecoderError::UnsupportedFamily {
                model_type: model_type.to_owned(),
                supported: FAMILIES
                    .iter()
                    .map(|family| family.model_type)
                    .collect::<Vec<_>>()
                    .join(", "),
            })?;
        let config = config.of_class(&family.class)?;

        if config
            .value("pruned_heads")
            .as_object()
            .is_some_and(|heads| !heads.is_empty())
        {
            let reason = "`pruned_heads` is not empty; layers with fewer heads than others are not supported";
            return Err(DecoderError::Config {
                reason: reason.into(),
            });
        }

        let mut spec = Self {
            family: family.model_type,
            ..(family.describe)(&config)?
        };
        if !family.class.has("sliding_window") {
            spec.positions = positions_in_foreign_window(&config, spec.positions)?;
        }
        spec.check()?;
        Ok(spec)
    }

    /// More heads are refused, before anything is allocated for each of them.
    pub(super) const MOST_HEADS: usize = 1 << 12;

    /// Wider heads are refused, before rotation frequencies are computed for them.
    pub(super) const WIDEST_HEAD: usize = 1 << 14;

    /// A description to start from: scores scaled by `D^-0.5`, sequential residuals, a tied head,
    /// no limit of positions, no rotation.
    pub(super) fn plain(
        tree: Template,
        hidden_size: usize,
        attention: AttentionSpec,
        layers: usize,
        activation: Activation,
    ) -> Result<Self> {
        let layer = LayerSpec {
            factor: (attention.head_size as f64).powf(-0.5),
            window: None,
            rope: None,
        };
        Ok(Self {
            family: "",
            tree,
            hidden_size,
            positions: 1 << 24,
            embedding_scale: 1.0,
            position_offset: 0,
            attention,
            layers: vec![layer; Self::check_layers(layers)?],
            activation,
            residual: Residual::Sequential,
            residual_scale: 1.0,
            logit_scale: 1.0,
            logit_softcap: None,
            tied_head: true,
            optional_prefix: "model.",
            ignored_suffixes: &[".rotary_emb.inv_freq"],
        })
    }

    /// Returns `layers`, or an error if no model has that many: checked before anything is
    /// allocated for them.
    pub(super) fn check_layers(layers: usize) -> Result<usize> {
        check_size("number of layers", layers, 1 << 12)?;
        Ok(layers)
    }

    /// Sets one rotation for every layer.
    pub(super) fn rotated(mut self, rope: Rope) -> Self {
        self.positions = (self.positions as f64 * rope.stretch()) as usize;
        self.layers
            .iter_mut()
            .for_each(|layer| layer.rope = Some(0));
        self.attention.ropes = vec![rope];
        self
    }

    /// Sets the window of each layer.
    pub(super) fn windowed(mut self, windows: &[Option<usize>]) -> Self {
        self.layers
            .iter_mut()
            .zip(windows)
            .for_each(|(layer, window)| layer.window = *window);
        self
    }

    /// Sets the factor of attention scores for every layer.
    pub(super) fn with_factor(mut self, factor: f64) -> Self {
        self.layers
            .iter_mut()
            .for_each(|layer| layer.factor = factor);
        self
    }

    /// Refuses dimensions that no model has, before anything is allocated for them.
    fn check(&self) -> Result<()> {
        let error = |reason: String| Err(DecoderError::Config { reason });
        let AttentionSpec {
            heads,
            kv_heads,
            head_size,
            ..
        } = self.attention;

        check_size("hidden size", self.hidden_size, 1 << 17)?;
        check_size("number of heads", heads, Self::MOST_HEADS)?;
        check_size("number of key/value heads", kv_heads, Self::MOST_HEADS)?;
        check_size("head size", head_size, Self::WIDEST_HEAD)?;
        check_size("number of positions", self.positions, 1 << 28)?;

        if !heads.is_multiple_of(kv_heads) {
            return error(format!(
                "{heads} heads cannot share {kv_heads} key/value heads evenly"
            ));
        }
        let rotary = self
            .attention
            .ropes
            .iter()
            .map(Rope::dims)
            .find(|dims| *dims > head_size || dims % 2 == 1);
        if let Some(dims) = rotary {
            return error(format!(
                "{dims} of a head's {head_size} values cannot be rotated in pairs"
            ));
        }

        let parts = self.tree.parts();
        if let Some((path, _)) = parts.iter().find(|(_, part)| part.elements() > 1 << 36) {
            return error(format!("`{path}` would have more than 2^36 values"));
        }

        // The plan refuses what no executor can compute.
        Plan::of(self).map(drop)
    }

    /// Rows of the token table, V.
    pub fn vocab_size(&self) -> usize {
        let rows = |(slot, part): (Slot, &PartSpec)| match (slot, part) {
            (Slot::Model(ModelSlot::Tokens), PartSpec::Embedding { rows, .. }) => Some(*rows),
            _ => None,
        };
        self.tree.slots().find_map(rows).unwrap_or(0)
    }

    /// Paths of the modules that transformers never converts to int8 (`get_keys_to_not_convert`):
    /// the head and, if it is tied, the token table and the module of the last parameter.
    pub fn never_converted(&self) -> Vec<String> {
        let find = |requested| {
            let found = |(path, slot): &(ModulePath, Slot)| {
                (*slot == Slot::Model(requested)).then(|| path.to_string())
            };
            self.tree.paths(self.layers.len()).iter().find_map(found)
        };
        let tied = self
            .tied_head
            .then_some([ModelSlot::Tokens, ModelSlot::FinalNorm]);
        [ModelSlot::Head]
            .into_iter()
            .chain(tied.into_iter().flatten())
            .filter_map(find)
            .collect()
    }
}

/// The context of a model whose `config.json` has a window although its family has none:
/// transformers' cache drops what is outside of the window while its masks ignore the window, so
/// the output for a longer sequence would depend on how it was split into passes. Up to the window
/// there is no difference, so that is where the context ends.
fn positions_in_foreign_window(config: &ModelConfig, positions: usize) -> Result<usize> {
    let is_full = config
        .strings("layer_types")?
        .is_some_and(|kinds| kinds.iter().all(|kind| *kind == "full_attention"));
    let window = match config.optional_size("sliding_window")? {
        Some(window) => Some(window),
        None => config.optional_size("attention_chunk_size")?,
    };

    Ok(window
        .filter(|_| !is_full)
        .map_or(positions, |window| window.min(positions)))
}

/// Adds a `model_type` to a configuration that has none, as in files from before 2020: the family
/// of the class in `architectures`, otherwise the one with the longest `model_type` that occurs in
/// the model's `name`, which is how transformers guesses.
pub fn with_model_type(mut config: ModelConfig, name: &str) -> ModelConfig {
    if config.has("model_type") {
        return config;
    }
    let classes = config
        .strings("architectures")
        .ok()
        .flatten()
        .unwrap_or_default();

    let by_class = FAMILIES
        .iter()
        .find(|family| classes.contains(&family.architecture));
    let by_name = FAMILIES
        .iter()
        .filter(|family| name.contains(family.model_type));
    let found = by_class.or(by_name.max_by_key(|family| family.model_type.len()));

    if let Some(family) = found {
        config.set_model_type(family.model_type);
    }
    config
}

/// Refuses a size that is 0 or greater than `limit`.
pub(super) fn check_size(what: &str, size: usize, limit: usize) -> Result<()> {
    if (1..=limit).contains(&size) {
        return Ok(());
    }
    Err(DecoderError::Config {
        reason: format!("{what} is {size}; between 1 and {limit} was expected"),
    })
}
