//! Models of candle-transformers in 8 bit: its own source files, copied by `build.rs` with the
//! lines changed that docs/candle.md names. Everything else is as it was published, so a release of
//! candle that moves one of those lines breaks this build.

// The name under which candle-transformers knows it.
extern crate candle_core as candle;

// What the copies call `crate::utils`.
pub use candle_transformers::utils;

include!(concat!(env!("OUT_DIR"), "/models.rs"));
