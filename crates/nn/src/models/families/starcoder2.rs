//! StarCoder 2 (Lozhkov et al. 2024): layer norms, grouped heads, biases, a plain MLP.

use super::llama_style::LlamaStyle;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::layers::{Activation, NormKind};
use crate::models::spec::{BlockSlot, DecoderSpec, Family};
use crate::models::template::act;

pub(super) const FAMILY: Family = Family { model_type: "starcoder2", describe };

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let read = LlamaStyle::read(config, "Starcoder2", ("norm_epsilon", 1e-5))?;
    let activation = Activation::from_name(config.text("hidden_act", "gelu_pytorch_tanh")?)?;
    let coder = LlamaStyle { activation, norm: NormKind::Layer, tied: true, ..read };
    let bias = config.flag("use_bias", true)?;
    let mut mlp = coder.plain_mlp(["c_fc", "c_proj"], bias);
    mlp.push(("act", act(activation)));
    let spec = coder.model(vec![
        coder.attention(bias, bias),
        coder.mlp_of(mlp),
        coder.norm("input_layernorm", BlockSlot::AttentionNorm),
        coder.norm("post_attention_layernorm", BlockSlot::MlpNorm),
    ])?;
    Ok(spec.windowed(&coder.windows(coder.window(None)?, |_| true)?))
}
