//! How much memory the values of a rendering take. The budget of work bounds what a template makes;
//! this bounds what it keeps, in lists, dicts and generators. Strings in variables are bounded by
//! the work of making them.

use super::error::{Error, Result};
use super::value::Value;
use std::cell::Cell;

/// The most that lists, dicts and generators may hold at a time, in bytes.
const MOST: usize = 128 << 20;

/// Bytes of a container besides its elements, and of a string besides its text, with what the
/// allocator adds.
const OVERHEAD: usize = 112;
const TEXT_OVERHEAD: usize = 32;

thread_local! {
    /// What the containers of this thread hold. Values cannot move to another thread.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// A container's share of the memory, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Held(usize);

impl Held {
    /// The share of a container with these elements; an error if there is not so much left. A
    /// container within it has a share of its own.
    pub(super) fn by<'a>(elements: impl Iterator<Item = &'a Value>) -> Result<Self> {
        let bytes = elements.map(bytes).fold(OVERHEAD, usize::saturating_add);
        let all = HELD.get().saturating_add(bytes);
        if all > MOST {
            let megabytes = MOST >> 20;
            return Err(Error::new(format!(
                "it keeps more than {megabytes} MiB of values"
            )));
        }

        HELD.set(all);
        Ok(Self(bytes))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.set(HELD.get().saturating_sub(self.0));
    }
}

fn bytes(value: &Value) -> usize {
    let text = value.as_str().map_or(0, |text| text.len() + TEXT_OVERHEAD);
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
            assert!(error.contains("keeps more than 128 MiB"), "{kept}: {error}");
            assert_eq!(HELD.get(), 0, "{kept}");
        }
    }

    #[test]
    fn what_is_dropped_does_not_count() {
        let template = "{% for i in range(100) %}{% set l = range(90000) | list %}{% endfor %}done";
        assert_eq!(render(template).unwrap(), "done");
    }
}
