//! What Llama and the families after it share: keys of config.json, names of modules, and classes
//! that begin with the family's name. A family's own file adds what differs.

use crate::error::{DecoderError, Result};
use crate::slot::{BlockSlot, ModelSlot};
use crate::spec::{AttentionSpec, DecoderSpec, check_size};
use crate::template::{
    Children, NormSpec, Template, act, blocks, container, layer_norm, linear, model_linear,
    model_norm, norm, rotary, table,
};
use llm_int8_nn::config::ModelConfig;
use llm_int8_nn::layers::{Activation, NormKind, Rope};

/// The sizes of a model, and builders for the modules that these families share.
#[derive(Debug, Clone, Copy)]
pub(super) struct LlamaStyle<'a> {
    pub(super) config: &'a ModelConfig,
    /// The prefix of its classes: `Llama` in `LlamaForCausalLM`.
    pub(super) class: &'static str,
    /// The kind of its norms.
    pub(super) norm: NormKind,
    pub(super) eps: f64,
    pub(super) activation: Activation,
    pub(super) vocab: usize,
    pub(super) hidden: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    /// Width of a head.
    pub(super) head: usize,
    /// `intermediate_size`, the width of the MLP.
    pub(super) middle: usize,
    pub(super) positions: usize,
    /// Values of a head that are rotated.
    pub(super) rotary: usize,
    /// Whether the family has `partial_rotary_factor`.
    pub(super) rotates_partly: bool,
}

impl<'a> LlamaStyle<'a> {
    /// Reads the keys that these families share.
    ///
    /// # Errors
    /// [`DecoderError::Config`] for keys that are missing or invalid.
    pub(super) fn read(config: &'a ModelConfig, class: &'static str) -> Result<Self> {
        Self::read_keys(config, class, "rms_norm_eps", "hidden_act")
    }

    /// [`LlamaStyle::read`] with other keys for the epsilon of norms and the activation.
    pub(super) fn read_keys(
        config: &'a ModelConfig,
        class: &'static str,
        eps: &str,
        activation: &str,
    ) -> Result<Self> {
        let hidden = config.size("hidden_size")?;
        let heads = config.size("num_attention_heads")?;
        let head = config.optional_size("head_dim")?.unwrap_or(hidden / heads);
        check_size("head size", head, DecoderSpec::WIDEST_HEAD)?;

        Ok(Self {
            config,
            class,
            norm: NormKind::Rms,
            eps: config.number(eps)?,
            activation: Activation::from_name(config.text(activation)?)?,
            vocab: config.size("vocab_size")?,
            hidden,
            layers: config.size("num_hidden_layers")?,
            heads,
            kv_heads: config
                .optional_size("num_key_value_heads")?
                .unwrap_or(heads),
            head,
            middle: config.size("intermediate_size")?,
            positions: config.size("max_position_embeddings")?,
            rotary: head,
            rotates_partly: false,
        })
    }

    /// Rotates only the share `partial_rotary_factor` of every head.
    pub(super) fn with_partial_rotation(self) -> Result<Self> {
        let newer = self
            .config
            .nested("rope_parameters")
            .optional_number("partial_rotary_factor")?;
        let share = match newer {
            Some(share) => share,
            None => self.config.number("partial_rotary_factor")?,
        };
        Ok(Self {
            rotary: rotated(self.head, share)?,
            rotates_partly: true,
            ..self
        })
    }

    fn named(&self, part: &str) -> String {
        format!("{}{part}", self.class)
    }

    /// `q_proj`, `k_proj`, `v_proj`, and the output projection under the name `out`.
    pub(super) fn projections(&self, bias: bool, out: &'static str, out_bias: bool) -> Children {
        let queries = self.heads * self.head;
        let keys = self.kv_heads * self.head;
        vec![
            (
                "q_proj",
                linear(BlockSlot::Query, [queries, self.hidden], bias),
            ),
            ("k_proj", linear(BlockSlot::Key, [keys, self.hidden], bias)),
            (
                "v_proj",
                linear(BlockSlot::Value, [keys, self.hidden], bias),
            ),
            (
                out,
                linear(BlockSlot::AttentionOut, [self.hidden, queries], out_bias),
            ),
        ]
    }

    /// Norms of queries and keys, with these names and widths.
    pub(super) fn query_key_norms(
        &self,
        (query_name, query_width): (&'static str, usize),
        (key_name, key_width): (&'static str, usize),
    ) -> Children {
        let query = self.norm_of(query_width);
        let key = self.norm_of(key_width);
        vec![
            (query_name, norm(BlockSlot::QueryNorm, query)),
            (key_name, norm(BlockSlot::KeyNorm, key)),
        ]
    }

    /// `self_attn` with nothing but its projections.
    pub(super) fn attention(&self, bias: bool, out_bias: bool) -> (&'static str, Template) {
        self.attention_of(self.projections(bias, "o_proj", out_bias))
    }

    /// `self_attn` with these children.
    pub(super) fn attention_of(&self, children: Children) -> (&'static str, Template) {
        ("self_attn", container(self.named("Attention"), children))
    }

    /// `mlp` with `gate_proj`, `up_proj`, `down_proj`.
    pub(super) fn gated_mlp(&self, bias: bool) -> (&'static str, Template) {
        self.mlp_of(vec![
            (
                "gate_proj",
                linear(BlockSlot::Gate, [self.middle, self.hidden], bias),
            ),
            (
                "up_proj",
                linear(BlockSlot::Up, [self.middle, self.hidden], bias),
            ),
            (
                "down_proj",
                linear(BlockSlot::Down, [self.hidden, self.middle], bias),
            ),
            ("act_fn", act(self.activation)),
        ])
    }

    /// The two linear layers of an `mlp` without a gate.
    pub(super) fn plain_mlp(&self, [up, down]: [&'static str; 2], bias: bool) -> Children {
        vec![
            (up, linear(BlockSlot::Up, [self.middle, self.hidden], bias)),
            (
                down,
                linear(BlockSlot::Down, [self.hidden, self.middle], bias),
            ),
        ]
    }

    /// `mlp` with these children.
    pub(super) fn mlp_of(&self, children: Children) -> (&'static str, Template) {
        ("mlp", container(self.named("MLP"), children))
    }

    /// A norm of the residual stream in a block.
    pub(super) fn norm(&self, name: &'static str, slot: BlockSlot) -> (&'static str, Template) {
        (name, norm(slot, self.norm_of(self.hidden)))
    }

    fn norm_of(&self, width: usize) -> NormSpec {
        match self.norm {
            NormKind::Layer => layer_norm(width, self.eps),
            kind => NormSpec {
                class: self.named("RMSNorm"),
                kind,
                width,
                eps: self.eps,
            },
        }
    }

    /// `embed_tokens`, the token table.
    pub(super) fn tokens(&self) -> Result<(&'static str, Template)> {
        let padding = self.config.padding_row(self.vocab)?;
        Ok((
            "embed_tokens",
            table(ModelSlot::Tokens, [self.vocab, self.hidden], padding),
        ))
    }

    /// `layers`, the blocks.
    pub(super) fn blocks(&self, block: Children) -> (&'static str, Template) {
        ("layers", blocks(self.named("DecoderLayer"), block))
    }

    /// The norm before the head.
    pub(super) fn final_norm(&self, name: &'static str) -> (&'static str, Template) {
        (
            name,
            model_norm(ModelSlot::FinalNorm, self.norm_of(self.hidden)),
        )
    }

    /// `rotary_emb`.
    pub(super) fn rotary_module(&self) -> (&'static str, Template) {
        (
            "rotary_emb",
            rotary(self.named("RotaryEmbedding"), self.rotary),
        )
    }

    /// A model of blocks with these children: `embed_tokens`, `layers`, `norm`, `rotary_emb`, and a
    /// head without bias.
    pub(super) fn model(&self, block: Children) -> Result<DecoderSpec> {
        let children = vec![
            self.tokens()?,
            self.blocks(block),
            self.final_norm("norm"),
            self.rotary_module(),
        ];
        Ok(self
            .model_of(self.named("Model"), children, false)?
            .rotated(self.rope()?))
    }

    /// A model with these children, without a rotation.
    pub(super) fn model_of(
        &self,
        class: String,
        children: Children,
        head_bias: bool,
    ) -> Result<DecoderSpec> {
        let head = model_linear(ModelSlot::Head, [self.vocab, self.hidden], head_bias);
        let tree = container(
            self.named("ForCausalLM"),
            vec![("model", container(class, children)), ("lm_head", head)],
        );
        let attention = AttentionSpec::new(self.heads, self.kv_heads, self.head);
        Ok(DecoderSpec {
            positions: self.positions,
            tied_head: self.config.flag("tie_word_embeddings")?,
            ..DecoderSpec::plain(tree, self.hidden, attention, self.layers, self.activation)?
        })
    }

    /// The rotation that config.json describes.
    ///
    /// # Errors
    /// [`DecoderError::Config`] for an unknown kind, and for a partial rotation in a family that
    /// rotates whole heads.
    pub(super) fn rope(&self) -> Result<Rope> {
        if !self.rotates_partly {
            refuse_partial_rotation(self.config, self.class, self.head)?;
        }
        let base = self.config.number("rope_theta")?;
        Ok(Rope::from_config(
            self.config,
            base,
            self.rotary,
            self.positions,
        )?)
    }

    /// The window of each layer, where `sliding_window` applies to all of them.
    pub(super) fn same_windows(&self) -> Result<Vec<Option<usize>>> {
        let window = self.config.optional_size("sliding_window")?;
        Ok(vec![window; DecoderSpec::check_layers(self.layers)?])
    }

    /// The window of each layer: in the layers that `layer_types` names, or if there is no such
    /// list, in those for which `is_sliding` returns true.
    ///
    /// # Errors
    /// [`DecoderError::Config`] for a list of the wrong length or with an unknown kind of layer.
    pub(super) fn windows(
        &self,
        window: Option<usize>,
        is_sliding: impl Fn(usize) -> bool,
    ) -> Result<Vec<Option<usize>>> {
        let Some(types) = self.config.strings("layer_types")? else {
            let layers = DecoderSpec::check_layers(self.layers)?;
            return Ok((0..layers)
                .map(|layer| window.filter(|_| is_sliding(layer)))
                .collect());
        };

        let error = |reason: String| DecoderError::Config { reason };
        if types.len() != self.layers {
            return Err(error(format!(
                "`layer_types` names {} layers of {}",
                types.len(),
                self.layers
            )));
        }

        let window_of = |kind: &&str| match *kind {
            "full_attention" => Ok(None),
            "sliding_attention" if window.is_some() => Ok(window),
            "sliding_attention" => Err(error(
                "`layer_types` has windows, but there is no `sliding_window`".into(),
            )),
            other => Err(error(format!(
                "`layer_types` names `{other}`; full_attention and sliding_attention are known"
            ))),
        };
        types.iter().map(window_of).collect()
    }
}

/// The head size of a family that always computes `hidden / heads` and ignores `head_dim`.
///
/// # Errors
/// [`DecoderError::Config`] for a `head_dim` of another size, or if `hidden` is not divisible.
pub(super) fn shared_head_size(config: &ModelConfig, hidden: usize, heads: usize) -> Result<usize> {
    let head = head_size(hidden, heads)?;
    match config
        .optional_size("head_dim")?
        .filter(|size| *size != head)
    {
        None => Ok(head),
        Some(size) => Err(DecoderError::Config {
            reason: format!(
                "`head_dim` is {size}, but {heads} heads of this family share a width of {hidden}"
            ),
        }),
    }
}

/// The head size `hidden / heads`.
///
/// # Errors
/// [`DecoderError::Config`] if `hidden` is not divisible.
pub(super) fn head_size(hidden: usize, heads: usize) -> Result<usize> {
    check_size("number of heads", heads, DecoderSpec::MOST_HEADS)?;
    match hidden.is_multiple_of(heads) {
        true => Ok(hidden / heads),
        false => Err(DecoderError::Config {
            reason: format!("a width of {hidden} cannot be divided among {heads} heads"),
        }),
    }
}

/// Refuses a `partial_rotary_factor` that matters, in a family that rotates whole heads.
pub(super) fn refuse_partial_rotation(
    config: &ModelConfig,
    class: &str,
    head: usize,
) -> Result<()> {
    let share = config
        .optional_number("partial_rotary_factor")?
        .unwrap_or(1.0);
    if rotated(head, share)? == head {
        return Ok(());
    }
    let reason =
        format!("`partial_rotary_factor` is {share}, but {class}ForCausalLM rotates whole heads");
    Err(DecoderError::Config { reason })
}

/// The number of rotated values of a head, of which this share is rotated.
///
/// # Errors
/// [`DecoderError::Config`] for a share outside of 0 to 1.
pub(super) fn rotated(head: usize, share: f64) -> Result<usize> {
    match (0.0..=1.0).contains(&share) {
        true => Ok((head as f64 * share) as usize),
        false => {
            let reason = format!(
                "the share of a head that is rotated is {share}; between 0 and 1 was expected"
            );
            Err(DecoderError::Config { reason })
        }
    }
}
