//! GPT-BigCode (Allal et al. 2023; SantaCoder, StarCoder): GPT-2 with multi-query attention.

use super::gpt2_style::{Gpt2Style, refuse_cross_attention};
use crate::error::Result;
use crate::slot::BlockSlot;
use crate::spec::{AttentionSpec, DecoderSpec, Family};
use crate::template::{BufferSpec, linear};
use llm_int8_nn::ParameterDtype;
use llm_int8_nn::config::{ConfigClass, ModelConfig};
use llm_int8_nn::layers::QkvLayout;

pub(super) const FAMILY: Family = Family {
    model_type: "gpt_bigcode",
    architecture: "GPTBigCodeForCausalLM",
    class: CLASS,
    describe,
};

const CLASS: ConfigClass = ConfigClass::new(
    r#"{
        "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": null,
        "activation_function": "gelu_pytorch_tanh", "resid_pdrop": 0.1, "embd_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5, "scale_attn_weights": true, "multi_query": true
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
    let gpt = Gpt2Style::read(config, "GPTBigCode")?;
    let (kv_heads, layout) = match config.flag("multi_query")? {
        true => (1, QkvLayout::Blocks),
        false => (gpt.heads, QkvLayout::Grouped),
    };

    let attention = vec![
        (
            "c_attn",
            linear(
                BlockSlot::Qkv,
                [gpt.hidden + 2 * kv_heads * gpt.head, gpt.hidden],
                true,
            ),
        ),
        (
            "c_proj",
            linear(BlockSlot::AttentionOut, [gpt.hidden, gpt.hidden], true),
        ),
        ("resid_dropout", gpt.residual_dropout()),
    ];

    let block = vec![
        ("ln_1", gpt.norm(BlockSlot::AttentionNorm)),
        ("attn", gpt.attention(attention)),
        ("ln_2", gpt.norm(BlockSlot::MlpNorm)),
        ("mlp", gpt.mlp(["c_fc", "c_proj"])),
    ];

    let mask = BufferSpec {
        name: "bias",
        shape: vec![gpt.positions; 2],
        dtype: Some(ParameterDtype::Bool),
    };
    let transformer = gpt.transformer(block, true).with_buffers(vec![mask]);

    let attention = AttentionSpec {
        layout,
        ..AttentionSpec::new(gpt.heads, kv_heads, gpt.head)
    };

    let spec = gpt.model("ForCausalLM", transformer, attention, false)?;
    Ok(if config.flag("scale_attn_weights")? {
        spec
    } else {
        spec.with_factor(1.0)
    })
}
