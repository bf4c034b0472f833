//! What the fuzz targets share: bytes as choices, limits on what an input may cost, and grammars.
//!
//! Mutated files seldom get past a parser's first check. A grammar turns bytes into files that are
//! almost right: each choice takes one byte, so a mutation of the bytes is a small change of the file.

pub mod archive;
pub mod choices;
pub mod config;
pub mod disk;
pub mod gguf;
pub mod hub;
pub mod jinja;
pub mod json;
pub mod limits;
pub mod pickle;
pub mod safetensors;
pub mod tokenizer;

pub use choices::Choices;
pub use disk::Folder;
pub use limits::{Limits, bounded};
