//! GPT-J (Wang and Komatsuzaki 2021): rotated neighbours, attention and MLP side by side.

use super::gpt2_style::Gpt2Style;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::layers::{Rope, RopePairs};
use crate::models::spec::{AttentionSpec, BlockSlot, DecoderSpec, Family, Residual, check_size};
use crate::models::template::dropout;

pub(super) const FAMILY: Family = Family { model_type: "gptj", describe };

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    let gpt = Gpt2Style::read(config, "GPTJ", "gelu_new", 0.0)?;
    let mut attention = vec![
        ("attn_dropout", dropout(config, "attn_pdrop", 0.0)?),
        ("resid_dropout", gpt.residual_dropout()?),
    ];
    attention.extend(gpt.projections(false));
    let block = vec![
        ("ln_1", gpt.norm(BlockSlot::AttentionNorm)),
        ("attn", gpt.attention(attention)),
        ("mlp", gpt.mlp(["fc_in", "fc_out"])?),
    ];
    let dims = match config.has("rotary_dim") {
        true => config.optional_size("rotary_dim")?.unwrap_or(gpt.head),
        false => 64,
    };
    check_size("number of rotated values of a head", dims, gpt.head)?;
    let rope = Rope::plain(10000.0, dims).with_pairs(RopePairs::Neighbours);
    let attention = AttentionSpec::new(gpt.heads, gpt.heads, gpt.head);
    let spec = gpt.model("ForCausalLM", gpt.transformer(block, false)?, attention, true)?;
    Ok(DecoderSpec { residual: Residual::Parallel, ..spec.rotated(rope) })
}
