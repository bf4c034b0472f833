//! What the families since GPT-2 share: a tree of `transformer.h.N.{ln_1, attn, ln_2, mlp}`, with
//! classes that begin with the family's name.

use super::llama_style::head_size;
use crate::error::{DecoderError, Result};
use crate::slot::{BlockSlot, ModelSlot};
use crate::spec::{AttentionSpec, DecoderSpec};
use crate::template::{
    Children, Template, act, blocks, container, dropout, layer_norm, linear, model_linear,
    model_norm, norm, table,
};
use llm_int8_nn::config::ModelConfig;
use llm_int8_nn::layers::Activation;

/// Sizes of a model and the beginning of its classes.
#[derive(Debug, Clone)]
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
    /// `Dropout` of residuals.
    residual_dropout: Template,
    /// `Dropout` of embeddings.
    embedding_dropout: Template,
}

impl<'a> Gpt2Style<'a> {
    /// Reads `n_embd`, `n_head`, `n_layer`, `n_positions` and `n_inner`, and `resid_pdrop` and
    /// `embd_pdrop`.
    ///
    /// # Errors
    /// [`DecoderError::Config`](crate::DecoderError::Config) for missing or unusable keys.
    pub(super) fn read(config: &'a ModelConfig, class: &'static str) -> Result<Self> {
        let keys = ["n_embd", "n_head", "n_layer", "n_positions", "n_inner"];
        let dropouts = [
            dropout(config, "resid_pdrop")?,
            dropout(config, "embd_pdrop")?,
        ];
        Self::read_keys(config, class, keys, dropouts)
    }

    /// The same under other keys, with the modules of dropout of residuals and of embeddings.
    pub(super) fn read_keys(
        config: &'a ModelConfig,
        class: &'static str,
        [hidden, heads, layers, positions, middle]: [&str; 5],
        [residual_dropout, embedding_dropout]: [Template; 2],
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
            eps: config.number("layer_norm_epsilon")?,
            activation: Activation::from_name(config.text("activation_function")?)?,
            residual_dropout,
            embedding_dropout,
        })
    }

    fn named(&self, part: &str) -> String {
        format!("{}{part}", self.class)
    }

    /// `Dropout` of residuals.
    pub(super) fn residual_dropout(&self) -> Template {
        self.residual_dropout.clone()
    }

    /// Separate products, as GPT-Neo and GPT-J register them.
    pub(super) fn projections(&self, out_bias: bool) -> Children {
        let square = [self.hidden, self.hidden];
        vec![
            ("k_proj", linear(BlockSlot::Key, square, false)),
            ("v_proj", linear(BlockSlot::Value, square, false)),
            ("q_proj", linear(BlockSlot::Query, square, false)),
            (
                "out_proj",
                linear(BlockSlot::AttentionOut, square, out_bias),
            ),
        ]
    }

    /// `attn`.
    pub(super) fn attention(&self, children: Children) -> Template {
        container(self.named("Attention"), children)
    }

    /// `mlp` of two products.
    pub(super) fn mlp(&self, [up, down]: [&'static str; 2]) -> Template {
        self.mlp_of(vec![
            (up, linear(BlockSlot::Up, [self.middle, self.hidden], true)),
            (
                down,
                linear(BlockSlot::Down, [self.hidden, self.middle], true),
            ),
        ])
    }

    /// `mlp` of these products.
    pub(super) fn mlp_of(&self, mut products: Children) -> Template {
        products.push(("act", act(self.activation)));
        products.push(("dropout", self.residual_dropout()));
        container(self.named("MLP"), products)
    }

    /// `ln_1` or `ln_2`.
    pub(super) fn norm(&self, slot: BlockSlot) -> Template {
        norm(slot, layer_norm(self.hidden, self.eps))
    }

    /// `transformer` of a block.
    pub(super) fn transformer(&self, block: Children, has_positions: bool) -> Template {
        let mut children = vec![(
            "wte",
            table(ModelSlot::Tokens, [self.vocab, self.hidden], None),
        )];
        if has_positions {
            children.push((
                "wpe",
                table(ModelSlot::Positions, [self.positions, self.hidden], None),
            ));
        }
        children.extend([
            ("drop", self.embedding_dropout.clone()),
            ("h", blocks(self.named("Block"), block)),
            (
                "ln_f",
                model_norm(ModelSlot::FinalNorm, layer_norm(self.hidden, self.eps)),
            ),
        ]);
        container(self.named("Model"), children)
    }

    /// The model of a class, with `lm_head`.
    pub(super) fn model(
        &self,
        class: &str,
        transformer: Template,
        attention: AttentionSpec,
        head_bias: bool,
    ) -> Result<DecoderSpec> {
        let head = model_linear(ModelSlot::Head, [self.vocab, self.hidden], head_bias);
        let tree = container(
            self.named(class),
            vec![("transformer", transformer), ("lm_head", head)],
        );
        Ok(DecoderSpec {
            positions: self.positions,
            tied_head: self.config.flag("tie_word_embeddings")?,
            optional_prefix: "transformer.",
            ignored_suffixes: &[".attn.bias", ".attn.masked_bias"],
            ..DecoderSpec::plain(tree, self.hidden, attention, self.layers, self.activation)?
        })
    }
}

/// Refuses what only an encoder gives a meaning to.
pub(super) fn refuse_cross_attention(config: &ModelConfig) -> Result<()> {
    match config.flag("add_cross_attention")? {
        false => Ok(()),
        true => Err(DecoderError::Config {
            reason:
                "`add_cross_attention` is true; a model with cross-attention is not a causal language model"
                    .into(),
        }),
    }
}
