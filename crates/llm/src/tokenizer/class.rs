//! What each tokenizer class of transformers adds to its files: default special tokens, begin and
//! end tokens, and the files it can be built from without a `tokenizer.json`.
//!
//! Taken from the `tokenization_*_fast.py` files of transformers 4.57.

use serde_json::Value;

/// The files a class is built from if there is no `tokenizer.json` (`convert_slow_tokenizer.py`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SlowFiles {
    /// `vocab.json` and `merges.txt`, split as GPT-2 splits.
    Gpt2,
    /// `vocab.json` and `merges.txt`, split as Qwen2 splits, after NFC.
    Qwen2,
    /// `tokenizer.model`, by Llama's converter.
    Llama,
    /// `tokenizer.model`, by Gemma's converter.
    Gemma,
    /// The class has no slow form: it needs `tokenizer.json`.
    None,
}

/// Where the begin and end tokens around a text come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    /// From `tokenizer.json`.
    FromFile,
    /// From `add_bos_token` and `add_eos_token` in `tokenizer_config.json`, whatever
    /// `tokenizer.json` says (`update_post_processor`).
    Flags {
        /// The default of `add_bos_token`.
        bos: bool,
    },
}

/// A tokenizer class, fast or slow.
#[derive(Debug)]
pub(super) struct TokenizerClass {
    /// The name, without `Fast`.
    pub(super) name: &'static str,
    /// Special tokens that the files do not set: attribute and text.
    pub(super) defaults: &'static [(&'static str, &'static str)],
    pub(super) slow: SlowFiles,
    pub(super) ends: Ends,
    /// Whether the class itself sets a padding token, so that the padding in `tokenizer.json` is
    /// ignored.
    pub(super) names_padding: bool,
    /// Whether `add_prefix_space` applies to every step of the pipeline, not only the first.
    pub(super) deep_prefix_space: bool,
    /// Additional special tokens: the key in `tokenizer_config.json` and its default.
    pub(super) additional: &'static [(&'static str, &'static str)],
}

const END_OF_TEXT: &[(&str, &str)] = &[
    ("bos_token", "<|endoftext|>"),
    ("eos_token", "<|endoftext|>"),
    ("unk_token", "<|endoftext|>"),
];
const SENTENCE: &[(&str, &str)] = &[
    ("bos_token", "<s>"),
    ("eos_token", "</s>"),
    ("unk_token", "<unk>"),
];

const GENERIC: TokenizerClass = TokenizerClass {
    name: "PreTrainedTokenizer",
    defaults: &[],
    slow: SlowFiles::None,
    ends: Ends::FromFile,
    names_padding: false,
    deep_prefix_space: false,
    additional: &[],
};

const CLASSES: &[TokenizerClass] = &[
    GENERIC,
    // The name that transformers 5 saves.
    TokenizerClass {
        name: "TokenizersBackend",
        ..GENERIC
    },
    TokenizerClass {
        name: "GPT2Tokenizer",
        defaults: END_OF_TEXT,
        slow: SlowFiles::Gpt2,
        ..GENERIC
    },
    TokenizerClass {
        name: "CodeGenTokenizer",
        defaults: END_OF_TEXT,
        slow: SlowFiles::Gpt2,
        ..GENERIC
    },
    TokenizerClass {
        name: "Qwen2Tokenizer",
        names_padding: true,
        defaults: &[
            ("eos_token", "<|endoftext|>"),
            ("unk_token", "<|endoftext|>"),
            ("pad_token", "<|endoftext|>"),
        ],
        slow: SlowFiles::Qwen2,
        ..GENERIC
    },
    TokenizerClass {
        name: "LlamaTokenizer",
        defaults: SENTENCE,
        slow: SlowFiles::Llama,
        ends: Ends::Flags { bos: true },
        ..GENERIC
    },
    TokenizerClass {
        name: "CodeLlamaTokenizer",
        defaults: SENTENCE,
        slow: SlowFiles::Llama,
        ends: Ends::Flags { bos: true },
        additional: &[
            ("prefix_token", "▁<PRE>"),
            ("middle_token", "▁<MID>"),
            ("suffix_token", "▁<SUF>"),
            ("eot_token", "▁<EOT>"),
        ],
        ..GENERIC
    },
    TokenizerClass {
        name: "GemmaTokenizer",
        names_padding: true,
        defaults: &[
            ("bos_token", "<bos>"),
            ("eos_token", "<eos>"),
            ("unk_token", "<unk>"),
            ("pad_token", "<pad>"),
        ],
        slow: SlowFiles::Gemma,
        ends: Ends::Flags { bos: true },
        ..GENERIC
    },
    TokenizerClass {
        name: "GPTNeoXTokenizer",
        names_padding: true,
        defaults: END_OF_TEXT,
        ends: Ends::Flags { bos: false },
        ..GENERIC
    },
    TokenizerClass {
        name: "BloomTokenizer",
        names_padding: true,
        defaults: &[
            ("bos_token", "<s>"),
            ("eos_token", "</s>"),
            ("unk_token", "<unk>"),
            ("pad_token", "<pad>"),
        ],
        deep_prefix_space: true,
        ..GENERIC
    },
    TokenizerClass {
        name: "CohereTokenizer",
        defaults: &[
            ("bos_token", "<BOS_TOKEN>"),
            ("eos_token", "<|END_OF_TURN_TOKEN|>"),
            ("unk_token", "<UNK>"),
        ],
        ends: Ends::Flags { bos: true },
        deep_prefix_space: true,
        ..GENERIC
    },
];

/// The class of a model family, if no file names one (`TOKENIZER_MAPPING_NAMES`).
const FAMILIES: &[(&str, &str)] = &[
    ("bloom", "BloomTokenizer"),
    ("gemma2", "GemmaTokenizer"),
    ("gemma3_text", "GemmaTokenizer"),
    ("gpt2", "GPT2Tokenizer"),
    ("gpt_bigcode", "GPT2Tokenizer"),
    ("gpt_neo", "GPT2Tokenizer"),
    ("gpt_neox", "GPTNeoXTokenizer"),
    ("gptj", "GPT2Tokenizer"),
    ("granite", "GPT2Tokenizer"),
    ("llama", "LlamaTokenizer"),
    ("mistral", "LlamaTokenizer"),
    ("mpt", "GPTNeoXTokenizer"),
    ("olmo2", "GPTNeoXTokenizer"),
    ("opt", "GPT2Tokenizer"),
    ("phi", "CodeGenTokenizer"),
    ("phi3", "LlamaTokenizer"),
    ("qwen2", "Qwen2Tokenizer"),
    ("qwen3", "Qwen2Tokenizer"),
    ("stablelm", "GPTNeoXTokenizer"),
    ("starcoder2", "GPT2Tokenizer"),
];

impl TokenizerClass {
    /// The class that `tokenizer_config.json` names, else that of `config.json`, else that of the
    /// model family. The error is the name of an unknown class.
    pub(super) fn of(
        tokenizer_config: &Value,
        model_config: &Value,
    ) -> Result<&'static Self, String> {
        let named =
            [tokenizer_config, model_config].map(|config| config["tokenizer_class"].as_str());
        let family = || {
            let model_type = model_config["model_type"].as_str()?;
            FAMILIES
                .iter()
                .find(|(family, _)| *family == model_type)
                .map(|(_, class)| *class)
        };

        let name = named[0]
            .or(named[1])
            .or_else(family)
            .unwrap_or(GENERIC.name);
        let short = name.strip_suffix("Fast").unwrap_or(name);

        CLASSES
            .iter()
            .find(|class| class.name == short)
            .ok_or_else(|| name.to_owned())
    }

    /// The supported names, for messages.
    pub(super) fn names() -> String {
        CLASSES
            .iter()
            .map(|class| class.name)
            .collect::<Vec<_>>()
            .join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn name(tokenizer_config: Value, model_config: Value) -> Result<&'static str, String> {
        TokenizerClass::of(&tokenizer_config, &model_config).map(|class| class.name)
    }

    #[test]
    fn tokenizer_config_overrides_config_and_family() {
        let llama = json!({ "model_type": "llama" });
        assert_eq!(name(json!({}), llama.clone()), Ok("LlamaTokenizer"));
        assert_eq!(
            name(
                json!({ "tokenizer_class": "GPT2TokenizerFast" }),
                llama.clone()
            ),
            Ok("GPT2Tokenizer")
        );

        let both = json!({ "model_type": "llama", "tokenizer_class": "PreTrainedTokenizerFast" });
        assert_eq!(name(json!({}), both), Ok("PreTrainedTokenizer"));
        assert_eq!(
            name(
                json!({ "tokenizer_class": null }),
                json!({ "model_type": "falcon" })
            ),
            Ok("PreTrainedTokenizer")
        );

        assert_eq!(
            name(json!({ "tokenizer_class": "BertTokenizer" }), llama),
            Err("BertTokenizer".into())
        );
    }

    #[test]
    fn every_family_has_a_known_class() {
        // transformers uses `PreTrainedTokenizerFast` for falcon, glm and smollm3.
        for family in llm_int8_decoder::FAMILIES
            .iter()
            .map(|family| family.model_type)
        {
            let is_generic = ["falcon", "glm", "smollm3"].contains(&family);
            assert_eq!(
                FAMILIES.iter().any(|(name, _)| *name == family),
                !is_generic,
                "{family}"
            );
        }

        for (family, class) in FAMILIES {
            assert_eq!(
                name(json!({}), json!({ "model_type": family })).as_ref(),
                Ok(class)
            );
        }
    }
}
