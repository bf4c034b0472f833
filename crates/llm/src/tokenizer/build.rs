//! Building the pipeline of a tokenizer: from its files, then with the changes that transformers
//! makes to it.

use super::class::{Ends, SlowFiles};
use super::settings::Settings;
use super::{limits, refused, slow};
use crate::companion::Companion;
use crate::error::Result;
use serde_json::{Map, Value, json};
use tokenizers::{NormalizedString, Normalizer, PostProcessorWrapper, PreTokenizerWrapper};

/// The tokenizer before transformers' changes: from `tokenizer.json`, else converted from the older
/// files of its class. The flag says whether it was converted.
pub(super) fn base(
    companions: &[Companion],
    settings: &Settings,
    what: &str,
) -> Result<(tokenizers::Tokenizer, bool)> {
    let file = |name: &str| companions.iter().find(|companion| companion.name == name);
    let class = settings.class;
    if let Some(json) = file("tokenizer.json")
        && !rebuilds(settings, file("tokenizer.model").is_some())
    {
        let bytes = json.read()?;
        let refuse = |reason: String| refused(what, format!("tokenizer.json: {reason}"));
        let added = limits::check(&bytes).map_err(refuse)?;
        let inner =
            tokenizers::Tokenizer::from_bytes(bytes).map_err(|cause| refuse(cause.to_string()))?;
        check_added_tokens(&inner, &added).map_err(refuse)?;
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

/// Whether the class rebuilds its tokenizer although there is a `tokenizer.json`: Llama's does if
/// `add_prefix_space` is set.
fn rebuilds(settings: &Settings, has_model: bool) -> bool {
    settings.class.name == "LlamaTokenizer"
        && settings.optional_flag("add_prefix_space").is_some()
        && has_model
}

/// Without a `tokenizer.model` transformers cannot apply a Llama's `add_prefix_space` and fails.
/// Here it is enough if `tokenizer.json` already does what the setting says.
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
         no tokenizer.model to rebuild it from"
    ))
}

/// Adds the tokens that the small files name and the tokenizer lacks, and marks the special ones
/// (`PreTrainedTokenizerFast.__init__`).
pub(super) fn add_tokens(
    inner: &mut tokenizers::Tokenizer,
    settings: &Settings,
) -> Result<(), String> {
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
            // A token given as an object is compared only with the tokens to add, so that its flags
            // override those of the file.
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
    check_added_tokens(inner, &new)?;

    inner
        .add_tokens(new)
        .map(drop)
        .map_err(|cause| cause.to_string())
}

/// Refuses an added token of which normalization leaves nothing: the tokenizers library would find it
/// between any two characters without end. It does so even if another token has taken its id, so
/// the tokens that the library lists would not be enough to check.
fn check_added_tokens(
    inner: &tokenizers::Tokenizer,
    added: &[tokenizers::AddedToken],
) -> Result<(), String> {
    let Some(normalizer) = inner.get_normalizer() else {
        return Ok(());
    };

    for token in added.iter().filter(|token| token.normalized) {
        let mut text = NormalizedString::from(token.content.as_str());
        normalizer
            .normalize(&mut text)
            .map_err(|cause| cause.to_string())?;
        if text.is_empty() {
            return Err(format!(
                "the normalizer leaves nothing of the added token {:?}, which would match everywhere; set its \
                 `normalized` to false, or remove it",
                token.content
            ));
        }
    }

    Ok(())
}

/// Applies `add_prefix_space` of `tokenizer_config.json` (default false), which overrides that of
/// `tokenizer.json`.
pub(super) fn set_prefix_space(
    inner: &mut tokenizers::Tokenizer,
    settings: &Settings,
) -> Result<(), String> {
    let requested = settings.flag("add_prefix_space", false);
    // Null, which is Llama's default, leaves the step unchanged.
    let is_null = settings.is_null("add_prefix_space")
        || settings.class.name == "LlamaTokenizer"
            && settings.optional_flag("add_prefix_space").is_none();
    if let (Some(PreTokenizerWrapper::ByteLevel(step)), false) =
        (inner.get_pre_tokenizer(), is_null)
    {
        let step = step.add_prefix_space(requested);
        inner.with_pre_tokenizer(Some(step));
    }

    if requested && settings.class.deep_prefix_space {
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

/// Adds begin and end tokens around a text: by the class's flags, or as `GPT2Converter` does.
pub(super) fn set_ends(
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
                "`add_bos_token` is true, which transformers does not allow for CodeGenTokenizer"
                    .into(),
            );
        }
        Ends::FromFile if class.slow == SlowFiles::Gpt2 && is_converted => {
            [settings.flag("add_bos_token", false), false]
        }
        Ends::FromFile => return Ok(()),
    };

    let end = |attribute: &str, is_requested: bool| -> Result<Option<(u32, String)>, String> {
        if !is_requested {
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

/// The post-processor that puts a token before and after a text, in the form of `tokenizer.json`;
/// null if there is neither.
pub(super) fn template_json<Id: Copy + Into<Value>>(
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
