//! The server over real sockets, in this process, with the built-in model.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::result_large_err,
    unreachable_pub,
    reason = "tests"
)]

#[path = "server/client.rs"]
mod client;
#[path = "server/complaints.rs"]
mod complaints;
#[path = "server/endpoints.rs"]
mod endpoints;
#[path = "server/promise.rs"]
mod promise;
#[path = "server/shutdown.rs"]
mod shutdown;
#[path = "server/start.rs"]
mod start;
#[path = "server/statuses.rs"]
mod statuses;
#[path = "server/tools.rs"]
mod tools;
