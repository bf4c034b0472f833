//! How to run each model on a few inputs: once with candle-transformers' own types, once with the
//! copies, which have the same names.

use candle_core::{Device, Result, Tensor};
use candle_nn::VarBuilder;

/// Token ids `[batch, length]` below `vocabulary`.
fn ids(batch: usize, length: usize, vocabulary: u32) -> Result<Tensor> {
    let ids = (0..(batch * length) as u32).map(|i| (i * i + 7 * i + 3) % vocabulary);
    Tensor::from_iter(ids, &Device::Cpu)?.reshape((batch, length))
}

/// A smooth picture or spectrogram `[1, channels, …]`.
fn waves(shape: &[usize]) -> Result<Tensor> {
    let count = shape.iter().product::<usize>() as u32;
    let values = (0..count).map(|i| (i as f32 * 0.37).sin() + 0.3 * (i as f32 * 0.011).cos());
    Tensor::from_iter(values, &Device::Cpu)?.reshape(shape)
}

/// Both outputs in one tensor.
fn both(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Tensor::cat(&[a.flatten_all()?, b.flatten_all()?], 0)
}

/// A function from a checkpoint to outputs.
pub(crate) type Run = fn(VarBuilder<'_>) -> Result<Tensor>;

macro_rules! runs {
    ($name:ident, $($models:ident)::+) => {
        /// The same functions for every crate that has the models.
        pub(crate) mod $name {
            use super::{both, ids, waves};
            use candle_core::{DType, Device, Result, Tensor};
            use candle_nn::VarBuilder;
            use $($models)::+::{bert, clip, llama, t5, whisper};

            /// Logits after a prompt, and after one more token.
            pub(crate) fn llama(vb: VarBuilder<'_>) -> Result<Tensor> {
                let config = llama::Config {
                    hidden_size: 44,
                    intermediate_size: 90,
                    vocab_size: 61,
                    num_hidden_layers: 2,
                    num_attention_heads: 2,
                    num_key_value_heads: 1,
                    use_flash_attn: false,
                    rms_norm_eps: 1e-5,
                    rope_theta: 10_000.0,
                    bos_token_id: None,
                    eos_token_id: None,
                    rope_scaling: None,
                    max_position_embeddings: 32,
                    tie_word_embeddings: false,
                };
                let model = llama::Llama::load(vb, &config)?;
                let mut cache = llama::Cache::new(true, DType::F32, &config, &Device::Cpu)?;
                let prompt = model.forward(&ids(1, 11, 61)?, 0, &mut cache)?;
                both(&prompt, &model.forward(&ids(1, 1, 61)?, 11, &mut cache)?)
            }

            /// Hidden states of two sequences.
            pub(crate) fn bert(vb: VarBuilder<'_>) -> Result<Tensor> {
                let config = bert::Config {
                    vocab_size: 61,
                    hidden_size: 44,
                    num_hidden_layers: 2,
                    num_attention_heads: 4,
                    intermediate_size: 90,
                    max_position_embeddings: 32,
                    model_type: None,
                    ..bert::Config::default()
                };
                let ids = ids(2, 11, 61)?;
                bert::BertModel::load(vb, &config)?.forward(&ids, &ids.zeros_like()?, None)
            }

            /// What the encoder makes of a spectrogram, and the decoder of that.
            pub(crate) fn whisper(vb: VarBuilder<'_>) -> Result<Tensor> {
                let config = whisper::Config {
                    num_mel_bins: 10,
                    max_source_positions: 30,
                    d_model: 44,
                    encoder_attention_heads: 4,
                    encoder_layers: 2,
                    vocab_size: 61,
                    max_target_positions: 16,
                    decoder_attention_heads: 2,
                    decoder_layers: 1,
                    suppress_tokens: vec![],
                };
                let mut model = whisper::model::Whisper::load(&vb, config)?;
                let sound = model.encoder.forward(&waves(&[1, 10, 50])?, true)?;
                let text = model.decoder.forward(&ids(1, 5, 61)?, &sound, true)?;
                both(&sound, &text)
            }

            /// Features of texts, and their similarities to a picture.
            pub(crate) fn clip(vb: VarBuilder<'_>) -> Result<Tensor> {
                let activation = clip::text_model::Activation::QuickGelu;
                let text_config = clip::text_model::ClipTextConfig {
                    vocab_size: 61,
                    embed_dim: 44,
                    activation,
                    intermediate_size: 90,
                    max_position_embeddings: 16,
                    pad_with: None,
                    num_hidden_layers: 2,
                    num_attention_heads: 4,
                    projection_dim: 20,
                };
                let vision_config = clip::vision_model::ClipVisionConfig {
                    embed_dim: 36,
                    activation,
                    intermediate_size: 70,
                    num_hidden_layers: 1,
                    num_attention_heads: 3,
                    projection_dim: 20,
                    num_channels: 3,
                    image_size: 16,
                    patch_size: 8,
                };
                let config = clip::ClipConfig {
                    text_config,
                    vision_config,
                    logit_scale_init_value: 2.6592,
                    image_size: 16,
                };
                let model = clip::ClipModel::new(vb, &config)?;
                let texts = ids(2, 9, 61)?;
                let features = model.get_text_features(&texts)?;
                let (per_text, _) = model.forward(&waves(&[1, 3, 16, 16])?, &texts)?;
                both(&features, &per_text)
            }

            /// Hidden states of the encoder, and logits of the decoder.
            pub(crate) fn t5(vb: VarBuilder<'_>) -> Result<Tensor> {
                let config = t5::Config {
                    vocab_size: 61,
                    d_model: 44,
                    d_kv: 13,
                    d_ff: 90,
                    num_layers: 2,
                    num_decoder_layers: Some(1),
                    num_heads: 3,
                    relative_attention_num_buckets: 8,
                    relative_attention_max_distance: 20,
                    tie_word_embeddings: false,
                    ..t5::Config::default()
                };
                let mut model = t5::T5ForConditionalGeneration::load(vb, &config)?;
                let hidden = model.encode(&ids(2, 11, 61)?)?;
                both(&hidden, &model.decode(&ids(2, 4, 61)?, &hidden)?)
            }
        }
    };
}

runs!(own, candle_transformers::models);
runs!(with_int8_layers, llm_int8_candle_models);
