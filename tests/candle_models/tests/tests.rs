//! candle-transformers' models with int8 layers beside its own float models, beside transformers
//! over bitsandbytes, and its float models beside this project's decoder.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod decoder;
mod float;
mod models;
mod random;
mod support;
mod transformers;
