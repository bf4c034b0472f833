//! What GPT-2 and its relatives share: a tree of `transformer.h.N.{ln_1, attn, ln_2, mlp}`, with
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

/// The sizes of a model, and builders for the modules that these families share.
#[derive(Debug, Clone)]
pub(super) struct Gpt2Style<'a> {
    config: &'a ModelConfig,
    /// The prefix of its classes: `GPTNeo` in `GPTNeoForCausalLM`.
    class: &'static str,
    pub(super) hidden: usize,
    pub(super) heads: usize,
    /// Width of a head.
    pub(super) head: usize,
    pub(super) layers: usize,
    /// Width of the MLP.
    pub(super) middle: usize,
    pub(super) positions: usize,
    vocab: usize,
    eps: f64,
    activation: Activation,
    dropouts: Dropouts,
}

/// Names of the keys that differ between the families.
#[derive(Debug, Clone, Copy)]
pub(super) struct SizeKeys {
    pub(super) hidden: &'static str,
    pub(super) heads: &'static str,
    pub(super) layers: &'static str,
    pub(super) positions: &'static str,
    pub(super) middle: &'static str,
}

/// The `Dropout` modules outside of attention.
#[derive(Debug, Clone)]
pub(super) struct Dropouts {
    pub(super) residual: Template,
    pub(super) embedding: Template,
}

impl<'a> Gpt2Style<'a> {
    /// Reads the keys as GPT-2 names them.
    ///
    /// # Errors
    /// [`DecoderError::Config`](crate::DecoderError::Config) for keys that are missing or invalid.
    pub(super) fn read(config: &'a ModelConfig, class: &'static str) -> Result<Self> {
        let keys = SizeKeys {
            hidden: "n_embd",
            heads: "n_head",
            layers: "n_layer",
            positions: "n_positions",
            middle: "n_inner",
        };
        let dropouts = Dropouts {
            residual: dropout(config, "resid_pdrop")?,
            embedding: dropout(config, "embd_pdrop")?,
        };
        Self::read_keys(config, class, keys, dropouts)
    }

    /// [`Gpt2Style::read`] with other keys for the sizes, and these modules of dropout.
    pub(super) fn read_keys(
        config: &'a ModelConfig,
        class: &'static str,
        keys: SizeKeys,
        dropouts: Dropouts,
    ) -> Result<Self> {
        let hidden = config.size(keys.hidden)?;
        let heads = config.size(keys.heads)?;
        Ok(Self {
            config,
            class,
            hidden,
            heads,
            head: head_size(hidden, heads)?,
            layers: config.size(keys.layers)?,
            middle: config.optional_size(keys.middle)?.unwrap_or(4 * hidden),
            positions: config.size(keys.positions)?,
            vocab: config.size("vocab_size")?,
            eps: config.number("layer_norm_epsilon")?,
            activation: Activation::from_name(config.text("activation_function")?)?,
            dropouts,
        })
    }

    fn named(&self, part: &str) -> String {
        format!("{}{part}", self.class)
    }

    /// The `Dropout` before a residual.
    pub(super) fn residual_dropout(&self) -> Template {
        self.dropouts.residual.clone()
    }

    /// Separate layers for queries, keys and values, in the order of GPT-Neo and GPT-J.
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

    /// `attn` with these children.
    pub(super) fn attention(&self, children: Children) -> Template {
        container(self.named("Attention"), children)
    }

    /// `mlp` with two linear layers of these names.
    pub(super) fn mlp(&self, [up, down]: [&'static str; 2]) -> Template {
        self.mlp_of(vec![
            (up, linear(BlockSlot::Up, [self.middle, self.hidden], true)),
            (
                down,
                linear(BlockSlot::Down, [self.hidden, self.middle], true),
            ),
        ])
    }

    /// `mlp` with these linear layers.
    pub(super) fn mlp_of(&self, mut layers: Children) -> Template {
        layers.push(("act", act(self.activation)));
        layers.push(("dropout", self.residual_dropout()));
        container(self.named("MLP"), layers)
    }

    /// `ln_1` or `ln_2`.
    pub(super) fn norm(&self, slot: BlockSlot) -> Template {
        norm(slot, layer_norm(self.hidden, self.eps))
    }

    /// `transformer` of blocks with these children.
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
            ("drop", self.dropouts.embedding.clone()),
            ("h", blocks(self.named("Block"), block)),
            (
                "ln_f",
                model_norm(ModelSlot::FinalNorm, layer_norm(self.hidden, self.eps)),
            ),
        ]);
        container(self.named("Model"), children)
    }

    /// A model whose class ends in `class`: a transformer and `lm_head`.
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

/// Refuses cross-attention, which needs an encoder.
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
