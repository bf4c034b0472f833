//! The hub's answers: listings, headers, redirects, ranges and bodies, by way of a server that lies.

#![no_main]

use libfuzzer_sys::fuzz_target;
use llm_int8::hub::{Hub, HubConfig, ModelRef, NoProgress};
use llm_int8_fuzz::hub::Server;
use llm_int8_fuzz::{Choices, Folder, Limits, bounded};
use std::cell::LazyCell;
use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

const LIMITS: Limits = Limits::new(4, 128);
const TOKEN: &str = "hf_notToBeSeenAnywhere";

thread_local! {
    static SERVER: LazyCell<(Server, Folder)> = LazyCell::new(|| (Server::start(), Folder::default()));
}

fuzz_target!(|data: &[u8]| SERVER.with(|state| bounded(LIMITS, || run(&state.0, &state.1, data))));

fn run(server: &Server, folder: &Folder, data: &[u8]) {
    let mut from = Choices::new(data);
    let style = from.byte();
    if style & 7 == 7 {
        return name(&String::from_utf8_lossy(from.rest()));
    }

    let cache = folder.path().join("cache");
    let config = HubConfig {
        endpoint: server.endpoint(),
        token: Some(TOKEN.into()),
        connect_timeout: Duration::from_secs(2),
        read_timeout: Duration::from_secs(2),
        etag_timeout: Duration::from_secs(2),
        max_retries: 1,
        base_delay: Duration::ZERO,
        max_delay: Duration::ZERO,
        lock_timeout: Some(Duration::from_secs(2)),
        ..HubConfig::new(&cache)
    };
    let model = ModelRef::Hub {
        repo: "org/model".into(),
        revision: (style & 8 != 0).then(|| "0123456789abcdef0123456789abcdef01234567".into()),
    };
    let hub = Hub::new(config);
    server.obey(from.rest());

    // Twice: what the first one leaves in the cache is what the second one finds.
    for _ in 0..2 {
        match style & 3 {
            0 => check(hub.resolve(&model, &NoProgress), |files| {
                inside(
                    &cache,
                    files
                        .weights
                        .files()
                        .iter()
                        .chain(&files.companions)
                        .chain([&files.config]),
                );
            }),
            1 => check(hub.resolve_metadata(&model, &NoProgress), |headers| {
                inside(&cache, [&headers.config])
            }),
            _ => check(hub.resolve_small(&model, &NoProgress), |files| {
                inside(&cache, &files.companions)
            }),
        }
    }
    let _ = hub.cached_models();

    assert!(
        folder.names().iter().all(|name| name == "cache"),
        "{:?}",
        folder.names()
    );
    let _ = std::fs::remove_dir_all(&cache);
}

fn name(text: &str) {
    match text.parse::<ModelRef>() {
        Ok(ModelRef::Hub { repo, revision }) => {
            let parts = repo
                .split('/')
                .chain(revision.iter().flat_map(|revision| revision.split('/')));
            assert!(
                parts
                    .into_iter()
                    .all(|part| !["", ".", ".."].contains(&part)),
                "{repo} {revision:?}"
            );
        }
        Ok(ModelRef::Local(_)) => {}
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn check<T, E: Display>(outcome: Result<T, E>, look: impl FnOnce(T)) {
    match outcome {
        Ok(found) => look(found),
        Err(error) => {
            let text = error.to_string();
            assert!(!text.is_empty() && !text.contains(TOKEN), "{text}");
        }
    }
}

/// Every file exists, and neither its name nor what it links to leads out of the cache.
fn inside<'a>(cache: &Path, files: impl IntoIterator<Item = &'a std::path::PathBuf>) {
    for file in files {
        // A model of no files makes no cache.
        let cache = cache.canonicalize().expect("the cache");
        let target = file
            .canonicalize()
            .expect("a file that is said to be there");
        assert!(
            target.starts_with(&cache),
            "{} -> {}",
            file.display(),
            target.display()
        );
    }
}
