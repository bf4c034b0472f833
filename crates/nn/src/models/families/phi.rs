//! Phi 1 and 2 (Gunasekar et al. 2023): attention and MLP side by side behind one norm, biases everywhere.

use super::llama_style::LlamaStyle;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::layers::{Activation, NormKind};
use crate::models::spec::{BlockSlot, DecoderSpec, Family, Residual};
use crate::models::template::{act, dropout};

pub(super) const FAMILY: Family = Family { model_type: "phi", describe };

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let read = LlamaStyle::read(config, "Phi", ("layer_norm_eps", 1e-5))?.with_partial_rotation(0.5)?;
    let activation = Activation::from_name(config.text("hidden_act", "gelu_new")?)?;
    let phi = LlamaStyle { activation, norm: NormKind::Layer, ..read };
    let mut attention = phi.projections(true, "dense", true);
    if config.flag("qk_layernorm", false)? {
        attention.extend(phi.query_key_norms(["q_layernorm", "k_layernorm"], [phi.head; 2]));
    }
    let mut mlp = vec![("activation_fn", act(activation))];
    mlp.extend(phi.plain_mlp(["fc1", "fc2"], true));
    let block = vec![
        phi.attention_of(attention),
        phi.mlp_of(mlp),
        phi.norm("input_layernorm", BlockSlot::AttentionNorm),
        ("resid_dropout", dropout(config, "resid_pdrop", 0.0)?),
    ];
    let children = vec![
        phi.tokens(),
        phi.blocks(block),
        phi.rotary_module(),
        ("embed_dropout", dropout(config, "embd_pdrop", 0.0)?),
        phi.final_norm("final_layernorm"),
    ];
    let spec = phi.model_of("PhiModel".into(), children, true)?.rotated(phi.rope()?);
    Ok(DecoderSpec { residual: Residual::Parallel, ..spec })
}
