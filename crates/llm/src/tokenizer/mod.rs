//! Text to token ids and back, as transformers' tokenizer classes do it.
//!
//! `tokenizer.json` is only half of a tokenizer. transformers resets parts of it (truncation,
//! padding) and rebuilds others (begin and end tokens, added tokens, the prefix space), depending
//! on the class that `tokenizer_config.json` names. `build` does this, `class` is the table of
//! classes, `settings` reads the small files, `slow` reads the older file formats, and `gguf` what
//! llama.cpp stores.

mod build;
mod bytes;
mod class;
pub(crate) mod gguf;
mod gguf_rules;
mod lazy;
mod limits;
mod sentencepiece;
mod settings;
mod slow;

use crate::companion::Companion;
use crate::error::{LlmError, Result};
use crate::guard::guarded;
use build::{add_tokens, base, set_ends, set_prefix_space};
use llm_int8_hub::{HubConfig, Progress};
use llm_int8_nn::checkpoint::GgufFile;
use serde_json::{Map, Value};
use settings::Settings;
use tokenizers::{Decoder, Model};

pub(crate) use lazy::LazyTokenizer;

/// A model's tokenizer.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special_tokens: Map<String, Value>,
    /// Code Llama's infill mark (`<FILL_ME>`). Text with it would have to be split first, which is
    /// not supported.
    fill_token: Option<String>,
}

impl Tokenizer {
    /// A tokenizer from the bytes of a `tokenizer.json`, as a plain `PreTrainedTokenizerFast`.
    /// `what` names it in messages.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`].
    pub fn from_bytes(bytes: &[u8], what: &str) -> Result<Self> {
        let companions = [Companion::bytes("tokenizer.json", bytes.to_vec())];
        let found = Self::from_companions(&companions, &Value::Null, what)?;
        found.ok_or_else(|| refused(what, "the file is missing".into()))
    }

    /// A tokenizer from the metadata of a GGUF file; `None` if the file has none.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`] if its kind is not supported.
    pub fn from_gguf(file: &GgufFile) -> Result<Option<Self>> {
        let what = format!("in {}", file.name());
        Self::from_companions(&gguf::companions(file)?, &Value::Null, &what)
    }

    /// A tokenizer from a model's small files and its `config.json`; `None` if there is no
    /// tokenizer among them. `what` names the model in messages.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`] if its class is not supported or cannot be built from these files;
    /// [`LlmError::MalformedJson`], [`LlmError::Read`].
    pub(crate) fn from_companions(
        companions: &[Companion],
        model_config: &Value,
        what: &str,
    ) -> Result<Option<Self>> {
        const SOURCES: [&str; 4] = [
            "tokenizer.json",
            "vocab.json",
            "merges.txt",
            "tokenizer.model",
        ];
        if !companions
            .iter()
            .any(|companion| SOURCES.contains(&companion.name.as_str()))
        {
            return Ok(None);
        }

        let build = || Self::build(companions, model_config, what);
        guarded(build).unwrap_or_else(|panic| Err(refused(what, unusable(&panic))))
    }

    fn build(companions: &[Companion], model_config: &Value, what: &str) -> Result<Option<Self>> {
        let mut settings = Settings::read(companions, model_config, what)?;
        let refuse = |reason: String| refused(what, reason);

        let (mut inner, is_converted) = base(companions, &settings, what)?;
        inner
            .with_truncation(None)
            .map_err(|cause| refuse(cause.to_string()))?;
        if let Some(padding) = inner.get_padding() {
            settings.set_padding_token(&padding.pad_token);
            inner.with_padding(None);
        }

        add_tokens(&mut inner, &settings).map_err(refuse)?;
        set_prefix_space(&mut inner, &settings).map_err(refuse)?;
        set_ends(&mut inner, &settings, is_converted).map_err(refuse)?;
        inner.set_encode_special_tokens(settings.flag("split_special_tokens", false));

        let fill_token = settings.fill_token();
        Ok(Some(Self {
            inner,
            special_tokens: settings.special_tokens_map(),
            fill_token,
        }))
    }

    /// The special tokens by name (`bos_token`, `eos_token`, …), as chat templates use them.
    pub fn special_tokens(&self) -> &Map<String, Value> {
        &self.special_tokens
    }

    /// The tokenizer of a model: `tiny-gpt2`, a folder, a `.gguf` file, or a model of the hub. No
    /// weights are read or downloaded.
    ///
    /// ```
    /// use llm_int8::{LoadConfig, Tokenizer, hub::NoProgress};
    /// let tokenizer = Tokenizer::from_pretrained("tiny-gpt2", &LoadConfig::default().hub, &NoProgress)?;
    /// let ids = tokenizer.encode("And it came to pass")?;
    /// assert_eq!(tokenizer.decode(&ids)?, "And it came to pass");
    /// # Ok::<(), llm_int8::LlmError>(())
    /// ```
    ///
    /// # Errors
    /// [`LlmError::NoTokenizer`], [`LlmError::Tokenizer`]; [`LlmError::Hub`] if the model cannot be
    /// found.
    pub fn from_pretrained(name: &str, hub: &HubConfig, progress: &dyn Progress) -> Result<Self> {
        let (companions, config) = crate::load::small_files(name, hub, progress)?;
        let found = Self::from_companions(&companions, &config, &format!("of {name}"))?;
        found.ok_or_else(|| LlmError::NoTokenizer {
            model: name.to_owned(),
        })
    }

    /// Encodes a text, with the special tokens that the tokenizer adds.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, true)
    }

    /// Encodes a text that already contains its special tokens, such as the output of a chat
    /// template.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`].
    pub fn encode_templated(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, false)
    }

    fn encode_with(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        if self
            .fill_token
            .as_ref()
            .is_some_and(|mark| text.contains(mark.as_str()))
        {
            let reason = "it contains <FILL_ME>; infilling is not supported".to_owned();
            return Err(LlmError::Tokenizer {
                what: "cannot encode the text".into(),
                reason,
            });
        }

        let refuse = |reason| refused("cannot encode the text", reason);
        let encoding = guarded(|| self.inner.encode(text, add_special_tokens))
            .map_err(|panic| refuse(unusable(&panic)))?
            .map_err(|cause| refuse(cause.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The vocabulary entry of an id, in its raw form (`Ġthe`, `▁the`, `<0x0A>`); `None` for an id
    /// beyond the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether the id is a special token, which [`decode`](Self::decode) leaves out.
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        added.get(&id).is_some_and(|token| token.special)
    }

    /// Decodes ids, without special tokens.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`].
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.decode_with(ids, true)
    }

    /// Decodes ids, including special tokens.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`].
    pub fn decode_all(&self, ids: &[u32]) -> Result<String> {
        self.decode_with(ids, false)
    }

    /// Decodes as tokenizers 0.22 does, which transformers 4.57 uses. Version 0.23 writes added
    /// tokens in their normalised form, with an extra space before them.
    fn decode_with(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        let vocabulary = self.inner.get_added_vocabulary();
        let token = |id: &u32| {
            let added = vocabulary.get_added_tokens_decoder().get(id);
            let token = added
                .map(|token| token.content.clone())
                .or_else(|| self.inner.get_model().id_to_token(*id))?;
            Some(token).filter(|token| !(skip_special_tokens && vocabulary.is_special_token(token)))
        };
        let tokens: Vec<String> = ids.iter().filter_map(token).collect();

        match self.inner.get_decoder() {
            None => Ok(tokens.join(" ")),
            Some(decoder) => {
                let refuse = |reason| refused("cannot decode the ids", reason);
                guarded(|| decoder.decode(tokens))
                    .map_err(|panic| refuse(unusable(&panic)))?
                    .map_err(|cause| refuse(cause.to_string()))
            }
        }
    }
}

/// The reason for a panic of the tokenizers library.
fn unusable(panic: &str) -> String {
    format!("its files cannot be used ({panic}); give token ids instead of text")
}

fn refused(what: &str, reason: String) -> LlmError {
    LlmError::Tokenizer {
        what: what.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_tokenizer_is_reported_by_name() {
        let error = Tokenizer::from_bytes(b"{", "x/tokenizer.json")
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("the tokenizer x/tokenizer.json: "),
            "{error}"
        );
    }

    /// A `tokenizer.json` with this part, on which the tokenizers library panics.
    fn file_with(part: &str, value: Value) -> Vec<u8> {
        let mut file = serde_json::json!({
            "version": "1.0",
            "added_tokens": [],
            "model": { "type": "WordLevel", "vocab": { "a": 0, "?": 1 }, "unk_token": "?" },
        });
        file[part] = value;
        file.to_string().into_bytes()
    }

    #[test]
    fn panics_of_the_library_are_errors() {
        let map = serde_json::json!({ "type": "Precompiled", "precompiled_charsmap": "AAAA" });
        let error = Tokenizer::from_bytes(&file_with("normalizer", map), "x").unwrap_err();
        assert!(error.to_string().contains("charsmap"), "{error}");

        let split = serde_json::json!({ "type": "FixedLength", "length": 0 });
        let tokenizer = Tokenizer::from_bytes(&file_with("pre_tokenizer", split), "x").unwrap();
        let error = tokenizer.encode("a a").unwrap_err();
        assert!(error.to_string().contains("give token ids"), "{error}");
        assert_eq!(tokenizer.decode(&[0]).unwrap(), "a");
    }
}
