//! GPT-2 (Radford et al. 2019): learned positions, one product for queries, keys and values, GELU.

use super::gpt2_style::Gpt2Style;
use crate::ParameterDtype;
use crate::config::ModelConfig;
use crate::error::{NnError, Result};
use crate::models::spec::{AttentionSpec, BlockSlot, DecoderSpec, Family};
use crate::models::template::{BufferSpec, conv1d, dropout};

pub(super) const FAMILY: Family = Family { model_type: "gpt2", describe };

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    if config.flag("add_cross_attention", false)? {
        let reason = "GPT-2 with cross-attention is not a causal language model";
        return Err(NnError::Config { reason: reason.into() });
    }
    let gpt = Gpt2Style::read(config, "GPT2", "gelu_new", 0.1)?;
    let (hidden, middle) = (gpt.hidden, gpt.middle);
    let attention = gpt.attention(vec![
        ("c_attn", conv1d(BlockSlot::Qkv, [3 * hidden, hidden])),
        ("c_proj", conv1d(BlockSlot::AttentionOut, [hidden, hidden])),
        ("attn_dropout", dropout(config, "attn_pdrop", 0.1)?),
        ("resid_dropout", gpt.residual_dropout()?),
    ]);
    let mlp = gpt.mlp_of(vec![
        ("c_fc", conv1d(BlockSlot::Up, [middle, hidden])),
        ("c_proj", conv1d(BlockSlot::Down, [hidden, middle])),
    ])?;
    let block = vec![
        ("ln_1", gpt.norm(BlockSlot::AttentionNorm)),
        ("attn", attention.with_buffers(causal_mask(gpt.positions))),
        ("ln_2", gpt.norm(BlockSlot::MlpNorm)),
        ("mlp", mlp),
    ];
    let attention = AttentionSpec::new(gpt.heads, gpt.heads, gpt.head);
    let mut spec = gpt.model("LMHeadModel", gpt.transformer(block, true)?, attention, false)?;
    if config.flag("scale_attn_by_inverse_layer_idx", false)? {
        spec.layers.iter_mut().zip(1u32..).for_each(|(layer, number)| layer.factor /= f64::from(number));
    }
    Ok(spec)
}

/// The masks transformers keeps as buffers.
pub(super) fn causal_mask(positions: usize) -> Vec<BufferSpec> {
    vec![
        BufferSpec {
            name: "bias",
            shape: vec![1, 1, positions, positions],
            dtype: Some(ParameterDtype::Bool),
        },
        BufferSpec { name: "masked_bias", shape: vec![], dtype: None },
    ]
}
