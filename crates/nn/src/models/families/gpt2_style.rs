//! What the families since GPT-2 share: a tree of `transformer.h.N.{ln_1, attn, ln_2, mlp}`, with classes that
//! begin with the family's name.

use super::llama_style::head_size;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::layers::Activation;
use crate::models::spec::{AttentionSpec, BlockSlot, DecoderSpec, ModelSlot};
use crate::models::template::{
    Children, Template, act, blocks, container, dropout, layer_norm, linear, model_linear, model_norm, norm,
    table,
};

/// Sizes of a model and the beginning of its classes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gpt2Style<'a> {
    config: &'a ModelConfig,
    /// `GPTNeo` in `GPTNeoForCausalLM`.
    class: &'static str,
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) head: usize,
    pub(super) layers: usize,
    pub(super) middle: usize,
    pub(super) positions: usize,
    vocab: usize,
    eps: f64,
    activation: Activation,
    /// Keys of the probabilities of dropout: of residuals and of embeddings.
    dropouts: [&'static str; 2],
    dropout: f64,
}

impl<'a> Gpt2Style<'a> {
    /// Reads `n_embd`, `n_head`, `n_layer`, `n_positions` and `n_inner`, and `resid_pdrop` and `embd_pdrop`, which
    /// are `dropout` where they are missing.
    ///
    /// # Errors
    /// [`NnError::Config`](crate::NnError::Config) for missing or unusable keys.
    pub(super) fn read(
        config: &'a ModelConfig,
        class: &'static str,
        activation: &str,
        dropout: f64,
    ) -> Result<Self> {
        let keys = ["n_embd", "n_head", "n_layer", "n_positions", "n_inner"];
        Self::read_keys(config, class, activation, keys, (["resid_pdrop", "embd_pdrop"], dropout))
    }

    /// The same under other keys.
    pub(super) fn read_keys(
        config: &'a ModelConfig,
        class: &'static str,
        activation: &str,
        [hidden, heads, layers, positions, middle]: [&str; 5],
        (dropouts, dropout): ([&'static str; 2], f64),
    ) -> Result<Self> {
        let (hidden, heads) = (config.size(hidden)?, config.size(heads)?);
        Ok(Self {
            config,
            class,
            hidden,
            heads,
            head: head_size(hidden, heads)?,
            layers: config.size(layers)?,
            middle: config.optional_size(middle)?.unwrap_or(4 * hidden),
            positions: config.size(positions)?,
            vocab: config.size("vocab_size")?,
            eps: config.number("layer_norm_epsilon", 1e-5)?,
            activation: Activation::from_name(config.text("activation_function", activation)?)?,
            dropouts,
            dropout,
        })
    }

    fn named(&self, part: &str) -> String {
        format!("{}{part}", self.class)
    }

    /// `Dropout` of residuals.
    pub(super) fn residual_dropout(&self) -> Result<Template> {
        dropout(self.config, self.dropouts[0], self.dropout)
    }

    /// Separate products, as GPT-Neo and GPT-J register them.
    pub(super) fn projections(&self, out_bias: bool) -> Children {
        let square = [self.hidden, self.hidden];
        vec![
            ("k_proj", linear(BlockSlot::Key, square, false)),
            ("v_proj", linear(BlockSlot::Value, square, false)),
            ("q_proj", linear(BlockSlot::Query, square, false)),
            ("out_proj", linear(BlockSlot::AttentionOut, square, out_bias)),
        ]
    }

    /// `attn`.
    pub(super) fn attention(&self, children: Children) -> Template {
        container(self.named("Attention"), children)
    }

    /// `mlp` of two products.
    pub(super) fn mlp(&self, [up, down]: [&'static str; 2]) -> Result<Template> {
        self.mlp_of(vec![
            (up, linear(BlockSlot::Up, [self.middle, self.hidden], true)),
            (down, linear(BlockSlot::Down, [self.hidden, self.middle], true)),
        ])
    }

    /// `mlp` of these products.
    pub(super) fn mlp_of(&self, mut products: Children) -> Result<Template> {
        products.push(("act", act(self.activation)));
        products.push(("dropout", self.residual_dropout()?));
        Ok(container(self.named("MLP"), products))
    }

    /// `ln_1` or `ln_2`.
    pub(super) fn norm(&self, slot: BlockSlot) -> Template {
        norm(slot, layer_norm(self.hidden, self.eps))
    }

    /// `transformer` of a block.
    pub(super) fn transformer(&self, block: Children, has_positions: bool) -> Result<Template> {
        let mut children = vec![("wte", table(ModelSlot::Tokens, [self.vocab, self.hidden], None))];
        if has_positions {
            children.push(("wpe", table(ModelSlot::Positions, [self.positions, self.hidden], None)));
        }
        children.extend([
            ("drop", dropout(self.config, self.dropouts[1], self.dropout)?),
            ("h", blocks(self.named("Block"), block)),
            ("ln_f", model_norm(ModelSlot::FinalNorm, layer_norm(self.hidden, self.eps))),
        ]);
        Ok(container(self.named("Model"), children))
    }

    /// The model of a class, with `lm_head`, which is tied by default where it has no bias.
    pub(super) fn model(
        &self,
        class: &str,
        transformer: Template,
        attention: AttentionSpec,
        head_bias: bool,
    ) -> Result<DecoderSpec> {
        let head = model_linear(ModelSlot::Head, [self.vocab, self.hidden], head_bias);
        let tree = container(self.named(class), vec![("transformer", transformer), ("lm_head", head)]);
        let spec = DecoderSpec {
            positions: self.positions,
            tied_head: self.config.flag("tie_word_embeddings", !head_bias)?,
            optional_prefix: "transformer.",
            ignored_suffixes: &[".attn.bias", ".attn.masked_bias"],
            ..DecoderSpec::plain(tree, self.hidden, attention, self.layers, self.activation)?
        };
        Ok(if self.config.flag("scale_attn_weights", true)? { spec } else { spec.with_factor(1.0) })
    }
}
