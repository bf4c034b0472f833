//! Adapters: two files, and no model beside them.

use crate::config;
use crate::fake_hub::FakeHub;
use llm_int8_hub::{Hub, HubConfig, HubError, NoProgress};
use std::path::PathBuf;
use tempfile::TempDir;

fn resolve(config: HubConfig, name: &str) -> Result<PathBuf, HubError> {
    Hub::new(config).resolve_adapter(&name.parse().unwrap(), &NoProgress)
}

#[test]
fn an_adapter_is_two_files_which_are_kept_for_work_offline() {
    let hub = FakeHub::start();
    hub.add("adapter_config.json", b"{}");
    hub.add("adapter_model.safetensors", b"weights");
    hub.add("adapter_model.bin", b"unwanted");
    hub.add("optimizer.pt", b"unwanted");
    let cache = TempDir::new().unwrap();

    let folder = resolve(config(&hub, cache.path()), "org/model").unwrap();
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["adapter_config.json", "adapter_model.safetensors"]);
    let weights = std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
    assert_eq!(weights, b"weights");

    let offline = |cache: &TempDir| HubConfig {
        offline: true,
        ..HubConfig::new(cache.path())
    };
    assert_eq!(resolve(offline(&cache), "org/model").unwrap(), folder);
    let nothing = TempDir::new().unwrap();
    let error = resolve(offline(&nothing), "org/model").unwrap_err();
    assert!(matches!(error, HubError::Offline { .. }), "{error}");
}

#[test]
fn a_model_is_no_adapter() {
    let hub = crate::model_hub();
    let cache = TempDir::new().unwrap();
    let error = resolve(config(&hub, cache.path()), "org/model").unwrap_err();
    let text = "the repository org/model is no adapter: adapter_config.json and \
                adapter_model.safetensors are not both there";
    assert_eq!(error.to_string(), text);

    let missing = cache.path().join("missing");
    let error = resolve(config(&hub, cache.path()), missing.to_str().unwrap()).unwrap_err();
    assert!(matches!(error, HubError::NoSuchFolder { .. }), "{error}");
}
