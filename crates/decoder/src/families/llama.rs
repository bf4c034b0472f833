//! Llama (Touvron et al. 2023): RMS norms, rotary positions, grouped-query attention, a gated MLP.

use super::llama_style::LlamaStyle;
use crate::error::Result;
use crate::slot::BlockSlot;
use crate::spec::{DecoderSpec, Family};
use llm_int8_nn::config::{ConfigClass, ModelConfig, RopeKind};

pub(super) const FAMILY: Family = Family {
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    class: CLASS,
    describe,
};

const CLASS: ConfigClass = ConfigClass::new(
    r#"{
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": null, "hidden_act": "silu", "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": false, "rope_theta": 10000.0, "rope_scaling": null,
        "attention_bias": false, "mlp_bias": false, "head_dim": null, "pad_token_id": null
    }"#,
)
.with_rope_kind(RopeKind::Type);

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let llama = LlamaStyle::read(config, "Llama")?;
    let bias = config.flag("attention_bias")?;
    llama.model(vec![
        llama.attention(bias, bias),
        llama.gated_mlp(config.flag("mlp_bias")?),
        llama.norm("input_layernorm", BlockSlot::AttentionNorm),
        llama.norm("post_attention_layernorm", BlockSlot::MlpNorm),
    ])
}
