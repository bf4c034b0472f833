//! Granite (IBM 2024): Llama with factors for embeddings, residuals, scores and logits.

use super::llama_style::LlamaStyle;
use crate::error::Result;
use crate::slot::BlockSlot;
use crate::spec::{DecoderSpec, Family};
use llm_int8_nn::config::{ConfigClass, ModelConfig};

pub(super) const FAMILY: Family = Family {
    model_type: "granite",
    architecture: "GraniteForCausalLM",
    class: CLASS,
    describe,
};

const CLASS: ConfigClass = ConfigClass::new(
    r#"{
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": null, "hidden_act": "silu", "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": false, "rope_theta": 10000.0, "rope_scaling": null,
        "attention_bias": false, "mlp_bias": false,
        "embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 1.0, "pad_token_id": null
    }"#,
);

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let granite = LlamaStyle::read(config, "Granite")?;
    let bias = config.flag("attention_bias")?;

    let spec = granite.model(vec![
        granite.attention(bias, bias),
        granite.gated_mlp(config.flag("mlp_bias")?),
        granite.norm("input_layernorm", BlockSlot::AttentionNorm),
        granite.norm("post_attention_layernorm", BlockSlot::MlpNorm),
    ])?;

    Ok(DecoderSpec {
        embedding_scale: config.number("embedding_multiplier")?,
        residual_scale: config.number("residual_multiplier")?,
        logit_scale: 1.0 / config.number("logits_scaling")?,
        ..spec.with_factor(config.number("attention_multiplier")?)
    })
}
