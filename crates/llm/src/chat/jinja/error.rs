//! What a template or its evaluation can fail with.

/// The result of everything in the template engine that can fail.
pub(super) type Result<T, E = Error> = std::result::Result<T, E>;

/// A message and the line of the template it concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Error {
    message: String,
    line: Option<u32>,
}

impl Error {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            line: None,
        }
    }

    /// The template used up its budget of work.
    pub(super) fn endless() -> Self {
        Self::new("it does not come to an end")
    }

    /// A text or a list above the limit.
    pub(super) fn too_large() -> Self {
        Self::new(format!(
            "it writes more than {} MiB",
            super::budget::LONGEST_TEXT >> 20
        ))
    }

    /// The same error with a line, unless it has one: the innermost statement knows best.
    pub(super) fn at(mut self, line: u32) -> Self {
        self.line = self.line.or(Some(line));
        self
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            Some(line) => write!(formatter, "{}, line {line}", self.message),
            None => formatter.write_str(&self.message),
        }
    }
}
