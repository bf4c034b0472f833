//! GPT-Neo (Black et al. 2021): GPT-2 with separate products, unscaled scores, and windows in local layers.

use super::gpt2::causal_mask;
use super::gpt2_style::Gpt2Style;
use crate::config::ModelConfig;
use crate::error::{NnError, Result};
use crate::models::spec::{AttentionSpec, BlockSlot, DecoderSpec, Family};
use crate::models::template::{container, dropout};
use serde_json::Value;

pub(super) const FAMILY: Family = Family { model_type: "gpt_neo", describe };

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let keys = ["hidden_size", "num_heads", "num_layers", "max_position_embeddings", "intermediate_size"];
    let dropouts = (["resid_dropout", "embed_dropout"], 0.0);
    let gpt = Gpt2Style::read_keys(config, "GPTNeo", "gelu_new", keys, dropouts)?;
    let mut attention = vec![
        ("attn_dropout", dropout(config, "attention_dropout", 0.0)?),
        ("resid_dropout", gpt.residual_dropout()?),
    ];
    attention.extend(gpt.projections(true));
    let attention = container("GPTNeoSelfAttention", attention).with_buffers(causal_mask(gpt.positions));
    let block = vec![
        ("ln_1", gpt.norm(BlockSlot::AttentionNorm)),
        ("attn", gpt.attention(vec![("attention", attention)])),
        ("ln_2", gpt.norm(BlockSlot::MlpNorm)),
        ("mlp", gpt.mlp(["c_fc", "c_proj"])?),
    ];
    let attention = AttentionSpec::new(gpt.heads, gpt.heads, gpt.head);
    let spec = gpt.model("ForCausalLM", gpt.transformer(block, true)?, attention, false)?;
    let windows = windows(config, gpt.layers)?;
    Ok(DecoderSpec {
        ignored_suffixes: &[".attn.attention.bias", ".attn.attention.masked_bias"],
        ..spec.with_factor(1.0).windowed(&windows)
    })
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
