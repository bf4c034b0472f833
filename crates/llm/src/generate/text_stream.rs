//! Token ids to text while they are generated.

use crate::error::Result;
use crate::tokenizer::Tokenizer;

/// Turns ids into text piece by piece; a piece never ends inside a character.
#[derive(Debug)]
pub(super) struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// Whether special tokens are text.
    with_special: bool,
    ids: Vec<u32>,
    /// Ids before this one give context for spacing only.
    prefix: usize,
    /// Ids before this one have been turned into text.
    read: usize,
}

impl<'a> TextStream<'a> {
    /// A stream without ids, which leaves special tokens out.
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self {
            tokenizer,
            with_special: false,
            ids: Vec::new(),
            prefix: 0,
            read: 0,
        }
    }

    /// A stream that goes on from `ids` and keeps special tokens, and the text of `ids`. A
    /// character that they leave unfinished belongs to what comes.
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

    /// The text one more id completes; empty while a character is unfinished.
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

    /// What is left when no more ids come: bytes that never became a character show as `�`.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`](crate::LlmError::Tokenizer).
    pub(super) fn finish(&mut self) -> Result<String> {
        let (before, now) = self.window()?;
        self.read = self.ids.len();
        Ok(now.get(before.len()..).unwrap_or_default().to_owned())
    }

    /// The text of the ids since `prefix`: those already read, and all.
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
        fn pieces_join_to_the_text_and_end_at_characters(text in "[a-zA-Zé漢🙂 \n.,]{0,40}") {
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
    fn unfinished_bytes_show_at_the_end_only() {
        let tokenizer = tiny();
        let ids = tokenizer.encode("🙂").unwrap();
        assert!(ids.len() > 1);
        let mut stream = TextStream::new(&tokenizer);
        assert_eq!(stream.push(ids[0]).unwrap(), "");
        assert!(stream.finish().unwrap().contains('\u{fffd}'));
    }
}
