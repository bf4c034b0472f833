//! Mistral (Jiang et al. 2023): Llama with a sliding window.

use super::llama_style::LlamaStyle;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::models::spec::{BlockSlot, DecoderSpec, Family};

pub(super) const FAMILY: Family = Family { model_type: "mistral", describe };

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let mistral = LlamaStyle::read(config, "Mistral", ("rms_norm_eps", 1e-6))?;
    let spec = mistral.model(vec![
        mistral.attention(false, false),
        mistral.gated_mlp(false),
        mistral.norm("input_layernorm", BlockSlot::AttentionNorm),
        mistral.norm("post_attention_layernorm", BlockSlot::MlpNorm),
    ])?;
    Ok(spec.windowed(&mistral.windows(mistral.window(Some(4096))?, |_| true)?))
}
