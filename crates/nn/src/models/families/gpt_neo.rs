//! GPT-Neo (Black et al. 2021): GPT-2 with separate products, unscaled scores, and windows in local layers.

use super::gpt2::causal_mask;
use super::llama_style::head_size;
use crate::config::ModelConfig;
use crate::error::{NnError, Result};
use crate::layers::Activation;
use crate::models::spec::{AttentionSpec, BlockSlot, DecoderSpec, Family, ModelSlot};
use crate::models::template::{
    act, blocks, container, dropout, layer_norm, linear, model_linear, model_norm, norm, table,
};
use serde_json::Value;

pub(super) const FAMILY: Family = Family { model_type: "gpt_neo", describe };

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let (hidden, heads) = (config.size("hidden_size")?, config.size("num_heads")?);
    let (vocab, positions) = (config.size("vocab_size")?, config.size("max_position_embeddings")?);
    let middle = config.optional_size("intermediate_size")?.unwrap_or(4 * hidden);
    let eps = config.number("layer_norm_epsilon", 1e-5)?;
    let activation = Activation::from_name(config.text("activation_function", "gelu_new")?)?;
    let attention = vec![
        ("attn_dropout", dropout(config, "attention_dropout", 0.0)?),
        ("resid_dropout", dropout(config, "resid_dropout", 0.0)?),
        ("k_proj", linear(BlockSlot::Key, [hidden, hidden], false)),
        ("v_proj", linear(BlockSlot::Value, [hidden, hidden], false)),
        ("q_proj", linear(BlockSlot::Query, [hidden, hidden], false)),
        ("out_proj", linear(BlockSlot::AttentionOut, [hidden, hidden], true)),
    ];
    let attention = container("GPTNeoSelfAttention", attention).with_buffers(causal_mask(positions));
    let mlp = vec![
        ("c_fc", linear(BlockSlot::Up, [middle, hidden], true)),
        ("c_proj", linear(BlockSlot::Down, [hidden, middle], true)),
        ("act", act(activation)),
        ("dropout", dropout(config, "resid_dropout", 0.0)?),
    ];
    let block = vec![
        ("ln_1", norm(BlockSlot::AttentionNorm, layer_norm(hidden, eps))),
        ("attn", container("GPTNeoAttention", vec![("attention", attention)])),
        ("ln_2", norm(BlockSlot::MlpNorm, layer_norm(hidden, eps))),
        ("mlp", container("GPTNeoMLP", mlp)),
    ];
    let model = vec![
        ("wte", table(ModelSlot::Tokens, [vocab, hidden], None)),
        ("wpe", table(ModelSlot::Positions, [positions, hidden], None)),
        ("drop", dropout(config, "embed_dropout", 0.0)?),
        ("h", blocks("GPTNeoBlock", block)),
        ("ln_f", model_norm(ModelSlot::FinalNorm, layer_norm(hidden, eps))),
    ];
    let lm_head = model_linear(ModelSlot::Head, [vocab, hidden], false);
    let model = container("GPTNeoModel", model);
    let tree = container("GPTNeoForCausalLM", vec![("transformer", model), ("lm_head", lm_head)]);
    let attention = AttentionSpec::new(heads, heads, head_size(hidden, heads)?);
    let layers = config.size("num_layers")?;
    let spec = DecoderSpec {
        positions,
        tied_head: config.flag("tie_word_embeddings", true)?,
        optional_prefix: "transformer.",
        ignored_suffixes: &[".attn.attention.bias", ".attn.attention.masked_bias"],
        ..DecoderSpec::plain(tree, hidden, attention, layers, activation)?
    };
    Ok(spec.with_factor(1.0).windowed(&windows(config, layers)?))
}

/// `attention_types`: lists of kinds, each to be repeated so many times.
fn windows(config: &ModelConfig, layers: usize) -> Result<Vec<Option<usize>>> {
    let error = |reason| Err(NnError::Config { reason });
    let window = config.optional_size("window_size")?.unwrap_or(256);
    let mut windows = Vec::new();
    for group in config.value("attention_types").as_array().map(Vec::as_slice).unwrap_or_default() {
        let (Some(kinds), Some(count)) = (group[0].as_array(), group[1].as_u64()) else {
            return error(format!(
                "`attention_types` holds {group}; a list of kinds and a number were expected"
            ));
        };
        for kind in (0..count.min(layers as u64)).flat_map(|_| kinds) {
            windows.push(match kind.as_str() {
                Some("global") => None,
                Some("local") => Some(window),
                _ => return error(format!("`attention_types` names {kind}; global and local are known")),
            });
        }
    }
    // transformers' default: every other layer is local.
    if config.value("attention_types") == &Value::Null {
        windows = (0..layers).map(|layer| (layer % 2 == 1).then_some(window)).collect();
    }
    match windows.len() == layers {
        true => Ok(windows),
        false => error(format!("`attention_types` speaks of {} layers of {layers}", windows.len())),
    }
}
