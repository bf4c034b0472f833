//! GPT-2 (Radford et al. 2019): learned positions, one product for queries, keys and values, GELU.

use super::llama_style::head_size;
use crate::ParameterDtype;
use crate::config::ModelConfig;
use crate::error::{NnError, Result};
use crate::layers::Activation;
use crate::models::spec::{AttentionSpec, BlockSlot, DecoderSpec, Family, ModelSlot};
use crate::models::template::{
    BufferSpec, act, blocks, container, conv1d, dropout, layer_norm, model_linear, model_norm, norm, table,
};

pub(super) const FAMILY: Family = Family { model_type: "gpt2", describe };

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    if config.flag("add_cross_attention", false)? {
        let reason = "GPT-2 with cross-attention is not a causal language model";
        return Err(NnError::Config { reason: reason.into() });
    }
    let (hidden, heads) = (config.size("n_embd")?, config.size("n_head")?);
    let (vocab, positions) = (config.size("vocab_size")?, config.size("n_positions")?);
    let middle = config.optional_size("n_inner")?.unwrap_or(4 * hidden);
    let eps = config.number("layer_norm_epsilon", 1e-5)?;
    let activation = Activation::from_name(config.text("activation_function", "gelu_new")?)?;
    let attention = vec![
        ("c_attn", conv1d(BlockSlot::Qkv, [3 * hidden, hidden])),
        ("c_proj", conv1d(BlockSlot::AttentionOut, [hidden, hidden])),
        ("attn_dropout", dropout(config, "attn_pdrop", 0.1)?),
        ("resid_dropout", dropout(config, "resid_pdrop", 0.1)?),
    ];
    let mlp = vec![
        ("c_fc", conv1d(BlockSlot::Up, [middle, hidden])),
        ("c_proj", conv1d(BlockSlot::Down, [hidden, middle])),
        ("act", act(activation)),
        ("dropout", dropout(config, "resid_pdrop", 0.1)?),
    ];
    let block = vec![
        ("ln_1", norm(BlockSlot::AttentionNorm, layer_norm(hidden, eps))),
        ("attn", container("GPT2Attention", attention).with_buffers(causal_mask(positions))),
        ("ln_2", norm(BlockSlot::MlpNorm, layer_norm(hidden, eps))),
        ("mlp", container("GPT2MLP", mlp)),
    ];
    let model = vec![
        ("wte", table(ModelSlot::Tokens, [vocab, hidden], None)),
        ("wpe", table(ModelSlot::Positions, [positions, hidden], None)),
        ("drop", dropout(config, "embd_pdrop", 0.1)?),
        ("h", blocks("GPT2Block", block)),
        ("ln_f", model_norm(ModelSlot::FinalNorm, layer_norm(hidden, eps))),
    ];
    let head = model_linear(ModelSlot::Head, [vocab, hidden], false);
    let tree =
        container("GPT2LMHeadModel", vec![("transformer", container("GPT2Model", model)), ("lm_head", head)]);
    let attention = AttentionSpec::new(heads, heads, head_size(hidden, heads)?);
    let mut spec = DecoderSpec {
        positions,
        tied_head: config.flag("tie_word_embeddings", true)?,
        optional_prefix: "transformer.",
        ignored_suffixes: &[".attn.bias", ".attn.masked_bias"],
        ..DecoderSpec::plain(tree, hidden, attention, config.size("n_layer")?, activation)?
    };
    if !config.flag("scale_attn_weights", true)? {
        spec = spec.with_factor(1.0);
    }
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
