//! What a server is set up with.

use crate::error::{Result, ServerError};
use crate::keys::ApiKeys;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Settings of a [`Server`](crate::Server).
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Where to listen (default `127.0.0.1:8080`). Port 0: any free one.
    pub address: SocketAddr,
    /// Sequences that run at once (default 8).
    pub parallel: usize,
    /// Requests that may wait beside the running ones (default 64); further ones get 429.
    pub max_queue: usize,
    /// Largest body of a request in bytes (default 4 MiB); larger ones get 413.
    pub max_body: usize,
    /// Keys of which a request must have one; none (the default): requests need no key.
    pub api_keys: ApiKeys,
    /// Bytes for keys and values of running sequences and kept prefixes; `None` (the default): no limit.
    pub cache_bytes: Option<u64>,
    /// Bytes for keys and values that are kept for later prompts with the same beginning (default
    /// 1 GiB); 0: none.
    pub prefix_cache_bytes: u64,
    /// How long running requests may go on after the server was told to end (default 30 s).
    pub grace: Duration,
    /// Time between comments that keep a silent stream open (default 15 s).
    pub ping: Duration,
    /// How long a client may stall while it sends a request or takes an answer (default 60 s).
    pub stall: Duration,
    /// Connections at once (default 1024); further ones wait to be accepted.
    pub max_connections: usize,
    /// Web pages of these origins (`https://example.org`) may use the server, beside its own page.
    pub allowed_origins: Vec<String>,
    /// The model's name in answers. `None`: the name it was loaded by, of a folder or file only its
    /// last part.
    pub model_name: Option<String>,
    /// A chat template (Jinja) instead of the model's own.
    pub chat_template: Option<String>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080),
            parallel: 8,
            max_queue: 64,
            max_body: 4 << 20,
            api_keys: ApiKeys::default(),
            cache_bytes: None,
            prefix_cache_bytes: 1 << 30,
            grace: Duration::from_secs(30),
            ping: Duration::from_secs(15),
            stall: Duration::from_secs(60),
            max_connections: 1024,
            allowed_origins: Vec::new(),
            model_name: None,
            chat_template: None,
        }
    }
}

impl ServerConfig {
    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |name, value: String, expected| {
            Err(ServerError::Setting {
                name,
                value,
                expected,
            })
        };
        if self.parallel == 0 {
            return refuse("parallel", "0".into(), "at least one sequence must run");
        }
        if self.max_body == 0 {
            return refuse("max_body", "0".into(), "no request fits into it");
        }
        if self.max_connections == 0 {
            return refuse("max_connections", "0".into(), "it must be at least 1");
        }
        let is_origin = |origin: &&String| origin.contains("://") && !origin.ends_with('/');
        if let Some(wrong) = self.allowed_origins.iter().find(|one| !is_origin(one)) {
            let expected = "expected a scheme and a host, as in https://example.org";
            return refuse("an allowed origin", wrong.clone(), expected);
        }

        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_serve_nobody_are_refused() {
        ServerConfig::default().check().unwrap();
        for wrong in [
            ServerConfig {
                parallel: 0,
                ..ServerConfig::default()
            },
            ServerConfig {
                max_body: 0,
                ..ServerConfig::default()
            },
            ServerConfig {
                allowed_origins: vec!["example.org".into()],
                ..ServerConfig::default()
            },
        ] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
    }
}
