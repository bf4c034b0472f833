//! GPT-2 (Radford et al. 2019): learned positions, layer norms, queries, keys and values in one
//! layer, GELU. Its linear layers are `Conv1D`, which store their weights transposed.

use super::gpt2_style::{Gpt2Style, refuse_cross_attention};
use crate::error::Result;
use crate::slot::BlockSlot;
use crate::spec::{AttentionSpec, DecoderSpec, Family};
use crate::template::{BufferSpec, conv1d, dropout};
use llm_int8_nn::ParameterDtype;
use llm_int8_nn::config::{ConfigClass, ModelConfig};

pub(super) const FAMILY: Family = Family {
    model_type: "gpt2",
    architecture: "GPT2LMHeadModel",
    class: CLASS,
    describe,
};

const CLASS: ConfigClass = ConfigClass::new(
    r#"{
        "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": null,
        "activation_function": "gelu_new", "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5, "scale_attn_weights": true, "scale_attn_by_inverse_layer_idx": false
    }"#,
)
.with_aliases(&[
    ("hidden_size", "n_embd"),
    ("max_position_embeddings", "n_positions"),
    ("num_attention_heads", "n_head"),
    ("num_hidden_layers", "n_layer"),
]);

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    refuse_cross_attention(config)?;
    let gpt = Gpt2Style::read(config, "GPT2")?;
    let (hidden, middle) = (gpt.hidden, gpt.middle);

    let attention = gpt.attention(vec![
        ("c_attn", conv1d(BlockSlot::Qkv, [3 * hidden, hidden])),
        ("c_proj", conv1d(BlockSlot::AttentionOut, [hidden, hidden])),
        ("attn_dropout", dropout(config, "attn_pdrop")?),
        ("resid_dropout", gpt.residual_dropout()),
    ]);

    let mlp = gpt.mlp_of(vec![
        ("c_fc", conv1d(BlockSlot::Up, [middle, hidden])),
        ("c_proj", conv1d(BlockSlot::Down, [hidden, middle])),
    ]);

    let block = vec![
        ("ln_1", gpt.norm(BlockSlot::AttentionNorm)),
        ("attn", attention.with_buffers(causal_mask(gpt.positions))),
        ("ln_2", gpt.norm(BlockSlot::MlpNorm)),
        ("mlp", mlp),
    ];

    let attention = AttentionSpec::new(gpt.heads, gpt.heads, gpt.head);
    let mut spec = gpt.model(
        "LMHeadModel",
        gpt.transformer(block, true),
        attention,
        false,
    )?;
    // transformers implements both keys in its eager attention only.
    if !config.flag("scale_attn_weights")? {
        spec = spec.with_factor(1.0);
    }
    if config.flag("scale_attn_by_inverse_layer_idx")? {
        spec.layers
            .iter_mut()
            .zip(1u32..)
            .for_each(|(layer, number)| layer.factor /= f64::from(number));
    }

    Ok(spec)
}

/// The causal mask, which transformers registers as buffers.
pub(super) fn causal_mask(positions: usize) -> Vec<BufferSpec> {
    vec![
        BufferSpec {
            name: "bias",
            shape: vec![1, 1, positions, positions],
            dtype: Some(ParameterDtype::Bool),
        },
        BufferSpec {
            name: "masked_bias",
            shape: vec![],
            dtype: None,
        },
    ]
}
