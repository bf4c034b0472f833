//! GPT-2 (Radford et al. 2019): learned positions, one product for queries, keys and values, GELU.

use super::ModelConfig;
use super::spec::{BlockSlot, BufferSpec, DecoderSpec, Names, Slot, Template};
use crate::error::{NnError, Result};
use crate::layers::Activation;
use crate::linear::LinearClass;
use Template::{Attention, BlockPart, Blocks, Container, Part, Plain};

/// The description of a GPT-2 by its `config.json`.
///
/// # Errors
/// [`NnError::Config`] for missing or unusable keys.
pub fn describe(config: &ModelConfig) -> Result<DecoderSpec> {
    if config.flag("add_cross_attention", false)? {
        return Err(NnError::Config {
            reason: "GPT-2 with cross-attention is not a causal language model".into(),
        });
    }
    let (hidden_size, heads, layers) =
        (config.size("n_embd")?, config.size("n_head")?, config.size("n_layer")?);
    let positions = config.size("n_positions")?;
    let activation = Activation::from_name(config.text("activation_function", "gelu_new")?)?;
    let by_size = config.flag("scale_attn_weights", true)?;
    let by_layer = config.flag("scale_attn_by_inverse_layer_idx", false)?;
    let head_size = hidden_size / heads.max(1);
    let attention_factors = (0..layers.min(1 << 12))
        .map(|layer| {
            let size = if by_size { (head_size as f64).powf(-0.5) } else { 1.0 };
            if by_layer { size / (layer + 1) as f64 } else { size }
        })
        .collect();
    let tied_head = config.flag("tie_word_embeddings", true)?;
    Ok(DecoderSpec {
        family: "gpt2",
        vocab_size: config.size("vocab_size")?,
        hidden_size,
        layers,
        heads,
        intermediate_size: config.optional_size("n_inner")?.unwrap_or(4 * hidden_size),
        positions,
        norm_eps: config.number("layer_norm_epsilon", 1e-5)?,
        activation,
        attention_factors,
        linear_class: LinearClass::Conv1D,
        tied_head,
        names: Names {
            tree: tree(config, activation)?,
            optional_prefix: "transformer.",
            ignored_suffixes: &[".attn.bias", ".attn.masked_bias"],
            never_converted: if tied_head {
                &["lm_head", "transformer.wte", "transformer.ln_f"]
            } else {
                &["lm_head"]
            },
            buffers: vec![
                BufferSpec { name: "bias", shape: vec![1, 1, positions, positions], is_bool: true },
                BufferSpec { name: "masked_bias", shape: vec![], is_bool: false },
            ],
        },
    })
}

/// `print(GPT2LMHeadModel)`.
fn tree(config: &ModelConfig, activation: Activation) -> Result<Template> {
    let dropout = |key| -> Result<Template> {
        let p = config.number(key, 0.1)?;
        Ok(Plain("Dropout".into(), format!("p={p:?}, inplace=False")))
    };
    let attention = Attention(
        "GPT2Attention",
        vec![
            ("c_attn", BlockPart(BlockSlot::Qkv)),
            ("c_proj", BlockPart(BlockSlot::AttentionOut)),
            ("attn_dropout", dropout("attn_pdrop")?),
            ("resid_dropout", dropout("resid_pdrop")?),
        ],
    );
    let mlp = Container(
        "GPT2MLP",
        vec![
            ("c_fc", BlockPart(BlockSlot::Up)),
            ("c_proj", BlockPart(BlockSlot::Down)),
            ("act", Plain(activation.class().into(), String::new())),
            ("dropout", dropout("resid_pdrop")?),
        ],
    );
    let block = Container(
        "GPT2Block",
        vec![
            ("ln_1", BlockPart(BlockSlot::AttentionNorm)),
            ("attn", attention),
            ("ln_2", BlockPart(BlockSlot::MlpNorm)),
            ("mlp", mlp),
        ],
    );
    let model = Container(
        "GPT2Model",
        vec![
            ("wte", Part(Slot::Tokens)),
            ("wpe", Part(Slot::Positions)),
            ("drop", dropout("embd_pdrop")?),
            ("h", Blocks(Box::new(block))),
            ("ln_f", Part(Slot::FinalNorm)),
        ],
    );
    Ok(Container("GPT2LMHeadModel", vec![("transformer", model), ("lm_head", Part(Slot::Head))]))
}
