//! StableLM (Stability AI 2023): Llama with layer norms, a partial rotation, and in some models
//! norms of queries and keys with weights for each head.

use super::llama_style::{LlamaStyle, shared_head_size};
use crate::error::Result;
use crate::slot::BlockSlot;
use crate::spec::{DecoderSpec, Family, Residual};
use crate::template::{NormSpec, container, dropout, head_norms, layer_norm};
use llm_int8_nn::config::{ConfigClass, ModelConfig, RopeKind};
use llm_int8_nn::layers::NormKind;

pub(super) const FAMILY: Family = Family {
    model_type: "stablelm",
    architecture: "StableLmForCausalLM",
    class: CLASS,
    describe,
};

const CLASS: ConfigClass = ConfigClass::new(
    r#"{
        "vocab_size": 50304, "intermediate_size": 6912, "hidden_size": 2560, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu", "max_position_embeddings": 4096,
        "layer_norm_eps": 1e-5, "tie_word_embeddings": false, "rope_theta": 10000, "rope_scaling": null,
        "use_qkv_bias": false, "qk_layernorm": false, "use_parallel_residual": false, "hidden_dropout": 0.0,
        "attention_dropout": 0.0, "partial_rotary_factor": 0.25
    }"#,
)
.with_rope_kind(RopeKind::Type);

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let read = LlamaStyle::read_keys(config, "StableLm", "layer_norm_eps", "hidden_act")?;
    shared_head_size(config, read.hidden, read.heads)?;
    let stable = LlamaStyle {
        norm: NormKind::Layer,
        ..read.with_partial_rotation()?
    };
    let is_parallel = config.flag("use_parallel_residual")?;
    let mut attention = stable.projections(config.flag("use_qkv_bias")?, "o_proj", false);
    if config.flag("qk_layernorm")? {
        for (name, slot, heads) in [
            ("q_layernorm", BlockSlot::QueryNorm, stable.heads),
            ("k_layernorm", BlockSlot::KeyNorm, stable.kv_heads),
        ] {
            let norm = NormSpec {
                kind: NormKind::LayerWithoutBias,
                ..layer_norm(stable.head, stable.eps)
            };
            let norms = vec![("norms", head_norms(slot, norm, heads))];
            attention.push((name, container("StableLmLayerNormPerHead", norms)));
        }
    }
    attention.push(("attention_dropout", dropout(config, "attention_dropout")?));
    attention.push(stable.rotary_module());

    let mut block = vec![
        ("self_attn", container("StableLmSdpaAttention", attention)),
        stable.gated_mlp(false),
        stable.norm("input_layernorm", BlockSlot::AttentionNorm),
    ];
    if !is_parallel {
        block.push(stable.norm("post_attention_layernorm", BlockSlot::MlpNorm));
    }
    block.push(("dropout", dropout(config, "hidden_dropout")?));
    let residual = if is_parallel {
        Residual::Parallel
    } else {
        Residual::Sequential
    };

    Ok(DecoderSpec {
        residual,
        ..stable.model(block)?
    })
}
