//! Downloads from a hub that drops, stalls, lies and redirects.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    reason = "tests"
)]
#![allow(dead_code, reason = "each test binary uses a part of the fake hub")]

mod fake_hub;

use fake_hub::{COMMIT, FakeHub, Fault};
use llm_int8_hub::{
    Hub, HubConfig, HubError, ModelFiles, ModelRef, NoProgress, Progress, ProgressEvent,
    WeightFiles,
};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const FILE: &str = "model.safetensors";

/// 40,000 bytes that differ everywhere.
fn weights() -> Vec<u8> {
    (0..40_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

fn model_hub() -> FakeHub {
    let hub = FakeHub::start();
    hub.add("config.json", br#"{"model_type": "gpt2"}"#);
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

#[test]
fn the_cache_is_laid_out_as_huggingface_hub_does() {
    let (hub, cache) = (model_hub(), TempDir::new().unwrap());
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
    // Only what is needed: nothing else was even asked about.
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
fn a_second_time_asks_for_the_commit_only_and_a_commit_asks_for_nothing() {
    let (hub, cache) = (model_hub(), TempDir::new().unwrap());
    resolve(&hub, &cache, "org/model").unwrap();
    let before = hub.log().len();
    resolve(&hub, &cache, "org/model").unwrap();
    assert_eq!(hub.log().len(), before + 1);
    resolve(&hub, &cache, &format!("org/model@{COMMIT}")).unwrap();
    assert_eq!(hub.log().len(), before + 1);
}

#[test]
fn a_cache_made_by_python_is_used_without_any_body() {
    let (hub, cache) = (model_hub(), TempDir::new().unwrap());
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
        "one question for the commit: {:?}",
        hub.log()
    );
}

#[test]
fn a_dropped_connection_is_continued_where_it_stopped() {
    let (hub, cache) = (model_hub(), TempDir::new().unwrap());
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
fn a_stalled_connection_is_left_and_continued() {
    let (hub, cache) = (model_hub(), TempDir::new().unwrap());
    hub.faults(FILE, [Fault::StallAfter(7_000)]);
    let started = Instant::now();
    assert_eq!(
        content(&resolve(&hub, &cache, "org/model").unwrap()),
        weights()
    );
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "it waited for the read time-out only"
    );
    assert_eq!(hub.ranges(FILE)[1], Some("bytes=7000-".into()));
}

#[test]
fn an_interrupted_process_is_continued_by_the_next() {
    let (hub, cache) = (model_hub(), TempDir::new().unwrap());
    let mut impatient = config(&hub, cache.path());
    impatient.max_retries = 0;
    // The first process gets 12,345 bytes and gives up.
    hub.faults(FILE, [Fault::DropAfter(12_345)]);
    let error = resolve_with(impatient, "org/model", &NoProgress).unwrap_err();
    assert!(
        error.to_string().contains("it goes on from byte 12345"),
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
    // The second goes on.
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
fn server_errors_and_retry_after_are_waited_for() {
    let (hub, cache) = (model_hub(), TempDir::new().unwrap());
    hub.api_faults([Fault::Status(503, None), Fault::Status(429, Some("1"))]);
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
        started.elapsed() >= Duration::from_secs(2),
        "both Retry-After were honoured"
    );
}

#[test]
fn failing_for_good_says_how_often_and_why() {
    let (hub, cache) = (model_hub(), TempDir::new().unwrap());
    hub.faults(FILE, std::iter::repeat_n(Fault::Status(502, None), 20));
    let error = resolve(&hub, &cache, "org/model").unwrap_err().to_string();
    assert!(
        error.contains("could not be downloaded after 6 tries: the server answered 502"),
        "{error}"
    );
    assert_eq!(hub.ranges(FILE).len(), 6);
}

#[test]
fn wrong_bytes_are_fetched_once_more_and_never_reach_the_cache() {
    let (hub, cache) = (model_hub(), TempDir::new().unwrap());
    hub.faults(FILE, [Fault::WrongBytes]);
    let events = Events::default();
    let model = resolve_with(config(&hub, cache.path()), "org/model", &events).unwrap();
    assert_eq!((content(&model), events.count("Restart")), (weights(), 1));

    let (hub, cache) = (model_hub(), TempDir::new().unwrap());
    hub.faults(FILE, [Fault::WrongBytes, Fault::WrongBytes]);
    let error = resolve(&hub, &cache, "org/model").unwrap_err().to_string();
    assert!(
        error.contains("arrived damaged each time (its SHA-256 is"),
        "{error}"
    );
    assert_eq!(
        blobs(&cache).len(),
        2,
        "neither blob nor remainder: {:?}",
        blobs(&cache)
    );
}

#[test]
fn a_wrong_beginning_of_an_earlier_download_is_found_out() {
    let (hub, cache) = (model_hub(), TempDir::new().unwrap());
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
fn git_files_are_checked_too() {
    let (hub, cache) = (model_hub(), TempDir::new().unwrap());
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
    let (hub, cache) = (model_hub(), TempDir::new().unwrap());
    hub.faults(FILE, [Fault::DropAfter(10_000), Fault::NoContentRange]);
    assert_eq!(
        content(&resolve(&hub, &cache, "org/model").unwrap()),
        weights()
    );
    assert_eq!(
        hub.ranges(FILE).len(),
        2,
        "206 without Content-Range was continued"
    );
    for fault in [Fault::NoRanges, Fault::WrongRange] {
        let (hub, cache, events) = (model_hub(), TempDir::new().unwrap(), Events::default());
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
fn renamed_repositories_are_followed_and_cached_under_the_name_asked_for() {
    let (hub, cache) = (model_hub(), TempDir::new().unwrap());
    let model = resolve(&hub, &cache, "old").unwrap();
    assert_eq!(content(&model), weights());
    assert!(model.root.starts_with(cache.path().join("models--old")));
}

#[test]
fn the_token_goes_to_the_hub_and_not_to_the_cdn() {
    let (hub, cdn, cache) = (model_hub(), model_hub(), TempDir::new().unwrap());
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
fn without_a_token_no_request_speaks_of_one() {
    let (hub, cache) = (model_hub(), TempDir::new().unwrap());
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
fn two_downloaders_fetch_a_file_once() {
    let (hub, cache) = (model_hub(), TempDir::new().unwrap());
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
    // Small files may meet as well.
    let waited = format!("WaitingForLock {{ file: {FILE:?} }}");
    assert_eq!(events[0].count(&waited) + events[1].count(&waited), 1);
}

#[test]
fn a_lock_that_is_never_freed_is_named() {
    let (hub, cache) = (model_hub(), TempDir::new().unwrap());
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
fn shards_are_fetched_and_nothing_outside_the_folder() {
    let (hub, cache) = (FakeHub::start(), TempDir::new().unwrap());
    hub.add("config.json", b"{}");
    hub.add("a.safetensors", b"one");
    hub.add("b.safetensors", b"two");
    hub.add(
        "model.safetensors.index.json",
        br#"{"weight_map": {"x": "a.safetensors", "y": "b.safetensors", "z": "a.safetensors"}}"#,
    );
    let model = resolve(&hub, &cache, "org/model").unwrap();
    assert_eq!(model.weights.files().len(), 2);
    hub.add(
        "model.safetensors.index.json",
        br#"{"weight_map": {"x": "../../../evil"}}"#,
    );
    let cache = TempDir::new().unwrap();
    let error = resolve(&hub, &cache, "org/model").unwrap_err().to_string();
    assert!(error.contains("not a plain file name"), "{error}");
}

#[test]
fn hostile_etags_cannot_leave_the_cache() {
    let (hub, cache) = (model_hub(), TempDir::new().unwrap());
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
fn refusals_say_what_to_do() {
    let (hub, cache) = (model_hub(), TempDir::new().unwrap());
    let text = |name: &str| resolve(&hub, &cache, name).unwrap_err().to_string();
    let gated = text("org/gated");
    assert!(
        gated.contains("(403)")
            && gated.contains("accept its licence")
            && gated.contains("HF_TOKEN"),
        "{gated}"
    );
    assert!(text("org/private").contains("(401)"));
    let missing = text("gpt2-lrage");
    assert!(
        missing.contains("there is no model gpt2-lrage")
            && missing.contains("did you mean gpt2-large"),
        "{missing}"
    );
    let revision = text("org/model@nope");
    assert!(revision.contains("no revision `nope`"), "{revision}");
}

#[test]
fn a_repository_without_a_model_is_said_to_be_none() {
    let (hub, cache) = (FakeHub::start(), TempDir::new().unwrap());
    hub.add("README.md", b"");
    assert!(
        resolve(&hub, &cache, "org/model")
            .unwrap_err()
            .to_string()
            .contains("has no config.json")
    );
    hub.add("config.json", b"{}");
    assert!(
        resolve(&hub, &cache, "org/model")
            .unwrap_err()
            .to_string()
            .contains("has no model.safetensors")
    );
}

#[test]
fn without_network_the_cache_serves_and_otherwise_names_what_works() {
    let (hub, cache) = (model_hub(), TempDir::new().unwrap());
    resolve(&hub, &cache, "org/model").unwrap();
    let mut config = config(&hub, cache.path());
    config.endpoint = "http://127.0.0.1:9".into(); // the discard port: nobody listens
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
    let (hub, cache) = (model_hub(), TempDir::new().unwrap());
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

#[test]
fn headers_are_read_without_the_weights() {
    let (hub, cache) = (model_hub(), TempDir::new().unwrap());
    let json = br#"{"w":{"dtype":"F32","shape":[1000],"data_offsets":[0,4000]}}"#;
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend(json);
    file.extend(vec![0u8; 400_000]);
    hub.add(FILE, &file);
    for fault in [None, Some(Fault::NoRanges)] {
        hub.faults(FILE, fault);
        let found = Hub::new(config(&hub, cache.path()))
            .resolve_metadata(&"org/model".parse().unwrap(), &NoProgress)
            .unwrap();
        assert_eq!(found.headers[0].json, json);
        assert_eq!(found.headers[0].file_len, file.len() as u64);
    }
    assert!(
        hub.ranges(FILE)
            .iter()
            .all(|range| range.as_deref() == Some("bytes=0-131071"))
    );
    assert_eq!(blobs(&cache).len(), 1, "config.json only");
}
