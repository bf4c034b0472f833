//! StableLM (Stability AI 2023): layer norms, a partial rotation, a gated MLP.

use super::llama_style::LlamaStyle;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::layers::NormKind;
use crate::models::spec::{BlockSlot, DecoderSpec, Family, Residual};
use crate::models::template::{NormSpec, container, dropout, head_norms, layer_norm};

pub(super) const FAMILY: Family = Family { model_type: "stablelm", describe };

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let read = LlamaStyle::read(config, "StableLm", ("layer_norm_eps", 1e-5))?;
    let stable = LlamaStyle { norm: NormKind::Layer, ..read.with_partial_rotation(0.25)? };
    let is_parallel = config.flag("use_parallel_residual", false)?;
    let mut attention = stable.projections(config.flag("use_qkv_bias", false)?, "o_proj", false);
    if config.flag("qk_layernorm", false)? {
        for (name, slot, heads) in [
            ("q_layernorm", BlockSlot::QueryNorm, stable.heads),
            ("k_layernorm", BlockSlot::KeyNorm, stable.kv_heads),
        ] {
            let norm = NormSpec { kind: NormKind::LayerWithoutBias, ..layer_norm(stable.head, stable.eps) };
            let norms = vec![("norms", head_norms(slot, norm, heads))];
            attention.push((name, container("StableLmLayerNormPerHead", norms)));
        }
    }
    attention.push(("attention_dropout", dropout(config, "attention_dropout", 0.0)?));
    attention.push(stable.rotary_module());
    let mut block = vec![
        ("self_attn", container("StableLmSdpaAttention", attention)),
        stable.gated_mlp(false),
        stable.norm("input_layernorm", BlockSlot::AttentionNorm),
    ];
    if !is_parallel {
        block.push(stable.norm("post_attention_layernorm", BlockSlot::MlpNorm));
    }
    block.push(("dropout", dropout(config, "hidden_dropout", 0.0)?));
    let residual = if is_parallel { Residual::Parallel } else { Residual::Sequential };
    Ok(DecoderSpec { residual, ..stable.model(block)? })
}
