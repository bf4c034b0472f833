//! The bytes that single tokens stand for, which grammars and log-probabilities need: a token may
//! be a part of a character, so its text alone does not say.

use super::Tokenizer;
use tokenizers::{DecoderWrapper, Model};

/// How a decoder turns the entries of a vocabulary into text.
#[derive(Debug, Default)]
struct Spelling {
    /// Every character stands for a byte (GPT-2).
    is_byte_level: bool,
    /// `<0x0A>` stands for a byte (SentencePiece).
    has_bytes: bool,
    /// The character that stands for a space.
    space: Option<char>,
    /// What marks the end of a word, which is a space in text.
    end_of_word: Option<String>,
    /// What marks a piece that continues a word; others begin with a space.
    continuation: Option<String>,
}

impl Spelling {
    fn of(decoder: Option<&DecoderWrapper>) -> Self {
        let mut found = Self::default();
        if let Some(decoder) = decoder {
            found.add(decoder);
        }
        found
    }

    fn add(&mut self, decoder: &DecoderWrapper) {
        match decoder {
            DecoderWrapper::ByteLevel(_) => self.is_byte_level = true,
            DecoderWrapper::ByteFallback(_) => self.has_bytes = true,
            DecoderWrapper::Metaspace(metaspace) => self.space = Some(metaspace.get_replacement()),
            // In tokenizers' files this replaces SentencePiece's space, whatever else it may do.
            DecoderWrapper::Replace(replace) if replace.content == " " => self.space = Some('▁'),
            DecoderWrapper::BPE(bpe) => self.end_of_word = Some(bpe.suffix.clone()),
            DecoderWrapper::WordPiece(pieces) => self.continuation = Some(pieces.prefix.clone()),
            DecoderWrapper::Sequence(sequence) => {
                sequence.get_decoders().iter().for_each(|one| self.add(one));
            }
            _ => {}
        }
    }

    fn bytes(&self, token: &str) -> Vec<u8> {
        if self.is_byte_level
            && let Some(bytes) = token.chars().map(byte).collect::<Option<Vec<u8>>>()
        {
            return bytes;
        }
        if self.has_bytes
            && let Some(byte) = byte_token(token)
        {
            return vec![byte];
        }

        let mut text = token.to_owned();
        if let Some(space) = self.space {
            text = text.replace(space, " ");
        }
        if let Some(end) = self.end_of_word.as_ref().filter(|end| !end.is_empty()) {
            text = text.replace(end.as_str(), " ");
        }
        if let Some(mark) = &self.continuation {
            text = match text.strip_prefix(mark.as_str()) {
                Some(rest) => rest.to_owned(),
                None => format!(" {text}"),
            };
        }

        text.into_bytes()
    }
}

/// The byte that a character of a byte-level vocabulary stands for (GPT-2's `bytes_to_unicode`):
/// printable ones for themselves, the others for characters from U+0100 on, in order.
fn byte(letter: char) -> Option<u8> {
    let is_plain = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let code = u32::from(letter);
    match u8::try_from(code) {
        Ok(byte) => is_plain(byte).then_some(byte),
        Err(_) => {
            let place = usize::try_from(code - 0x100).ok()?;
            (0..=255).filter(|byte| !is_plain(*byte)).nth(place)
        }
    }
}

/// The byte of `<0x0A>`.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_hex
        .then(|| u8::from_str_radix(digits, 16).ok())
        .flatten()
}

impl Tokenizer {
    /// The bytes that a token stands for in the middle of a text; `None` for an id beyond the
    /// vocabulary. Those of added tokens are their content.
    ///
    /// ```
    /// use llm_int8::{LoadConfig, Tokenizer, hub::NoProgress};
    /// let tokenizer = Tokenizer::from_pretrained("tiny-gpt2", &LoadConfig::default().hub, &NoProgress)?;
    /// let ids = tokenizer.encode("the straße")?;
    /// let bytes: Vec<u8> = ids.iter().filter_map(|id| tokenizer.token_bytes(*id)).flatten().collect();
    /// assert_eq!(bytes, "the straße".as_bytes());
    /// # Ok::<(), llm_int8::LlmError>(())
    /// ```
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let added = self.inner.get_added_vocabulary();
        if let Some(token) = added.get_added_tokens_decoder().get(&id) {
            return Some(token.content.clone().into_bytes());
        }

        let token = self.inner.get_model().id_to_token(id)?;
        Some(Spelling::of(self.inner.get_decoder()).bytes(&token))
    }

    /// The number of ids, added tokens included: all are smaller.
    pub fn vocabulary_size(&self) -> usize {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        let last = added.keys().max().map_or(0, |id| *id as usize + 1);
        self.inner.get_vocab_size(false).max(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn every_byte_has_one_letter_of_a_byte_level_vocabulary() {
        let letters: Vec<char> = ('\0'..='\u{200}').filter(|c| byte(*c).is_some()).collect();
        assert_eq!(letters.len(), 256);
        assert_eq!(
            (byte('Ġ'), byte('Ċ'), byte('a')),
            (Some(b' '), Some(b'\n'), Some(b'a'))
        );
        assert_eq!((byte(' '), byte('字')), (None, None));
    }

    fn tokenizer(decoder: Value, tokens: &[&str]) -> Tokenizer {
        let vocab: serde_json::Map<String, Value> = tokens
            .iter()
            .enumerate()
            .map(|(id, token)| ((*token).to_owned(), json!(id)))
            .collect();
        let file = json!({
            "version": "1.0",
            "added_tokens": [{
                "id": tokens.len(), "content": "<s>", "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false,
            }],
            "decoder": decoder,
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": tokens[0] },
        });
        Tokenizer::from_bytes(file.to_string().as_bytes(), "x").unwrap()
    }

    #[test]
    fn tokens_are_spelled_as_their_decoder_writes_them() {
        let sentencepiece = json!({ "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" }, { "type": "Fuse" },
        ]});
        let pieces = json!({ "type": "WordPiece", "prefix": "##", "cleanup": false });
        for (decoder, token, expected) in [
            (sentencepiece.clone(), "▁a▁b", &b" a b"[..]),
            (sentencepiece.clone(), "<0xE5>", &b"\xe5"[..]),
            (sentencepiece, "<0xEX>", &b"<0xEX>"[..]),
            (
                json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true }),
                "Ġå",
                &b" \xe5"[..],
            ),
            (
                json!({ "type": "BPEDecoder", "suffix": "</w>" }),
                "a</w>",
                &b"a "[..],
            ),
            (pieces.clone(), "##ing", &b"ing"[..]),
            (pieces, "sing", &b" sing"[..]),
        ] {
            let tokenizer = tokenizer(decoder, &["?", token]);
            assert_eq!(tokenizer.token_bytes(1).unwrap(), expected, "{token}");
            assert_eq!(tokenizer.token_bytes(2).unwrap(), b"<s>");
            assert_eq!(tokenizer.token_bytes(3), None);
            assert_eq!(tokenizer.vocabulary_size(), 3);
        }
    }
}
