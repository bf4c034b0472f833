//! The error of parsing or rendering a template.

/// The result of anything in the template engine that can fail.
pub(super) type Result<T, E = Error> = std::result::Result<T, E>;

/// A message, and the line of the template that it is about.
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

    /// The template used up its work budget: it loops without end, or nearly.
    pub(super) fn endless() -> Self {
        Self::new("it does not come to an end")
    }

    /// A string above the limit.
    pub(super) fn too_large() -> Self {
        Self::new(format!(
            "it writes more than {} MiB",
            super::budget::LONGEST_TEXT >> 20
        ))
    }

    /// The same error with a line number, unless it has one already: the innermost node is the most
    /// precise.
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
