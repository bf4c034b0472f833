//! The methods of `str`.

use super::args::{Args, Bound};
use super::attributes::text_like;
use super::budget::{MAKING, Text, check_text, text_units};
use super::chars;
use super::error::{Error, Result};
use super::interpreter::Interpreter;
use super::lexer::is_space;
use super::value::Value;

/// Methods that take several times as long as copying the string: they look up characters in tables,
/// or make many strings.
const SLOW: [&str; 8] = [
    "isdecimal",
    "isprintable",
    "istitle",
    "replace",
    "rsplit",
    "split",
    "swapcase",
    "title",
];

impl Interpreter<'_> {
    /// Calls a method of a string. Strings it returns are `Markup` if the receiver is.
    pub(super) fn str_method(&mut self, receiver: &Value, name: &str, args: Args) -> Result<Value> {
        let text = receiver.as_str().unwrap_or_default();
        let like = |made: String| Ok(text_like(receiver, made));
        if SLOW.contains(&name) {
            self.budget.spend(MAKING * text_units(text.len()))?;
        }

        match name {
            "format" => return self.str_format(text, &args).and_then(like),
            "format_map" => return self.format_map(text, args).and_then(like),
            "join" => return self.joined(receiver, args),
            "split" | "rsplit" | "splitlines" | "partition" | "rpartition" => {
                return parts(receiver, name, args);
            }
            "find" | "rfind" | "index" | "rindex" | "count" | "startswith" | "endswith" => {
                return searched(text, name, args);
            }
            "encode" | "translate" => {
                return Err(Error::new(format!(
                    "the method '{name}' of str is not offered"
                )));
            }
            _ => {}
        }

        if name.starts_with("is") {
            args.none(name)?;
            return Ok(Value::Bool(holds(text, name)));
        }

        changed(text, name, args).and_then(like)
    }

    fn format_map(&mut self, text: &str, args: Args) -> Result<String> {
        let mut args = args.bind("format_map", ["/mapping"], 1)?;
        let Value::Dict(dict) = args.value(0) else {
            return Err(Error::new("format_map takes a mapping"));
        };

        let named = dict
            .entries()
            .iter()
            .filter_map(|(key, value)| Some((key.as_str()?.into(), value.clone())));
        let named = Args {
            positional: Vec::new(),
            named: named.collect(),
        };
        self.str_format(text, &named)
    }

    fn joined(&mut self, receiver: &Value, args: Args) -> Result<Value> {
        let mut args = args.bind("join", ["/iterable"], 1)?;
        let values = self.iterate(&args.value(0))?;

        let mut text = Text::default();
        for (index, value) in values.iter().enumerate() {
            let error = || {
                let found = value.type_name();
                Error::new(format!(
                    "sequence item {index}: expected str instance, {found} found"
                ))
            };

            if index > 0 {
                text.push(receiver.as_str().unwrap_or_default())?;
            }

            text.push(value.as_str().ok_or_else(error)?)?;
        }

        Ok(text_like(receiver, text.into_string()))
    }
}

/// The methods that begin with `is`.
fn holds(text: &str, name: &str) -> bool {
    let all = |is: fn(char) -> bool| !text.is_empty() && text.chars().all(is);
    let is_word = |c: char| c.is_alphanumeric() || c == '_';

    match name {
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isascii" => text.is_ascii(),
        "isdecimal" => all(|c| chars::decimal_digit(c).is_some()),
        "isdigit" => all(chars::is_digit),
        "isidentifier" => {
            text.chars().all(is_word) && text.starts_with(|c: char| c.is_alphabetic() || c == '_')
        }
        "islower" => chars::is_all(text, char::is_lowercase),
        "isnumeric" => all(char::is_numeric),
        "isprintable" => text.chars().all(super::print::is_printable),
        "isspace" => all(is_space),
        "istitle" => chars::is_titled(text),
        "isupper" => chars::is_all(text, char::is_uppercase),
        _ => false,
    }
}

/// The methods that return a changed string.
fn changed(text: &str, name: &str, args: Args) -> Result<String> {
    match name {
        "capitalize" | "casefold" | "lower" | "swapcase" | "title" | "upper" => {
            args.none(name)?;
            Ok(in_case(text, name))
        }
        "strip" | "lstrip" | "rstrip" => {
            let args = args.bind(name, ["/chars"], 0)?;
            Ok(stripped(text, name, args.maybe_str(0)?).to_owned())
        }
        "removeprefix" | "removesuffix" => {
            let args = args.bind(name, ["/prefix"], 1)?;
            let affix = args.str(0)?;
            let rest = if name == "removeprefix" {
                text.strip_prefix(affix)
            } else {
                text.strip_suffix(affix)
            };

            Ok(rest.unwrap_or(text).to_owned())
        }
        "replace" => {
            let args = args.bind(name, ["/old", "/new", "/count"], 2)?;
            let count = match args.get(2) {
                None => -1,
                Some(_) => args.int(2)?,
            };
            replaced(text, args.str(0)?, args.str(1)?, count)
        }
        "center" | "ljust" | "rjust" => {
            let args = args.bind(name, ["/width", "/fillchar"], 1)?;
            let mut fill = args.maybe_str(1)?.unwrap_or(" ").chars();
            match (fill.next(), fill.next()) {
                (Some(fill), None) => justified(text, name, args.count(0, 0)?, fill),
                _ => Err(Error::new(
                    "The fill character must be exactly one character long",
                )),
            }
        }
        "zfill" => {
            let args = args.bind(name, ["/width"], 1)?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            let mut out = Text::default();
            out.push(sign)?;
            out.pad('0', args.count(0, 0)?.saturating_sub(text.chars().count()))?;
            out.push(digits)?;

            Ok(out.into_string())
        }
        "expandtabs" => {
            let args = args.bind(name, ["tabsize"], 0)?;
            expanded(text, args.count(0, 8)?)
        }
        other => Err(Error::new(format!(
            "'str' object has no attribute '{other}'"
        ))),
    }
}

/// The methods that change the case.
fn in_case(text: &str, name: &str) -> String {
    match name {
        "capitalize" => chars::capitalized(text),
        "casefold" => text.to_lowercase().replace('ß', "ss").replace('ς', "σ"),
        "lower" => text.to_lowercase(),
        "swapcase" => chars::swapped(text),
        "title" => chars::titled(text),
        _ => text.to_uppercase(),
    }
}

/// `str.strip`, `lstrip` or `rstrip`; without `chars`, of white space.
pub(super) fn stripped<'a>(text: &'a str, name: &str, chars: Option<&str>) -> &'a str {
    let is_taken = |c: char| chars.map_or(is_space(c), |chars| chars.contains(c));
    match name {
        "lstrip" => text.trim_start_matches(is_taken),
        "rstrip" => text.trim_end_matches(is_taken),
        _ => text.trim_matches(is_taken),
    }
}

/// `str.replace`; a negative count replaces all.
pub(super) fn replaced(text: &str, old: &str, new: &str, count: i128) -> Result<String> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let found = text.matches(old).take(count).count();
    let added = found
        .checked_mul(new.len())
        .and_then(|bytes| bytes.checked_add(text.len()));
    check_text(added)?;

    Ok(text.replacen(old, new, count))
}

/// `str.ljust`, `rjust` or `center`.
pub(super) fn justified(text: &str, name: &str, width: usize, fill: char) -> Result<String> {
    let missing = width.saturating_sub(text.chars().count());
    let left = match name {
        "ljust" => 0,
        "rjust" => missing,
        // CPython puts the odd space left if the width is odd, right if it is even.
        _ => missing / 2 + (missing & width & 1),
    };

    let mut out = Text::default();
    out.pad(fill, left)?;
    out.push(text)?;
    out.pad(fill, missing - left)?;

    Ok(out.into_string())
}

/// `str.expandtabs`.
fn expanded(text: &str, tab: usize) -> Result<String> {
    let mut out = Text::default();
    let mut column = 0;
    for c in text.chars() {
        match c {
            '\t' => {
                let spaces = if tab == 0 { 0 } else { tab - column % tab };
                out.pad(' ', spaces)?;
                column += spaces;
            }
            c => {
                out.push(c.encode_utf8(&mut [0; 4]))?;
                column = if matches!(c, '\n' | '\r') {
                    0
                } else {
                    column + 1
                };
            }
        }
    }

    Ok(out.into_string())
}

/// The methods that split a string.
fn parts(receiver: &Value, name: &str, args: Args) -> Result<Value> {
    let text = receiver.as_str().unwrap_or_default();
    let like = |part: &str| text_like(receiver, part);

    match name {
        "split" | "rsplit" => {
            let args = args.bind(name, ["sep", "maxsplit"], 0)?;
            let parts = split(text, name, &args)?;
            Value::list(parts.into_iter().map(like).collect())
        }
        "splitlines" => {
            let args = args.bind(name, ["keepends"], 0)?;
            Value::list(
                chars::lines(text, args.flag(0)?)
                    .into_iter()
                    .map(like)
                    .collect(),
            )
        }
        _ => {
            let args = args.bind(name, ["/sep"], 1)?;
            let separator = args.str(0)?;
            if separator.is_empty() {
                return Err(Error::new("empty separator"));
            }

            let found = if name == "partition" {
                text.split_once(separator)
            } else {
                text.rsplit_once(separator)
            };

            let parts = match found {
                Some((before, after)) => [before, separator, after],
                None if name == "partition" => [text, "", ""],
                None => ["", "", text],
            };
            Value::tuple(parts.into_iter().map(like).collect())
        }
    }
}

/// `str.split` or `rsplit`: a negative `maxsplit` splits everywhere.
fn split<'t>(text: &'t str, name: &str, args: &Bound<'_, 2>) -> Result<Vec<&'t str>> {
    let most = match args.get(1) {
        None => -1,
        Some(_) => args.int(1)?,
    };
    let most = usize::try_from(most).unwrap_or(usize::MAX);

    Ok(match args.maybe_str(0)? {
        Some("") => return Err(Error::new("empty separator")),
        Some(separator) if name == "split" => {
            text.splitn(most.saturating_add(1), separator).collect()
        }
        Some(separator) => {
            let mut parts: Vec<&str> = text.rsplitn(most.saturating_add(1), separator).collect();
            parts.reverse();
            parts
        }
        None if name == "split" => words(text, most),
        None => words_from_end(text, most),
    })
}

/// `str.split()`: the words between white space. What remains after `most` splits is one part and
/// keeps its trailing white space.
fn words(text: &str, most: usize) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        if words.len() == most {
            words.push(rest);
            break;
        }

        let end = rest.find(is_space).unwrap_or(rest.len());
        words.push(&rest[..end]);
        rest = rest[end..].trim_start_matches(is_space);
    }

    words
}

/// `str.rsplit()`: as [`words`], from the end.
fn words_from_end(text: &str, most: usize) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text.trim_end_matches(is_space);
    while !rest.is_empty() {
        if words.len() == most {
            words.push(rest);
            break;
        }

        let space = rest.char_indices().rev().find(|(_, c)| is_space(*c));
        let start = space.map_or(0, |(index, c)| index + c.len_utf8());
        words.push(&rest[start..]);
        rest = rest[..start].trim_end_matches(is_space);
    }

    words.reverse();
    words
}

/// The byte range of the optional arguments `start` and `end`, of which the first is argument
/// `first`. `None` if the range is invalid: `start` past `end` or past the end of the string.
fn section<const N: usize>(
    text: &str,
    args: &Bound<'_, N>,
    first: usize,
) -> Result<Option<(usize, usize)>> {
    let start = args.maybe_int(first)?;
    let end = args.maybe_int(first + 1)?;
    if start.is_none() && end.is_none() {
        return Ok(Some((0, text.len())));
    }
    let len = text.chars().count() as i128;
    let from_end = |index: i128| {
        if index < 0 {
            (index.saturating_add(len)).max(0)
        } else {
            index
        }
    };
    let start = from_end(start.unwrap_or(0));
    let end = from_end(end.unwrap_or(len)).min(len);
    if start > len || start > end {
        return Ok(None);
    }
    let byte = |index: i128| {
        text.char_indices()
            .nth(usize::try_from(index).unwrap_or(0))
            .map_or(text.len(), |(byte, _)| byte)
    };
    Ok(Some((byte(start), byte(end))))
}

/// The methods that search for a substring.
fn searched(text: &str, name: &str, args: Args) -> Result<Value> {
    let args = args.bind(name, ["/sub", "/start", "/end"], 1)?;
    if matches!(name, "startswith" | "endswith") {
        return has_affix(text, name, &args).map(Value::Bool);
    }

    let sub = args.str(0)?;
    let section = section(text, &args, 1)?;
    if name == "count" {
        let count = section.map_or(0, |(start, end)| text[start..end].matches(sub).count());
        return Ok(Value::Int(count as i128));
    }

    let found = section.and_then(|(start, end)| {
        let part = &text[start..end];
        let index = if name.starts_with('r') {
            part.rfind(sub)
        } else {
            part.find(sub)
        };

        index.map(|index| text[..start + index].chars().count() as i128)
    });

    match found {
        None if name.ends_with("index") => Err(Error::new("substring not found")),
        found => Ok(Value::Int(found.unwrap_or(-1))),
    }
}

/// `str.startswith` or `endswith`; the affix may be a tuple of several.
fn has_affix(text: &str, name: &str, args: &Bound<'_, 3>) -> Result<bool> {
    let section = section(text, args, 1)?;
    let has = |affix: &str| {
        section.is_some_and(|(start, end)| {
            let part = &text[start..end];
            if name == "startswith" {
                part.starts_with(affix)
            } else {
                part.ends_with(affix)
            }
        })
    };

    let Some(Value::Tuple(affixes)) = args.get(0) else {
        return args.str(0).map(has);
    };

    for affix in affixes.values() {
        if has(super::print::expect_str(affix, name)?) {
            return Ok(true);
        }
    }

    Ok(false)
}
