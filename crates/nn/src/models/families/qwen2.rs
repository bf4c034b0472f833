//! Qwen 2 and 2.5 (Yang et al. 2024): Llama with biases on queries, keys and values.

use super::llama_style::LlamaStyle;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::models::spec::{BlockSlot, DecoderSpec, Family};

pub(super) const FAMILY: Family = Family { model_type: "qwen2", describe };

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let qwen = LlamaStyle::read(config, "Qwen2", ("rms_norm_eps", 1e-6))?;
    let spec = qwen.model(vec![
        qwen.attention(true, false),
        qwen.gated_mlp(false),
        qwen.norm("input_layernorm", BlockSlot::AttentionNorm),
        qwen.norm("post_attention_layernorm", BlockSlot::MlpNorm),
    ])?;
    Ok(spec.windowed(&late_windows(&qwen)?))
}

/// Qwen's windows: with `use_sliding_window`, in the layers from `max_window_layers` on.
pub(super) fn late_windows(qwen: &LlamaStyle<'_>) -> Result<Vec<Option<usize>>> {
    let is_used = qwen.config.flag("use_sliding_window", false)?;
    let window = qwen.window(Some(4096))?.filter(|_| is_used);
    let full = qwen.config.number("max_window_layers", 28.0)? as usize;
    qwen.windows(window, |layer| layer >= full)
}
