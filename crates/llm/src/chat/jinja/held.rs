//! How much memory the values of a rendering take. The budget of work bounds what a template makes;
//! this bounds what there is at a time: lists, dicts, generators and long strings, wherever they are
//! (variables, arguments, the operands of an operation that is not finished).

use super::error::{Error, Result};
use super::value::Value;
use std::cell::Cell;
use std::fmt;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

/// The most that values may take at a time, in bytes.
const MOST: usize = 96 << 20;

/// Strings from this length on have a share of their own. Shorter ones are counted by what contains
/// them.
const LONG: usize = 1 << 10;

/// Bytes of a container besides its elements, and of a string besides its text, with what the
/// allocator adds.
const OVERHEAD: usize = 112;
const TEXT_OVERHEAD: usize = 32;

thread_local! {
    /// What the values of this thread take. They cannot move to another thread.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// A value's share of the memory, given back when it is dropped.
#[derive(Debug, Default)]
pub(super) struct Held(usize);

/// The text of a string. What a long one takes is counted until its last copy is dropped.
#[derive(Debug, Clone)]
pub(super) struct SharedText {
    text: Arc<str>,
    _held: Option<Rc<Held>>,
}

/// An error if the values of this thread take more memory than they may.
pub(super) fn check() -> Result<()> {
    match HELD.get() > MOST {
        true => Err(too_much()),
        false => Ok(()),
    }
}

fn too_much() -> Error {
    let megabytes = MOST >> 20;
    Error::new(format!("it keeps more than {megabytes} MiB of values"))
}

impl Held {
    /// The share of a container with these elements; an error if there is not so much left. A
    /// container within it has a share of its own.
    pub(super) fn by<'a>(elements: impl Iterator<Item = &'a Value>) -> Result<Self> {
        let bytes = elements.map(bytes).fold(OVERHEAD, usize::saturating_add);
        if HELD.get().saturating_add(bytes) > MOST {
            return Err(too_much());
        }
        Ok(Self::of(bytes))
    }

    /// A share of `bytes` bytes. The next [`check`] finds out whether the limit is exceeded.
    pub(super) fn of(bytes: usize) -> Self {
        HELD.set(HELD.get().saturating_add(bytes));
        Self(bytes)
    }

    /// Adds bytes to the share.
    pub(super) fn grow(&mut self, bytes: usize) {
        HELD.set(HELD.get().saturating_add(bytes));
        self.0 = self.0.saturating_add(bytes);
    }
}

impl SharedText {
    /// The text, to be kept outside of the rendering's values.
    pub(super) fn arc(&self) -> &Arc<str> {
        &self.text
    }
}

impl Deref for SharedText {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for SharedText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl PartialEq for SharedText {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Into<Arc<str>>> From<T> for SharedText {
    fn from(text: T) -> Self {
        let text: Arc<str> = text.into();
        let held = (text.len() >= LONG).then(|| Rc::new(Held::of(text.len())));
        Self { text, _held: held }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.set(HELD.get().saturating_sub(self.0));
    }
}

fn bytes(value: &Value) -> usize {
    let text = match value.as_str() {
        Some(text) if text.len() < LONG => text.len() + TEXT_OVERHEAD,
        _ => 0,
    };
    size_of::<Value>() + text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::jinja::Template;

    fn render(template: &str) -> Result<String> {
        Template::new(template)?.render(std::iter::empty())
    }

    #[test]
    fn what_is_kept_is_bounded_and_given_back() {
        for kept in [
            "range(90000) | list",
            "range(90000) | batch(1) | list",
            "('a ' * 450000).split()",
            "('ab' * 45000) | list",
            "{'a': 'x' * 100000, 'b': 2}",
            "('x' * 1000000) | list | batch(1000)",
        ] {
            let template = format!(
                "{{% set ns = namespace(l=[]) %}}{{% for i in range(3000) %}}{{% set ns.l = ns.l + [{kept}] %}}{{% endfor %}}"
            );
            let error = render(&template).unwrap_err().to_string();
            assert!(error.contains("keeps more than 96 MiB"), "{kept}: {error}");
            assert_eq!(HELD.get(), 0, "{kept}");
        }
    }

    #[test]
    fn what_is_dropped_does_not_count() {
        for kept in ["range(90000) | list", "'x' * 3000000"] {
            let template =
                format!("{{% for i in range(100) %}}{{% set l = {kept} %}}{{% endfor %}}done");
            assert_eq!(render(&template).unwrap(), "done");
        }
        assert_eq!(HELD.get(), 0);
    }

    /// Found by fuzzing: the work of making them allowed eight strings of the longest length.
    #[test]
    fn long_strings_count_wherever_they_are() {
        let long = "'x' * 30000000";
        for template in [
            format!("{{% set a, b, c, d, e = {} %}}", [long; 5].join(", ")),
            format!("{{% set a = {long} %}}{{% set b = {long} %}}{{% set c = {long} %}}{{% set d = {long} %}}{{{{ a is b }}}}"),
            format!("{{{{ range({}) }}}}", [long; 5].join(", ")),
            format!("{{{{ {long} == ({long} == ({long} == ({long} == ({long} == 1)))) }}}}"),
            "{% macro f(x, n) %}{% set y = x ~ n %}{{ f(y, n + 1) if n < 9 }}{{ y | length }}{% endmacro %}\
             {{ f('x' * 30000000, 0) }}"
                .to_owned(),
            format!("{0}{{{{ 'x' * 30000000 }}}}", "{% set a %}{{ 'x' * 30000000 }}{% filter upper %}".repeat(5))
                + &"{% endfilter %}{% endset %}".repeat(5),
        ] {
            let error = render(&template).unwrap_err().to_string();
            assert!(error.contains("keeps more than 96 MiB"), "{template}: {error}");
            assert_eq!(HELD.get(), 0, "{template}");
        }
    }
}
