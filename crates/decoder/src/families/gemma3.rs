//! Gemma 3, text only (Gemma team 2025): Gemma 2 with norms of queries and keys instead of soft
//! caps, and with a second rotation, of another base, in the layers with a window.

use super::gemma2::{block, scaled, style};
use super::llama_style::LlamaStyle;
use crate::error::{DecoderError, Result};
use crate::slot::ModelSlot;
use crate::spec::{DecoderSpec, Family};
use crate::template::{BufferSpec, PartSpec, Template};
use llm_int8_nn::config::{ConfigClass, ModelConfig};
use llm_int8_nn::layers::Rope;

pub(super) const FAMILY: Family = Family {
    model_type: "gemma3_text",
    architecture: "Gemma3ForCausalLM",
    class: CLASS,
    describe,
};

const CLASS: ConfigClass = ConfigClass::new(
    r#"{
        "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "pad_token_id": 0, "tie_word_embeddings": true,
        "rope_theta": 1000000.0, "attention_bias": false, "query_pre_attn_scalar": 256, "sliding_window": 4096,
        "layer_types": null, "final_logit_softcapping": null,
        "rope_scaling": null, "rope_local_base_freq": 10000.0, "use_bidirectional_attention": false,
        "sliding_window_pattern": 6
    }"#,
);

fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    if config.flag("use_bidirectional_attention")? {
        let reason = "`use_bidirectional_attention` is true; such a Gemma 3 embeds texts and does not generate them";
        return Err(DecoderError::Config {
            reason: reason.into(),
        });
    }
    let gemma = style(config, "Gemma3")?;
    let bias = config.flag("attention_bias")?;
    let mut attention = gemma.projections(bias, "o_proj", bias);
    attention.extend(gemma.query_key_norms(("q_norm", gemma.head), ("k_norm", gemma.head)));
    let (_, rotary) = gemma.rotary_module();

    let children = vec![
        ("embed_tokens", scaled_tokens(&gemma)?),
        gemma.blocks(block(&gemma, attention)),
        gemma.final_norm("norm"),
        ("rotary_emb", rotary.clone()),
        ("rotary_emb_local", rotary),
    ];

    let spec = gemma.model_of("Gemma3TextModel".into(), children, false)?;
    let window = config.size("sliding_window")?;
    let pattern = config.size("sliding_window_pattern")?;
    let windows = gemma.windows(Some(window), |layer| !(layer + 1).is_multiple_of(pattern))?;
    let [global, local] = rotations(&gemma)?;
    let mut spec = spec.rotated(global).windowed(&windows);
    spec.attention.ropes.push(local);
    spec.layers
        .iter_mut()
        .filter(|layer| layer.window.is_some())
        .for_each(|layer| layer.rope = Some(1));
    // `max_position_embeddings` is already the context after scaling the rotation.
    spec.positions = gemma.positions;

    // `attn_logit_softcapping` is not read: Gemma 3's attention ignores it.
    scaled(spec, &gemma)
}

/// The rotations of layers without and with a window.
fn rotations(gemma: &LlamaStyle<'_>) -> Result<[Rope; 2]> {
    let by_type = gemma.config.nested("rope_parameters");
    if let (Some(global), Some(local)) = (
        by_type.object("full_attention"),
        by_type.object("sliding_attention"),
    ) {
        // The form of transformers 5.
        let rope = |values| Rope::from_values(values, 10000.0, gemma.rotary, gemma.positions);
        return Ok([rope(global)?, rope(local)?]);
    }
    let local = Rope::plain(gemma.config.number("rope_local_base_freq")?, gemma.rotary);
    Ok([gemma.rope()?, local])
}

/// The token table: a class of its own that scales the embeddings by a factor kept as a buffer.
fn scaled_tokens(gemma: &LlamaStyle<'_>) -> Result<Template> {
    let part = PartSpec::Embedding {
        class: "Gemma3TextScaledWordEmbedding".into(),
        rows: gemma.vocab,
        width: gemma.hidden,
        padding: gemma.config.padding_row(gemma.vocab)?,
    };
    let factor = BufferSpec {
        name: "embed_scale",
        shape: vec![],
        dtype: None,
    };

    Ok(Template::Part(ModelSlot::Tokens, part).with_buffers(vec![factor]))
}
