//! An OpenAI-compatible server for [`llm_int8`], whose answers do not depend on its load.
//!
//! The same request with the same seed gives the same text alone and among others, whichever way
//! its prompt is divided and whether or not its beginning was computed before. This holds on the CPU
//! with outliers for each row ([`Decoder::is_batch_invariant`](llm_int8::decoder::Decoder::is_batch_invariant));
//! `/v1/models` says so.
//!
//! [`Server::bind`] listens and [`Server::run`] loads a model and answers. One thread owns the model
//! ([`llm_int8::generate::Service`]), one does the network's work, and a few encode texts.

mod answer;
mod app;
mod body;
mod config;
mod connection;
mod error;
mod fields;
mod generate;
#[cfg(feature = "grammar")]
mod grammar;
mod keys;
mod metrics;
mod model;
mod reply;
mod request;
mod routes;
mod server;
mod template;
mod texts;
mod tools;

pub use config::ServerConfig;
pub use error::{Result, RunError, ServerError};
pub use keys::ApiKeys;
pub use server::{Server, Shutdown};
