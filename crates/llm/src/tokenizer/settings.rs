//! The settings of a tokenizer, merged from `tokenizer_config.json`, `special_tokens_map.json` and
//! `added_tokens.json` as `PreTrainedTokenizerBase._from_pretrained` of transformers 4.57 does.

use super::class::TokenizerClass;
use crate::companion::Companion;
use crate::error::{LlmError, Result};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The special tokens of transformers, in the order in which it adds them.
const ATTRIBUTES: [&str; 8] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
    "additional_special_tokens",
];

/// An added token, before it is known whether it is special.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) content: String,
    /// `None` for a token given as a plain string, without flags.
    pub(super) flags: Option<Flags>,
}

/// The flags of an `AddedToken`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flags {
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    /// `None`: the opposite of `special`.
    normalized: Option<bool>,
    pub(super) special: bool,
}

impl Token {
    fn text(content: &str) -> Self {
        Self {
            content: content.to_owned(),
            flags: None,
        }
    }

    /// Parses a string, or an object with `content`.
    fn parse(value: &Value) -> Option<Self> {
        let flag = |key: &str| value[key].as_bool().unwrap_or(false);
        match value {
            Value::String(text) => Some(Self::text(text)),
            Value::Object(_) => Some(Self {
                content: value["content"].as_str()?.to_owned(),
                flags: Some(Flags {
                    single_word: flag("single_word"),
                    lstrip: flag("lstrip"),
                    rstrip: flag("rstrip"),
                    normalized: value["normalized"].as_bool(),
                    special: flag("special"),
                }),
            }),
            _ => None,
        }
    }

    /// The token as the tokenizers library represents it.
    pub(super) fn added(&self, special: bool) -> tokenizers::AddedToken {
        let added = tokenizers::AddedToken::from(self.content.clone(), special);
        match self.flags {
            None => added,
            Some(flags) => added
                .single_word(flags.single_word)
                .lstrip(flags.lstrip)
                .rstrip(flags.rstrip)
                .normalized(flags.normalized.unwrap_or(!special)),
        }
    }
}

/// What the small files say about a tokenizer.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) class: &'static TokenizerClass,
    /// `tokenizer_config.json`.
    config: Map<String, Value>,
    /// Special tokens by attribute, in transformers' order.
    special: Vec<(String, Vec<Token>)>,
    /// Added tokens, by the id that the files give them.
    pub(super) added: BTreeMap<u64, Token>,
}

impl Settings {
    /// Reads the small files. `model_config` is `config.json`; `what` names the model in messages.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`] if the class is not supported, or a token is neither a string nor an
    /// object; [`LlmError::MalformedJson`], [`LlmError::Read`].
    pub(super) fn read(companions: &[Companion], model_config: &Value, what: &str) -> Result<Self> {
        let refuse = |reason: String| LlmError::Tokenizer {
            what: what.to_owned(),
            reason,
        };
        let object = |name: &str| -> Result<Option<Map<String, Value>>> {
            match Companion::json(companions, name)? {
                None => Ok(None),
                Some(Value::Object(values)) => Ok(Some(values)),
                Some(_) => Err(refuse(format!("{name} is not a JSON object"))),
            }
        };
        let mut config = object("tokenizer_config.json")?.unwrap_or_default();

        let class = TokenizerClass::of(&Value::Object(config.clone()), model_config).map_err(|name| {
            refuse(format!(
                "its class `{name}` is not supported; supported are {}. Use token ids instead of text",
                TokenizerClass::names()
            ))
        })?;

        let mut added = BTreeMap::new();
        // Tokens whose flags override those given with the special tokens.
        let known: Vec<Token>;
        if let Some(decoder) = config.get("added_tokens_decoder") {
            let entries = decoder.as_object().cloned().unwrap_or_default();
            for (id, token) in &entries {
                let parsed = id
                    .parse()
                    .ok()
                    .zip(Token::parse(token).filter(|token| token.flags.is_some()));
                let (id, token) = parsed.ok_or_else(|| {
                    refuse(format!(
                        "`added_tokens_decoder` has an entry that is not a token: {id:?}: {token}"
                    ))
                })?;
                added.insert(id, token);
            }

            known = added.values().cloned().collect();
        } else {
            merge_special_tokens_map(
                &mut config,
                object("special_tokens_map.json")?.unwrap_or_default(),
            );
            added = legacy_added_tokens(&config, object("added_tokens.json")?.unwrap_or_default());
            known = tokens_of_json(companions, what)?;
        }

        let special = special_tokens(class, &config, &known).map_err(refuse)?;
        Ok(Self {
            class,
            config,
            special,
            added,
        })
    }

    /// A flag in `tokenizer_config.json`. Null is false, as in Python.
    pub(super) fn flag(&self, key: &str, default: bool) -> bool {
        match self.config.get(key) {
            None => default,
            Some(value) => is_true(value),
        }
    }

    /// A flag that may be missing or null; `None` in both cases.
    pub(super) fn optional_flag(&self, key: &str) -> Option<bool> {
        self.config
            .get(key)
            .filter(|value| !value.is_null())
            .map(is_true)
    }

    /// Whether the key is present with the value null.
    pub(super) fn is_null(&self, key: &str) -> bool {
        self.config.get(key).is_some_and(Value::is_null)
    }

    /// Sets the padding token from `tokenizer.json`, if neither the files nor the class set one.
    pub(super) fn set_padding_token(&mut self, content: &str) {
        let is_unset = !self.config.contains_key("pad_token") && !self.class.names_padding;
        if let (true, Some((_, tokens))) = (
            is_unset,
            self.special
                .iter_mut()
                .find(|(name, _)| name == "pad_token"),
        ) {
            *tokens = vec![Token::text(content)];
        }
    }

    /// The text of a special token.
    pub(super) fn special_token(&self, attribute: &str) -> Option<&str> {
        let (_, tokens) = self.special.iter().find(|(name, _)| name == attribute)?;
        tokens.first().map(|token| token.content.as_str())
    }

    /// Code Llama's infill mark.
    pub(super) fn fill_token(&self) -> Option<String> {
        if self.class.name != "CodeLlamaTokenizer" {
            return None;
        }

        match self.config.get("fill_token") {
            None => Some("<FILL_ME>".to_owned()),
            Some(value) => value.as_str().map(str::to_owned),
        }
    }

    /// Every special token once, in transformers' order (`all_special_tokens_extended`).
    pub(super) fn special_tokens(&self) -> Vec<&Token> {
        let mut found: Vec<&Token> = Vec::new();
        for token in self.special.iter().flat_map(|(_, tokens)| tokens) {
            if !found.iter().any(|other| other.content == token.content) {
                found.push(token);
            }
        }

        found
    }

    /// The special tokens by name (`bos_token`, `eos_token`, …, `additional_special_tokens`), for
    /// chat templates.
    pub(super) fn special_tokens_map(&self) -> Map<String, Value> {
        let texts = |tokens: &[Token]| {
            tokens
                .iter()
                .map(|token| token.content.clone())
                .collect::<Vec<_>>()
        };

        let mut map = Map::new();
        for (attribute, tokens) in self.special.iter().filter(|(_, tokens)| !tokens.is_empty()) {
            let mut texts = texts(tokens);
            let value = match attribute.as_str() {
                "additional_special_tokens" => texts.into(),
                _ => texts.swap_remove(0).into(),
            };
            map.insert(attribute.clone(), value);
        }

        map
    }
}

/// Python's `bool(value)`.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(items) => !items.is_empty(),
    }
}

/// Merges `special_tokens_map.json` into `tokenizer_config.json`: it overrides single tokens and
/// extends the list of additional ones.
fn merge_special_tokens_map(config: &mut Map<String, Value>, map: Map<String, Value>) {
    for (key, mut value) in map {
        if let Value::Object(token) = &mut value {
            token.insert("special".into(), true.into());
        }

        if let ("additional_special_tokens", Value::Array(tokens)) = (key.as_str(), &value) {
            let mut all = config
                .get(&key)
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default();
            for token in tokens {
                let mut token = token.clone();
                if let Value::Object(flags) = &mut token {
                    flags.insert("special".into(), true.into());
                }

                if !all.contains(&token) {
                    all.push(token);
                }
            }

            value = all.into();
        }

        config.insert(key, value);
    }
}

/// The tokens of `added_tokens.json`, by id.
fn legacy_added_tokens(
    config: &Map<String, Value>,
    added: Map<String, Value>,
) -> BTreeMap<u64, Token> {
    let mut special: Vec<String> = Vec::new();
    for attribute in ATTRIBUTES {
        let tokens = match config.get(attribute) {
            Some(Value::Array(tokens)) => tokens.iter().filter_map(Token::parse).collect(),
            Some(value) => Token::parse(value).into_iter().collect(),
            None => Vec::new(),
        };
        special.extend(tokens.into_iter().map(|token| token.content));
    }

    let token = |content: String| {
        let special = special.contains(&content);
        let flags = Flags {
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: Some(!special),
            special,
        };

        Token {
            content,
            flags: Some(flags),
        }
    };

    added
        .into_iter()
        .filter_map(|(content, id)| Some((id.as_u64()?, token(content))))
        .collect()
}

/// The added tokens of `tokenizer.json`.
fn tokens_of_json(companions: &[Companion], what: &str) -> Result<Vec<Token>> {
    #[derive(serde::Deserialize)]
    struct Parts {
        #[serde(default)]
        added_tokens: Vec<Value>,
    }
    let Some(json) = companions
        .iter()
        .find(|companion| companion.name == "tokenizer.json")
    else {
        return Ok(Vec::new());
    };

    let parts: Parts =
        serde_json::from_slice(&json.read()?).map_err(|cause| LlmError::Tokenizer {
            what: what.to_owned(),
            reason: format!("tokenizer.json: {cause}"),
        })?;
    Ok(parts.added_tokens.iter().filter_map(Token::parse).collect())
}

fn wrong(attribute: &str, value: &Value) -> String {
    format!("`{attribute}` is {value}; a string or an object was expected")
}

/// `additional_special_tokens`, and those that the class keeps under keys of their own.
fn additional_tokens(
    class: &TokenizerClass,
    config: &Map<String, Value>,
) -> std::result::Result<Vec<Token>, String> {
    let key = "additional_special_tokens";
    let items = config.get(key).and_then(Value::as_array);
    let mut tokens = Vec::new();
    for item in items.into_iter().flatten() {
        tokens.push(Token::parse(item).ok_or_else(|| wrong(key, item))?);
    }

    for (key, default) in class.additional {
        match config.get(*key) {
            Some(Value::Null) => {}
            Some(value) => tokens.push(Token::parse(value).ok_or_else(|| wrong(key, value))?),
            None => tokens.push(Token::text(default)),
        }
    }

    Ok(tokens)
}

/// The special tokens by attribute: from the files, else the class's defaults.
fn special_tokens(
    class: &TokenizerClass,
    config: &Map<String, Value>,
    known: &[Token],
) -> std::result::Result<Vec<(String, Vec<Token>)>, String> {
    let flagged = |token: Token| {
        known
            .iter()
            .find(|other| other.content == token.content)
            .cloned()
            .unwrap_or(token)
    };

    let mut found = Vec::new();

    for attribute in ATTRIBUTES {
        let value = config.get(attribute);
        if attribute == "additional_special_tokens" {
            found.push((attribute.to_owned(), additional_tokens(class, config)?));
            continue;
        }

        let token = match value {
            Some(Value::Null) => None,
            Some(value) => Some(flagged(
                Token::parse(value).ok_or_else(|| wrong(attribute, value))?,
            )),
            None => {
                let default = class.defaults.iter().find(|(name, _)| *name == attribute);
                default.map(|(_, text)| Token::text(text))
            }
        };
        found.push((attribute.to_owned(), token.into_iter().collect()));
    }

    // Model-specific special tokens (`image_token`, …).
    if let Some(Value::Object(extra)) = config.get("extra_special_tokens") {
        for (attribute, value) in extra {
            let token = Token::parse(value).ok_or_else(|| wrong(attribute, value))?;
            found.push((attribute.clone(), vec![token]));
        }
    }

    Ok(found)
}
