//! StarCoder 2 (Lozhkov et al. 2024): Llama with layer norms, biases, and an MLP without a gate.

use super::llama_style::LlamaStyle;
use crate::error::Result;
use crate::slot::BlockSlot;
use crate::spec::{DecoderSpec, Family};
use crate::template::act;
use llm_int8_nn::config::{ConfigClass, ModelConfig, RopeKind};
use llm_int8_nn::layers::NormKind;

pub(super) const FAMILY: Family = Family {
    model_type: "starcoder2",
    architecture: "Starcoder2ForCausalLM",
    class: CLASS,
    describe,
};

const CLASS: ConfigClass = ConfigClass::new(
    r#"{
        "vocab_size": 49152, "hidden_size": 3072, "intermediate_size": 12288, "num_hidden_layers": 30,
        "num_attention_heads": 24, "num_key_value_heads": 2, "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 4096, "norm_epsilon": 1e-5, "rope_theta": 10000.0, "rope_scaling": null,
        "sliding_window": null, "use_bias": true
    }"#,
)
.with_rope_kind(RopeKind::Type);

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let read = LlamaStyle::read_keys(config, "Starcoder2", "norm_epsilon", "hidden_act")?;
    let coder = LlamaStyle {
        norm: NormKind::Layer,
        ..read
    };
    let bias = config.flag("use_bias")?;
    let mut mlp = coder.plain_mlp(["c_fc", "c_proj"], bias);
    mlp.push(("act", act(coder.activation)));

    let spec = coder.model(vec![
        coder.attention(bias, bias),
        coder.mlp_of(mlp),
        coder.norm("input_layernorm", BlockSlot::AttentionNorm),
        coder.norm("post_attention_layernorm", BlockSlot::MlpNorm),
    ])?;

    Ok(spec.windowed(&coder.same_windows()?))
}
