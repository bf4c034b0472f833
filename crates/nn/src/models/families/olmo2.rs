//! OLMo 2 (OLMo team 2024): norms after attention and MLP, and of all queries and keys at once.

use super::llama_style::LlamaStyle;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::models::spec::{BlockSlot, DecoderSpec, Family};

pub(super) const FAMILY: Family = Family { model_type: "olmo2", describe };

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let read = LlamaStyle::read(config, "Olmo2", ("rms_norm_eps", 1e-5))?;
    let olmo = LlamaStyle { padding: Some(1), ..read };
    let bias = config.flag("attention_bias", false)?;
    let mut attention = olmo.projections(bias, "o_proj", bias);
    let widths = [olmo.heads * olmo.head, olmo.kv_heads * olmo.head];
    attention.extend(olmo.query_key_norms(["q_norm", "k_norm"], widths));
    olmo.model(vec![
        olmo.attention_of(attention),
        olmo.gated_mlp(false),
        olmo.norm("post_attention_layernorm", BlockSlot::AttentionPostNorm),
        olmo.norm("post_feedforward_layernorm", BlockSlot::MlpPostNorm),
    ])
}
