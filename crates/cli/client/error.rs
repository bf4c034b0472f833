//! What goes wrong between this program and a server. No message holds the key or a password.

use thiserror::Error;

/// A failed request.
#[derive(Debug, Error)]
pub(crate) enum ClientError {
    /// The address is none of a server.
    #[error("{shown} is no address of a server: {reason}")]
    Address {
        /// The address without user and password.
        shown: String,
        reason: String,
    },
    /// The key cannot be sent.
    #[error("the API key has characters that cannot be sent: only printable ASCII can")]
    Key,
    /// No HTTP client could be made.
    #[error("the HTTP client cannot start: {0}")]
    Client(String),
    /// There was no connection, or it broke.
    #[error("{host} cannot be reached: {reason}")]
    Unreachable { host: String, reason: String },
    /// Nothing came for too long.
    #[error("{host} has sent nothing for {seconds} s")]
    Silent { host: String, seconds: u64 },
    /// The server answered with an error.
    #[error("{}", told(*.status, .message, *.retry_after))]
    Status {
        status: u16,
        /// The server's own words.
        message: String,
        /// OpenAI's name of the error.
        code: Option<String>,
        /// Seconds after which the server asks to be asked again.
        retry_after: Option<u64>,
    },
    /// The stream told of an error.
    #[error("the server failed during the answer: {0}")]
    Failed(String),
    /// The answer is not what the protocol says.
    #[error("the answer of {host} cannot be read: {reason}")]
    Malformed { host: String, reason: String },
    /// The connection was closed within an answer.
    #[error("the stream ended before the answer was complete")]
    Ended,
    /// The text cannot be written.
    #[error(transparent)]
    Output(#[from] std::io::Error),
}

impl ClientError {
    /// Whether the conversation is too long for the model: fewer messages might do.
    pub(crate) fn is_too_long(&self) -> bool {
        match self {
            Self::Status {
                status: 400,
                message,
                code,
                ..
            } => {
                code.as_deref() == Some("context_length_exceeded")
                    || message.contains("maximum context length")
            }
            _ => false,
        }
    }

    /// Whether the server does not know `stream_options`, a later addition to the protocol.
    pub(crate) fn is_about_stream_options(&self) -> bool {
        matches!(self, Self::Status { status: 400 | 422, message, .. } if message.contains("stream_options"))
    }
}

fn told(status: u16, message: &str, retry_after: Option<u64>) -> String {
    let what = match status {
        300..=399 => "the server is elsewhere",
        401 => "the server wants another API key",
        403 => "the server does not allow this",
        404 => "the server does not know this model or address",
        413 => "the conversation is too large for the server",
        429 => "the server is busy",
        503 => "the server is not ready",
        500.. => "the server failed",
        _ => "the server refuses the request",
    };
    let mut text = format!("{what} (status {status})");
    if !message.is_empty() {
        text += ": ";
        text += message;
    }
    if let Some(seconds) = retry_after {
        text += &format!("; it asks to wait {seconds} s");
    }
    match status {
        401 => text + "; --api-key-file FILE gives one",
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_told_with_the_servers_words() {
        let told = |status, message: &str, retry_after| told(status, message, retry_after);
        assert_eq!(
            told(429, "The queue is full.", Some(2)),
            "the server is busy (status 429): The queue is full.; it asks to wait 2 s"
        );
        assert_eq!(told(502, "", None), "the server failed (status 502)");
        assert!(told(401, "No.", None).ends_with("No.; --api-key-file FILE gives one"));
    }
}
