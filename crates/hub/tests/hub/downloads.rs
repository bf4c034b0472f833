//! Connections that drop, stall or send wrong bytes, and hubs that redirect.

use crate::fake_hub::Fault;
use crate::{Events, FILE, blobs, config, content, model_hub, resolve, resolve_with, weights};
use llm_int8_hub::NoProgress;
use std::time::{Duration, Instant};
use tempfile::TempDir;

#[test]
fn a_dropped_connection_is_resumed() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    hub.faults(FILE, [Fault::DropAfter(10_000), Fault::DropAfter(5_000)]);
    assert_eq!(
        content(&resolve(&hub, &cache, "org/model").unwrap()),
        weights()
    );

    let ranges = hub.ranges(FILE);
    assert_eq!(
        ranges,
        [
            None,
            Some("bytes=10000-".into()),
            Some("bytes=15000-".into())
        ]
    );
}

#[test]
fn a_stalled_connection_is_dropped_and_resumed() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    hub.faults(FILE, [Fault::StallAfter(7_000)]);
    let started = Instant::now();
    assert_eq!(
        content(&resolve(&hub, &cache, "org/model").unwrap()),
        weights()
    );
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "it waits no longer than the read time-out"
    );
    assert_eq!(hub.ranges(FILE)[1], Some("bytes=7000-".into()));
}

#[test]
fn a_download_is_resumed_by_the_next_process() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    let mut impatient = config(&hub, cache.path());
    impatient.max_retries = 0;

    // The first process gets 12,345 bytes and gives up.
    hub.faults(FILE, [Fault::DropAfter(12_345)]);
    let error = resolve_with(impatient, "org/model", &NoProgress).unwrap_err();
    assert!(
        error.to_string().contains("resume at byte 12345"),
        "{error}"
    );

    let incomplete = blobs(&cache)
        .into_iter()
        .find(|name| name.ends_with(".incomplete"))
        .unwrap();
    assert_eq!(
        std::fs::metadata(
            cache
                .path()
                .join("models--org--model/blobs")
                .join(incomplete)
        )
        .unwrap()
        .len(),
        12_345
    );

    // The second process resumes.
    let events = Events::default();
    let model = resolve_with(config(&hub, cache.path()), "org/model", &events).unwrap();
    assert_eq!(content(&model), weights());
    assert_eq!(
        hub.ranges(FILE).last().unwrap().as_deref(),
        Some("bytes=12345-")
    );
    assert_eq!(events.count("Start"), 1);
    assert!(events.0.lock().unwrap()[0].contains("resumed_from: 12345"));
}

#[test]
fn server_errors_are_retried_after_the_requested_delay() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    hub.api_faults([Fault::Status(503, Some("1")), Fault::Status(429, Some("1"))]);
    hub.faults(
        FILE,
        [Fault::Status(500, None), Fault::Status(429, Some("1"))],
    );
    let started = Instant::now();
    assert_eq!(
        content(&resolve(&hub, &cache, "org/model").unwrap()),
        weights()
    );
    assert!(
        started.elapsed() >= Duration::from_secs(3),
        "every Retry-After was honoured"
    );
}

#[test]
fn giving_up_says_how_often_and_why() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    hub.faults(FILE, std::iter::repeat_n(Fault::Status(502, None), 20));
    let error = resolve(&hub, &cache, "org/model").unwrap_err().to_string();
    assert!(
        error.contains("could not be downloaded after 6 attempts: the server answered 502"),
        "{error}"
    );
    assert_eq!(hub.ranges(FILE).len(), 6);
}

#[test]
fn wrong_bytes_are_downloaded_once_more_and_never_reach_the_cache() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    hub.faults(FILE, [Fault::WrongBytes]);
    let events = Events::default();
    let model = resolve_with(config(&hub, cache.path()), "org/model", &events).unwrap();
    assert_eq!((content(&model), events.count("Restart")), (weights(), 1));

    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    hub.faults(FILE, [Fault::WrongBytes, Fault::WrongBytes]);
    let error = resolve(&hub, &cache, "org/model").unwrap_err().to_string();
    assert!(
        error.contains("arrived damaged each time (its SHA-256 is"),
        "{error}"
    );
    assert_eq!(
        blobs(&cache).len(),
        2,
        "neither a blob nor a partial file: {:?}",
        blobs(&cache)
    );
}

#[test]
fn a_wrong_partial_file_is_detected() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    let etag = hub.add(FILE, &weights());
    let folder = cache.path().join("models--org--model/blobs");
    std::fs::create_dir_all(&folder).unwrap();

    for (beginning, name) in [
        (vec![9u8; 500], "other bytes"),
        (vec![9u8; 50_000], "longer than the file"),
        (vec![9u8; 40_000], "complete and wrong"),
    ] {
        std::fs::write(folder.join(format!("{etag}.incomplete")), beginning).unwrap();
        assert_eq!(
            content(&resolve(&hub, &cache, "org/model").unwrap()),
            weights(),
            "{name}"
        );
        std::fs::remove_dir_all(cache.path().join("models--org--model/snapshots")).unwrap();
        std::fs::remove_file(folder.join(&etag)).unwrap();
    }
}

#[test]
fn files_with_a_git_hash_are_verified_too() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    // printf '{}' | git hash-object --stdin
    hub.add_with_etag(
        "config.json",
        b"{}",
        "9e26dfeeb6e641a33dae4961196235bdb965b21b",
    );
    hub.faults("config.json", [Fault::WrongBytes]);
    let model = resolve(&hub, &cache, "org/model").unwrap();

    assert_eq!(std::fs::read(model.config).unwrap(), b"{}");
}

#[test]
fn mirrors_without_ranges_or_content_range_work() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    hub.faults(FILE, [Fault::DropAfter(10_000), Fault::NoContentRange]);
    assert_eq!(
        content(&resolve(&hub, &cache, "org/model").unwrap()),
        weights()
    );
    assert_eq!(
        hub.ranges(FILE).len(),
        2,
        "206 without Content-Range is accepted"
    );

    for fault in [Fault::NoRanges, Fault::WrongRange] {
        let hub = model_hub();
        let cache = TempDir::new().unwrap();
        let events = Events::default();
        hub.faults(FILE, [Fault::DropAfter(10_000), fault.clone()]);
        let model = resolve_with(config(&hub, cache.path()), "org/model", &events).unwrap();
        assert_eq!(
            (content(&model), events.count("Restart")),
            (weights(), 1),
            "{fault:?}"
        );
    }
}

#[test]
fn the_token_goes_to_the_hub_and_not_to_the_cdn() {
    let hub = model_hub();
    let cdn = model_hub();
    let cache = TempDir::new().unwrap();
    hub.redirect_bodies_to(&cdn);
    cdn.faults(FILE, [Fault::DropAfter(20_000)]);

    assert_eq!(
        content(&resolve(&hub, &cache, "org/model").unwrap()),
        weights()
    );
    assert!(
        hub.log()
            .iter()
            .all(|request| request.authorization.as_deref() == Some("Bearer hf_secret"))
    );
    assert!(
        !cdn.log().is_empty()
            && cdn
                .log()
                .iter()
                .all(|request| request.authorization.is_none())
    );
    assert_eq!(cdn.ranges(FILE)[1].as_deref(), Some("bytes=20000-"));
}

#[test]
fn without_a_token_no_request_carries_one() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    let mut config = config(&hub, cache.path());
    config.token = None;
    resolve_with(config, "org/model", &NoProgress).unwrap();

    assert!(
        !hub.log().is_empty()
            && hub
                .log()
                .iter()
                .all(|request| request.authorization.is_none())
    );
}

#[test]
fn a_body_that_trickles_is_given_up_and_requested_again() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    let mut config = config(&hub, cache.path());
    config.rate_window = Duration::from_millis(100);
    config.slowest_rate = 10_000;
    // One byte every 20 ms, twice; then the rest at once.
    hub.faults(FILE, [Fault::Slow(1), Fault::Slow(1)]);
    let events = Events::default();
    let model = resolve_with(config.clone(), "org/model", &events).unwrap();
    assert_eq!(content(&model), weights());
    let retries = events.0.lock().unwrap().join("\n");
    assert_eq!(retries.matches("bytes arrived in").count(), 2, "{retries}");

    // A server that always trickles is no progress.
    let cache = TempDir::new().unwrap();
    config.cache_dir = cache.path().to_owned();
    config.max_retries = 2;
    hub.faults(FILE, std::iter::repeat_n(Fault::Slow(1), 20));
    let error = resolve_with(config, "org/model", &NoProgress)
        .unwrap_err()
        .to_string();
    assert!(error.contains("after 3 attempts: only"), "{error}");
}
