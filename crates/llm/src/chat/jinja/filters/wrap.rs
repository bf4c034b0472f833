//! Python's `textwrap.wrap`, as `wordwrap` calls it.

use crate::chat::jinja::budget::check_list;
use crate::chat::jinja::error::{Error, Result};

/// The options of `textwrap.wrap`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wrap {
    pub(super) width: usize,
    pub(super) breaks_words: bool,
    pub(super) breaks_at_hyphens: bool,
}

impl Wrap {
    /// Wraps a line to the width; white space at the breaks is dropped.
    pub(super) fn wrapped(self, line: &str) -> Result<Vec<String>> {
        if self.width == 0 {
            return Err(Error::new("invalid width 0 (must be > 0)"));
        }

        // The list of chunks takes sixteen times as much as the text.
        check_list(Some(line.len()))?;
        let chars: Vec<char> = line.chars().collect();
        let mut chunks: Vec<&[char]> = self.chunks(&chars);
        chunks.reverse();

        let mut lines = Vec::new();
        while let Some(first) = chunks.last() {
            if is_blank(first) && !lines.is_empty() {
                chunks.pop();
            }

            let mut current: Vec<&[char]> = Vec::new();
            let mut len = 0;
            while let Some(chunk) = chunks.pop_if(|chunk| len + chunk.len() <= self.width) {
                len += chunk.len();
                current.push(chunk);
            }

            self.long_word(&mut chunks, &mut current, len);
            if current.last().is_some_and(|chunk| is_blank(chunk)) {
                current.pop();
            }

            if !current.is_empty() {
                lines.push(current.concat().into_iter().collect());
            }
        }

        Ok(lines)
    }

    /// Handles a word that is longer than a line: textwrap's `_handle_long_word`.
    fn long_word<'a>(
        self,
        chunks: &mut Vec<&'a [char]>,
        current: &mut Vec<&'a [char]>,
        len: usize,
    ) {
        let Some(chunk) = chunks.last_mut().filter(|chunk| chunk.len() > self.width) else {
            return;
        };
        if !self.breaks_words {
            if current.is_empty() {
                current.extend(chunks.pop());
            }
            return;
        }
        let mut end = self.width - len;
        if self.breaks_at_hyphens {
            let hyphen = chunk[..end].iter().rposition(|c| *c == '-');
            if let Some(hyphen) = hyphen.filter(|hyphen| chunk[..*hyphen].iter().any(|c| *c != '-'))
            {
                end = hyphen + 1;
            }
        }
        let (part, rest) = chunk.split_at(end);
        current.push(part);
        *chunk = rest;
    }

    /// The chunks between which a line may be broken: textwrap's `_split`.
    fn chunks(self, chars: &[char]) -> Vec<&[char]> {
        let mut chunks = Vec::new();
        let mut start = 0;
        while start < chars.len() {
            let end = if is_white(chars[start]) {
                run(chars, start, is_white)
            } else if self.breaks_at_hyphens {
                word_end(chars, start)
            } else {
                run(chars, start, |c| !is_white(c))
            };

            chunks.push(&chars[start..end]);
            start = end;
        }

        chunks
    }
}

fn is_white(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\u{b}' | '\u{c}' | '\r' | ' ')
}

fn is_blank(chunk: &[char]) -> bool {
    chunk.iter().all(|c| c.is_whitespace())
}

fn is_letter(c: Option<&char>) -> bool {
    c.is_some_and(|c| *c == '_' || c.is_alphanumeric() && !c.is_numeric())
}

fn is_word(c: Option<&char>) -> bool {
    c.is_some_and(|c| *c == '_' || c.is_alphanumeric())
}

/// The end of the run of characters from `start` for which `is` holds.
fn run(chars: &[char], start: usize, is: impl Fn(char) -> bool) -> usize {
    chars[start..]
        .iter()
        .position(|c| !is(*c))
        .map_or(chars.len(), |len| start + len)
}

/// The end of a dash (two or more hyphens between words) that begins here.
fn dash_end(chars: &[char], start: usize) -> Option<usize> {
    let before = start.checked_sub(1).and_then(|index| chars.get(index));
    let follows_word = is_word(before) || before.is_some_and(|c| "!\"'&.,?".contains(*c));
    let end = run(chars, start, |c| c == '-');
    (follows_word && end >= start + 2 && is_word(chars.get(end))).then_some(end)
}

/// The end of the chunk of a word that begins here: textwrap's `wordsep_re`.
fn word_end(chars: &[char], start: usize) -> usize {
    if let Some(end) = dash_end(chars, start) {
        return end;
    }

    let before =
        |index: usize, back: usize| index.checked_sub(back).and_then(|index| chars.get(index));
    for end in start + 1..chars.len() {
        if chars[end] == '-' {
            let follows_letters = is_letter(before(end, 1))
                && (is_letter(before(end, 2))
                    || before(end, 2) == Some(&'-') && is_letter(before(end, 3)));
            let next = if chars.get(end + 2) == Some(&'-') {
                end + 3
            } else {
                end + 2
            };

            if follows_letters && is_letter(chars.get(end + 1)) && is_letter(chars.get(next)) {
                return end + 1;
            }
        }

        if is_white(chars[end]) || dash_end(chars, end).is_some() {
            return end;
        }
    }

    chars.len()
}
