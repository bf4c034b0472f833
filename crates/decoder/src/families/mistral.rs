//! Mistral (Jiang et al. 2023): Llama with a sliding window.

use super::llama_style::LlamaStyle;
use crate::error::Result;
use crate::slot::BlockSlot;
use crate::spec::{DecoderSpec, Family};
use llm_int8_nn::config::{ConfigClass, ModelConfig};

pub(super) const FAMILY: Family = Family {
    model_type: "mistral",
    architecture: "MistralForCausalLM",
    class: CLASS,
    describe,
};

const CLASS: ConfigClass = ConfigClass::new(
    r#"{
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": null, "hidden_act": "silu",
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "tie_word_embeddings": false, "rope_theta": 10000.0,
        "sliding_window": 4096, "pad_token_id": null
    }"#,
);

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    // transformers loads a Mistral with this key as a Ministral, which differs only in the names of
    // classes and in windows for each layer.
    let is_ministral = config.has("layer_types");
    let mistral = LlamaStyle::read(config, if is_ministral { "Ministral" } else { "Mistral" })?;

    let spec = mistral.model(vec![
        mistral.attention(false, false),
        mistral.gated_mlp(false),
        mistral.norm("input_layernorm", BlockSlot::AttentionNorm),
        mistral.norm("post_attention_layernorm", BlockSlot::MlpNorm),
    ])?;

    let windows = match is_ministral {
        true => mistral.windows(config.optional_size("sliding_window")?, |_| true)?,
        false => mistral.same_windows()?,
    };

    Ok(spec.windowed(&windows))
}
