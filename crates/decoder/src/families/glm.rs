//! GLM-4 (Zhipu AI 2024): Llama with a rotation of adjacent pairs in half of each head, biases of
//! queries, keys and values, and gate and up fused in one layer.

use super::llama_style::LlamaStyle;
use crate::error::Result;
use crate::slot::BlockSlot;
use crate::spec::{DecoderSpec, Family};
use crate::template::{act, linear};
use llm_int8_nn::config::{ConfigClass, ModelConfig};
use llm_int8_nn::layers::RopePairs;

pub(super) const FAMILY: Family = Family {
    model_type: "glm",
    architecture: "GlmForCausalLM",
    class: CLASS,
    describe,
};

const CLASS: ConfigClass = ConfigClass::new(
    r#"{
        "vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 13696, "num_hidden_layers": 40,
        "num_attention_heads": 32, "num_key_value_heads": 2, "partial_rotary_factor": 0.5, "head_dim": 128,
        "hidden_act": "silu", "max_position_embeddings": 131072, "rms_norm_eps": 1.5625e-7,
        "tie_word_embeddings": false, "rope_theta": 10000.0, "pad_token_id": 151329, "attention_bias": true
    }"#,
);

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let glm = LlamaStyle::read(config, "Glm")?.with_partial_rotation()?;

    let mlp = vec![
        (
            "gate_up_proj",
            linear(BlockSlot::GateUp, [2 * glm.middle, glm.hidden], false),
        ),
        (
            "down_proj",
            linear(BlockSlot::Down, [glm.hidden, glm.middle], false),
        ),
        ("activation_fn", act(glm.activation)),
    ];

    let mut spec = glm.model(vec![
        glm.attention(config.flag("attention_bias")?, false),
        glm.mlp_of(mlp),
        glm.norm("input_layernorm", BlockSlot::AttentionNorm),
        glm.norm("post_attention_layernorm", BlockSlot::MlpNorm),
    ])?;
    let ropes = spec.attention.ropes.into_iter();
    spec.attention.ropes = ropes
        .map(|rope| rope.with_pairs(RopePairs::Neighbours))
        .collect();
    Ok(spec)
}
