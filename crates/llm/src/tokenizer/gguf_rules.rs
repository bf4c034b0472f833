//! llama.cpp's splitting rules by name (`tokenizer.ggml.pre`), and the tokens that it treats as end
//! tokens by their text. Taken from `llama-vocab.cpp` (`llama_vocab::impl::load`,
//! `llm_tokenizer_bpe`) at commit 00ad355.

/// GPT-2's word pattern.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const DIGIT: &str = r"\p{N}";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
const DEEPSEEK3: [&str; 3] = [
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];

/// How a rule splits a text, and what it adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    /// Regular expressions. Each is applied to the pieces that the previous ones left; both matches
    /// and the text between them become words.
    pub(super) splits: &'static [&'static str],
    /// Whether a word that is in the vocabulary becomes one token without applying merges.
    pub(super) ignore_merges: bool,
    /// Whether a text gets the begin token, if the file does not say so.
    pub(super) add_bos: bool,
    /// Whether to normalise to NFC first, as Qwen2's tokenizer does. llama.cpp leaves this out, but
    /// transformers, which the models were trained with, does it.
    pub(super) nfc: bool,
}

const fn splitting(splits: &'static [&'static str]) -> Rule {
    Rule {
        splits,
        ignore_merges: false,
        add_bos: false,
        nfc: false,
    }
}

/// The rule with this name; `None` if it is unknown.
pub(super) fn rule(name: &str) -> Option<Rule> {
    const PLAIN: Rule = splitting(&[GPT2]);
    const DIGITS: Rule = splitting(&[DIGIT, GPT2]);
    const QWEN2: Rule = splitting(&[super::slow::QWEN2_SPLIT]);

    Some(match name {
        "default" => splitting(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
        "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" | "granite-docling"
        | "gigachat" | "a.x-4.0" | "mellum" | "exaone4" => PLAIN,
        "starcoder" | "refact" | "command-r" | "smollm" | "codeshell" | "exaone" | "minerva-7b"
        | "mellum2" => DIGITS,
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0"
        | "lfm2" => Rule {
            ignore_merges: true,
            add_bos: true,
            ..splitting(&[LLAMA3])
        },
        "dbrx" | "smaug-bpe" | "glm4" | "chatglm-bpe" => splitting(&[LLAMA3]),
        "qwen2" | "deepseek-r1-qwen" | "megrez" => Rule { nfc: true, ..QWEN2 },
        "stablelm2" | "hunyuan" | "solar-open" | "grok-2" | "kormo" | "f2llmv2" => QWEN2,
        "qwen35" => splitting(&[QWEN35]),
        "tekken" => Rule {
            ignore_merges: true,
            add_bos: true,
            ..splitting(&[TEKKEN])
        },
        "gpt-4o" | "llama4" | "kanana2" | "talkie" | "minimax-m2" => splitting(&[GPT4O]),
        "poro-chat" | "bloom" | "gpt3-finnish" => splitting(&[BLOOM]),
        "viking" => splitting(&[BLOOM, DIGIT]),
        "falcon" => splitting(&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"]),
        "deepseek-coder" => splitting(&[
            r"[\r\n]",
            r"\s?\p{L}+",
            r"\s?\p{P}+",
            "[一-龥ࠀ-一가-퟿]+",
            DIGIT,
        ]),
        "deepseek-v3" | "hunyuan-dense" | "joyai-llm" => splitting(&DEEPSEEK3),
        "seed-coder" => splitting(&[SEED_CODER]),
        "bailingmoe" | "bailingmoe2" | "llada-moe" => splitting(&[BAILING]),
        _ => return None,
    })
}

/// Tokens that end a text or a turn, whatever the file says about them.
const ENDS: [&str; 24] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    // Fill-in-the-middle tokens for padding, repository and file also end a text.
    "<|fim_pad|>",
    "<fim-pad>",
];
const MARKS: [&str; 9] = [
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];

/// Whether a token with this text ends generation.
pub(super) fn ends(token: &str) -> bool {
    ENDS.contains(&token) || MARKS.contains(&token)
}

/// Whether [`ends`] is wrong about a token, as other tokens of the vocabulary show: beside
/// `<|return|>` and `<|call|>`, `<|end|>` ends a message and not a turn; beside `<|tool_response>`,
/// `</s>` is markup.
pub(super) fn is_false_end(token: &str, has: impl Fn(&str) -> bool) -> bool {
    let calls = || has("<|call|>") || has("<|calls|>");
    match token {
        "<|end|>" => calls() && (has("<|return|>") || has("<|flush|>")),
        "</s>" => has("<|tool_response>"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One name for each rule.
    const NAMES: [&str; 17] = [
        "default",
        "gpt-2",
        "smollm",
        "llama-bpe",
        "dbrx",
        "qwen2",
        "stablelm2",
        "qwen35",
        "tekken",
        "gpt-4o",
        "bloom",
        "viking",
        "falcon",
        "deepseek-coder",
        "deepseek-v3",
        "seed-coder",
        "bailingmoe",
    ];

    #[test]
    fn begin_tokens_are_those_of_llama_cpp() {
        let begins = |name: &str| rule(name).unwrap().add_bos;
        assert!(
            ["llama-bpe", "llama3", "tekken", "falcon3"]
                .into_iter()
                .all(begins)
        );

        assert!(
            !["qwen2", "gpt-2", "smollm", "default", "dbrx", "gpt-4o"]
                .into_iter()
                .any(begins)
        );

        assert_eq!(rule("nothing-known"), None);
    }

    #[test]
    fn every_rule_compiles_and_keeps_every_character() {
        use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};
        let text = "Hello, I'LL pay 12345 €  to\n\n  東京 नमस्ते x_y  ";
        for name in NAMES {
            for split in rule(name).unwrap().splits {
                let split = tokenizers::pre_tokenizers::split::Split::new(
                    tokenizers::pre_tokenizers::split::SplitPattern::Regex((*split).to_owned()),
                    tokenizers::SplitDelimiterBehavior::Isolated,
                    false,
                );

                let mut pieces = PreTokenizedString::from(text);
                split
                    .unwrap_or_else(|error| panic!("{name}: {error}"))
                    .pre_tokenize(&mut pieces)
                    .unwrap();
                let pieces = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
                let joined: String = pieces.iter().map(|(piece, _, _)| *piece).collect();
                assert_eq!(joined, text, "{name}");
                assert!(pieces.len() > 1, "{name}");
            }
        }
    }

    #[test]
    fn in_harmony_the_end_of_a_message_does_not_end_the_turn() {
        assert!(ends("<|end|>") && ends("<|eot_id|>") && !ends("<|im_start|>"));
        assert!(!is_false_end("<|end|>", |_| false));
        assert!(is_false_end("<|end|>", |token| ["<|return|>", "<|call|>"]
            .contains(&token)));
        assert!(!is_false_end("<|eot_id|>", |_| true));
    }
}
