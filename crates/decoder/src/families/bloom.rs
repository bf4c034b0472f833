//! BLOOM (BigScience 2022): like GPT-2, with ALiBi instead of position embeddings, a norm of the
//! token embeddings, and queries, keys and values interleaved by head.

use super::llama_style::head_size;
use crate::error::{DecoderError, Result};
use crate::slot::{BlockSlot, ModelSlot};
use crate::spec::{AttentionSpec, DecoderSpec, Family};
use crate::template::{
    Children, act, blocks, container, dropout, layer_norm, linear, model_linear, model_norm, norm,
    table,
};
use llm_int8_nn::config::{ConfigClass, ModelConfig};
use llm_int8_nn::layers::{Activation, Alibi, QkvLayout};

pub(super) const FAMILY: Family = Family {
    model_type: "bloom",
    architecture: "BloomForCausalLM",
    class: CLASS,
    describe,
};

const CLASS: ConfigClass = ConfigClass::new(
    r#"{
        "vocab_size": 250880, "hidden_size": 64, "n_embed": null, "n_layer": 2, "n_head": 8,
        "layer_norm_epsilon": 1e-5, "apply_residual_connection_post_layernorm": false, "attention_dropout": 0.0
    }"#,
)
.with_aliases(&[("num_attention_heads", "n_head"), ("num_hidden_layers", "n_layer")]);

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    refuse_other_residual(config)?;
    let hidden = older_width(config)?;
    let heads = config.size("n_head")?;
    let layers = config.size("n_layer")?;
    let vocab = config.size("vocab_size")?;
    let eps = config.number("layer_norm_epsilon")?;

    let model = vec![
        (
            "word_embeddings",
            table(ModelSlot::Tokens, [vocab, hidden], None),
        ),
        (
            "word_embeddings_layernorm",
            model_norm(ModelSlot::EmbeddingNorm, layer_norm(hidden, eps)),
        ),
        ("h", blocks("BloomBlock", block(config, hidden, eps)?)),
        (
            "ln_f",
            model_norm(ModelSlot::FinalNorm, layer_norm(hidden, eps)),
        ),
    ];

    let lm_head = model_linear(ModelSlot::Head, [vocab, hidden], false);
    let tree = container(
        "BloomForCausalLM",
        vec![
            ("transformer", container("BloomModel", model)),
            ("lm_head", lm_head),
        ],
    );
    let head = head_size(hidden, heads)?;

    let attention = AttentionSpec {
        layout: QkvLayout::Grouped,
        alibi: Some(Alibi::bloom(heads)),
        ..AttentionSpec::new(heads, heads, head)
    };

    Ok(DecoderSpec {
        tied_head: config.flag("tie_word_embeddings")?,
        optional_prefix: "transformer.",
        ..DecoderSpec::plain(tree, hidden, attention, layers, Activation::BloomGelu)?
    })
}

/// The children of a block.
fn block(config: &ModelConfig, hidden: usize, eps: f64) -> Result<Children> {
    let attention = vec![
        (
            "query_key_value",
            linear(BlockSlot::Qkv, [3 * hidden, hidden], true),
        ),
        (
            "dense",
            linear(BlockSlot::AttentionOut, [hidden, hidden], true),
        ),
        ("attention_dropout", dropout(config, "attention_dropout")?),
    ];

    let mlp = vec![
        (
            "dense_h_to_4h",
            linear(BlockSlot::Up, [4 * hidden, hidden], true),
        ),
        ("gelu_impl", act(Activation::BloomGelu)),
        (
            "dense_4h_to_h",
            linear(BlockSlot::Down, [hidden, 4 * hidden], true),
        ),
    ];

    Ok(vec![
        (
            "input_layernorm",
            norm(BlockSlot::AttentionNorm, layer_norm(hidden, eps)),
        ),
        ("self_attention", container("BloomAttention", attention)),
        (
            "post_attention_layernorm",
            norm(BlockSlot::MlpNorm, layer_norm(hidden, eps)),
        ),
        ("mlp", container("BloomMLP", mlp)),
    ])
}

/// The hidden size: `n_embed`, its name in files from 2022, otherwise `hidden_size`.
pub(super) fn older_width(config: &ModelConfig) -> Result<usize> {
    match config.optional_size("n_embed")? {
        Some(width) => Ok(width),
        None => Ok(config.size("hidden_size")?),
    }
}

/// Refuses residuals that start from the norm's output instead of its input; no published model has
/// them.
pub(super) fn refuse_other_residual(config: &ModelConfig) -> Result<()> {
    if config.flag("apply_residual_connection_post_layernorm")? {
        let reason = "`apply_residual_connection_post_layernorm` is true, which is not supported";
        return Err(DecoderError::Config {
            reason: reason.into(),
        });
    }

    Ok(())
}
