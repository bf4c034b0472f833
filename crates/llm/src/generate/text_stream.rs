//! Incremental decoding: token ids to text while they are generated.

use crate::error::Result;
use crate::tokenizer::Tokenizer;

/// Decodes ids piece by piece; a piece never ends inside a character.
#[derive(Debug)]
pub(super) struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// Whether special tokens are part of the text.
    with_special: bool,
    ids: Vec<u32>,
    /// Ids from here to `read` are decoded again with each piece, only because spacing depends on
    /// them.
    prefix: usize,
    /// Ids before this one have been returned as text.
    read: usize,
}

impl<'a> TextStream<'a> {
    /// An empty stream that leaves out special tokens.
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self {
            tokenizer,
            with_special: false,
            ids: Vec::new(),
            prefix: 0,
            read: 0,
        }
    }

    /// A stream that continues after `ids` and keeps special tokens, and the text of `ids`. A
    /// character that they leave incomplete is returned with the ids that complete it.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`](crate::LlmError::Tokenizer).
    pub(super) fn after(tokenizer: &'a Tokenizer, ids: &[u32]) -> Result<(Self, String)> {
        let mut stream = Self {
            with_special: true,
            ..Self::new(tokenizer)
        };
        let mut text = String::new();
        for id in ids {
            text.push_str(&stream.push(*id)?);
        }

        Ok((stream, text))
    }

    /// Adds an id and returns the text that it completes; empty while a character is incomplete.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`](crate::LlmError::Tokenizer).
    pub(super) fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let (before, now) = self.window()?;
        if now.ends_with('\u{fffd}') || now.len() <= before.len() {
            return Ok(String::new());
        }

        let piece = now.get(before.len()..).unwrap_or_default().to_owned();
        self.prefix = self.read;
        self.read = self.ids.len();

        Ok(piece)
    }

    /// The rest of the text, when no more ids come. Bytes that do not form a character become `�`.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`](crate::LlmError::Tokenizer).
    pub(super) fn finish(&mut self) -> Result<String> {
        let (before, now) = self.window()?;
        self.read = self.ids.len();
        Ok(now.get(before.len()..).unwrap_or_default().to_owned())
    }

    /// The text of the ids from `prefix`: first only those before `read`, then all.
    fn window(&self) -> Result<(String, String)> {
        let decode = |ids: &[u32]| match self.with_special {
            true => self.tokenizer.decode_all(ids),
            false => self.tokenizer.decode(ids),
        };
        Ok((
            decode(&self.ids[self.prefix..self.read])?,
            decode(&self.ids[self.prefix..])?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> Tokenizer {
        Tokenizer::from_bytes(crate::builtin::TOKENIZER, "tiny-gpt2").unwrap()
    }

    proptest::proptest! {
        #[test]
        fn pieces_join_to_the_text_and_end_at_character_boundaries(text in "[a-zA-Zé漢🙂 \n.,]{0,40}") {
            let tokenizer = tiny();
            let mut stream = TextStream::new(&tokenizer);
            let mut joined = String::new();
            for id in tokenizer.encode(&text).unwrap() {
                let piece = stream.push(id).unwrap();
                proptest::prop_assert!(!piece.contains('\u{fffd}'), "{piece:?}");
                joined.push_str(&piece);
            }

            joined.push_str(&stream.finish().unwrap());
            proptest::prop_assert_eq!(joined, text);
        }
    }

    #[test]
    fn incomplete_characters_show_only_at_the_end() {
        let tokenizer = tiny();
        let ids = tokenizer.encode("🙂").unwrap();
        assert!(ids.len() > 1);
        let mut stream = TextStream::new(&tokenizer);
        assert_eq!(stream.push(ids[0]).unwrap(), "");
        assert!(stream.finish().unwrap().contains('\u{fffd}'));
    }
}
