//! OLMo 2 (OLMo team 2024): Llama with norms after attention and MLP instead of before them, and
//! with norms over all heads of the queries and of the keys.

use super::llama_style::LlamaStyle;
use crate::error::Result;
use crate::slot::BlockSlot;
use crate::spec::{DecoderSpec, Family};
use llm_int8_nn::config::{ConfigClass, ModelConfig};

pub(super) const FAMILY: Family = Family {
    model_type: "olmo2",
    architecture: "Olmo2ForCausalLM",
    class: CLASS,
    describe,
};

const CLASS: ConfigClass = ConfigClass::new(
    r#"{
        "vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": null, "hidden_act": "silu", "max_position_embeddings": 2048,
        "pad_token_id": 1, "tie_word_embeddings": false, "rope_theta": 10000.0, "rope_scaling": null,
        "attention_bias": false, "rms_norm_eps": 1e-5
    }"#,
);

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let olmo = LlamaStyle::read(config, "Olmo2")?;
    let bias = config.flag("attention_bias")?;
    let mut attention = olmo.projections(bias, "o_proj", bias);
    attention.extend(olmo.query_key_norms(
        ("q_norm", olmo.heads * olmo.head),
        ("k_norm", olmo.kv_heads * olmo.head),
    ));
    olmo.model(vec![
        olmo.attention_of(attention),
        olmo.gated_mlp(false),
        olmo.norm("post_attention_layernorm", BlockSlot::AttentionPostNorm),
        olmo.norm("post_feedforward_layernorm", BlockSlot::MlpPostNorm),
    ])
}
