//! Phi 3, 3.5 and 4 (Abdin et al. 2024): Llama with queries, keys and values fused in one layer,
//! gate and up in another, and LongRoPE.

use super::llama_style::LlamaStyle;
use crate::error::{DecoderError, Result};
use crate::slot::BlockSlot;
use crate::spec::{DecoderSpec, Family};
use crate::template::{act, dropout, linear};
use llm_int8_nn::config::{ConfigClass, ModelConfig, RopeKind};

pub(super) const FAMILY: Family = Family {
    model_type: "phi3",
    architecture: "Phi3ForCausalLM",
    class: CLASS,
    describe,
};

const CLASS: ConfigClass = ConfigClass::new(
    r#"{
        "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": null, "resid_pdrop": 0.0, "hidden_act": "silu",
        "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": false, "rope_theta": 10000.0, "rope_scaling": null, "partial_rotary_factor": 1.0,
        "pad_token_id": 32000, "sliding_window": null
    }"#,
)
.with_rope_kind(RopeKind::Phi3);

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let kind = config
        .object("rope_scaling")
        .map(|scaling| &scaling["rope_type"]);
    if let Some(kind) = kind.filter(|kind| *kind != "longrope") {
        let reason = format!("`rope_scaling` is of type {kind}; Phi 3 supports only longrope");
        return Err(DecoderError::Config { reason });
    }
    let phi = LlamaStyle::read(config, "Phi3")?.with_partial_rotation()?;
    let queries = phi.heads * phi.head;
    let qkv = (phi.heads + 2 * phi.kv_heads) * phi.head;

    let attention = vec![
        (
            "o_proj",
            linear(BlockSlot::AttentionOut, [phi.hidden, queries], false),
        ),
        ("qkv_proj", linear(BlockSlot::Qkv, [qkv, phi.hidden], false)),
    ];

    let mlp = vec![
        (
            "gate_up_proj",
            linear(BlockSlot::GateUp, [2 * phi.middle, phi.hidden], false),
        ),
        (
            "down_proj",
            linear(BlockSlot::Down, [phi.hidden, phi.middle], false),
        ),
        ("activation_fn", act(phi.activation)),
    ];

    let spec = phi.model(vec![
        phi.attention_of(attention),
        phi.mlp_of(mlp),
        phi.norm("input_layernorm", BlockSlot::AttentionNorm),
        phi.norm("post_attention_layernorm", BlockSlot::MlpNorm),
        ("resid_attn_dropout", dropout(config, "resid_pdrop")?),
        ("resid_mlp_dropout", dropout(config, "resid_pdrop")?),
    ])?;

    Ok(spec.windowed(&phi.same_windows()?))
}
