//! Stop strings. They are matched in the text that includes special tokens, across token
//! boundaries, and are never shown in part.

use super::text_stream::TextStream;
use crate::error::Result;
use crate::tokenizer::Tokenizer;
use std::collections::VecDeque;

/// The stop strings, and the text held back because it may be the beginning of one.
#[derive(Debug)]
pub(super) struct StopStrings<'a> {
    stops: Vec<String>,
    /// Decodes the text that is matched, special tokens included.
    stream: TextStream<'a>,
    held: VecDeque<Piece>,
}

/// The text that one token adds.
#[derive(Debug, Clone, PartialEq)]
struct Piece {
    /// Including special tokens.
    all: String,
    /// Without special tokens; mostly the same.
    shown: String,
}

impl Piece {
    /// The offset in `shown` for an offset in `all`; `None` if `shown` is not a suffix of `all`.
    fn shown_place(&self, place: usize) -> Option<usize> {
        let missing = self.all.strip_suffix(&self.shown)?.len();
        Some(place.saturating_sub(missing))
    }
}

impl<'a> StopStrings<'a> {
    /// Starts after a prompt, whose end may be the beginning of a stop string. `None` if there are
    /// no stop strings.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`](crate::LlmError::Tokenizer).
    pub(super) fn new(
        stops: &[String],
        tokenizer: &'a Tokenizer,
        prompt: &[u32],
    ) -> Result<Option<Self>> {
        let stops: Vec<String> = stops
            .iter()
            .filter(|stop| !stop.is_empty())
            .cloned()
            .collect();
        let longest = stops.iter().map(|stop| stop.chars().count()).max();
        let Some(longest) = longest else {
            return Ok(None);
        };

        // As many tokens as the longest stop string has characters, like transformers.
        let end = &prompt[prompt.len() - prompt.len().min(longest)..];
        let (stream, text) = TextStream::after(tokenizer, end)?;
        let kept = stops
            .iter()
            .map(|stop| begun(&text, stop))
            .max()
            .unwrap_or(0);
        let all = text[text.len() - kept..].to_owned();

        Ok(Some(Self {
            stops,
            stream,
            held: VecDeque::from([Piece {
                all,
                shown: String::new(),
            }]),
        }))
    }

    /// Adds an id, which adds `shown` to the text. Returns the text that can be shown now, and
    /// whether a stop string was found.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`](crate::LlmError::Tokenizer).
    pub(super) fn push(&mut self, id: u32, shown: String) -> Result<(String, bool)> {
        let all = self.stream.push(id)?;
        Ok(self.add(Piece { all, shown }))
    }

    /// The text held back, when no more ids come. `shown` is what is left of an incomplete
    /// character.
    ///
    /// # Errors
    /// [`LlmError::Tokenizer`](crate::LlmError::Tokenizer).
    pub(super) fn finish(&mut self, shown: String) -> Result<String> {
        let all = self.stream.finish()?;
        let (mut text, is_met) = self.add(Piece { all, shown });
        if !is_met {
            text.extend(self.held.drain(..).map(|piece| piece.shown));
        }

        Ok(text)
    }

    fn add(&mut self, piece: Piece) -> (String, bool) {
        self.held.push_back(piece);
        let all: String = self.held.iter().map(|piece| piece.all.as_str()).collect();

        if let Some(place) = self
            .stops
            .iter()
            .filter_map(|stop| all.find(stop.as_str()))
            .min()
        {
            let shown = self.release(place);
            self.held.clear();
            return (shown, true);
        }

        let kept = self
            .stops
            .iter()
            .map(|stop| begun(&all, stop))
            .max()
            .unwrap_or(0);
        (self.release(all.len() - kept), false)
    }

    /// Removes the first `bytes` bytes of the text that includes special tokens, and returns what
    /// of them is shown.
    fn release(&mut self, mut bytes: usize) -> String {
        let mut text = String::new();
        while let Some(mut piece) = self.held.pop_front() {
            if piece.all.len() <= bytes {
                bytes -= piece.all.len();
                text.push_str(&piece.shown);
                continue;
            }

            if let Some(place) = piece
                .shown_place(bytes)
                .filter(|place| piece.shown.is_char_boundary(*place))
            {
                let rest = piece.shown.split_off(place);
                text.push_str(&piece.shown);
                piece = Piece {
                    all: piece.all.split_off(bytes),
                    shown: rest,
                };
            }

            self.held.push_front(piece);
            break;
        }

        text
    }
}

/// Length in bytes of the longest suffix of `text` that is a proper prefix of `stop`.
fn begun(text: &str, stop: &str) -> usize {
    let beginnings = stop.char_indices().map(|(place, _)| &stop[..place]).rev();
    beginnings
        .filter(|beginning| text.ends_with(beginning))
        .map(str::len)
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer() -> Tokenizer {
        Tokenizer::from_bytes(crate::builtin::TOKENIZER, "tiny-gpt2").unwrap()
    }

    fn stops<'a>(texts: &[&str], tokenizer: &'a Tokenizer, prompt: &str) -> StopStrings<'a> {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        StopStrings::new(&texts, tokenizer, &tokenizer.encode(prompt).unwrap())
            .unwrap()
            .unwrap()
    }

    fn same(text: &str) -> Piece {
        Piece {
            all: text.into(),
            shown: text.into(),
        }
    }

    fn special(text: &str) -> Piece {
        Piece {
            all: text.into(),
            shown: String::new(),
        }
    }

    #[test]
    fn a_stop_string_is_found_across_pieces_and_not_shown() {
        let tokenizer = tokenizer();
        let mut stops = stops(&["END", "\n\n"], &tokenizer, "");
        assert_eq!(stops.add(same("one E")), ("one ".into(), false));
        assert_eq!(stops.add(same("x\n")), ("Ex".into(), false));
        assert_eq!(stops.add(same("EN")), ("\n".into(), false));
        assert_eq!(stops.add(same("D two")), (String::new(), true));
    }

    #[test]
    fn a_stop_string_may_contain_special_tokens() {
        let tokenizer = tokenizer();
        let mut stops = stops(&["a<s>b", "</s>"], &tokenizer, "");
        assert_eq!(stops.add(same("xa")), ("x".into(), false));
        assert_eq!(stops.add(special("<s>")), (String::new(), false));
        assert_eq!(
            stops.add(same("c")),
            ("ac".into(), false),
            "the special token is not shown"
        );

        assert_eq!(stops.add(same("y")), ("y".into(), false));
        assert_eq!(stops.add(special("</s>")), (String::new(), true));

        let mut stops = self::stops(&["a<s>b"], &tokenizer, "");
        assert_eq!(stops.add(same("xa")), ("x".into(), false));
        assert_eq!(stops.add(special("<s>")), (String::new(), false));
        assert_eq!(stops.add(same("by")), (String::new(), true));
    }

    #[test]
    fn a_stripped_leading_space_does_not_shift_the_end() {
        let tokenizer = tokenizer();
        let mut stops = stops(&["END"], &tokenizer, "");
        assert_eq!(
            stops.add(Piece {
                all: " one END".into(),
                shown: "one END".into()
            }),
            ("one ".into(), true)
        );
    }

    #[test]
    fn the_prompt_may_begin_a_stop_string() {
        let tokenizer = tokenizer();
        assert!(
            StopStrings::new(&[String::new()], &tokenizer, &[])
                .unwrap()
                .is_none()
        );

        let mut begun = stops(&["STOP"], &tokenizer, "one ST");
        assert_eq!(begun.add(same("OP two")), (String::new(), true));
        let mut begun = stops(&["STOP"], &tokenizer, "one ST");
        assert_eq!(begun.add(same("ART")), ("ART".into(), false));
        let mut whole = stops(&["STOP"], &tokenizer, "STOP");
        assert_eq!(
            whole.add(same("P")),
            ("P".into(), false),
            "a match inside the prompt does not count"
        );
    }

    #[test]
    fn text_held_back_is_returned_at_the_end() {
        let tokenizer = tokenizer();
        let mut stops = stops(&["END"], &tokenizer, "");
        assert_eq!(stops.add(same("EN")), (String::new(), false));
        assert_eq!(stops.finish(String::new()).unwrap(), "EN");
    }

    proptest::proptest! {
        #[test]
        fn pieces_join_to_the_text_before_the_first_stop(pieces in proptest::collection::vec("[ab🙂]{0,3}", 0..20)) {
            let tokenizer = tokenizer();
            let mut stops = stops(&["ab🙂", "bb"], &tokenizer, "");
            let whole: String = pieces.concat();
            let mut shown = String::new();
            let mut stopped = false;
            for piece in &pieces {
                let (text, now) = stops.add(same(piece));
                shown.push_str(&text);
                if now {
                    stopped = true;
                    break;
                }
            }

            if !stopped {
                shown.push_str(&stops.finish(String::new()).unwrap());
                proptest::prop_assert_eq!(&shown, &whole);
            }

            let first = ["ab🙂", "bb"].iter().filter_map(|stop| whole.find(stop)).min();
            proptest::prop_assert_eq!(stopped, first.is_some());
            proptest::prop_assert_eq!(shown.len(), first.unwrap_or(whole.len()));
        }
    }
}
