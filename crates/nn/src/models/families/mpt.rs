//! MPT (MosaicML 2023): position biases, no biases in norms and products, clamped queries, keys and values.

use super::llama_style::head_size;
use crate::config::ModelConfig;
use crate::error::{NnError, Result};
use crate::layers::{Activation, Alibi, NormKind};
use crate::models::spec::{AttentionSpec, BlockSlot, DecoderSpec, Family, ModelSlot};
use crate::models::template::{
    NormSpec, act, blocks, container, dropout, layer_norm, linear, model_linear, model_norm, norm, table,
};

pub(super) const FAMILY: Family = Family { model_type: "mpt", describe };

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let (hidden, heads) = (config.size("d_model")?, config.size("n_heads")?);
    let (vocab, positions) = (config.size("vocab_size")?, config.size("max_seq_len")?);
    let eps = config.number("layer_norm_epsilon", 1e-5)?;
    let scores = config.nested("attn_config");
    if scores.flag("qk_ln", false)? {
        return Err(NnError::Config {
            reason: "`attn_config.qk_ln` is true, which transformers cannot run either".into(),
        });
    }
    let layer_norm = || NormSpec { kind: NormKind::LayerWithoutBias, ..layer_norm(hidden, eps) };
    let attention = vec![
        ("Wqkv", linear(BlockSlot::Qkv, [3 * hidden, hidden], false)),
        ("out_proj", linear(BlockSlot::AttentionOut, [hidden, hidden], false)),
    ];
    let mlp = vec![
        ("up_proj", linear(BlockSlot::Up, [4 * hidden, hidden], false)),
        ("act", act(Activation::TorchGelu)),
        ("down_proj", linear(BlockSlot::Down, [hidden, 4 * hidden], false)),
    ];
    let probability = if scores.has("attn_pdrop") { "attn_pdrop" } else { "" };
    let block = vec![
        ("norm_1", norm(BlockSlot::AttentionNorm, layer_norm())),
        ("attn", container("MptAttention", attention)),
        ("norm_2", norm(BlockSlot::MlpNorm, layer_norm())),
        ("ffn", container("MptMLP", mlp)),
        ("resid_attn_dropout", dropout(&scores, probability, 0.0)?),
    ];
    let model = vec![
        ("wte", table(ModelSlot::Tokens, [vocab, hidden], None)),
        ("blocks", blocks("MptBlock", block)),
        ("norm_f", model_norm(ModelSlot::FinalNorm, layer_norm())),
    ];
    let lm_head = model_linear(ModelSlot::Head, [vocab, hidden], false);
    let tree = container(
        "MptForCausalLM",
        vec![("transformer", container("MptModel", model)), ("lm_head", lm_head)],
    );
    let head = head_size(hidden, heads)?;
    let attention = AttentionSpec {
        qkv_clamp: scores.value("clip_qkv").as_f64().filter(|limit| *limit != 0.0),
        alibi: Some(Alibi::mpt(heads, scores.number("alibi_bias_max", 8.0)?)),
        ..AttentionSpec::new(heads, heads, head)
    };
    let spec = DecoderSpec {
        positions,
        tied_head: config.flag("tie_word_embeddings", true)?,
        optional_prefix: "transformer.",
        ..DecoderSpec::plain(tree, hidden, attention, config.size("n_layers")?, Activation::TorchGelu)?
    };
    Ok(match scores.value("softmax_scale").as_f64() {
        Some(factor) => spec.with_factor(factor),
        None => spec,
    })
}
