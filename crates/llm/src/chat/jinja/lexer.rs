//! Splits a template into tokens, by the rules of Jinja2's lexer with `trim_blocks` and
//! `lstrip_blocks`.

use super::error::{Error, Result};
use super::literals;
use std::sync::Arc;

/// A token and the line it begins on.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub(super) kind: TokenKind,
    pub(super) line: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum TokenKind {
    Data(String),
    VariableBegin,
    VariableEnd,
    BlockBegin,
    BlockEnd,
    Name(Arc<str>),
    Str(String),
    Int(i128),
    Float(f64),
    /// An operator or bracket.
    Op(&'static str),
    End,
}

/// The operators; a longer one comes before its prefix.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}",
    ">", "<", "=", ".", ":", "|", ",", ";",
];

/// The two kinds of tags: `{{ … }}` and `{% … %}`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tag {
    Variable,
    Block,
}

/// The tokens of a template.
pub(super) fn tokens(source: &str) -> Result<Vec<Token>> {
    let source = normalized(source);
    let mut lexer = Lexer {
        source: &source,
        position: 0,
        line: 1,
        is_line_start: true,
        tokens: Vec::new(),
    };

    lexer.run().map_err(|error| error.at(lexer.line))?;
    Ok(lexer.tokens)
}

/// Makes every line end a line feed and drops the last one.
fn normalized(source: &str) -> String {
    let mut text = source.replace("\r\n", "\n").replace('\r', "\n");
    if text.ends_with('\n') {
        text.pop();
    }
    text
}

/// What `\s` and `str.strip` count as white space in Python.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

struct Lexer<'a> {
    source: &'a str,
    /// A byte offset into the source.
    position: usize,
    line: u32,
    /// The text read so far ends with a line feed.
    is_line_start: bool,
    tokens: Vec<Token>,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.position..]
    }

    /// Moves past `bytes` bytes and counts their lines.
    fn advance(&mut self, bytes: usize) {
        let text = &self.rest()[..bytes];
        self.line += text.matches('\n').count() as u32;
        self.is_line_start = text.ends_with('\n');
        self.position += bytes;
    }

    fn push(&mut self, kind: TokenKind) {
        self.tokens.push(Token {
            kind,
            line: self.line,
        });
    }

    fn run(&mut self) -> Result<()> {
        while !self.rest().is_empty() {
            let found = ["{{", "{%", "{#"]
                .iter()
                .filter_map(|begin| self.rest().find(begin))
                .min();
            let Some(start) = found else {
                self.push(TokenKind::Data(self.rest().to_owned()));
                self.advance(self.rest().len());
                break;
            };

            let text = &self.rest()[..start];
            let tag = &self.rest()[start..];
            if let Some(raw) = raw_begin(tag) {
                self.data(text, raw.sign, true);
                self.advance(start + raw.bytes);
                self.raw()?;
                continue;
            }

            let sign = tag[2..].chars().next().filter(|c| matches!(c, '-' | '+'));
            self.data(text, sign, !tag.starts_with("{{"));
            self.advance(start + 2 + sign.map_or(0, char::len_utf8));

            match &tag[..2] {
                "{{" => self.tag(Tag::Variable)?,
                "{%" => self.tag(Tag::Block)?,
                _ => self.comment()?,
            }
        }

        self.push(TokenKind::End);
        Ok(())
    }

    /// Pushes the text before a tag, without the white space that the tag strips: with `-` all of
    /// it, before a block the indentation of its line, unless there is a `+`.
    fn data(&mut self, text: &str, sign: Option<char>, is_block: bool) {
        let kept = match sign {
            Some('-') => text.trim_end_matches(is_space),
            None if is_block => {
                let line = text.rfind('\n').map_or(0, |offset| offset + 1);
                let is_whole = line > 0 || self.is_line_start;

                if is_whole && text[line..].chars().all(is_space) {
                    &text[..line]
                } else {
                    text
                }
            }
            _ => text,
        };

        if !kept.is_empty() {
            self.push(TokenKind::Data(kept.to_owned()));
        }
    }

    fn comment(&mut self) -> Result<()> {
        let end = self
            .rest()
            .find("#}")
            .ok_or_else(|| Error::new("Missing end of comment tag"))?;
        let sign = self.rest()[..end].chars().next_back();
        let after = &self.rest()[end + 2..];
        let space = match sign {
            Some('-') => spaces(after),
            Some('+') => 0,
            _ => usize::from(after.starts_with('\n')),
        };
        self.advance(end + 2 + space);

        Ok(())
    }

    /// Pushes the text up to `endraw` as it is.
    fn raw(&mut self) -> Result<()> {
        let mut from = 0;
        loop {
            let start = self.rest()[from..].find("{%").map(|offset| from + offset);
            let start = start.ok_or_else(|| Error::new("Missing end of raw directive"))?;
            if let Some(end) = raw_end(&self.rest()[start..]) {
                let text = &self.rest()[..start];
                self.data(text, end.sign, true);
                self.advance(start + end.bytes);
                return Ok(());
            }

            from = start + 2;
        }
    }

    /// The tokens of a tag up to its end.
    fn tag(&mut self, tag: Tag) -> Result<()> {
        let (begin, end) = match tag {
            Tag::Variable => (TokenKind::VariableBegin, TokenKind::VariableEnd),
            Tag::Block => (TokenKind::BlockBegin, TokenKind::BlockEnd),
        };
        self.push(begin);

        let mut open = Vec::new();
        while !self.rest().is_empty() {
            // Inside brackets `}}` closes two of them, not the tag.
            let closing = if open.is_empty() {
                tag_end(self.rest(), tag)
            } else {
                None
            };

            if let Some(bytes) = closing {
                self.push(end);
                self.advance(bytes);
                return Ok(());
            }

            let space = spaces(self.rest());
            if space > 0 {
                self.advance(space);
                continue;
            }

            let (kind, bytes) = self.token()?;
            if let TokenKind::Op(operator) = kind {
                balance(&mut open, operator)?;
            }

            self.push(kind);
            self.advance(bytes);
        }

        Ok(())
    }

    /// The next token of a tag and its length in bytes.
    fn token(&self) -> Result<(TokenKind, usize)> {
        let rest = self.rest();
        let first = rest.chars().next().unwrap_or('\0');
        if first.is_ascii_digit() {
            let follows_dot = self.source[..self.position].ends_with('.');
            return literals::number(rest, follows_dot);
        }

        if first.is_alphanumeric() || first == '_' {
            let end = rest
                .find(|c: char| !(c.is_alphanumeric() || c == '_'))
                .unwrap_or(rest.len());
            return Ok((TokenKind::Name(rest[..end].into()), end));
        }

        if matches!(first, '"' | '\'') {
            return literals::string(rest);
        }

        match OPERATORS
            .iter()
            .find(|operator| rest.starts_with(**operator))
        {
            Some(operator) => Ok((TokenKind::Op(operator), operator.len())),
            None => Err(Error::new(format!("unexpected char '{first}'"))),
        }
    }
}

/// Bytes of white space at the beginning.
fn spaces(text: &str) -> usize {
    text.len() - text.trim_start_matches(is_space).len()
}

/// Tracks open brackets: `open` holds the closing ones still expected.
fn balance(open: &mut Vec<&'static str>, operator: &str) -> Result<()> {
    match operator {
        "{" => open.push("}"),
        "(" => open.push(")"),
        "[" => open.push("]"),
        "}" | ")" | "]" => match open.pop() {
            Some(expected) if expected == operator => {}
            Some(expected) => {
                return Err(Error::new(format!(
                    "unexpected '{operator}', expected '{expected}'"
                )));
            }
            None => return Err(Error::new(format!("unexpected '{operator}'"))),
        },
        _ => {}
    }

    Ok(())
}

/// If a tag ends here: the length of its end, including the white space that it strips.
fn tag_end(text: &str, tag: Tag) -> Option<usize> {
    let mark = if tag == Tag::Variable { "}}" } else { "%}" };
    if let Some(after) = text
        .strip_prefix('-')
        .and_then(|text| text.strip_prefix(mark))
    {
        return Some(3 + spaces(after));
    }

    if tag == Tag::Variable {
        return text.starts_with(mark).then_some(2);
    }

    if text
        .strip_prefix('+')
        .is_some_and(|text| text.starts_with(mark))
    {
        return Some(3);
    }

    text.strip_prefix(mark)
        .map(|after| 2 + usize::from(after.starts_with('\n')))
}

/// A `{% raw %}` or `{% endraw %}` tag: the sign after its `{%`, and its length including the white
/// space that it strips.
struct Raw {
    sign: Option<char>,
    bytes: usize,
}

fn raw_begin(text: &str) -> Option<Raw> {
    let (sign, after) = raw_word(text, "raw")?;
    let bytes = match after.strip_prefix("-%}") {
        Some(after) => text.len() - after.trim_start_matches(is_space).len(),
        None => text.len() - after.strip_prefix("%}")?.len(),
    };
    Some(Raw { sign, bytes })
}

fn raw_end(text: &str) -> Option<Raw> {
    let (sign, after) = raw_word(text, "endraw")?;
    let bytes = text.len() - after.len() + tag_end(after, Tag::Block)?;
    Some(Raw { sign, bytes })
}

/// If the text begins with `{% word`, `{%- word` or `{%+ word`: the sign, and what follows.
fn raw_word<'a>(text: &'a str, word: &str) -> Option<(Option<char>, &'a str)> {
    let text = text.strip_prefix("{%")?;
    let sign = text.chars().next().filter(|c| matches!(c, '-' | '+'));
    let text = text[sign.map_or(0, char::len_utf8)..].trim_start_matches(is_space);
    Some((sign, text.strip_prefix(word)?.trim_start_matches(is_space)))
}
