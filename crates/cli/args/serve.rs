//! Options of `llm-int8 serve`.

use super::model::{AdapterArgs, ModelArgs};
use super::sizes::{size, size_or_none};
use clap::Args;
use llm_int8_server::ServerConfig;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) adapter: AdapterArgs,
    /// Address to listen on; 0.0.0.0 is every interface of the machine
    #[arg(long, default_value = "127.0.0.1", help_heading = "Server")]
    pub(crate) host: IpAddr,
    /// Port to listen on; 0 is any free one
    #[arg(long, default_value_t = 8080, help_heading = "Server")]
    pub(crate) port: u16,
    /// Texts generated at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = super::at_once, help_heading = "Server")]
    pub(crate) parallel: usize,
    /// Further texts that may wait; requests beyond them get status 429
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = super::limits::queue, help_heading = "Server")]
    pub(crate) max_queue: usize,
    /// Largest request body, such as 4MiB
    #[arg(long, value_name = "SIZE", default_value = "4MiB", value_parser = size, help_heading = "Server")]
    pub(crate) max_body: u64,
    /// File with API keys, one per line; a request must have one of them
    #[arg(long, value_name = "FILE", help_heading = "Server")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Memory for the keys and values of all texts, kept prefixes included [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Server")]
    pub(crate) cache_memory: Option<u64>,
    /// Memory for keys and values that are kept for later prompts with the same beginning; 0 keeps
    /// none
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = size_or_none, help_heading = "Server")]
    pub(crate) prefix_cache: u64,
    /// Seconds that running requests may go on after ctrl-C or SIGTERM; a second signal ends them
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 30,
        help_heading = "Server"
    )]
    pub(crate) grace: u32,
    /// The model's name in answers [default: MODEL; of a path its last part]
    #[arg(long, value_name = "NAME", help_heading = "Server")]
    pub(crate) model_name: Option<String>,
    /// Let web pages of this origin use the server, as in https://example.org (may be given several
    /// times); its own page always may
    #[arg(long, value_name = "ORIGIN", help_heading = "Server")]
    pub(crate) allow_origin: Vec<String>,
    /// Chat template (a Jinja file) to use instead of the model's own
    #[arg(long, value_name = "FILE", help_heading = "Server")]
    pub(crate) chat_template: Option<PathBuf>,
}

impl ServeArgs {
    /// The server's settings, without what has to be read from files.
    pub(crate) fn config(&self) -> ServerConfig {
        ServerConfig {
            address: (self.host, self.port).into(),
            parallel: self.parallel,
            max_queue: self.max_queue,
            max_body: usize::try_from(self.max_body).unwrap_or(usize::MAX),
            cache_bytes: self.cache_memory,
            prefix_cache_bytes: self.prefix_cache,
            grace: Duration::from_secs(self.grace.into()),
            allowed_origins: self.allow_origin.clone(),
            model_name: self.model_name.clone(),
            ..ServerConfig::default()
        }
    }
}
