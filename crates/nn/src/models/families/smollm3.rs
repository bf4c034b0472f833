//! SmolLM 3 (Hugging Face 2025): Llama in which some layers know no positions.

use super::llama_style::LlamaStyle;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::models::spec::{BlockSlot, DecoderSpec, Family};

pub(super) const FAMILY: Family = Family { model_type: "smollm3", describe };

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let read = LlamaStyle::read(config, "SmolLM3", ("rms_norm_eps", 1e-6))?;
    let smol = LlamaStyle { padding: Some(128_004), tied: true, rope_base: 2e6, ..read };
    let bias = config.flag("attention_bias", false)?;
    let spec = smol.model(vec![
        smol.attention(bias, bias),
        smol.gated_mlp(config.flag("mlp_bias", false)?),
        smol.norm("input_layernorm", BlockSlot::AttentionNorm),
        smol.norm("post_attention_layernorm", BlockSlot::MlpNorm),
    ])?;
    // 1 where a layer rotates, 0 where it does not; by default every fourth does not.
    let listed = config.value("no_rope_layers").as_array();
    let interval = config.optional_size("no_rope_layer_interval")?.unwrap_or(4);
    let rotates = |layer: usize| match listed {
        Some(list) => list.get(layer).and_then(serde_json::Value::as_u64) != Some(0),
        None => !(layer + 1).is_multiple_of(interval),
    };
    let is_windowed = config.flag("use_sliding_window", false)?;
    let window = smol.window(None)?.filter(|_| is_windowed);
    let windows = smol.windows(window, |layer| !rotates(layer))?;
    let mut spec = spec.windowed(&windows);
    for (number, layer) in spec.layers.iter_mut().enumerate() {
        layer.rope = layer.rope.filter(|_| rotates(number));
    }
    Ok(spec)
}
