//! Gemma 2 (Gemma team 2024): norms before and after, soft caps, every other layer with a window, scaled
//! embeddings.

use super::llama_style::LlamaStyle;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::layers::{Activation, NormKind};
use crate::models::spec::{BlockSlot, DecoderSpec, Family};
use crate::models::template::Children;

pub(super) const FAMILY: Family = Family { model_type: "gemma2", describe };

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let gemma = style(config, "Gemma2")?;
    let bias = config.flag("attention_bias", false)?;
    let spec = gemma.model(block(&gemma, gemma.projections(bias, "o_proj", bias)))?;
    let windows = gemma.windows(gemma.window(Some(4096))?, |layer| layer % 2 == 0)?;
    scaled(spec.windowed(&windows), &gemma, [Some(50.0), Some(30.0)])
}

/// What both Gemmas read from config.json.
pub(super) fn style<'a>(config: &'a ModelConfig, class: &'static str) -> Result<LlamaStyle<'a>> {
    let read = LlamaStyle::read(config, class, ("rms_norm_eps", 1e-6))?.with_head(256)?;
    let activation = Activation::from_name(config.text("hidden_activation", "gelu_pytorch_tanh")?)?;
    Ok(LlamaStyle { activation, norm: NormKind::RmsPlusOne, padding: Some(0), tied: true, ..read })
}

/// A block with norms before and after attention and MLP.
pub(super) fn block(gemma: &LlamaStyle<'_>, attention: Children) -> Children {
    vec![
        gemma.attention_of(attention),
        gemma.gated_mlp(false),
        gemma.norm("input_layernorm", BlockSlot::AttentionNorm),
        gemma.norm("post_attention_layernorm", BlockSlot::AttentionPostNorm),
        gemma.norm("pre_feedforward_layernorm", BlockSlot::MlpNorm),
        gemma.norm("post_feedforward_layernorm", BlockSlot::MlpPostNorm),
    ]
}

/// Gemma's factors, and its soft caps of attention and logits where config.json does not speak of them.
pub(super) fn scaled(
    mut spec: DecoderSpec,
    gemma: &LlamaStyle<'_>,
    [attention_cap, logit_cap]: [Option<f64>; 2],
) -> Result<DecoderSpec> {
    let cap = |key: &str, default: Option<f64>| match gemma.config.value(key).is_null() {
        true => Ok(default.filter(|_| !gemma.config.has(key))),
        false => gemma.config.number(key, 0.0).map(Some),
    };
    spec.embedding_scale = (gemma.hidden as f64).sqrt();
    spec.attention.softcap = cap("attn_logit_softcapping", attention_cap)?;
    spec.logit_softcap = cap("final_logit_softcapping", logit_cap)?;
    Ok(spec.with_factor(gemma.config.number("query_pre_attn_scalar", 256.0)?.powf(-0.5)))
}
