//! What the families since Llama share: keys of config.json, names of modules, classes that begin
//! with the family's name. A family is what it adds.

use crate::error::{DecoderError, Result};
use crate::slot::{BlockSlot, ModelSlot};
use crate::spec::{AttentionSpec, DecoderSpec, check_size};
use crate::template::{
    Children, NormSpec, Template, act, blocks, container, layer_norm, linear, model_linear,
    model_norm, norm, rotary, table,
};
use llm_int8_nn::config::ModelConfig;
use llm_int8_nn::layers::{Activation, NormKind, Rope};

/// Sizes of a model and the beginning of its classes.
#[derive(Debug, Clone, Copy)]
pub(super) struct LlamaStyle<'a> {
    pub(super) config: &'a ModelConfig,
    /// `Llama` in `LlamaForCausalLM`.
    pub(super) class: &'static str,
    pub(super) norm: NormKind,
    pub(super) eps: f64,
    pub(super) activation: Activation,
    pub(super) vocab: usize,
    pub(super) hidden: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head: usize,
    pub(super) middle: usize,
    pub(super) positions: usize,
    /// How many values of a head are rotated.
    pub(super) rotary: usize,
    /// Whether `partial_rotary_factor` is a key of the family.
    pub(super) rotates_partly: bool,
}

impl<'a> LlamaStyle<'a> {
    /// Reads the sizes and what else these families have in common.
    ///
    /// # Errors
    /// [`DecoderError::Config`] for missing or unusable keys.
    pub(super) fn read(config: &'a ModelConfig, class: &'static str) -> Result<Self> {
        Self::read_keys(config, class, "rms_norm_eps", "hidden_act")
    }

    /// The same where the norms' epsilon and the MLP's function stand under these keys.
    pub(super) fn read_keys(
        config: &'a ModelConfig,
        class: &'static str,
        eps: &str,
        activation: &str,
    ) -> Result<Self> {
        let (hidden, heads) = (
            config.size("hidden_size")?,
            config.size("num_attention_heads")?,
        );
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

    /// Where `partial_rotary_factor` of every head is rotated.
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

    /// `q_proj`, `k_proj`, `v_proj` and the product after attention.
    pub(super) fn projections(&self, bias: bool, out: &'static str, out_bias: bool) -> Children {
        let (wide, narrow) = (self.heads * self.head, self.kv_heads * self.head);
        vec![
            (
                "q_proj",
                linear(BlockSlot::Query, [wide, self.hidden], bias),
            ),
            (
                "k_proj",
                linear(BlockSlot::Key, [narrow, self.hidden], bias),
            ),
            (
                "v_proj",
                linear(BlockSlot::Value, [narrow, self.hidden], bias),
            ),
            (
                out,
                linear(BlockSlot::AttentionOut, [self.hidden, wide], out_bias),
            ),
        ]
    }

    /// Norms of so many values of queries and keys.
    pub(super) fn query_key_norms(
        &self,
        names: [&'static str; 2],
        [query, key]: [usize; 2],
    ) -> Children {
        vec![
            (names[0], norm(BlockSlot::QueryNorm, self.norm_of(query))),
            (names[1], norm(BlockSlot::KeyNorm, self.norm_of(key))),
        ]
    }

    /// `self_attn` of projections alone.
    pub(super) fn attention(&self, bias: bool, out_bias: bool) -> (&'static str, Template) {
        self.attention_of(self.projections(bias, "o_proj", out_bias))
    }

    /// `self_attn`.
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

    /// `mlp` with two products and a function between them, in this order.
    pub(super) fn plain_mlp(&self, [up, down]: [&'static str; 2], bias: bool) -> Children {
        vec![
            (up, linear(BlockSlot::Up, [self.middle, self.hidden], bias)),
            (
                down,
                linear(BlockSlot::Down, [self.hidden, self.middle], bias),
            ),
        ]
    }

    /// `mlp`.
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

    /// `embed_tokens`.
    pub(super) fn tokens(&self) -> Result<(&'static str, Template)> {
        let padding = self.config.padding_row(self.vocab)?;
        Ok((
            "embed_tokens",
            table(ModelSlot::Tokens, [self.vocab, self.hidden], padding),
        ))
    }

    /// `layers` of blocks.
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

    /// The model of a block: `embed_tokens`, `layers`, `norm`, `rotary_emb`, and a head without
    /// bias.
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

    /// The model of these children, without a rotation.
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

    /// The rotation config.json asks for.
    ///
    /// # Errors
    /// [`DecoderError::Config`] for one that is not known, and for a share of a head in a family
    /// that rotates all of it.
    pub(super) fn rope(&self) -> Result<Rope> {
        if !self.rotates_partly {
            refuse_partial_rotation(self.config, self.class, self.head)?;
        }
        let base = self.config.number("rope_theta")?;
        let rope = Rope::from_config(self.config, base, self.rotary, self.positions)?;
        Ok(rope)
    }

    /// `sliding_window` in every layer, or in none.
    pub(super) fn same_windows(&self) -> Result<Vec<Option<usize>>> {
        let window = self.config.optional_size("sliding_window")?;
        Ok(vec![window; DecoderSpec::check_layers(self.layers)?])
    }

    /// How far each layer sees: as `layer_types` says, or a `window` in the layers `is_sliding`
    /// tells.
    ///
    /// # Errors
    /// [`DecoderError::Config`] for a list of another length or with another kind of layer.
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
        let of = |kind: &&str| match *kind {
            "full_attention" => Ok(None),
            "sliding_attention" if window.is_some() => Ok(window),
            "sliding_attention" => Err(error(
                "`layer_types` has windows, but there is no `sliding_window`".into(),
            )),
            other => Err(error(format!(
                "`layer_types` names `{other}`; full_attention and sliding_attention are known"
            ))),
        };
        types.iter().map(of).collect()
    }
}

/// Width of a head where the heads share the residual stream, as the family's attention takes it
/// even where there is a `head_dim`.
///
/// # Errors
/// [`DecoderError::Config`] for a `head_dim` that says otherwise, or a width that cannot be shared.
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

/// Width of a head where the heads share the residual stream.
///
/// # Errors
/// [`DecoderError::Config`] where they cannot.
pub(super) fn head_size(hidden: usize, heads: usize) -> Result<usize> {
    check_size("number of heads", heads, DecoderSpec::MOST_HEADS)?;
    match hidden.is_multiple_of(heads) {
        true => Ok(hidden / heads),
        false => Err(DecoderError::Config {
            reason: format!("a width of {hidden} cannot be divided among {heads} heads"),
        }),
    }
}

/// Refuses a share of a head in a family that rotates all of it.
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

/// How many values of a head are a share of it, to be rotated.
///
/// # Errors
/// [`DecoderError::Config`] where it is no share.
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
