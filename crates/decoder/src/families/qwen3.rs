//! Qwen 3 (Yang et al. 2025): Llama with a norm of each head of queries and keys.

use super::llama_style::LlamaStyle;
use super::qwen2::late_windows;
use crate::error::Result;
use crate::slot::BlockSlot;
use crate::spec::{DecoderSpec, Family};
use llm_int8_nn::config::{ConfigClass, ModelConfig, RopeKind};

pub(super) const FAMILY: Family = Family {
    model_type: "qwen3",
    architecture: "Qwen3ForCausalLM",
    class: CLASS,
    describe,
};

const CLASS: ConfigClass = ConfigClass::new(
    r#"{
        "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "hidden_act": "silu",
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "tie_word_embeddings": false, "rope_theta": 10000.0,
        "rope_scaling": null, "attention_bias": false, "use_sliding_window": false, "sliding_window": 4096, "max_window_layers": 28,
        "layer_types": null
    }"#,
)
.with_rope_kind(RopeKind::Type);

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let qwen = LlamaStyle::read(config, "Qwen3")?;
    let bias = config.flag("attention_bias")?;
    let mut attention = qwen.projections(bias, "o_proj", bias);
    attention.extend(qwen.query_key_norms(("q_norm", qwen.head), ("k_norm", qwen.head)));

    let spec = qwen.model(vec![
        qwen.attention_of(attention),
        qwen.gated_mlp(false),
        qwen.norm("input_layernorm", BlockSlot::AttentionNorm),
        qwen.norm("post_attention_layernorm", BlockSlot::MlpNorm),
    ])?;

    Ok(spec.windowed(&late_windows(&qwen)?))
}
