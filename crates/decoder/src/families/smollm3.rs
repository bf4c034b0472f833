//! SmolLM 3 (Hugging Face 2025): Llama without a rotation in some layers (NoPE).

use super::llama_style::LlamaStyle;
use crate::error::{DecoderError, Result};
use crate::slot::BlockSlot;
use crate::spec::{DecoderSpec, Family};
use llm_int8_nn::config::{ConfigClass, ModelConfig, RopeKind};
use serde_json::Value;

pub(super) const FAMILY: Family = Family {
    model_type: "smollm3",
    architecture: "SmolLM3ForCausalLM",
    class: CLASS,
    describe,
};

const CLASS: ConfigClass = ConfigClass::new(
    r#"{
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 4, "hidden_act": "silu", "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6, "pad_token_id": 128004, "rope_theta": 2000000.0, "rope_scaling": null,
        "use_sliding_window": false, "sliding_window": null, "no_rope_layers": null, "no_rope_layer_interval": 4,
        "layer_types": null, "attention_bias": false, "mlp_bias": false
    }"#,
)
.with_rope_kind(RopeKind::Type);

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let smol = LlamaStyle::read(config, "SmolLM3")?;
    let bias = config.flag("attention_bias")?;

    let spec = smol.model(vec![
        smol.attention(bias, bias),
        smol.gated_mlp(config.flag("mlp_bias")?),
        smol.norm("input_layernorm", BlockSlot::AttentionNorm),
        smol.norm("post_attention_layernorm", BlockSlot::MlpNorm),
    ])?;
    let rotates = rotating_layers(&smol)?;

    let is_windowed = config.flag("use_sliding_window")?;
    let window = config
        .optional_size("sliding_window")?
        .filter(|_| is_windowed);
    let mut spec = spec.windowed(&smol.windows(window, |layer| !rotates[layer])?);
    spec.layers
        .iter_mut()
        .zip(rotates)
        .for_each(|(layer, rotates)| layer.rope = layer.rope.filter(|_| rotates));
    Ok(spec)
}

/// Which layers rotate: those with a 1 in `no_rope_layers`. Without that list, all but every
/// `no_rope_layer_interval`-th.
fn rotating_layers(smol: &LlamaStyle<'_>) -> Result<Vec<bool>> {
    let layers = DecoderSpec::check_layers(smol.layers)?;
    let listed = smol.config.value("no_rope_layers");
    if listed.is_null() {
        let interval = smol.config.size("no_rope_layer_interval")?;
        return Ok((0..layers)
            .map(|layer| !(layer + 1).is_multiple_of(interval))
            .collect());
    }
    let rotates = |value: &Value| value.as_i64().map(|flag| flag != 0).or(value.as_bool());
    let list = listed
        .as_array()
        .and_then(|list| list.iter().map(rotates).collect::<Option<Vec<bool>>>());
    list.filter(|list| list.len() >= layers)
        .ok_or_else(|| DecoderError::Config {
            reason: format!(
                "`no_rope_layers` is {listed}; a 0 or 1 for each of {layers} layers was expected"
            ),
        })
}
