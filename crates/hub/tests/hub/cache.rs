//! The cache, shared with Python's huggingface_hub: its layout, locks, and use without a network.

use crate::fake_hub::{COMMIT, Fault};
use crate::{
    CONFIG, Events, FILE, Restarts, blobs, config, content, is_right, model_hub, resolve,
    resolve_with, weights,
};
use llm_int8_hub::{Hub, NoProgress, WeightFiles};
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

#[test]
fn the_cache_has_the_layout_of_huggingface_hub() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    let model = resolve(&hub, &cache, "org/model").unwrap();
    let root = cache.path().join("models--org--model");
    assert_eq!(model.root, root.join("snapshots").join(COMMIT));
    assert_eq!(
        std::fs::read_to_string(root.join("refs/main")).unwrap(),
        COMMIT
    );

    let link = std::fs::read_link(model.root.join(FILE)).unwrap();
    assert_eq!(
        link,
        Path::new("../../blobs").join(hub.add(FILE, &weights()))
    );
    assert_eq!(content(&model), weights());
    assert!(matches!(
        &model.weights,
        WeightFiles::Safetensors { index: None, .. }
    ));

    // Other files are not even requested.
    assert_eq!(blobs(&cache).len(), 3);
    for unwanted in ["README", "h5", "msgpack", "pytorch_model", "vocab"] {
        assert!(
            !hub.log()
                .iter()
                .any(|request| request.path.contains(unwanted)),
            "{unwanted}"
        );
    }
}

#[test]
fn a_cached_branch_takes_one_request_and_a_cached_commit_none() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    resolve(&hub, &cache, "org/model").unwrap();
    let before = hub.log().len();
    resolve(&hub, &cache, "org/model").unwrap();

    assert_eq!(hub.log().len(), before + 1);
    resolve(&hub, &cache, &format!("org/model@{COMMIT}")).unwrap();
    assert_eq!(hub.log().len(), before + 1);
}

#[test]
fn a_cache_made_by_python_is_used_without_downloads() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    let root = cache.path().join("models--org--model");
    std::fs::create_dir_all(root.join("snapshots").join(COMMIT)).unwrap();
    std::fs::create_dir_all(root.join("blobs")).unwrap();
    std::fs::create_dir_all(root.join("refs")).unwrap();
    std::fs::write(root.join("refs/main"), COMMIT).unwrap();

    for (name, bytes) in [
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        (FILE, weights()),
    ] {
        let etag = format!("etag-{name}");
        std::fs::write(root.join("blobs").join(&etag), bytes).unwrap();
        std::os::unix::fs::symlink(
            format!("../../blobs/{etag}"),
            root.join("snapshots").join(COMMIT).join(name),
        )
        .unwrap();
    }

    assert_eq!(
        content(&resolve(&hub, &cache, "org/model").unwrap()),
        weights()
    );
    assert_eq!(
        hub.log().len(),
        1,
        "one request for the commit: {:?}",
        hub.log()
    );
}

#[test]
fn a_complete_cache_is_not_written_to() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    resolve(&hub, &cache, "org/model").unwrap();
    let reference = cache.path().join("models--org--model/refs/main");
    let written = || std::fs::metadata(&reference).unwrap().modified().unwrap();
    let before = written();
    std::thread::sleep(Duration::from_millis(20));
    resolve(&hub, &cache, "org/model").unwrap();

    assert_eq!(written(), before);
}

#[test]
fn renamed_repositories_are_followed_and_cached_under_the_requested_name() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    let model = resolve(&hub, &cache, "old").unwrap();
    assert_eq!(content(&model), weights());
    assert!(model.root.starts_with(cache.path().join("models--old")));
}

#[test]
fn two_downloaders_fetch_a_file_once() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    hub.faults(FILE, [Fault::Slow(4_000)]);
    let events = [Events::default(), Events::default()];
    std::thread::scope(|scope| {
        let mut both = Vec::new();
        for events in &events {
            let config = config(&hub, cache.path());
            both.push(scope.spawn(move || resolve_with(config, "org/model", events)));
        }
        for one in both {
            assert_eq!(content(&one.join().unwrap().unwrap()), weights());
        }
    });

    assert_eq!(hub.ranges(FILE), [None]);
    // The downloaders may also wait for each other's small files.
    let waited = format!("WaitingForLock {{ file: {FILE:?} }}");
    assert_eq!(events[0].count(&waited) + events[1].count(&waited), 1);
}

#[test]
fn a_lock_that_is_never_released_is_an_error() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    let lock = cache
        .path()
        .join(".locks/models--org--model")
        .join(format!("{}.lock", hub.add(FILE, &weights())));
    std::fs::create_dir_all(lock.parent().unwrap()).unwrap();
    let held = std::fs::File::create(&lock).unwrap();
    held.lock().unwrap();
    let mut config = config(&hub, cache.path());
    config.lock_timeout = Some(Duration::from_millis(200));
    let error = resolve_with(config, "org/model", &NoProgress)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("another process has been downloading model.safetensors"),
        "{error}"
    );
    assert!(error.contains(&lock.display().to_string()), "{error}");
}

#[test]
fn hostile_etags_cannot_leave_the_cache() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    hub.add_with_etag("config.json", b"{}", "../../../../evil");
    resolve(&hub, &cache, "org/model").unwrap();
    let odd: Vec<String> = blobs(&cache)
        .into_iter()
        .filter(|name| name.starts_with("unverified-"))
        .collect();
    assert_eq!(odd.len(), 1, "{:?}", blobs(&cache));
    let outside = std::fs::read_dir(cache.path()).unwrap().count();

    assert_eq!(outside, 2, "the repository and its locks");
}

#[test]
fn without_a_network_the_cache_is_used_or_the_error_lists_it() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    resolve(&hub, &cache, "org/model").unwrap();
    let mut config = config(&hub, cache.path());
    config.endpoint = "http://127.0.0.1:9".into(); // the discard port, where nothing listens
    let events = Events::default();
    assert_eq!(
        content(&resolve_with(config.clone(), "org/model", &events).unwrap()),
        weights()
    );
    assert_eq!(events.count("UsingCache"), 1);
    let error = resolve_with(config, "org/other", &NoProgress)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("127.0.0.1 cannot be reached") && error.contains("tiny-gpt2, org/model"),
        "{error}"
    );
}

#[test]
fn offline_sends_no_request() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    resolve(&hub, &cache, "org/model@v1").unwrap();
    let before = hub.log().len();
    let mut config = config(&hub, cache.path());
    config.offline = true;

    assert_eq!(
        content(&resolve_with(config.clone(), "org/model@v1", &NoProgress).unwrap()),
        weights()
    );

    let error = resolve_with(config, "org/model", &NoProgress)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("org/model is not in the cache") && error.contains("tiny-gpt2"),
        "{error}"
    );
    assert_eq!(hub.log().len(), before);
}

/// As in transformers, what was downloaded before stays usable.
#[test]
fn a_deleted_or_closed_repository_is_read_from_the_cache() {
    for (name, reason) in [
        ("org/gated", "403"),
        ("org/private", "401"),
        ("org/gone", "no such repository"),
    ] {
        let hub = model_hub();
        let cache = TempDir::new().unwrap();
        let restarts = Restarts::default();
        resolve(&hub, &cache, "org/model").unwrap();
        let folder = |name: &str| {
            cache
                .path()
                .join(format!("models--{}", name.replace('/', "--")))
        };

        std::fs::rename(folder("org/model"), folder(name)).unwrap();
        is_right(&resolve_with(config(&hub, cache.path()), name, &restarts).unwrap());
        let small = Hub::new(config(&hub, cache.path()))
            .resolve_small(&name.parse().unwrap(), &restarts)
            .unwrap();
        assert_eq!(std::fs::read(small.config.unwrap()).unwrap(), CONFIG);
        let reasons = restarts.0.lock().unwrap();

        assert!(
            reasons.len() == 2 && reasons.iter().all(|text| text.contains(reason)),
            "{reasons:?}"
        );
    }
}
