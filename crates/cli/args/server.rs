//! Options of `chat` for a model on a server.

use clap::builder::ArgPredicate;
use clap::{Arg, Args};
use std::path::PathBuf;

/// A server to chat with.
#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// Chat with a model on a server that speaks OpenAI's API, such as that of `llm-int8 serve`:
    /// http://localhost:8080, or with a path, as in https://host/v1
    #[arg(id = "server", long, value_name = "URL", help_heading = "Server")]
    pub(crate) server: Option<String>,
    /// File that holds the server's API key
    #[arg(
        long,
        value_name = "FILE",
        requires = "server",
        help_heading = "Server"
    )]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Name of the model on the server [default: the first that it lists]
    #[arg(
        id = "server_model",
        long = "model",
        value_name = "NAME",
        requires = "server",
        help_heading = "Server"
    )]
    pub(crate) model: Option<String>,
    /// Give up if the server sends nothing for this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300, requires = "server", help_heading = "Server", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) timeout: u32,
}

/// Options that a request can carry, or that concern this program. What the others ask for is
/// settled where the server is started.
const WITH_A_SERVER: &[&str] = &[
    "greedy",
    "ignore_eos",
    "max_new_tokens",
    "min_p",
    "quiet",
    "repetition_penalty",
    "seed",
    "server",
    "stop",
    "system",
    "temperature",
    "top_k",
    "top_p",
];

/// Makes an argument of `chat` conflict with `--server` if a server cannot be told of it.
pub(super) fn beside_a_server(arg: Arg) -> Arg {
    let name = arg.get_id().to_string();
    match name.as_str() {
        "model" => arg
            .conflicts_with("server")
            .required(false)
            .required_unless_present("server")
            .default_value_if("server", ArgPredicate::IsPresent, ""),
        // `requires` alone is not checked beside a model, as `--server` could not be given there.
        "api_key_file" | "server_model" | "timeout" => arg.conflicts_with("model"),
        name if WITH_A_SERVER.contains(&name) => arg,
        _ => arg.conflicts_with("server"),
    }
}
