//! Text to token ids and back, as the tokenizer classes of transformers do it.
//!
//! `tokenizer.json` is half of a tokenizer: transformers resets some of it (truncation, padding)
//! and builds some anew (begin and end tokens, added tokens, the first space) by the class that
//! `tokenizer_config.json` names. `class` is the table of classes, `settings` the small files,
//! `slow` the files from before `tokenizer.json`, `gguf` what llama.cpp keeps.

mod class;
pub(crate) mod gguf;
mod gguf_rules;
mod sentencepiece;
mod settings;
mod slow;

use crate::companion::Companion;
use crate::error::{LlmError, Result};
use class::{Ends, SlowFiles};
use llm_int8_hub::{HubConfig, Progress};
use llm_int8_nn::checkpoint::GgufFile;
use serde_json::{Map, Value, json};
use settings::Settings;
use tokenizers::{Decoder, Model, PostProcessorWrapper, PreTokenizerWrapper};

/// A model's tokenizer.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special_tokens: Map<String, Value>,
    /// Code Llama's mark of a gap to be filled, which would have to be split off before.
    fill_token: Option<String>,
}

impl Tokenizer {
    /// From the bytes of a `tokenizer.json`, as a plain `PreTrainedTokenizerFast`; `what` names it
    /// in messages.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`].
    pub fn from_bytes(bytes: &[u8], what: &str) -> Result<Self> {
        let companions = [Companion::bytes("tokenizer.json", bytes.to_vec())];
        let found = Self::from_companions(&companions, &Value::Null, what)?;
        found.ok_or_else(|| refused(what, "there is none".into()))
    }

    /// From the metadata of a GGUF file; `None` where there is no tokenizer in it.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`] for one of a kind that is not supported.
    pub fn from_gguf(file: &GgufFile) -> Result<Option<Self>> {
        let what = format!("in {}", file.name());
        Self::from_companions(&gguf::companions(file)?, &Value::Null, &what)
    }

    /// From a model's small files and its `config.json`; `None` where there is no tokenizer among
    /// them. `what` names the model in messages.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`] for a class that is not supported, and for files that the class
    /// cannot be built from; [`LlmError::MalformedJson`], [`LlmError::Read`].
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

    /// The texts of `bos_token`, `eos_token` and the others, as chat templates see them.
    pub fn special_tokens(&self) -> &Map<String, Value> {
        &self.special_tokens
    }

    /// The tokenizer of a model: `tiny-gpt2`, a folder, a `.gguf` file, or a model of the hub, of
    /// which no weights are read or downloaded.
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
    /// [`LlmError::NoTokenizer`], [`LlmError::Tokenizer`]; [`LlmError::Hub`] for a model that
    /// cannot be found.
    pub fn from_pretrained(name: &str, hub: &HubConfig, progress: &dyn Progress) -> Result<Self> {
        let (companions, config) = crate::load::small_files(name, hub, progress)?;
        let found = Self::from_companions(&companions, &config, &format!("of {name}"))?;
        found.ok_or_else(|| LlmError::NoTokenizer {
            model: name.to_owned(),
        })
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
        if self
            .fill_token
            .as_ref()
            .is_some_and(|mark| text.contains(mark.as_str()))
        {
            let reason =
                "it has a gap to fill (<FILL_ME>); filling gaps is not supported".to_owned();
            return Err(LlmError::Tokenizer {
                what: "cannot read the text".into(),
                reason,
            });
        }

        let encoding = self
            .inner
            .encode(text, add_special_tokens)
            .map_err(|cause| LlmError::Tokenizer {
                what: "cannot read the text".into(),
                reason: cause.to_string(),
            })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The piece of the vocabulary that has an id, as it stands there (`Ġthe`, `▁the`, `<0x0A>`);
    /// none for an id beyond the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether [`decode`](Self::decode) leaves the id out.
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        added.get(&id).is_some_and(|token| token.special)
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

    /// As `decode` of tokenizers 0.22, which transformers 4.57 uses: 0.23 writes added tokens in
    /// their normalised form, with a space more before them.
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
            Some(decoder) => decoder.decode(tokens).map_err(|cause| LlmError::Tokenizer {
                what: "cannot write the text".into(),
                reason: cause.to_string(),
            }),
        }
    }
}

fn refused(what: &str, reason: String) -> LlmError {
    LlmError::Tokenizer {
        what: what.to_owned(),
        reason,
    }
}

/// The tokenizer before transformers' changes: out of `tokenizer.json`, else converted from the
/// older files of its class. The flag says which.
fn base(
    companions: &[Companion],
    settings: &Settings,
    what: &str,
) -> Result<(tokenizers::Tokenizer, bool)> {
    let file = |name: &str| companions.iter().find(|companion| companion.name == name);
    let class = settings.class;
    if let Some(json) = file("tokenizer.json")
        && !rebuilds(settings, file("tokenizer.model").is_some())
    {
        let inner = tokenizers::Tokenizer::from_bytes(json.read()?)
            .map_err(|cause| refused(what, format!("tokenizer.json: {cause}")))?;
        check_llama_prefix(&inner, settings).map_err(|reason| refused(what, reason))?;
        return Ok((inner, false));
    }

    let built = match (
        class.slow,
        file("vocab.json"),
        file("merges.txt"),
        file("tokenizer.model"),
    ) {
        (kind @ (SlowFiles::Gpt2 | SlowFiles::Qwen2), Some(vocab), Some(merges), _) => {
            slow::from_merges(kind, &vocab.read()?, &merges.read()?, settings)
        }
        (kind @ (SlowFiles::Llama | SlowFiles::Gemma), _, _, Some(model)) => {
            slow::from_sentencepiece(kind, &model.read()?, settings)
        }
        (kind, ..) => {
            let files = match kind {
                SlowFiles::Gpt2 | SlowFiles::Qwen2 => {
                    "tokenizer.json, or vocab.json and merges.txt"
                }
                SlowFiles::Llama | SlowFiles::Gemma => "tokenizer.json or tokenizer.model",
                SlowFiles::None => "tokenizer.json",
            };
            Err(format!(
                "its class `{}` is built from {files}, which the model does not have",
                class.name
            ))
        }
    };
    let built = built.map_err(|reason| refused(what, reason))?;

    Ok((built, true))
}

/// Whether the class builds its tokenizer anew though there is a `tokenizer.json`: Llama's does so
/// where `add_prefix_space` is given.
fn rebuilds(settings: &Settings, has_model: bool) -> bool {
    settings.class.name == "LlamaTokenizer"
        && settings.optional_flag("add_prefix_space").is_some()
        && has_model
}

/// Without a `tokenizer.model` transformers cannot follow a Llama's `add_prefix_space` and fails.
/// Here it is enough that `tokenizer.json` does what the setting says.
fn check_llama_prefix(inner: &tokenizers::Tokenizer, settings: &Settings) -> Result<(), String> {
    let Some(expected) = settings.optional_flag("add_prefix_space") else {
        return Ok(());
    };

    if settings.class.name != "LlamaTokenizer" {
        return Ok(());
    }

    let text = |part: Option<String>| part.unwrap_or_default();
    let normalizer = text(
        inner
            .get_normalizer()
            .and_then(|part| serde_json::to_string(part).ok()),
    );

    let pre_tokenizer = text(
        inner
            .get_pre_tokenizer()
            .and_then(|part| serde_json::to_string(part).ok()),
    );
    let adds = normalizer.contains(r#""type":"Prepend""#)
        || pre_tokenizer.contains(r#""prepend_scheme":"first""#)
        || pre_tokenizer.contains(r#""prepend_scheme":"always""#)
        || pre_tokenizer.contains(r#""add_prefix_space":true"#);
    if adds == expected {
        return Ok(());
    }

    Err(format!(
        "tokenizer_config.json sets `add_prefix_space` to {expected}, tokenizer.json does the opposite, and there is \
         no tokenizer.model to build it anew from"
    ))
}

/// Adds the tokens that the small files name and the tokenizer lacks, and marks special ones
/// (`PreTrainedTokenizerFast.__init__`).
fn add_tokens(inner: &mut tokenizers::Tokenizer, settings: &Settings) -> Result<(), String> {
    let present: Vec<tokenizers::AddedToken> =
        inner.get_added_tokens_decoder().into_values().collect();
    let special = settings.special_tokens();
    let is_special = |content: &str| special.iter().any(|token| token.content == content);

    let mut new = Vec::new();
    for token in settings.added.values() {
        let marked = token.flags.is_some_and(|flags| flags.special);
        if !present.contains(&token.added(marked)) {
            new.push(token.clone());
        }
    }

    for token in &special {
        let is_known = match token.flags {
            // An object is compared with the added tokens alone, so that its flags win over those
            // of the file.
            Some(_) => new.contains(*token),
            None => [
                present
                    .iter()
                    .map(|token| &token.content)
                    .collect::<Vec<_>>(),
                new.iter().map(|t| &t.content).collect(),
            ]
            .concat()
            .contains(&&token.content),
        };
        if !is_known {
            new.push((*token).clone());
        }
    }

    let new = new.iter().map(|token| {
        let marked = token.flags.is_some_and(|flags| flags.special);
        token.added(marked || is_special(&token.content))
    });
    let new: Vec<tokenizers::AddedToken> = new.collect();
    inner
        .add_tokens(new)
        .map(drop)
        .map_err(|cause| cause.to_string())
}

/// Lets `add_prefix_space` of `tokenizer_config.json` (false where it lacks) win over that of
/// `tokenizer.json`.
fn set_prefix_space(inner: &mut tokenizers::Tokenizer, settings: &Settings) -> Result<(), String> {
    let wanted = settings.flag("add_prefix_space", false);
    // Null, which is Llama's default, leaves the step as it is.
    let is_null = settings.is_null("add_prefix_space")
        || settings.class.name == "LlamaTokenizer"
            && settings.optional_flag("add_prefix_space").is_none();
    if let (Some(PreTokenizerWrapper::ByteLevel(step)), false) =
        (inner.get_pre_tokenizer(), is_null)
    {
        let step = step.add_prefix_space(wanted);
        inner.with_pre_tokenizer(Some(step));
    }
    if wanted && settings.class.deep_prefix_space {
        let deep = |text: String| {
            text.replace(r#""add_prefix_space":false"#, r#""add_prefix_space":true"#)
        };
        if let Some(part) = inner.get_pre_tokenizer() {
            let text = deep(serde_json::to_string(part).map_err(|cause| cause.to_string())?);
            let part: PreTokenizerWrapper =
                serde_json::from_str(&text).map_err(|cause| cause.to_string())?;
            inner.with_pre_tokenizer(Some(part));
        }

        if let Some(part) = inner.get_decoder() {
            let text = deep(serde_json::to_string(part).map_err(|cause| cause.to_string())?);
            let part: tokenizers::DecoderWrapper =
                serde_json::from_str(&text).map_err(|cause| cause.to_string())?;
            inner.with_decoder(Some(part));
        }
    }

    Ok(())
}

/// Begin and end tokens around a text: by the class's flags, or as `GPT2Converter` puts them.
fn set_ends(
    inner: &mut tokenizers::Tokenizer,
    settings: &Settings,
    is_converted: bool,
) -> Result<(), String> {
    let class = settings.class;
    let [bos, eos] = match class.ends {
        Ends::Flags { bos } => [
            settings.flag("add_bos_token", bos),
            settings.flag("add_eos_token", false),
        ],
        Ends::FromFile
            if class.name == "CodeGenTokenizer" && settings.flag("add_bos_token", false) =>
        {
            return Err(
                "`add_bos_token` is true, which transformers refuses for CodeGenTokenizer".into(),
            );
        }

        Ends::FromFile if class.slow == SlowFiles::Gpt2 && is_converted => {
            [settings.flag("add_bos_token", false), false]
        }
        Ends::FromFile => return Ok(()),
    };

    let end = |attribute: &str, is_wanted: bool| -> Result<Option<(u32, String)>, String> {
        if !is_wanted {
            return Ok(None);
        }

        let token = settings.special_token(attribute);
        let token = token
            .ok_or_else(|| format!("`add_{attribute}` is true, but there is no `{attribute}`"))?;
        let id = inner
            .token_to_id(token)
            .ok_or_else(|| format!("`{attribute}` {token:?} has no id"))?;
        Ok(Some((id, token.to_owned())))
    };
    let around = template_json(end("bos_token", bos)?, end("eos_token", eos)?);
    let step: Option<PostProcessorWrapper> =
        serde_json::from_value(around).map_err(|cause| cause.to_string())?;
    inner.with_post_processor(step);

    Ok(())
}

/// The step that puts tokens before and after a text, as `tokenizer.json` has it; null where there
/// are neither.
fn template_json<Id: Copy + Into<Value>>(
    first: Option<(Id, String)>,
    last: Option<(Id, String)>,
) -> Value {
    if first.is_none() && last.is_none() {
        return Value::Null;
    }

    let special = |token: &Option<(Id, String)>, sequence: u8| {
        token
            .as_ref()
            .map(|(_, text)| json!({ "SpecialToken": { "id": text, "type_id": sequence } }))
    };

    let around = |name: &str, sequence: u8| {
        let text = json!({ "Sequence": { "id": name, "type_id": sequence } });
        let parts = [
            special(&first, sequence),
            Some(text),
            special(&last, sequence),
        ];
        parts.into_iter().flatten().collect::<Vec<Value>>()
    };

    let tokens = [&first, &last].into_iter().flatten();
    let tokens = tokens.map(|(id, text)| {
        let id: Value = (*id).into();
        (
            text.clone(),
            json!({ "id": text, "ids": [id], "tokens": [text] }),
        )
    });

    let pair = [around("A", 0), around("B", 1)].concat();
    json!({
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": pair,
        "special_tokens": tokens.collect::<Map<_, _>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_tokenizer_is_named() {
        let error = Tokenizer::from_bytes(b"{", "x/tokenizer.json")
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("the tokenizer x/tokenizer.json: "),
            "{error}"
        );
    }
}
