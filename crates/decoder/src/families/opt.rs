//! OPT (Zhang et al. 2022): learned positions whose table has two unused rows first, biases, ReLU.
//! OPT 350m has its norms after the residuals, and a token table narrower than the stream.

use super::llama_style::head_size;
use crate::error::{DecoderError, Result};
use crate::slot::{BlockSlot, ModelSlot};
use crate::spec::{AttentionSpec, DecoderSpec, Family, Residual};
use crate::template::{
    Children, PartSpec, Template, act, blocks, container, layer_norm, linear, model_linear,
    model_norm, norm, table,
};
use llm_int8_nn::config::{ConfigClass, ModelConfig};
use llm_int8_nn::layers::Activation;

pub(super) const FAMILY: Family = Family {
    model_type: "opt",
    architecture: "OPTForCausalLM",
    class: CLASS,
    describe,
};

const CLASS: ConfigClass = ConfigClass::new(
    r#"{
        "vocab_size": 50272, "hidden_size": 768, "num_hidden_layers": 12, "ffn_dim": 3072,
        "max_position_embeddings": 2048, "do_layer_norm_before": true, "_remove_final_layer_norm": false,
        "word_embed_proj_dim": null, "num_attention_heads": 12, "activation_function": "relu", "pad_token_id": 1,
        "enable_bias": true, "layer_norm_elementwise_affine": true
    }"#,
);

/// Rows of the position table before that of position 0.
const OFFSET: usize = 2;

/// The epsilon of norms, which is not in config.json.
const EPS: f64 = 1e-5;

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    if !config.flag("layer_norm_elementwise_affine")? {
        let reason =
            "`layer_norm_elementwise_affine` is false; norms without weights are not supported";
        return Err(DecoderError::Config {
            reason: reason.into(),
        });
    }

    let hidden = config.size("hidden_size")?;
    let heads = config.size("num_attention_heads")?;
    let vocab = config.size("vocab_size")?;
    let positions = config.size("max_position_embeddings")?;
    let embedding_width = config
        .optional_size("word_embed_proj_dim")?
        .unwrap_or(hidden);
    let activation = Activation::from_name(config.text("activation_function")?)?;
    let norms_first = config.flag("do_layer_norm_before")?;

    let mut children = embeddings(config, hidden, embedding_width)?;
    if norms_first && !config.flag("_remove_final_layer_norm")? {
        children.push((
            "final_layer_norm",
            model_norm(ModelSlot::FinalNorm, layer_norm(hidden, EPS)),
        ));
    }
    children.push((
        "layers",
        blocks("OPTDecoderLayer", block(config, hidden, activation)?),
    ));

    let decoder = container("OPTDecoder", children);
    let model = container("OPTModel", vec![("decoder", decoder)]);
    let lm_head = model_linear(ModelSlot::Head, [vocab, embedding_width], false);
    let tree = container(
        "OPTForCausalLM",
        vec![("model", model), ("lm_head", lm_head)],
    );

    let attention = AttentionSpec::new(heads, heads, head_size(hidden, heads)?);
    let layers = config.size("num_hidden_layers")?;
    Ok(DecoderSpec {
        positions,
        position_offset: OFFSET,
        residual: if norms_first {
            Residual::Sequential
        } else {
            Residual::NormAfter
        },
        tied_head: config.flag("tie_word_embeddings")?,
        ..DecoderSpec::plain(tree, hidden, attention, layers, activation)?
    })
}

/// The tables, and the projections where the token table is of another width than the stream.
fn embeddings(config: &ModelConfig, hidden: usize, embedding_width: usize) -> Result<Children> {
    let vocab = config.size("vocab_size")?;
    let positions = config.size("max_position_embeddings")?;
    let padding = config.padding_row(vocab)?;
    let position_table = PartSpec::Embedding {
        class: "OPTLearnedPositionalEmbedding".into(),
        rows: positions + OFFSET,
        width: hidden,
        padding: None,
    };

    let mut children = vec![
        (
            "embed_tokens",
            table(ModelSlot::Tokens, [vocab, embedding_width], padding),
        ),
        (
            "embed_positions",
            Template::Part(ModelSlot::Positions, position_table),
        ),
    ];

    if embedding_width != hidden {
        children.push((
            "project_out",
            model_linear(ModelSlot::ProjectOut, [embedding_width, hidden], false),
        ));
        children.push((
            "project_in",
            model_linear(ModelSlot::ProjectIn, [hidden, embedding_width], false),
        ));
    }

    Ok(children)
}

/// The children of a block.
fn block(config: &ModelConfig, hidden: usize, activation: Activation) -> Result<Children> {
    let middle = config.size("ffn_dim")?;
    let bias = config.flag("enable_bias")?;

    let attention = vec![
        ("k_proj", linear(BlockSlot::Key, [hidden, hidden], bias)),
        ("v_proj", linear(BlockSlot::Value, [hidden, hidden], bias)),
        ("q_proj", linear(BlockSlot::Query, [hidden, hidden], bias)),
        (
            "out_proj",
            linear(BlockSlot::AttentionOut, [hidden, hidden], bias),
        ),
    ];

    Ok(vec![
        ("self_attn", container("OPTAttention", attention)),
        ("activation_fn", act(activation)),
        (
            "self_attn_layer_norm",
            norm(BlockSlot::AttentionNorm, layer_norm(hidden, EPS)),
        ),
        ("fc1", linear(BlockSlot::Up, [middle, hidden], bias)),
        ("fc2", linear(BlockSlot::Down, [hidden, middle], bias)),
        (
            "final_layer_norm",
            norm(BlockSlot::MlpNorm, layer_norm(hidden, EPS)),
        ),
    ])
}
