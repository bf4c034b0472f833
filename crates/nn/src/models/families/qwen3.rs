//! Qwen 3 (Yang et al. 2025): Llama with norms of every head of queries and keys.

use super::llama_style::LlamaStyle;
use super::qwen2::late_windows;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::models::spec::{BlockSlot, DecoderSpec, Family};

pub(super) const FAMILY: Family = Family { model_type: "qwen3", describe };

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let qwen = LlamaStyle::read(config, "Qwen3", ("rms_norm_eps", 1e-6))?.with_head(128)?;
    let bias = config.flag("attention_bias", false)?;
    let mut attention = qwen.projections(bias, "o_proj", bias);
    attention.extend(qwen.query_key_norms(["q_norm", "k_norm"], [qwen.head; 2]));
    let spec = qwen.model(vec![
        qwen.attention_of(attention),
        qwen.gated_mlp(false),
        qwen.norm("input_layernorm", BlockSlot::AttentionNorm),
        qwen.norm("post_attention_layernorm", BlockSlot::MlpNorm),
    ])?;
    Ok(spec.windowed(&late_windows(&qwen)?))
}
