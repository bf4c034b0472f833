//! Qwen 2 and 2.5 (Yang et al. 2024): Llama with biases on queries, keys and values.

use super::llama_style::LlamaStyle;
use crate::error::Result;
use crate::slot::BlockSlot;
use crate::spec::{DecoderSpec, Family};
use llm_int8_nn::config::{ConfigClass, ModelConfig, RopeKind};

pub(super) const FAMILY: Family = Family {
    model_type: "qwen2",
    architecture: "Qwen2ForCausalLM",
    class: CLASS,
    describe,
};

const CLASS: ConfigClass = ConfigClass::new(
    r#"{
        "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu",
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "tie_word_embeddings": false, "rope_theta": 10000.0,
        "rope_scaling": null, "use_sliding_window": false, "sliding_window": 4096, "max_window_layers": 28,
        "layer_types": null
    }"#,
)
.with_rope_kind(RopeKind::Type);

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let qwen = LlamaStyle::read(config, "Qwen2")?;

    let spec = qwen.model(vec![
        qwen.attention(true, false),
        qwen.gated_mlp(false),
        qwen.norm("input_layernorm", BlockSlot::AttentionNorm),
        qwen.norm("post_attention_layernorm", BlockSlot::MlpNorm),
    ])?;

    Ok(spec.windowed(&late_windows(&qwen)?))
}

/// Qwen's windows: none without `use_sliding_window`, otherwise in the layers from
/// `max_window_layers` on.
pub(super) fn late_windows(qwen: &LlamaStyle<'_>) -> Result<Vec<Option<usize>>> {
    if !qwen.config.flag("use_sliding_window")? {
        return qwen.windows(None, |_| false);
    }
    let window = qwen.config.optional_size("sliding_window")?;
    let full = qwen.config.number("max_window_layers")?;
    qwen.windows(window, |layer| layer as f64 >= full)
}
