//! MPT (MosaicML 2023): ALiBi, no biases in norms and linear layers, clamped queries, keys and
//! values.

use super::llama_style::head_size;
use crate::error::{DecoderError, Result};
use crate::slot::{BlockSlot, ModelSlot};
use crate::spec::{AttentionSpec, DecoderSpec, Family};
use crate::template::{
    Children, NormSpec, act, blocks, container, dropout, layer_norm, linear, model_linear,
    model_norm, norm, table,
};
use llm_int8_nn::config::{ConfigClass, ModelConfig};
use llm_int8_nn::layers::{Activation, Alibi, NormKind};

pub(super) const FAMILY: Family = Family {
    model_type: "mpt",
    architecture: "MptForCausalLM",
    class: CLASS,
    describe,
};

const CLASS: ConfigClass = ConfigClass::new(
    r#"{
        "d_model": 2048, "n_heads": 16, "n_layers": 24, "max_seq_len": 2048, "vocab_size": 50368,
        "layer_norm_epsilon": 1e-5, "attn_config": null
    }"#,
)
.with_aliases(&[
    ("num_attention_heads", "n_heads"),
    ("hidden_size", "d_model"),
    ("num_hidden_layers", "n_layers"),
]);

/// The class of `attn_config`, `MptAttentionConfig`.
const ATTENTION_CLASS: ConfigClass = ConfigClass::new(
    r#"{
        "attn_type": "multihead_attention", "attn_pdrop": 0, "clip_qkv": null, "softmax_scale": null,
        "prefix_lm": false, "qk_ln": false, "attn_uses_sequence_id": false, "alibi": true, "alibi_bias_max": 8
    }"#,
);

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let hidden = config.size("d_model")?;
    let heads = config.size("n_heads")?;
    let vocab = config.size("vocab_size")?;
    let positions = config.size("max_seq_len")?;
    let eps = config.number("layer_norm_epsilon")?;
    let scores = attention_config(config)?;
    let norm_spec = NormSpec {
        kind: NormKind::LayerWithoutBias,
        ..layer_norm(hidden, eps)
    };

    let model = vec![
        ("wte", table(ModelSlot::Tokens, [vocab, hidden], None)),
        ("blocks", blocks("MptBlock", block(&scores, &norm_spec)?)),
        ("norm_f", model_norm(ModelSlot::FinalNorm, norm_spec)),
    ];

    let lm_head = model_linear(ModelSlot::Head, [vocab, hidden], false);
    let tree = container(
        "MptForCausalLM",
        vec![
            ("transformer", container("MptModel", model)),
            ("lm_head", lm_head),
        ],
    );
    let head = head_size(hidden, heads)?;

    let attention = AttentionSpec {
        qkv_clamp: scores
            .optional_number("clip_qkv")?
            .filter(|limit| *limit != 0.0),
        alibi: Some(Alibi::mpt(heads, scores.number("alibi_bias_max")?)),
        ..AttentionSpec::new(heads, heads, head)
    };

    let spec = DecoderSpec {
        positions,
        tied_head: config.flag("tie_word_embeddings")?,
        optional_prefix: "transformer.",
        ..DecoderSpec::plain(
            tree,
            hidden,
            attention,
            config.size("n_layers")?,
            Activation::TorchGelu,
        )?
    };

    Ok(match scores.optional_number("softmax_scale")? {
        Some(factor) => spec.with_factor(factor),
        None => spec,
    })
}

/// The children of a block.
fn block(scores: &ModelConfig, norm_spec: &NormSpec) -> Result<Children> {
    let hidden = norm_spec.width;

    let attention = vec![
        ("Wqkv", linear(BlockSlot::Qkv, [3 * hidden, hidden], false)),
        (
            "out_proj",
            linear(BlockSlot::AttentionOut, [hidden, hidden], false),
        ),
    ];

    let mlp = vec![
        (
            "up_proj",
            linear(BlockSlot::Up, [4 * hidden, hidden], false),
        ),
        ("act", act(Activation::TorchGelu)),
        (
            "down_proj",
            linear(BlockSlot::Down, [hidden, 4 * hidden], false),
        ),
    ];

    Ok(vec![
        ("norm_1", norm(BlockSlot::AttentionNorm, norm_spec.clone())),
        ("attn", container("MptAttention", attention)),
        ("norm_2", norm(BlockSlot::MlpNorm, norm_spec.clone())),
        ("ffn", container("MptMLP", mlp)),
        ("resid_attn_dropout", dropout(scores, "attn_pdrop")?),
    ])
}

/// Reads `attn_config`.
///
/// # Errors
/// [`DecoderError::Config`] for settings that transformers ignores although the model needs them:
/// its output would not be the authors'.
fn attention_config(config: &ModelConfig) -> Result<ModelConfig> {
    let refuse = |reason: String| Err(DecoderError::Config { reason });
    if !config.value("attn_config").is_null() && config.object("attn_config").is_none() {
        return refuse(format!(
            "`attn_config` is {}; an object was expected",
            config.value("attn_config")
        ));
    }
    let scores = config.nested("attn_config").of_class(&ATTENTION_CLASS)?;
    let kind = scores.text("attn_type")?;
    if kind != "multihead_attention" {
        return refuse(format!(
            "`attn_config.attn_type` is `{kind}`; multihead_attention is supported"
        ));
    }
    for (key, needed) in [("alibi", true), ("qk_ln", false), ("prefix_lm", false)] {
        if scores.flag(key)? != needed {
            return refuse(format!(
                "`attn_config.{key}` is {}, which is not supported",
                scores.value(key)
            ));
        }
    }

    Ok(scores)
}
