//! The error type of this crate.

use std::net::SocketAddr;
use std::path::PathBuf;

/// A result with [`ServerError`].
pub type Result<T, E = ServerError> = std::result::Result<T, E>;

/// Why a server cannot start or go on. What is wrong with a request goes to the client instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; choose another address or port")]
    Bind {
        /// The address.
        address: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The system gives no thread, timer or signal handler.
    #[error("the server cannot run: {0}")]
    System(#[source] std::io::Error),
    /// The file of API keys cannot be used.
    #[error("the API keys in {} cannot be used: {reason}", path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The settings make no sense together.
    #[error("{name} is {value}; {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// The model cannot be served.
    #[error(transparent)]
    Model(#[from] llm_int8::LlmError),
    /// The thread that loads the model has crashed.
    #[error("the thread that loads the model has crashed")]
    LoadPanicked,
}

impl ServerError {
    pub(crate) fn bind(address: SocketAddr, source: std::io::Error) -> Self {
        Self::Bind {
            address: address.to_string(),
            source,
        }
    }
}

/// Why [`Server::run`](crate::Server::run) ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum RunError<E> {
    /// The function that loads the model failed.
    #[error("{0}")]
    Load(E),
    /// The server failed.
    #[error(transparent)]
    Server(#[from] ServerError),
}
