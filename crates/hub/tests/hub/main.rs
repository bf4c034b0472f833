//! Downloads from a hub on the loopback interface that misbehaves on request.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    reason = "tests"
)]

mod adapters;
mod cache;
mod companions;
mod downloads;
mod fake_hub;
mod mirrors;
mod repositories;

use fake_hub::FakeHub;
use llm_int8_hub::{
    Hub, HubConfig, HubError, ModelFiles, ModelRef, NoProgress, Progress, ProgressEvent,
};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;
use tempfile::TempDir;

const FILE: &str = "model.safetensors";
const CONFIG: &[u8] = br#"{"model_type": "gpt2"}"#;

/// A safetensors file of 40,000 bytes with a tensor of pseudo-random ones.
fn weights() -> Vec<u8> {
    let count = 40_000 - 8 - 72;
    let header = format!(
        "{:72}",
        format!(r#"{{"w": {{"dtype": "U8", "shape": [{count}], "data_offsets": [0, {count}]}}}}"#)
    );
    let values = (0..count).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8);
    let start = 72_u64.to_le_bytes().into_iter().chain(header.into_bytes());
    start.chain(values).collect()
}

fn model_hub() -> FakeHub {
    let hub = FakeHub::start();
    hub.add("config.json", CONFIG);
    hub.add("tokenizer.json", b"{}");
    hub.add(FILE, &weights());

    for unwanted in [
        "README.md",
        "tf_model.h5",
        "flax_model.msgpack",
        "pytorch_model.bin",
        "onnx/vocab.json",
    ] {
        hub.add(unwanted, b"unwanted");
    }

    hub
}

fn config(hub: &FakeHub, cache: &Path) -> HubConfig {
    let mut config = HubConfig::new(cache);
    config.endpoint = hub.endpoint();
    config.token = Some("hf_secret".into());
    config.connect_timeout = Duration::from_secs(2);
    config.read_timeout = Duration::from_millis(300);
    config.base_delay = Duration::from_millis(5);
    config.max_delay = Duration::from_millis(1500);
    config
}

fn resolve(hub: &FakeHub, cache: &TempDir, name: &str) -> Result<ModelFiles, HubError> {
    resolve_with(config(hub, cache.path()), name, &NoProgress)
}

fn resolve_with(
    config: HubConfig,
    name: &str,
    progress: &dyn Progress,
) -> Result<ModelFiles, HubError> {
    Hub::new(config).resolve(&name.parse::<ModelRef>().unwrap(), progress)
}

/// The bytes of the first weight file.
fn content(model: &ModelFiles) -> Vec<u8> {
    std::fs::read(&model.weights.files()[0]).unwrap()
}

fn blobs(cache: &TempDir) -> Vec<String> {
    let folder = cache.path().join("models--org--model/blobs");
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Records all events except how many bytes arrived.
#[derive(Default)]
struct Events(Mutex<Vec<String>>);

impl Progress for Events {
    fn event(&self, event: &ProgressEvent<'_>) {
        if !matches!(event, ProgressEvent::Advance { .. }) {
            self.0.lock().unwrap().push(format!("{event:?}"));
        }
    }
}

impl Events {
    fn count(&self, kind: &str) -> usize {
        self.0
            .lock()
            .unwrap()
            .iter()
            .filter(|event| event.starts_with(kind))
            .count()
    }
}

/// Checks that the files are those of [`model_hub`].
fn is_right(model: &ModelFiles) {
    assert_eq!(std::fs::read(&model.config).unwrap(), CONFIG);
    assert_eq!(content(model), weights());
}

/// Records why a download was restarted or the cache was used.
#[derive(Default)]
struct Restarts(Mutex<Vec<String>>);

impl Progress for Restarts {
    fn event(&self, event: &ProgressEvent<'_>) {
        if let ProgressEvent::Restart { reason, .. } | ProgressEvent::UsingCache { reason } = event
        {
            self.0.lock().unwrap().push(reason.clone());
        }
    }
}
