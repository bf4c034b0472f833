//! Decoders: one implementation, and families that describe themselves to it.

pub mod config;
pub mod decoder;
pub mod gpt2;
mod load;
pub mod spec;
mod tree;

pub use config::ModelConfig;
pub use decoder::{Decoder, KvCache, LogitPositions};
pub use load::{LoadEvent, LoadOptions, WeightDtype};
pub use spec::{DecoderSpec, FAMILIES};
