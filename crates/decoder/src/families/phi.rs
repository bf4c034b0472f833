//! Phi 1 and 2 (Gunasekar et al. 2023): attention and MLP in parallel after one norm, a partial
//! rotation, biases everywhere.

use super::llama_style::LlamaStyle;
use crate::error::Result;
use crate::slot::BlockSlot;
use crate::spec::{DecoderSpec, Family, Residual};
use crate::template::{act, dropout};
use llm_int8_nn::config::{ConfigClass, ModelConfig, RopeKind};
use llm_int8_nn::layers::NormKind;

pub(super) const FAMILY: Family = Family {
    model_type: "phi",
    architecture: "PhiForCausalLM",
    class: CLASS,
    describe,
};

const CLASS: ConfigClass = ConfigClass::new(
    r#"{
        "vocab_size": 51200, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
        "num_attention_heads": 32, "num_key_value_heads": null, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
        "hidden_act": "gelu_new", "max_position_embeddings": 2048, "layer_norm_eps": 1e-5, "tie_word_embeddings": false,
        "rope_theta": 10000.0, "rope_scaling": null, "partial_rotary_factor": 0.5, "qk_layernorm": false
    }"#,
)
.with_rope_kind(RopeKind::Type);

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let read = LlamaStyle::read_keys(config, "Phi", "layer_norm_eps", "hidden_act")?;
    let phi = LlamaStyle {
        norm: NormKind::Layer,
        ..read.with_partial_rotation()?
    };

    let mut attention = phi.projections(true, "dense", true);
    if config.flag("qk_layernorm")? {
        attention.extend(phi.query_key_norms(("q_layernorm", phi.head), ("k_layernorm", phi.head)));
    }

    let mut mlp = vec![("activation_fn", act(phi.activation))];
    mlp.extend(phi.plain_mlp(["fc1", "fc2"], true));

    let block = vec![
        phi.attention_of(attention),
        phi.mlp_of(mlp),
        phi.norm("input_layernorm", BlockSlot::AttentionNorm),
        ("resid_dropout", dropout(config, "resid_pdrop")?),
    ];

    let children = vec![
        phi.tokens()?,
        phi.blocks(block),
        phi.rotary_module(),
        ("embed_dropout", dropout(config, "embd_pdrop")?),
        phi.final_norm("final_layernorm"),
    ];

    let spec = phi
        .model_of("PhiModel".into(), children, true)?
        .rotated(phi.rope()?);
    Ok(DecoderSpec {
        residual: Residual::Parallel,
        ..spec
    })
}
