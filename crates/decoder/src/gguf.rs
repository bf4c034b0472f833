//! Models in GGUF files: their metadata as a `config.json`, their tensors under transformers'
//! names.
//!
//! The names are those of llama.cpp (`gguf-py/gguf/constants.py`), what it changes in the weights
//! stands in its `convert_hf_to_gguf.py`.

use crate::error::{DecoderError, Result};
use llm_int8_nn::checkpoint::{Checkpoint, GgufChange, GgufFile};
use llm_int8_nn::config::ModelConfig;
use serde_json::{Map, Value, json};

/// How a family looks in GGUF.
struct Architecture {
    /// `general.architecture`, and `model_type` of config.json.
    name: &'static str,
    /// The class of transformers.
    class: &'static str,
    /// Rows of queries and keys are permuted.
    is_permuted: bool,
    /// 1 was added to the weights of norms.
    has_raised_norms: bool,
    /// What the names of tensors become, without `blk.N.` and the ending, where [`LLAMA`] says
    /// otherwise.
    names: &'static [(&'static str, &'static str)],
}

/// Names of the style of Llama, which the others but GPT-2 differ from here and there.
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
    /// One with Llama's names but for these, and weights as they are.
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
            has_raised_norms: false,
        }
    }
}

const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        has_raised_norms: true,
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

/// `config.json` and checkpoint of a GGUF file.
///
/// # Errors
/// [`DecoderError::Config`] for an architecture that is not read here or lacks its numbers;
/// [`NnError::MalformedFile`](llm_int8_nn::NnError).
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
                "{} holds a model of architecture `{name}`; GGUF files of {} are read here; other models as \
                 safetensors",
                file.name(),
                known.join(", ")
            ),
        });
    };
    let config = ModelConfig::from_values(
        Keys {
            file: &file,
            architecture,
        }
        .config()?,
    );
    let heads = |key: &str| config.optional_size(key).ok().flatten();
    let queries = heads("num_attention_heads").unwrap_or(0);
    let keys = heads("num_key_value_heads").unwrap_or(queries);
    let checkpoint =
        Checkpoint::from_gguf(file, |stored| architecture.rename(stored, [queries, keys]))?;
    Ok((config, checkpoint))
}

impl Architecture {
    /// The name of a tensor in a checkpoint, and what llama.cpp changed in it.
    fn rename(&self, stored: &str, [queries, keys]: [usize; 2]) -> Option<(String, GgufChange)> {
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
            "attn_q" if self.is_permuted => GgufChange::Unpermute { heads: queries },
            "attn_k" if self.is_permuted => GgufChange::Unpermute { heads: keys },
            "attn_qkv" | "attn_output" | "ffn_up" | "ffn_down" if is_gpt2 && ending == "weight" => {
                GgufChange::Transpose
            }
            _ if self.has_raised_norms && part.ends_with("norm") => GgufChange::MinusOne,
            _ => GgufChange::None,
        };
        Some((name, change))
    }
}

/// The metadata of one architecture.
struct Keys<'a> {
    file: &'a GgufFile,
    architecture: &'a Architecture,
}

impl Keys<'_> {
    fn key(&self, rest: &str) -> String {
        format!("{}.{rest}", self.architecture.name)
    }

    fn size(&self, rest: &str) -> Result<i64> {
        let key = self.key(rest);
        self.file.integer(&key).ok_or_else(|| DecoderError::Config {
            reason: format!("{} has no number `{key}` in its metadata", self.file.name()),
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
        let epsilon = match self.architecture.name {
            "gpt2" => ("layer_norm_epsilon", "attention.layer_norm_epsilon"),
            "starcoder2" => ("norm_epsilon", "attention.layer_norm_epsilon"),
            _ => ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
        };
        config[epsilon.0] = self
            .file
            .number(&self.key(epsilon.1))
            .unwrap_or(1e-5)
            .into();
        config["model_type"] = self.architecture.name.into();
        config["architectures"] = json!([self.architecture.class]);
        config["vocab_size"] = self.vocab_size()?.into();
        // Converters write the head of a tied GPT-2 a second time.
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

    fn llama_style(&self) -> Result<Value> {
        let (hidden, heads) = (
            self.size("embedding_length")?,
            self.size("attention.head_count")?,
        );
        let mut config = json!({
            "hidden_size": hidden,
            "num_hidden_layers": self.size("block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads": self.file.integer(&self.key("attention.head_count_kv")).unwrap_or(heads),
            "intermediate_size": self.size("feed_forward_length")?,
            "max_position_embeddings": self.size("context_length")?,
            "rope_theta": self.file.number(&self.key("rope.freq_base")).unwrap_or(10000.0),
        });
        let head = self.file.integer(&self.key("attention.key_length"));
        if let Some(size) = head.filter(|_| self.architecture.name != "phi3") {
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
            for (key, stored) in [
                ("attn_logit_softcapping", "attn_logit_softcapping"),
                ("final_logit_softcapping", "final_logit_softcapping"),
            ] {
                config[key] = self
                    .file
                    .number(&self.key(stored))
                    .map_or(Value::Null, Value::from);
            }
            // llama.cpp knows the scale of its published sizes: 27B divides by width a head, others
            // by its size.
            let size = if self.size("block_count")? == 46 {
                hidden / heads.max(1)
            } else {
                head.unwrap_or(256)
            };
            config["query_pre_attn_scalar"] = size.into();
        }
        if self.architecture.name == "llama" {
            // Llama's converter writes biases where there are some.
            config["attention_bias"] = self.has_tensor("blk.0.attn_q.bias").into();
        }
        config["rope_scaling"] = self.rope_scaling()?;
        if config["rope_scaling"]["rope_type"] == "longrope" {
            // transformers looks for it beside `rope_scaling`.
            let scaling = config["rope_scaling"].as_object_mut();
            let original =
                scaling.and_then(|scaling| scaling.remove("original_max_position_embeddings"));
            if let Some(original) = original {
                config["original_max_position_embeddings"] = original;
            }
        }
        Ok(config)
    }

    /// Factors of frequencies kept as tensors, or a kind with a factor.
    fn rope_scaling(&self) -> Result<Value> {
        let factors = |name: &str| -> Result<Option<Vec<f32>>> {
            let values = self.has_tensor(name).then(|| self.file.values(name));
            Ok(values.transpose()?)
        };
        let original = self
            .file
            .integer(&self.key("rope.scaling.original_context_length"));
        let long = factors("rope_factors_long.weight")?.zip(factors("rope_factors_short.weight")?);
        // Llama 3.1: one list for all lengths.
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
