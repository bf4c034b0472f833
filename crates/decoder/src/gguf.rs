//! Opens a GGUF file as a model of transformers: its metadata becomes a `config.json`, its tensors
//! get transformers' names.
//!
//! The names in the file are those of llama.cpp (`gguf-py/gguf/constants.py`). What llama.cpp
//! changes in the weights is in its `convert_hf_to_gguf.py`.

use crate::error::{DecoderError, Result};
use llm_int8_nn::checkpoint::{Checkpoint, GgufChange, GgufFile};
use llm_int8_nn::config::ModelConfig;
use serde_json::{Map, Value, json};

/// How llama.cpp stores a family.
struct Architecture {
    /// `general.architecture` of the file, and `model_type` of config.json.
    name: &'static str,
    /// The class in transformers.
    class: &'static str,
    /// Whether the rows of queries and keys are permuted, for a rotation of adjacent pairs.
    is_permuted: bool,
    /// Whether 1 was added to the weights of norms.
    has_shifted_norms: bool,
    /// Names in GGUF and in transformers, without `blk.N.` and `.weight`: those that differ from
    /// [`LLAMA`].
    names: &'static [(&'static str, &'static str)],
}

/// The names of Llama, which apply to all architectures but GPT-2.
const LLAMA: &[(&str, &str)] = &[
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

const PHI3: &[(&str, &str)] = &[
    ("attn_qkv", "self_attn.qkv_proj"),
    ("ffn_up", "mlp.gate_up_proj"),
];

const GEMMA2: &[(&str, &str)] = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

const STARCODER2: &[(&str, &str)] = &[("ffn_up", "mlp.c_fc"), ("ffn_down", "mlp.c_proj")];

const GPT2: &[(&str, &str)] = &[
    ("token_embd", "transformer.wte"),
    ("position_embd", "transformer.wpe"),
    ("output_norm", "transformer.ln_f"),
    ("output", "lm_head"),
    ("attn_norm", "ln_1"),
    ("attn_qkv", "attn.c_attn"),
    ("attn_output", "attn.c_proj"),
    ("ffn_norm", "ln_2"),
    ("ffn_up", "mlp.c_fc"),
    ("ffn_down", "mlp.c_proj"),
];

impl Architecture {
    /// An architecture whose weights are stored unchanged.
    const fn plain(
        name: &'static str,
        class: &'static str,
        names: &'static [(&'static str, &'static str)],
    ) -> Self {
        Self {
            name,
            class,
            names,
            is_permuted: false,
            has_shifted_norms: false,
        }
    }
}

const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        has_shifted_norms: true,
        ..Architecture::plain("gemma2", "Gemma2ForCausalLM", GEMMA2)
    },
    Architecture::plain("gpt2", "GPT2LMHeadModel", GPT2),
    Architecture {
        is_permuted: true,
        ..Architecture::plain("llama", "LlamaForCausalLM", &[])
    },
    Architecture::plain("phi3", "Phi3ForCausalLM", PHI3),
    Architecture::plain("qwen2", "Qwen2ForCausalLM", &[]),
    Architecture::plain("qwen3", "Qwen3ForCausalLM", &[]),
    Architecture::plain("starcoder2", "Starcoder2ForCausalLM", STARCODER2),
];

/// The configuration and the checkpoint in a GGUF file.
///
/// # Errors
/// [`DecoderError::Config`] for an architecture that is not supported, or metadata that lacks a
/// size; [`NnError::MalformedFile`](llm_int8_nn::NnError).
pub fn open_gguf(file: GgufFile) -> Result<(ModelConfig, Checkpoint)> {
    let name = file.text("general.architecture").unwrap_or_default();
    let Some(architecture) = ARCHITECTURES
        .iter()
        .find(|architecture| architecture.name == name)
    else {
        let known: Vec<&str> = ARCHITECTURES
            .iter()
            .map(|architecture| architecture.name)
            .collect();
        return Err(DecoderError::Config {
            reason: format!(
                "{} has a model of architecture `{name}`; GGUF is supported for {}; use the safetensors of other \
                 models",
                file.name(),
                known.join(", ")
            ),
        });
    };
    let metadata = Metadata {
        file: &file,
        architecture,
    };
    let config = ModelConfig::from_values(metadata.config()?);

    let size = |key: &str| config.optional_size(key).ok().flatten();
    let query = size("num_attention_heads").unwrap_or(0);
    let key_value = size("num_key_value_heads").unwrap_or(query);
    let heads = HeadCounts { query, key_value };
    let checkpoint = Checkpoint::from_gguf(file, |stored| architecture.rename(stored, heads))?;
    Ok((config, checkpoint))
}

/// Numbers of attention heads.
#[derive(Debug, Clone, Copy)]
struct HeadCounts {
    query: usize,
    key_value: usize,
}

impl Architecture {
    /// The name of a tensor in transformers, and what llama.cpp changed in it; none for a tensor
    /// without a counterpart.
    fn rename(&self, stored: &str, heads: HeadCounts) -> Option<(String, GgufChange)> {
        let (block, rest) = match stored.strip_prefix("blk.") {
            Some(rest) => rest
                .split_once('.')
                .map(|(number, rest)| (Some(number), rest))?,
            None => (None, stored),
        };
        let (part, ending) = rest.rsplit_once('.')?;

        let is_gpt2 = self.name == "gpt2";
        let shared = if is_gpt2 { &[] } else { LLAMA };
        let (_, new) = self
            .names
            .iter()
            .chain(shared)
            .find(|(old, _)| *old == part)?;

        let name = match block {
            Some(number) if is_gpt2 => format!("transformer.h.{number}.{new}.{ending}"),
            Some(number) => format!("model.layers.{number}.{new}.{ending}"),
            None => format!("{new}.{ending}"),
        };

        let change = match part {
            "attn_q" if self.is_permuted => GgufChange::Unpermute { heads: heads.query },
            "attn_k" if self.is_permuted => GgufChange::Unpermute {
                heads: heads.key_value,
            },
            "attn_qkv" | "attn_output" | "ffn_up" | "ffn_down" if is_gpt2 && ending == "weight" => {
                GgufChange::Transpose
            }
            _ if self.has_shifted_norms && part.ends_with("norm") => GgufChange::MinusOne,
            _ => GgufChange::None,
        };
        Some((name, change))
    }
}

/// The metadata of a file.
struct Metadata<'a> {
    file: &'a GgufFile,
    architecture: &'a Architecture,
}

impl Metadata<'_> {
    /// The full name of a key of the architecture.
    fn key(&self, rest: &str) -> String {
        format!("{}.{rest}", self.architecture.name)
    }

    fn size(&self, rest: &str) -> Result<i64> {
        let key = self.key(rest);
        self.file.integer(&key).ok_or_else(|| DecoderError::Config {
            reason: format!(
                "{} has no integer `{key}` in its metadata",
                self.file.name()
            ),
        })
    }

    fn has_tensor(&self, name: &str) -> bool {
        self.file.tensors().any(|tensor| tensor == name)
    }

    fn vocab_size(&self) -> Result<i64> {
        let listed = self
            .file
            .strings("tokenizer.ggml.tokens")
            .map(|tokens| tokens.len() as i64);
        match self.file.integer(&self.key("vocab_size")).or(listed) {
            Some(size) => Ok(size),
            None => self.size("vocab_size"),
        }
    }

    /// The metadata as a `config.json`.
    fn config(&self) -> Result<Value> {
        let mut config = match self.architecture.name {
            "gpt2" => json!({
                "n_embd": self.size("embedding_length")?,
                "n_layer": self.size("block_count")?,
                "n_head": self.size("attention.head_count")?,
                "n_positions": self.size("context_length")?,
                "n_inner": self.size("feed_forward_length")?,
                "activation_function": "gelu_new",
            }),
            _ => self.llama_style()?,
        };

        let (eps, stored_eps) = match self.architecture.name {
            "gpt2" => ("layer_norm_epsilon", "attention.layer_norm_epsilon"),
            "starcoder2" => ("norm_epsilon", "attention.layer_norm_epsilon"),
            _ => ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
        };
        let value = self.file.number(&self.key(stored_eps));
        config[eps] = value.unwrap_or(1e-5).into();

        config["model_type"] = self.architecture.name.into();
        config["architectures"] = json!([self.architecture.class]);
        config["vocab_size"] = self.vocab_size()?.into();
        // GPT-2 is always tied; llama.cpp's converter writes its head a second time.
        let is_tied = self.architecture.name == "gpt2" || !self.has_tensor("output.weight");
        config["tie_word_embeddings"] = is_tied.into();
        for (key, stored) in [
            ("bos_token_id", "tokenizer.ggml.bos_token_id"),
            ("eos_token_id", "tokenizer.ggml.eos_token_id"),
        ] {
            config[key] = self.file.integer(stored).map_or(Value::Null, Value::from);
        }
        config["pad_token_id"] = Value::Null;
        Ok(config)
    }

    /// The keys that Llama and the families after it share.
    fn llama_style(&self) -> Result<Value> {
        let hidden = self.size("embedding_length")?;
        let heads = self.size("attention.head_count")?;
        let mut config = json!({
            "hidden_size": hidden,
            "num_hidden_layers": self.size("block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads": self.file.integer(&self.key("attention.head_count_kv")).unwrap_or(heads),
            "intermediate_size": self.size("feed_forward_length")?,
            "max_position_embeddings": self.size("context_length")?,
            "rope_theta": self.file.number(&self.key("rope.freq_base")).unwrap_or(10000.0),
        });
        let head_dim = self.file.integer(&self.key("attention.key_length"));
        if let Some(size) = head_dim.filter(|_| self.architecture.name != "phi3") {
            config["head_dim"] = size.into();
        }

        if let (Some(dims), Some(size), "phi3") = (
            self.file.integer(&self.key("rope.dimension_count")),
            hidden.checked_div(heads),
            self.architecture.name,
        ) && dims < size
        {
            config["partial_rotary_factor"] = (dims as f64 / size as f64).into();
        }
        let windowed = ["gemma2", "phi3", "starcoder2"].contains(&self.architecture.name);
        let window = self
            .file
            .integer(&self.key("attention.sliding_window"))
            .filter(|size| windowed && *size > 0);
        config["sliding_window"] = window.map_or(Value::Null, Value::from);

        if self.architecture.name == "gemma2" {
            for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
                config[key] = self
                    .file
                    .number(&self.key(key))
                    .map_or(Value::Null, Value::from);
            }
            config["query_pre_attn_scalar"] = self.gemma2_score_scale()?.into();
        }

        if self.architecture.name == "llama" {
            // Not in the metadata either.
            config["attention_bias"] = self.has_tensor("blk.0.attn_q.bias").into();
        }

        config["rope_scaling"] = self.rope_scaling()?;
        if config["rope_scaling"]["rope_type"] == "longrope" {
            // transformers has this key next to `rope_scaling`.
            let scaling = config["rope_scaling"].as_object_mut();
            let original =
                scaling.and_then(|scaling| scaling.remove("original_max_position_embeddings"));
            if let Some(original) = original {
                config["original_max_position_embeddings"] = original;
            }
        }
        Ok(config)
    }

    /// Gemma 2's `query_pre_attn_scalar`, which is not in the metadata. This is llama.cpp's rule
    /// for the published sizes: `hidden / heads` for 27B, which has 46 blocks, and the head size
    /// for the others.
    fn gemma2_score_scale(&self) -> Result<i64> {
        if self.size("block_count")? == 46 {
            let hidden = self.size("embedding_length")?;
            let heads = self.size("attention.head_count")?;
            return Ok(hidden / heads.max(1));
        }
        let head_dim = self.file.integer(&self.key("attention.key_length"));
        Ok(head_dim.unwrap_or(256))
    }

    /// `rope_scaling`: from tensors of frequency factors, otherwise from a type and a factor in the
    /// metadata, otherwise null.
    fn rope_scaling(&self) -> Result<Value> {
        let factors = |name: &str| -> Result<Option<Vec<f32>>> {
            let values = self.has_tensor(name).then(|| self.file.values(name));
            Ok(values.transpose()?)
        };
        let original = self
            .file
            .integer(&self.key("rope.scaling.original_context_length"));
        let long = factors("rope_factors_long.weight")?.zip(factors("rope_factors_short.weight")?);
        // Llama 3.1 has one list for all lengths.
        let one = factors("rope_freqs.weight")?.map(|list| (list.clone(), list));
        if let Some((long_factor, short_factor)) = long.or(one) {
            let scale = self
                .file
                .number(&self.key("rope.scaling.attn_factor"))
                .unwrap_or(1.0);
            let mut scaling = json!({
                "rope_type": "longrope",
                "long_factor": long_factor,
                "short_factor": short_factor,
                "attention_factor": scale,
            });
            if let Some(size) = original {
                scaling["original_max_position_embeddings"] = size.into();
            }
            return Ok(scaling);
        }

        let kind = self
            .file
            .text(&self.key("rope.scaling.type"))
            .filter(|kind| *kind != "none");
        let (Some(kind), Some(factor)) = (kind, self.file.number(&self.key("rope.scaling.factor")))
        else {
            return Ok(Value::Null);
        };
        let mut scaling = Map::from_iter([
            ("rope_type".into(), kind.into()),
            ("factor".into(), factor.into()),
        ]);
        if let Some(size) = original {
            scaling.insert("original_max_position_embeddings".into(), size.into());
        }
        Ok(scaling.into())
    }
}
