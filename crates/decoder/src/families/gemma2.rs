//! Gemma 2 (Gemma team 2024): Llama with norms after attention and MLP as well as before them, soft
//! caps of scores and logits, a sliding window in every other layer, and scaled embeddings.

use super::llama_style::LlamaStyle;
use crate::error::Result;
use crate::slot::BlockSlot;
use crate::spec::{DecoderSpec, Family};
use crate::template::Children;
use llm_int8_nn::config::{ConfigClass, ModelConfig};
use llm_int8_nn::layers::NormKind;

pub(super) const FAMILY: Family = Family {
    model_type: "gemma2",
    architecture: "Gemma2ForCausalLM",
    class: CLASS,
    describe,
};

const CLASS: ConfigClass = ConfigClass::new(
    r#"{
        "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "pad_token_id": 0, "tie_word_embeddings": true,
        "rope_theta": 10000.0, "attention_bias": false, "query_pre_attn_scalar": 256, "sliding_window": 4096,
        "layer_types": null, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0
    }"#,
);

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let gemma = style(config, "Gemma2")?;
    let bias = config.flag("attention_bias")?;
    let spec = gemma.model(block(&gemma, gemma.projections(bias, "o_proj", bias)))?;
    let windows = gemma.windows(Some(config.size("sliding_window")?), |layer| layer % 2 == 0)?;
    let mut spec = scaled(spec.windowed(&windows), &gemma)?;
    spec.attention.softcap = config.optional_number("attn_logit_softcapping")?;
    Ok(spec)
}

/// Reads the keys of config.json that Gemma 2 and 3 share.
pub(super) fn style<'a>(config: &'a ModelConfig, class: &'static str) -> Result<LlamaStyle<'a>> {
    let read = LlamaStyle::read_keys(config, class, "rms_norm_eps", "hidden_activation")?;
    Ok(LlamaStyle {
        norm: NormKind::RmsPlusOne,
        ..read
    })
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

/// Sets Gemma's scales of embeddings and scores, and its soft cap of logits.
pub(super) fn scaled(mut spec: DecoderSpec, gemma: &LlamaStyle<'_>) -> Result<DecoderSpec> {
    spec.embedding_scale = (gemma.hidden as f64).sqrt();
    spec.logit_softcap = gemma.config.optional_number("final_logit_softcapping")?;
    Ok(spec.with_factor(gemma.config.number("query_pre_attn_scalar")?.powf(-0.5)))
}
