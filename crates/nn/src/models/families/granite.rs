//! Granite (IBM 2024): Llama with four multipliers.

use super::llama_style::LlamaStyle;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::models::spec::{BlockSlot, DecoderSpec, Family};

pub(super) const FAMILY: Family = Family { model_type: "granite", describe };

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let granite = LlamaStyle::read(config, "Granite", ("rms_norm_eps", 1e-6))?;
    let bias = config.flag("attention_bias", false)?;
    let spec = granite.model(vec![
        granite.attention(bias, bias),
        granite.gated_mlp(config.flag("mlp_bias", false)?),
        granite.norm("input_layernorm", BlockSlot::AttentionNorm),
        granite.norm("post_attention_layernorm", BlockSlot::MlpNorm),
    ])?;
    Ok(DecoderSpec {
        embedding_scale: config.number("embedding_multiplier", 1.0)?,
        residual_scale: config.number("residual_multiplier", 1.0)?,
        logit_scale: 1.0 / config.number("logits_scaling", 1.0)?,
        ..spec.with_factor(config.number("attention_multiplier", 1.0)?)
    })
}
