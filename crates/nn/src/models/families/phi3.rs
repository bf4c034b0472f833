//! Phi 3, 3.5 and 4 (Abdin et al. 2024): Llama with one product for queries, keys and values and one for
//! gate and up, and LongRoPE.

use super::llama_style::LlamaStyle;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::models::spec::{BlockSlot, DecoderSpec, Family};
use crate::models::template::{act, dropout, linear};

pub(super) const FAMILY: Family = Family { model_type: "phi3", describe };

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let read = LlamaStyle::read(config, "Phi3", ("rms_norm_eps", 1e-5))?.with_partial_rotation(1.0)?;
    let phi = LlamaStyle { padding: Some(32_000), ..read };
    let (wide, all) = (phi.heads * phi.head, (phi.heads + 2 * phi.kv_heads) * phi.head);
    let attention = vec![
        ("o_proj", linear(BlockSlot::AttentionOut, [phi.hidden, wide], false)),
        ("qkv_proj", linear(BlockSlot::Qkv, [all, phi.hidden], false)),
    ];
    let mlp = vec![
        ("gate_up_proj", linear(BlockSlot::GateUp, [2 * phi.middle, phi.hidden], false)),
        ("down_proj", linear(BlockSlot::Down, [phi.hidden, phi.middle], false)),
        ("activation_fn", act(phi.activation)),
    ];
    let spec = phi.model(vec![
        phi.attention_of(attention),
        phi.mlp_of(mlp),
        phi.norm("input_layernorm", BlockSlot::AttentionNorm),
        phi.norm("post_attention_layernorm", BlockSlot::MlpNorm),
        ("resid_attn_dropout", dropout(config, "resid_pdrop", 0.0)?),
        ("resid_mlp_dropout", dropout(config, "resid_pdrop", 0.0)?),
    ])?;
    Ok(spec.windowed(&phi.windows(phi.window(None)?, |_| true)?))
}
