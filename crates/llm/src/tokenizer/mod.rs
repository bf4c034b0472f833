//! Text to token ids and back.

pub(crate) mod gguf;

use crate::companion::Companion;
use crate::error::{LlmError, Result};
use llm_int8_hub::TokenizerFiles;
use llm_int8_nn::checkpoint::GgufFile;
use std::path::Path;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// A model's tokenizer.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// From `tokenizer.json`, or from `vocab.json` and `merges.txt` (byte-level BPE, as GPT-2's); `None`
    /// where there are neither.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`] for files that are not usable.
    pub fn from_files(files: &TokenizerFiles) -> Result<Option<Self>> {
        if let Some(path) = &files.tokenizer_json {
            let bytes = read(path)?;
            return Self::from_bytes(&bytes, &path.display().to_string()).map(Some);
        }
        let (Some(vocab), Some(merges)) = (&files.vocab_json, &files.merges_txt) else { return Ok(None) };
        let what = format!("{} and {}", vocab.display(), merges.display());
        let error =
            |cause: tokenizers::Error| LlmError::Tokenizer { what: what.clone(), reason: cause.to_string() };
        let text = |path: &Path| {
            path.to_str().ok_or_else(|| error("the path is not UTF-8".into())).map(str::to_owned)
        };
        let bpe = BPE::from_file(&text(vocab)?, &text(merges)?).build().map_err(error)?;
        let mut inner = tokenizers::Tokenizer::new(bpe);
        let byte_level = ByteLevel::default().add_prefix_space(false);
        inner.with_pre_tokenizer(Some(byte_level));
        inner.with_decoder(Some(byte_level));
        for token in special_tokens(files)? {
            // Only names the vocabulary has: an unknown one would shift ids beyond the model's table.
            if inner.token_to_id(&token).is_some() {
                let token = tokenizers::AddedToken::from(token, true);
                inner.add_special_tokens([token]).map_err(error)?;
            }
        }
        Ok(Some(Self { inner }))
    }

    /// From the bytes of a `tokenizer.json`; `what` names it in messages.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`].
    pub fn from_bytes(bytes: &[u8], what: &str) -> Result<Self> {
        let inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|cause| LlmError::Tokenizer { what: what.to_owned(), reason: cause.to_string() })?;
        Ok(Self { inner })
    }

    /// From the metadata of a GGUF file; `None` where there is no tokenizer in it.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`] for one of a kind that is not read here.
    pub fn from_gguf(file: &GgufFile) -> Result<Option<Self>> {
        Self::from_companions(&gguf::companions(file)?, file.name())
    }

    /// From the `tokenizer.json` among small files; `what` names where they are from.
    pub(crate) fn from_companions(companions: &[Companion], what: &str) -> Result<Option<Self>> {
        let json = companions.iter().find(|companion| companion.name == "tokenizer.json");
        json.map(|json| Self::from_bytes(&json.read()?, &format!("in {what}"))).transpose()
    }

    /// The ids of a text, with the special tokens the tokenizer adds.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, true)
    }

    /// The ids of a text that holds its special tokens already, as chat templates write them.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`].
    pub fn encode_templated(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, false)
    }

    fn encode_with(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode(text, add_special_tokens).map_err(|cause| LlmError::Tokenizer {
            what: "cannot read the text".into(),
            reason: cause.to_string(),
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of ids, without special tokens.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`].
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.decode_with(ids, true)
    }

    /// The text of ids, special tokens included.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`].
    pub fn decode_all(&self, ids: &[u32]) -> Result<String> {
        self.decode_with(ids, false)
    }

    fn decode_with(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        self.inner.decode(ids, skip_special_tokens).map_err(|cause| LlmError::Tokenizer {
            what: "cannot write the text".into(),
            reason: cause.to_string(),
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| LlmError::Read { path: path.to_owned(), source })
}

/// The special tokens two small files name, and GPT-2's own.
fn special_tokens(files: &TokenizerFiles) -> Result<Vec<String>> {
    let mut tokens = vec!["<|endoftext|>".to_owned()];
    for path in [&files.special_tokens_map, &files.tokenizer_config].into_iter().flatten() {
        let json: serde_json::Value = serde_json::from_slice(&read(path)?).map_err(|cause| {
            LlmError::MalformedJson { what: path.display().to_string(), reason: cause.to_string() }
        })?;
        for key in ["bos_token", "eos_token", "unk_token", "pad_token"] {
            let value = &json[key];
            tokens.extend(value.as_str().or(value["content"].as_str()).map(str::to_owned));
        }
    }
    tokens.sort_unstable();
    tokens.dedup();
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> Tokenizer {
        Tokenizer::from_bytes(crate::builtin::TOKENIZER, "tiny-gpt2").unwrap()
    }

    #[test]
    fn vocab_and_merges_give_the_ids_of_tokenizer_json() {
        let json: serde_json::Value = serde_json::from_slice(crate::builtin::TOKENIZER).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let merge = |merge: &serde_json::Value| match merge {
            serde_json::Value::Array(pair) => {
                format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap())
            }
            other => other.as_str().unwrap().to_owned(),
        };
        let merges: Vec<String> = json["model"]["merges"].as_array().unwrap().iter().map(merge).collect();
        std::fs::write(folder.path().join("vocab.json"), json["model"]["vocab"].to_string()).unwrap();
        std::fs::write(folder.path().join("merges.txt"), format!("#version: 0.2\n{}\n", merges.join("\n")))
            .unwrap();
        let files = TokenizerFiles {
            vocab_json: Some(folder.path().join("vocab.json")),
            merges_txt: Some(folder.path().join("merges.txt")),
            ..TokenizerFiles::default()
        };
        let two = Tokenizer::from_files(&files).unwrap().unwrap();
        let text = "And it came to pass, that 🙂 <|endoftext|>\n\nROMEO:";
        assert_eq!(two.encode(text).unwrap(), tiny().encode(text).unwrap());
        assert_eq!(two.decode(&two.encode("thou art").unwrap()).unwrap(), "thou art");
    }

    #[test]
    fn a_broken_tokenizer_is_named() {
        let error = Tokenizer::from_bytes(b"{", "x/tokenizer.json").unwrap_err().to_string();
        assert!(error.starts_with("the tokenizer x/tokenizer.json: "), "{error}");
    }
}
