//! GPT-Neo (Black et al. 2021): GPT-2 with separate layers for queries, keys and values, unscaled
//! scores, and windows in local layers.

use super::gpt2::causal_mask;
use super::gpt2_style::{Dropouts, Gpt2Style, SizeKeys};
use crate::error::{DecoderError, Result};
use crate::slot::BlockSlot;
use crate::spec::{AttentionSpec, DecoderSpec, Family};
use crate::template::{container, float_dropout};
use llm_int8_nn::config::{ConfigClass, ModelConfig};
use serde_json::Value;

pub(super) const FAMILY: Family = Family {
    model_type: "gpt_neo",
    architecture: "GPTNeoForCausalLM",
    class: CLASS,
    describe,
};

const CLASS: ConfigClass = ConfigClass::new(
    r#"{
        "vocab_size": 50257, "max_position_embeddings": 2048, "hidden_size": 2048, "num_layers": 24,
        "attention_types": [[["global", "local"], 12]], "num_heads": 16, "intermediate_size": null, "window_size": 256,
        "activation_function": "gelu_new", "resid_dropout": 0.0, "embed_dropout": 0.0, "attention_dropout": 0.0,
        "layer_norm_epsilon": 1e-5
    }"#,
)
.with_aliases(&[("num_attention_heads", "num_heads"), ("num_hidden_layers", "num_layers")]);

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let keys = SizeKeys {
        hidden: "hidden_size",
        heads: "num_heads",
        layers: "num_layers",
        positions: "max_position_embeddings",
        middle: "intermediate_size",
    };
    let dropouts = Dropouts {
        residual: float_dropout(config, "resid_dropout")?,
        embedding: float_dropout(config, "embed_dropout")?,
    };
    let gpt = Gpt2Style::read_keys(config, "GPTNeo", keys, dropouts)?;

    let mut attention = vec![
        ("attn_dropout", float_dropout(config, "attention_dropout")?),
        ("resid_dropout", gpt.residual_dropout()),
    ];
    attention.extend(gpt.projections(true));
    let attention =
        container("GPTNeoSelfAttention", attention).with_buffers(causal_mask(gpt.positions));

    let block = vec![
        ("ln_1", gpt.norm(BlockSlot::AttentionNorm)),
        ("attn", gpt.attention(vec![("attention", attention)])),
        ("ln_2", gpt.norm(BlockSlot::MlpNorm)),
        ("mlp", gpt.mlp(["c_fc", "c_proj"])),
    ];

    let attention = AttentionSpec::new(gpt.heads, gpt.heads, gpt.head);
    let spec = gpt.model(
        "ForCausalLM",
        gpt.transformer(block, true),
        attention,
        false,
    )?;
    let windows = windows(config, gpt.layers)?;
    Ok(DecoderSpec {
        ignored_suffixes: &[".attn.attention.bias", ".attn.attention.masked_bias"],
        ..spec.with_factor(1.0).windowed(&windows)
    })
}

/// The window of each layer, from `attention_layers` (the kind of each layer), otherwise from
/// `attention_types` (lists of kinds, each with the number of times it is repeated).
fn windows(config: &ModelConfig, layers: usize) -> Result<Vec<Option<usize>>> {
    let kinds = match config.strings("attention_layers")? {
        Some(kinds) => kinds,
        None => repeated(config, layers)?,
    };
    // transformers expands `attention_types` before `num_hidden_layers`, an alias, replaces
    // `num_layers`, so that the list may then be longer.
    let fits = if config.has("num_hidden_layers") {
        kinds.len() >= layers
    } else {
        kinds.len() == layers
    };
    if !fits {
        let reason = format!("`attention_types` names {} layers of {layers}", kinds.len());
        return Err(DecoderError::Config { reason });
    }

    let window = config.size("window_size")?;
    let window_of = |kind: &str| match kind {
        "global" => Ok(None),
        "local" => Ok(Some(window)),
        _ => {
            let reason = format!("`attention_types` names `{kind}`; global and local are known");
            Err(DecoderError::Config { reason })
        }
    };
    kinds.into_iter().take(layers).map(window_of).collect()
}

/// The kinds of `attention_types`, expanded to at most one more than there are layers: a hostile
/// count allocates nothing.
fn repeated(config: &ModelConfig, layers: usize) -> Result<Vec<&str>> {
    let error = || DecoderError::Config {
        reason: format!(
            "`attention_types` is {}; a list of lists of kinds, each with a number, was expected",
            config.value("attention_types")
        ),
    };
    let mut found = Vec::new();
    for group in config
        .value("attention_types")
        .as_array()
        .ok_or_else(error)?
    {
        let kinds = group[0]
            .as_array()
            .and_then(|kinds| kinds.iter().map(Value::as_str).collect());
        let (kinds, count): (Vec<&str>, u64) = kinds.zip(group[1].as_u64()).ok_or_else(error)?;
        let room = (layers + 1).saturating_sub(found.len());
        found.extend((0..count.min(room as u64)).flat_map(|_| &kinds).take(room));
    }

    Ok(found)
}
