//! Dotted paths of modules.

use std::fmt;

/// The dotted path of a module: `transformer.h.0.attn.c_attn`.
///
/// ```
/// use llm_int8_nn::module::ModulePath;
/// let path = ModulePath::root().join("transformer").join("h").join("0");
/// assert_eq!(path.to_string(), "transformer.h.0");
/// assert_eq!(path.name(), "0");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ModulePath(String);

impl ModulePath {
    /// The model itself: the empty path.
    pub fn root() -> Self {
        Self::default()
    }

    /// The path of a child.
    pub fn join(&self, name: &str) -> Self {
        if self.0.is_empty() {
            Self(name.to_owned())
        } else {
            Self(format!("{}.{name}", self.0))
        }
    }

    /// The last component; empty for the model itself.
    pub fn name(&self) -> &str {
        self.0.rsplit('.').next().unwrap_or_default()
    }

    /// The path, or `class` if the path is empty.
    pub(crate) fn or(&self, class: &str) -> String {
        if self.0.is_empty() { class } else { &self.0 }.to_owned()
    }

    /// The path as a string.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for ModulePath {
    fn from(path: &str) -> Self {
        Self(path.to_owned())
    }
}

impl fmt::Display for ModulePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
