//! Python's character classes and case mappings, where Rust's differ.

/// The zeros of the decimal digits of other scripts. All but the last are in the Basic Multilingual
/// Plane.
const ZEROS: [u32; 37] = [
    0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6,
    0xe50, 0xed0, 0xf20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50,
    0x1bb0, 0x1c40, 0x1c50, 0xa620, 0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10,
    0x104a0,
];

/// A decimal digit of any script as its ASCII digit.
pub(super) fn decimal_digit(c: char) -> Option<char> {
    if c.is_ascii_digit() {
        return Some(c);
    }

    let code = u32::from(c);
    let zero = ZEROS
        .iter()
        .find(|zero| (**zero..**zero + 10).contains(&code))?;
    char::from_digit(code - zero, 10)
}

/// `str.isdigit` of one character: decimal digits, superscripts, subscripts and circled digits.
pub(super) fn is_digit(c: char) -> bool {
    let others = [
        '\u{b2}'..='\u{b3}',
        '\u{b9}'..='\u{b9}',
        '\u{2070}'..='\u{2070}',
        '\u{2074}'..='\u{2079}',
    ];

    let more = ['\u{2080}'..='\u{2089}', '\u{2460}'..='\u{2468}'];
    decimal_digit(c).is_some() || others.iter().chain(&more).any(|range| range.contains(&c))
}

/// Title case letters: digraphs in which only the first letter is a capital.
fn is_title(c: char) -> bool {
    matches!(c, '\u{1c5}' | '\u{1c8}' | '\u{1cb}' | '\u{1f2}')
}

pub(super) fn is_cased(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase() || is_title(c)
}

/// Pushes a character in title case.
pub(super) fn push_title(c: char, out: &mut String) {
    match c {
        '\u{1c4}'..='\u{1c6}' => out.push('\u{1c5}'),
        '\u{1c7}'..='\u{1c9}' => out.push('\u{1c8}'),
        '\u{1ca}'..='\u{1cc}' => out.push('\u{1cb}'),
        '\u{1f1}'..='\u{1f3}' => out.push('\u{1f2}'),
        // Georgian capitals are used for whole words only: title case leaves the letter as it is.
        '\u{10d0}'..='\u{10ff}' => out.push(c),
        _ => {
            let mut upper = c.to_uppercase();
            out.extend(upper.next());
            out.extend(upper.flat_map(char::to_lowercase));
        }
    }
}

/// `str.capitalize`.
pub(super) fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    let mut out = String::with_capacity(text.len());
    if let Some(first) = chars.next() {
        push_title(first, &mut out);
    }

    // Lower-case the whole string: whether a sigma is final depends on the letter before it.
    let first = text.len() - chars.as_str().len();
    let lower = text.to_lowercase();
    let skipped = text[..first].to_lowercase().len();
    out.push_str(lower.get(skipped..).unwrap_or_default());

    out
}

/// `str.title`: a letter that follows a cased one is lower case, any other is title case.
pub(super) fn titled(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut follows_cased = false;
    for c in text.chars() {
        if follows_cased {
            out.extend(c.to_lowercase())
        } else {
            push_title(c, &mut out)
        }
        follows_cased = is_cased(c);
    }

    out
}

/// `str.istitle`.
pub(super) fn is_titled(text: &str) -> bool {
    let mut follows_cased = false;
    let mut has_cased = false;
    for c in text.chars() {
        let is_large = c.is_uppercase() || is_title(c);
        if is_large && follows_cased || c.is_lowercase() && !follows_cased {
            return false;
        }
        follows_cased = is_cased(c);
        has_cased |= follows_cased;
    }

    has_cased
}

/// `str.swapcase`.
pub(super) fn swapped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_uppercase() {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
    }

    out
}

/// `str.islower` or `str.isupper`: there is a cased character, and all of them have this case.
pub(super) fn is_all(text: &str, is_case: fn(char) -> bool) -> bool {
    let mut cased = text.chars().filter(|c| is_cased(*c)).peekable();
    cased.peek().is_some() && cased.all(is_case)
}

/// Whether `str.splitlines` splits at this character.
pub(super) fn is_line_end(c: char) -> bool {
    matches!(
        c,
        '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
    )
}

/// `str.splitlines`.
pub(super) fn lines(text: &str, keeps_ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(is_line_end).unwrap_or(rest.len());
        let mark = match rest[end..].chars().next() {
            Some('\r') if rest[end..].starts_with("\r\n") => 2,
            Some(c) => c.len_utf8(),
            None => 0,
        };
        lines.push(if keeps_ends {
            &rest[..end + mark]
        } else {
            &rest[..end]
        });
        rest = &rest[end + mark..];
    }

    lines
}
