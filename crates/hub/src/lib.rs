//! Model files, from a folder, from the cache, or from the Hugging Face hub over a bad line.
//!
//! [`Hub::resolve`] turns a model's name into files on disk, in the cache layout of Python's
//! `huggingface_hub`, so that both use each other's downloads. What hf-hub 1.0 lacks is here:
//! resuming by byte range, time-outs, retries in the middle of a body, size and checksum before the
//! rename, waiting for another process' download, offline mode, mirrors.
//!
//! ```
//! use llm_int8_hub::{Hub, HubConfig, ModelRef, NoProgress};
//! # let folder = tempfile::tempdir()?;
//! # for (name, text) in [("config.json", "{}"), ("model.safetensors", "")] {
//! #     std::fs::write(folder.path().join(name), text)?;
//! # }
//! # let folder = folder.path().to_str().unwrap_or_default();
//! let hub = Hub::new(HubConfig::new("/tmp/cache"));
//! let model: ModelRef = folder.parse()?; // or "gpt2-large", "org/name", "org/name@revision"
//! let files = hub.resolve(&model, &NoProgress)?;
//! assert!(files.config.ends_with("config.json"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The library prints nothing; [`HubConfig::from_env`] is the one place that reads the environment.

mod address;
mod api;
mod cache;
pub mod config;
mod download;
mod encoding;
pub mod error;
pub mod files;
mod hints;
mod http;
pub mod hub;
mod lock;
pub mod model_ref;
mod names;
pub mod progress;
mod retry;
mod small;
mod verify;

pub use config::HubConfig;
pub use error::{HubError, Result};
pub use files::{
    ModelFiles, ModelHeaders, SafetensorsHeader, SmallFiles, TokenizerFiles, WeightFiles,
};
pub use hub::Hub;
pub use model_ref::ModelRef;
pub use progress::{NoProgress, Progress, ProgressEvent};
