//! GPT-BigCode (Allal et al. 2023; SantaCoder, StarCoder): GPT-2 whose heads share one head of keys.

use super::llama_style::head_size;
use crate::ParameterDtype;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::layers::{Activation, QkvLayout};
use crate::models::spec::{AttentionSpec, BlockSlot, DecoderSpec, Family, ModelSlot};
use crate::models::template::{
    BufferSpec, act, blocks, container, dropout, layer_norm, linear, model_linear, model_norm, norm, table,
};

pub(super) const FAMILY: Family = Family { model_type: "gpt_bigcode", describe };

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let (hidden, heads) = (config.size("n_embd")?, config.size("n_head")?);
    let (vocab, positions) = (config.size("vocab_size")?, config.size("n_positions")?);
    let middle = config.optional_size("n_inner")?.unwrap_or(4 * hidden);
    let eps = config.number("layer_norm_epsilon", 1e-5)?;
    let activation = Activation::from_name(config.text("activation_function", "gelu_pytorch_tanh")?)?;
    let head = head_size(hidden, heads)?;
    let (kv_heads, layout) = match config.flag("multi_query", true)? {
        true => (1, QkvLayout::Blocks),
        false => (heads, QkvLayout::Grouped),
    };
    let attention = vec![
        ("c_attn", linear(BlockSlot::Qkv, [hidden + 2 * kv_heads * head, hidden], true)),
        ("c_proj", linear(BlockSlot::AttentionOut, [hidden, hidden], true)),
        ("resid_dropout", dropout(config, "resid_pdrop", 0.1)?),
    ];
    let mlp = vec![
        ("c_fc", linear(BlockSlot::Up, [middle, hidden], true)),
        ("c_proj", linear(BlockSlot::Down, [hidden, middle], true)),
        ("act", act(activation)),
        ("dropout", dropout(config, "resid_pdrop", 0.1)?),
    ];
    let block = vec![
        ("ln_1", norm(BlockSlot::AttentionNorm, layer_norm(hidden, eps))),
        ("attn", container("GPTBigCodeAttention", attention)),
        ("ln_2", norm(BlockSlot::MlpNorm, layer_norm(hidden, eps))),
        ("mlp", container("GPTBigCodeMLP", mlp)),
    ];
    let model = vec![
        ("wte", table(ModelSlot::Tokens, [vocab, hidden], None)),
        ("wpe", table(ModelSlot::Positions, [positions, hidden], None)),
        ("drop", dropout(config, "embd_pdrop", 0.1)?),
        ("h", blocks("GPTBigCodeBlock", block)),
        ("ln_f", model_norm(ModelSlot::FinalNorm, layer_norm(hidden, eps))),
    ];
    let mask = BufferSpec { name: "bias", shape: vec![positions; 2], dtype: Some(ParameterDtype::Bool) };
    let model = container("GPTBigCodeModel", model).with_buffers(vec![mask]);
    let lm_head = model_linear(ModelSlot::Head, [vocab, hidden], false);
    let tree = container("GPTBigCodeForCausalLM", vec![("transformer", model), ("lm_head", lm_head)]);
    let attention = AttentionSpec { layout, ..AttentionSpec::new(heads, kv_heads, head) };
    let spec = DecoderSpec {
        positions,
        tied_head: config.flag("tie_word_embeddings", true)?,
        optional_prefix: "transformer.",
        ignored_suffixes: &[".attn.bias", ".attn.masked_bias"],
        ..DecoderSpec::plain(tree, hidden, attention, config.size("n_layer")?, activation)?
    };
    Ok(if config.flag("scale_attn_weights", true)? { spec } else { spec.with_factor(1.0) })
}
