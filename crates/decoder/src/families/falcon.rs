//! Falcon (Almazrouei et al. 2023): attention and MLP in parallel. It has two architectures: that
//! of 7B is multi-query with one norm per block; the "new" one of 40B has grouped queries and a
//! norm for attention and another for the MLP. Falcon-RW has ALiBi instead of a rotation.

use super::bloom::{older_width, refuse_other_residual};
use super::llama_style::{refuse_partial_rotation, shared_head_size};
use crate::error::{DecoderError, Result};
use crate::slot::{BlockSlot, ModelSlot};
use crate::spec::{AttentionSpec, DecoderSpec, Family, Residual};
use crate::template::{
    Children, PartSpec, Template, act, blocks, container, dropout, layer_norm, model_linear,
    model_norm, norm, rotary, table,
};
use llm_int8_nn::config::{ConfigClass, ModelConfig};
use llm_int8_nn::layers::{Activation, Alibi, QkvLayout, Rope};
use llm_int8_nn::linear::LinearClass;

pub(super) const FAMILY: Family = Family {
    model_type: "falcon",
    architecture: "FalconForCausalLM",
    class: CLASS,
    describe,
};

const CLASS: ConfigClass = ConfigClass::new(
    r#"{
        "vocab_size": 65024, "hidden_size": 4544, "n_embed": null, "num_hidden_layers": 32,
        "num_attention_heads": 71, "num_ln_in_parallel_attn": null, "layer_norm_epsilon": 1e-5,
        "attention_dropout": 0.0, "num_kv_heads": null, "alibi": false, "new_decoder_architecture": false,
        "multi_query": true, "parallel_attn": true, "bias": false, "max_position_embeddings": 2048,
        "rope_theta": 10000.0, "rope_scaling": null, "ffn_hidden_size": null, "activation": "gelu",
        "apply_residual_connection_post_layernorm": false
    }"#,
);

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    refuse_other_residual(config)?;
    let hidden = older_width(config)?;
    let heads = config.size("num_attention_heads")?;
    let vocab = config.size("vocab_size")?;
    let layers = config.size("num_hidden_layers")?;
    let positions = config.size("max_position_embeddings")?;

    let eps = config.number("layer_norm_epsilon")?;
    let activation = Activation::from_name(config.text("activation")?)?;

    let head = shared_head_size(config, hidden, heads)?;
    refuse_partial_rotation(config, "Falcon", head)?;
    let (kv_heads, layout) = keys(config, heads)?;
    let widths = Widths {
        hidden,
        qkv: (heads + 2 * kv_heads) * head,
    };

    let model = vec![
        (
            "word_embeddings",
            table(ModelSlot::Tokens, [vocab, hidden], None),
        ),
        (
            "h",
            blocks(
                "FalconDecoderLayer",
                block(config, widths, eps, activation)?,
            ),
        ),
        (
            "ln_f",
            model_norm(ModelSlot::FinalNorm, layer_norm(hidden, eps)),
        ),
        ("rotary_emb", rotary("FalconRotaryEmbedding", head)),
    ];

    let lm_head = model_linear(ModelSlot::Head, [vocab, hidden], false);
    let model = container("FalconModel", model);
    let tree = container(
        "FalconForCausalLM",
        vec![("transformer", model), ("lm_head", lm_head)],
    );

    let has_alibi = config.flag("alibi")?;
    let alibi = has_alibi.then(|| Alibi::falcon(heads, (head as f32).sqrt().recip()));

    let attention = AttentionSpec {
        layout,
        alibi,
        ..AttentionSpec::new(heads, kv_heads, head)
    };

    let is_parallel = config.flag("parallel_attn")?;
    let spec = DecoderSpec {
        positions,
        residual: if is_parallel {
            Residual::Parallel
        } else {
            Residual::Sequential
        },
        tied_head: config.flag("tie_word_embeddings")?,
        optional_prefix: "transformer.",
        ..DecoderSpec::plain(tree, hidden, attention, layers, activation)?
    };

    if has_alibi {
        return Ok(spec);
    }
    let base = config.number("rope_theta")?;
    Ok(spec.rotated(Rope::from_config(config, base, head, positions)?))
}

/// Widths of the residual stream and of queries, keys and values together.
#[derive(Debug, Clone, Copy)]
struct Widths {
    hidden: usize,
    qkv: usize,
}

/// The children of a block.
fn block(
    config: &ModelConfig,
    widths: Widths,
    eps: f64,
    activation: Activation,
) -> Result<Children> {
    let Widths { hidden, qkv } = widths;
    let middle = config
        .optional_size("ffn_hidden_size")?
        .unwrap_or(4 * hidden);
    let bias = config.flag("bias")?;

    let attention = vec![
        (
            "query_key_value",
            falcon_linear(BlockSlot::Qkv, [qkv, hidden], bias),
        ),
        (
            "dense",
            falcon_linear(BlockSlot::AttentionOut, [hidden, hidden], bias),
        ),
        ("attention_dropout", dropout(config, "attention_dropout")?),
    ];

    let mlp = vec![
        (
            "dense_h_to_4h",
            falcon_linear(BlockSlot::Up, [middle, hidden], bias),
        ),
        ("act", act(activation)),
        (
            "dense_4h_to_h",
            falcon_linear(BlockSlot::Down, [hidden, middle], bias),
        ),
    ];

    let mut block = vec![
        ("self_attention", container("FalconAttention", attention)),
        ("mlp", container("FalconMLP", mlp)),
    ];
    block.extend(norms(config, hidden, eps)?);
    Ok(block)
}

/// A linear layer of Falcon's own class.
fn falcon_linear(slot: BlockSlot, [out_features, in_features]: [usize; 2], bias: bool) -> Template {
    let class = LinearClass::FalconLinear;
    Template::BlockPart(
        slot,
        PartSpec::Linear {
            class,
            out_features,
            in_features,
            bias,
        },
    )
}

/// Heads of keys, and the order of queries, keys and values in the fused layer's output.
fn keys(config: &ModelConfig, heads: usize) -> Result<(usize, QkvLayout)> {
    Ok(
        match (
            config.flag("new_decoder_architecture")?,
            config.flag("multi_query")?,
        ) {
            (true, _) => (
                config.optional_size("num_kv_heads")?.unwrap_or(heads),
                QkvLayout::Grouped,
            ),
            (false, true) => (1, QkvLayout::Blocks),
            (false, false) => (heads, QkvLayout::Grouped),
        },
    )
}

/// The norms of a block in the order in which PyTorch registers them. With parallel residuals,
/// there is one for both attention and MLP, or one for each.
///
/// # Errors
/// [`DecoderError::Config`] for combinations that transformers builds but cannot run.
fn norms(config: &ModelConfig, hidden: usize, eps: f64) -> Result<Children> {
    let is_new = config.flag("new_decoder_architecture")?;
    let is_parallel = config.flag("parallel_attn")?;
    let count = config
        .optional_size("num_ln_in_parallel_attn")?
        .unwrap_or(if is_new { 2 } else { 1 });
    let [attention, mlp] = [BlockSlot::AttentionNorm, BlockSlot::MlpNorm]
        .map(|slot| norm(slot, layer_norm(hidden, eps)));
    match (is_new, is_parallel, count) {
        (false, false, _) => Ok(vec![
            ("post_attention_layernorm", mlp),
            ("input_layernorm", attention),
        ]),
        (true, true, 2) => Ok(vec![("ln_attn", attention), ("ln_mlp", mlp)]),
        (true, true, 1) => Ok(vec![("input_layernorm", attention)]),
        (false, true, count) if count != 2 => Ok(vec![("input_layernorm", attention)]),
        _ => Err(DecoderError::Config {
            reason: format!(
                "Falcon has no block with `new_decoder_architecture` {is_new}, `parallel_attn` {is_parallel} and \
                 `num_ln_in_parallel_attn` {count}"
            ),
        }),
    }
}
