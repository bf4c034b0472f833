//! GPT-J (Wang and Komatsuzaki 2021): a rotation of adjacent pairs, attention and MLP in parallel.

use super::gpt2_style::Gpt2Style;
use crate::error::Result;
use crate::slot::BlockSlot;
use crate::spec::{AttentionSpec, DecoderSpec, Family, Residual, check_size};
use crate::template::dropout;
use llm_int8_nn::config::{ConfigClass, ModelConfig};
use llm_int8_nn::layers::{Rope, RopePairs};

pub(super) const FAMILY: Family = Family {
    model_type: "gptj",
    architecture: "GPTJForCausalLM",
    class: CLASS,
    describe,
};

const CLASS: ConfigClass = ConfigClass::new(
    r#"{
        "vocab_size": 50400, "n_positions": 2048, "n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64,
        "n_inner": null, "activation_function": "gelu_new", "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        "layer_norm_epsilon": 1e-5, "tie_word_embeddings": false
    }"#,
)
.with_aliases(&[
("hidden_size", "n_embd"),
("max_position_embeddings", "n_positions"),
("num_attention_heads", "n_head"),
("num_hidden_layers", "n_layer"),
]);

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let gpt = Gpt2Style::read(config, "GPTJ")?;

    let mut attention = vec![
        ("attn_dropout", dropout(config, "attn_pdrop")?),
        ("resid_dropout", gpt.residual_dropout()),
    ];
    attention.extend(gpt.projections(false));

    let block = vec![
        ("ln_1", gpt.norm(BlockSlot::AttentionNorm)),
        ("attn", gpt.attention(attention)),
        ("mlp", gpt.mlp(["fc_in", "fc_out"])),
    ];
    // Null means the whole hidden size, which only a model of one head can rotate.
    let dims = config.optional_size("rotary_dim")?.unwrap_or(gpt.hidden);
    check_size("number of rotated values of a head", dims, gpt.head)?;
    let rope = Rope::plain(10000.0, dims).with_pairs(RopePairs::Neighbours);
    let attention = AttentionSpec::new(gpt.heads, gpt.heads, gpt.head);
    let spec = gpt.model(
        "ForCausalLM",
        gpt.transformer(block, false),
        attention,
        true,
    )?;

    Ok(DecoderSpec {
        residual: Residual::Parallel,
        ..spec.rotated(rope)
    })
}
