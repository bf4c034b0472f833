//! Finds a model's files in a folder or the cache, or downloads them from the Hugging Face hub,
//! over unreliable connections too.
//!
//! [`Hub::resolve`] turns a model's name into files on disk. The cache has the layout of Python's
//! `huggingface_hub`, so each uses the other's downloads. The crate adds what hf-hub 1.0 lacks:
//! resuming by byte range, time-outs, a floor under the rate, limits on sizes, retries in the middle
//! of a body, verification before the rename, waiting for another process's download, offline mode,
//! mirrors.
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
//! The library prints nothing. Only [`HubConfig::from_env`] reads the environment.

mod address;
mod api;
mod cache;
pub mod config;
mod content;
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
mod rate;
mod retry;
mod small;
mod verify;

pub use config::HubConfig;
pub use error::{HubError, Result};
pub use files::{
    KEPT_COLUMNS, ModelFiles, ModelHeaders, SafetensorsHeader, SmallFiles, TokenizerFiles,
    WeightFiles,
};
pub use hub::Hub;
pub use model_ref::ModelRef;
pub use progress::{NoProgress, Progress, ProgressEvent};
