//! GPT-J (Wang and Komatsuzaki 2021): rotated neighbours, attention and MLP side by side.

use super::llama_style::head_size;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::layers::{Activation, Rope, RopePairs};
use crate::models::spec::{AttentionSpec, BlockSlot, DecoderSpec, Family, ModelSlot, Residual, check_size};
use crate::models::template::{
    act, blocks, container, dropout, layer_norm, linear, model_linear, model_norm, norm, table,
};

pub(super) const FAMILY: Family = Family { model_type: "gptj", describe };

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let (hidden, heads) = (config.size("n_embd")?, config.size("n_head")?);
    let (vocab, positions) = (config.size("vocab_size")?, config.size("n_positions")?);
    let middle = config.optional_size("n_inner")?.unwrap_or(4 * hidden);
    let eps = config.number("layer_norm_epsilon", 1e-5)?;
    let activation = Activation::from_name(config.text("activation_function", "gelu_new")?)?;
    let attention = vec![
        ("attn_dropout", dropout(config, "attn_pdrop", 0.0)?),
        ("resid_dropout", dropout(config, "resid_pdrop", 0.0)?),
        ("k_proj", linear(BlockSlot::Key, [hidden, hidden], false)),
        ("v_proj", linear(BlockSlot::Value, [hidden, hidden], false)),
        ("q_proj", linear(BlockSlot::Query, [hidden, hidden], false)),
        ("out_proj", linear(BlockSlot::AttentionOut, [hidden, hidden], false)),
    ];
    let mlp = vec![
        ("fc_in", linear(BlockSlot::Up, [middle, hidden], true)),
        ("fc_out", linear(BlockSlot::Down, [hidden, middle], true)),
        ("act", act(activation)),
        ("dropout", dropout(config, "resid_pdrop", 0.0)?),
    ];
    let block = vec![
        ("ln_1", norm(BlockSlot::AttentionNorm, layer_norm(hidden, eps))),
        ("attn", container("GPTJAttention", attention)),
        ("mlp", container("GPTJMLP", mlp)),
    ];
    let model = vec![
        ("wte", table(ModelSlot::Tokens, [vocab, hidden], None)),
        ("drop", dropout(config, "embd_pdrop", 0.0)?),
        ("h", blocks("GPTJBlock", block)),
        ("ln_f", model_norm(ModelSlot::FinalNorm, layer_norm(hidden, eps))),
    ];
    let lm_head = model_linear(ModelSlot::Head, [vocab, hidden], true);
    let model = container("GPTJModel", model);
    let tree = container("GPTJForCausalLM", vec![("transformer", model), ("lm_head", lm_head)]);
    let head = head_size(hidden, heads)?;
    let dims =
        if config.has("rotary_dim") { config.optional_size("rotary_dim")?.unwrap_or(head) } else { 64 };
    check_size("number of rotated values of a head", dims, head)?;
    let rope = Rope::plain(10000.0, dims).with_pairs(RopePairs::Neighbours);
    let spec = DecoderSpec {
        positions,
        residual: Residual::Parallel,
        tied_head: config.flag("tie_word_embeddings", false)?,
        optional_prefix: "transformer.",
        ignored_suffixes: &[".attn.bias", ".attn.masked_bias"],
        ..DecoderSpec::plain(
            tree,
            hidden,
            AttentionSpec::new(heads, heads, head),
            config.size("n_layer")?,
            activation,
        )?
    };
    Ok(spec.rotated(rope))
}
