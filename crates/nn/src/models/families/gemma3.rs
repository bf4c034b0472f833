//! Gemma 3, text only (Gemma team 2025): Gemma 2 with norms of queries and keys instead of soft caps, and a
//! rotation of its own in layers with a window.

use super::gemma2::{block, scaled, style};
use super::llama_style::LlamaStyle;
use crate::config::ModelConfig;
use crate::error::{NnError, Result};
use crate::layers::Rope;
use crate::models::spec::{DecoderSpec, Family, ModelSlot};
use crate::models::template::{BufferSpec, PartSpec, Template};

pub(super) const FAMILY: Family = Family { model_type: "gemma3_text", describe };

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    if config.flag("use_bidirectional_attention", false)? {
        let reason = "a Gemma 3 with use_bidirectional_attention embeds texts and does not continue them";
        return Err(NnError::Config { reason: reason.into() });
    }
    let gemma = LlamaStyle { rope_base: 1e6, ..style(config, "Gemma3")? };
    let bias = config.flag("attention_bias", false)?;
    let mut attention = gemma.projections(bias, "o_proj", bias);
    attention.extend(gemma.query_key_norms(["q_norm", "k_norm"], [gemma.head; 2]));
    let (_, rotary) = gemma.rotary_module();
    let children = vec![
        ("embed_tokens", scaled_tokens(&gemma)),
        gemma.blocks(block(&gemma, attention)),
        gemma.final_norm("norm"),
        ("rotary_emb", rotary.clone()),
        ("rotary_emb_local", rotary),
    ];
    let spec = gemma.model_of("Gemma3TextModel".into(), children, false)?;
    let pattern = config.optional_size("sliding_window_pattern")?.unwrap_or(6);
    let windows = gemma.windows(gemma.window(Some(4096))?, |layer| !(layer + 1).is_multiple_of(pattern))?;
    let [global, local] = rotations(&gemma)?;
    let mut spec = spec.rotated(global).windowed(&windows);
    spec.attention.ropes.push(local);
    spec.layers.iter_mut().filter(|layer| layer.window.is_some()).for_each(|layer| layer.rope = Some(1));
    spec.positions = gemma.positions; // the scaled rotation is part of them
    scaled(spec, &gemma, [None, None])
}

/// The rotation of layers that see everything and of those with a window.
fn rotations(gemma: &LlamaStyle<'_>) -> Result<[Rope; 2]> {
    let by_type = gemma.config.nested("rope_parameters");
    if let (Some(global), Some(local)) =
        (by_type.object("full_attention"), by_type.object("sliding_attention"))
    {
        // As transformers 5 writes it.
        let rope = |values| Rope::from_values(values, 10000.0, gemma.rotary, gemma.positions);
        return Ok([rope(global)?, rope(local)?]);
    }
    let local = Rope::plain(gemma.config.number("rope_local_base_freq", 10000.0)?, gemma.rotary);
    Ok([gemma.rope()?, local])
}

/// The token table, a class of its own that multiplies rows with a factor kept as a buffer.
fn scaled_tokens(gemma: &LlamaStyle<'_>) -> Template {
    let part = PartSpec::Embedding {
        class: "Gemma3TextScaledWordEmbedding".into(),
        rows: gemma.vocab,
        width: gemma.hidden,
        padding: gemma.padding_row(),
    };
    let factor = BufferSpec { name: "embed_scale", shape: vec![], dtype: None };
    Template::Part(ModelSlot::Tokens, part).with_buffers(vec![factor])
}
