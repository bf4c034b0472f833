//! GPT-NeoX (Black et al. 2022; Pythia): a partial rotation, queries, keys and values interleaved
//! by head, attention and MLP in parallel.

use super::llama_style::{rotated, shared_head_size};
use crate::error::Result;
use crate::slot::{BlockSlot, ModelSlot};
use crate::spec::{AttentionSpec, DecoderSpec, Family, Residual};
use crate::template::{
    Children, act, blocks, container, dropout, layer_norm, linear, model_linear, model_norm, norm,
    rotary, table,
};
use llm_int8_nn::config::{ConfigClass, ModelConfig, RopeKind};
use llm_int8_nn::layers::{Activation, QkvLayout, Rope};

pub(super) const FAMILY: Family = Family {
    model_type: "gpt_neox",
    architecture: "GPTNeoXForCausalLM",
    class: CLASS,
    describe,
};

const CLASS: ConfigClass = ConfigClass::new(
    r#"{
        "vocab_size": 50432, "hidden_size": 6144, "num_hidden_layers": 44, "num_attention_heads": 64,
        "intermediate_size": 24576, "hidden_act": "gelu", "rotary_pct": 0.25, "rotary_emb_base": 10000,
        "hidden_dropout": 0.0, "max_position_embeddings": 2048, "layer_norm_eps": 1e-5, "tie_word_embeddings": false,
        "use_parallel_residual": true, "rope_scaling": null, "attention_bias": true
    }"#,
)
.with_rope_kind(RopeKind::Type);

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let hidden = config.size("hidden_size")?;
    let heads = config.size("num_attention_heads")?;
    let vocab = config.size("vocab_size")?;
    let positions = config.size("max_position_embeddings")?;
    let eps = config.number("layer_norm_eps")?;
    let activation = Activation::from_name(config.text("hidden_act")?)?;
    let head = shared_head_size(config, hidden, heads)?;
    let share = match config
        .nested("rope_parameters")
        .optional_number("partial_rotary_factor")?
    {
        Some(share) => share,
        None => config.number("rotary_pct")?,
    };
    let dims = rotated(head, share)?;
    let rope = Rope::from_config(config, config.number("rotary_emb_base")?, dims, positions)?;

    let model = vec![
        ("embed_in", table(ModelSlot::Tokens, [vocab, hidden], None)),
        ("emb_dropout", dropout(config, "hidden_dropout")?),
        (
            "layers",
            blocks("GPTNeoXLayer", block(config, hidden, eps, activation)?),
        ),
        (
            "final_layer_norm",
            model_norm(ModelSlot::FinalNorm, layer_norm(hidden, eps)),
        ),
        ("rotary_emb", rotary("GPTNeoXRotaryEmbedding", dims)),
    ];

    let head_out = model_linear(ModelSlot::Head, [vocab, hidden], false);
    let model = container("GPTNeoXModel", model);
    let tree = container(
        "GPTNeoXForCausalLM",
        vec![("gpt_neox", model), ("embed_out", head_out)],
    );

    let attention = AttentionSpec {
        layout: QkvLayout::Grouped,
        ..AttentionSpec::new(heads, heads, head)
    };
    let is_parallel = config.flag("use_parallel_residual")?;

    let spec = DecoderSpec {
        positions,
        residual: if is_parallel {
            Residual::Parallel
        } else {
            Residual::Sequential
        },
        tied_head: config.flag("tie_word_embeddings")?,
        optional_prefix: "gpt_neox.",
        ignored_suffixes: &[
            ".attention.bias",
            ".attention.masked_bias",
            ".rotary_emb.inv_freq",
        ],
        ..DecoderSpec::plain(
            tree,
            hidden,
            attention,
            config.size("num_hidden_layers")?,
            activation,
        )?
    };

    Ok(spec.rotated(rope))
}

/// The children of a block.
fn block(
    config: &ModelConfig,
    hidden: usize,
    eps: f64,
    activation: Activation,
) -> Result<Children> {
    let middle = config.size("intermediate_size")?;
    let bias = config.flag("attention_bias")?;

    let attention = vec![
        (
            "query_key_value",
            linear(BlockSlot::Qkv, [3 * hidden, hidden], bias),
        ),
        (
            "dense",
            linear(BlockSlot::AttentionOut, [hidden, hidden], bias),
        ),
    ];

    let mlp = vec![
        (
            "dense_h_to_4h",
            linear(BlockSlot::Up, [middle, hidden], true),
        ),
        (
            "dense_4h_to_h",
            linear(BlockSlot::Down, [hidden, middle], true),
        ),
        ("act", act(activation)),
    ];

    Ok(vec![
        (
            "input_layernorm",
            norm(BlockSlot::AttentionNorm, layer_norm(hidden, eps)),
        ),
        (
            "post_attention_layernorm",
            norm(BlockSlot::MlpNorm, layer_norm(hidden, eps)),
        ),
        ("post_attention_dropout", dropout(config, "hidden_dropout")?),
        ("post_mlp_dropout", dropout(config, "hidden_dropout")?),
        ("attention", container("GPTNeoXAttention", attention)),
        ("mlp", container("GPTNeoXMLP", mlp)),
    ])
}
