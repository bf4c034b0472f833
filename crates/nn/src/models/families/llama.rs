//! Llama (Touvron et al. 2023): RMS norms, rotary positions, grouped heads, a gated MLP.

use super::llama_style::LlamaStyle;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::models::spec::{BlockSlot, DecoderSpec, Family};

pub(super) const FAMILY: Family = Family { model_type: "llama", describe };

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let llama = LlamaStyle::read(config, "Llama", ("rms_norm_eps", 1e-6))?;
    let bias = config.flag("attention_bias", false)?;
    llama.model(vec![
        llama.attention(bias, bias),
        llama.gated_mlp(config.flag("mlp_bias", false)?),
        llama.norm("input_layernorm", BlockSlot::AttentionNorm),
        llama.norm("post_attention_layernorm", BlockSlot::MlpNorm),
    ])
}
