//! GPT-BigCode (Allal et al. 2023; SantaCoder, StarCoder): GPT-2 whose heads share one head of keys.

use super::gpt2_style::Gpt2Style;
use crate::ParameterDtype;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::layers::QkvLayout;
use crate::models::spec::{AttentionSpec, BlockSlot, DecoderSpec, Family};
use crate::models::template::{BufferSpec, linear};

pub(super) const FAMILY: Family = Family { model_type: "gpt_bigcode", describe };

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let gpt = Gpt2Style::read(config, "GPTBigCode", "gelu_pytorch_tanh", 0.1)?;
    let (kv_heads, layout) = match config.flag("multi_query", true)? {
        true => (1, QkvLayout::Blocks),
        false => (gpt.heads, QkvLayout::Grouped),
    };
    let attention = vec![
        ("c_attn", linear(BlockSlot::Qkv, [gpt.hidden + 2 * kv_heads * gpt.head, gpt.hidden], true)),
        ("c_proj", linear(BlockSlot::AttentionOut, [gpt.hidden, gpt.hidden], true)),
        ("resid_dropout", gpt.residual_dropout()?),
    ];
    let block = vec![
        ("ln_1", gpt.norm(BlockSlot::AttentionNorm)),
        ("attn", gpt.attention(attention)),
        ("ln_2", gpt.norm(BlockSlot::MlpNorm)),
        ("mlp", gpt.mlp(["c_fc", "c_proj"])?),
    ];
    let mask = BufferSpec { name: "bias", shape: vec![gpt.positions; 2], dtype: Some(ParameterDtype::Bool) };
    let transformer = gpt.transformer(block, true)?.with_buffers(vec![mask]);
    let attention = AttentionSpec { layout, ..AttentionSpec::new(gpt.heads, kv_heads, gpt.head) };
    gpt.model("ForCausalLM", transformer, attention, false)
}
