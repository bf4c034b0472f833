//! Mirrors, whose answers differ from the hub's.

use crate::fake_hub::{FakeHub, Fault, Mirror};
use crate::{CONFIG, FILE, Restarts, is_right, model_hub, resolve_with, weights};
use llm_int8_hub::{HubConfig, HubError, ModelFiles, NoProgress};
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Hashes of `CONFIG`, by sha1sum, git hash-object and md5sum.
const SHA1: &str = "168fde3e27c2b635db294b39b55d3c67f4cfb762";
const GIT: &str = "7eb84e812bad01767dcf9cf8a2d84ef428949cad";
const MD5: &str = "61f2004aca0a6f034cdccb6a4bfe1200";

/// More time for answers, and shorter delays between attempts.
fn config(hub: &FakeHub, cache: &Path) -> HubConfig {
    HubConfig {
        read_timeout: Duration::from_millis(500),
        max_delay: Duration::from_millis(50),
        ..crate::config(hub, cache)
    }
}

fn resolve(hub: &FakeHub, cache: &TempDir) -> Result<ModelFiles, HubError> {
    resolve_with(config(hub, cache.path()), "org/model", &NoProgress)
}

#[test]
fn etags_of_every_kind_are_verified_or_accepted() {
    let kinds = [
        (GIT.to_owned(), true),
        (SHA1.to_owned(), true),
        (SHA1.to_uppercase(), true),
        (format!("W/\"{SHA1}\""), true),
        (format!("\"{{SHA1{{{SHA1}}}}}\""), true),
        (MD5.to_owned(), false),
        (format!("{MD5}-3"), false),
        ("5d8c72a5-16".to_owned(), false),
        ("\"CJ+3i/a==\"".to_owned(), false),
        (String::new(), false),
    ];

    for (i, (etag, is_hash)) in kinds.into_iter().enumerate() {
        // Alternate: with and without the header that marks an etag as the hub's own.
        let hides_commit = i % 2 == 1;
        let hub = model_hub();
        let cache = TempDir::new().unwrap();
        let restarts = Restarts::default();
        hub.is_mirror(Mirror {
            hides_commit,
            ..Mirror::default()
        });

        hub.add_with_etag("config.json", CONFIG, &etag);
        is_right(&resolve_with(config(&hub, cache.path()), "org/model", &restarts).unwrap());
        assert!(
            restarts.0.lock().unwrap().is_empty(),
            "{etag}: {restarts:?}",
            restarts = restarts.0
        );

        let cache = TempDir::new().unwrap();
        let restarts = Restarts::default();
        hub.faults("config.json", [Fault::WrongBytes]);
        let model = resolve_with(config(&hub, cache.path()), "org/model", &restarts).unwrap();
        let reasons = restarts.0.lock().unwrap().clone();
        assert_eq!(reasons.len(), 1, "{etag}");
        // Without a hash, only what cannot be the file is found out.
        assert_eq!(
            reasons[0].contains("not JSON"),
            !is_hash,
            "{etag}: {reasons:?}"
        );
        assert_eq!(std::fs::read(model.config).unwrap(), CONFIG, "{etag}");
    }
}

/// The login page of a network, a cut body: without a hash nothing tells but the content.
#[test]
fn what_cannot_be_the_file_never_reaches_the_cache() {
    let page = b"<!DOCTYPE html><html>Please log in</html>";
    let cut = &br#"{"model_type": "gpt2", "n_layer"#[..];
    for (name, content, reason) in [
        ("config.json", &page[..], "it is a web page"),
        ("config.json", cut, "its JSON ends too early"),
        ("vocab.json", &page[..], "it is a web page"),
        (FILE, &page[..], "it is a web page"),
        (
            FILE,
            &b"\x20\0\0\0\0\0\0\0{"[..],
            "header would have 32 bytes",
        ),
    ] {
        let hub = model_hub();
        let cache = TempDir::new().unwrap();
        hub.is_mirror(Mirror {
            hides_commit: true,
            ..Mirror::default()
        });
        hub.add_with_etag(name, content, "");
        let error = resolve(&hub, &cache).unwrap_err().to_string();
        assert!(
            error.contains(reason) && error.contains(name),
            "{name}: {error}"
        );

        // Nothing of it was kept: once the mirror is right, so is the model.
        hub.add_with_etag("config.json", CONFIG, "");
        hub.add("vocab.json", b"{}");
        hub.add(FILE, &weights());
        is_right(&resolve(&hub, &cache).unwrap());
    }
}

/// An etag of 40 hexadecimal digits that is not a hash of the file: accepted from a mirror, but not
/// from the hub.
#[test]
fn a_mirror_may_send_an_etag_that_is_no_hash() {
    let odd = "1234567890123456789012345678901234567890";
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    hub.is_mirror(Mirror {
        hides_commit: true,
        ..Mirror::default()
    });

    hub.add_with_etag("config.json", CONFIG, odd);
    is_right(&resolve(&hub, &cache).unwrap());
    assert_eq!(hub.ranges("config.json").len(), 2, "the same bytes twice");

    // One of three is damaged: two agree.
    let cache = TempDir::new().unwrap();
    hub.faults("config.json", [Fault::WrongBytes]);
    is_right(&resolve(&hub, &cache).unwrap());

    assert_eq!(hub.ranges("config.json").len(), 5);

    hub.is_mirror(Mirror::default());
    let error = resolve(&hub, &TempDir::new().unwrap())
        .unwrap_err()
        .to_string();

    assert!(
        error.contains("arrived damaged each time (its git SHA-1 is"),
        "{error}"
    );
}

#[test]
fn mirrors_may_have_a_path_and_redirect_in_all_ways() {
    for (redirects_to, is_terse) in [
        (None, false),
        (Some("/signed"), false),
        (Some("/signed"), true),
        (Some("../../../../../../../signed"), true),
    ] {
        let hub = model_hub();
        let cache = TempDir::new().unwrap();
        let prefix = "/artifactory/api/hf";
        hub.is_mirror(Mirror {
            prefix,
            hides_commit: true,
            redirects_to,
            is_terse,
            ..Mirror::default()
        });

        hub.faults(FILE, [Fault::DropAfter(9_000), Fault::NoRanges]);
        is_right(&resolve(&hub, &cache).unwrap());
        assert!(
            hub.log().iter().any(|r| r
                .path
                .starts_with("/artifactory/api/hf/api/models/org/model")),
            "{:?}",
            hub.log()
        );
        assert!(
            hub.log()
                .iter()
                .all(|r| r.authorization.as_deref() == Some("Bearer hf_secret")),
            "one host"
        );
    }
}

/// A storage host whose URLs are signed for GET alone rejects HEAD.
#[test]
fn a_storage_host_may_reject_head() {
    for head_status in [403, 405, 501] {
        let hub = model_hub();
        let cdn = model_hub();
        let cache = TempDir::new().unwrap();
        hub.is_mirror(Mirror {
            hides_commit: true,
            is_terse: true,
            ..Mirror::default()
        });

        cdn.is_mirror(Mirror {
            head_status: Some(head_status),
            ..Mirror::default()
        });

        hub.redirect_bodies_to(&cdn);
        cdn.faults(FILE, [Fault::DropAfter(9_000)]);
        is_right(&resolve(&hub, &cache).unwrap());
        assert!(
            cdn.log()
                .iter()
                .all(|request| request.authorization.is_none()),
            "no token is sent to another host"
        );
        assert_eq!(
            cdn.ranges(FILE).last().unwrap().as_deref(),
            Some("bytes=9000-")
        );
    }

    // 403 from the hub itself is still an error.
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    hub.is_mirror(Mirror {
        head_status: Some(403),
        ..Mirror::default()
    });

    assert!(
        resolve(&hub, &cache)
            .unwrap_err()
            .to_string()
            .contains("(403)")
    );
}

#[test]
fn compressed_files_are_decoded_and_verified() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    let restarts = Restarts::default();
    hub.is_mirror(Mirror {
        encoding: Some("gzip"),
        ..Mirror::default()
    });

    hub.add_with_etag("config.json", CONFIG, &format!("W/\"{GIT}\""));
    hub.faults("config.json", [Fault::DropAfter(10)]);
    hub.faults("tokenizer.json", [Fault::WrongBytes]);
    let model = resolve_with(config(&hub, cache.path()), "org/model", &restarts).unwrap();
    is_right(&model);

    assert_eq!(
        std::fs::read(model.tokenizer.tokenizer_json.unwrap()).unwrap(),
        b"{}"
    );

    hub.is_mirror(Mirror {
        encoding: Some("br"),
        ..Mirror::default()
    });

    let error = resolve(&hub, &TempDir::new().unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("compressed (br), though the server was asked not to"),
        "{error}"
    );
}

#[test]
fn a_compressed_file_cannot_fill_the_disk() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    hub.is_mirror(Mirror {
        encoding: Some("gzip"),
        redirects_to: Some("/signed"),
        ..Mirror::default()
    });

    hub.add("tokenizer.json", &vec![b' '; 3_000_000]);
    resolve(&hub, &cache).unwrap();

    // This hub announces 2 bytes and redirects to three million.
    let lying = model_hub();
    lying.is_mirror(Mirror {
        redirects_to: Some("/signed"),
        ..Mirror::default()
    });

    lying.redirect_bodies_to(&hub);
    let error = resolve(&lying, &TempDir::new().unwrap())
        .unwrap_err()
        .to_string();

    assert!(error.contains("it is longer than 2 bytes"), "{error}");
}

#[test]
fn slow_answers_to_head_have_their_own_time_out() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    hub.is_mirror(Mirror {
        slow_head: Duration::from_secs(4),
        ..Mirror::default()
    });

    let mut config = config(&hub, cache.path());
    config.read_timeout = Duration::from_secs(20);
    config.etag_timeout = Duration::from_millis(200);
    let started = Instant::now();
    is_right(&resolve_with(config, "org/model", &NoProgress).unwrap());

    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn invalid_network_settings_matter_only_if_the_network_is_used() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    let model = resolve(&hub, &cache).unwrap();
    let empty = cache.path().join("empty.pem");
    std::fs::write(&empty, "no certificate\n").unwrap();
    let with = |bundle: Option<&Path>, endpoint: &str| {
        let mut config = config(&hub, cache.path());
        config.ca_bundle = bundle.map(Path::to_owned);
        endpoint.clone_into(&mut config.endpoint);
        config
    };

    for (config, expected) in [
        (
            with(Some(&empty), "https://127.0.0.1:9"),
            "empty.pem is not usable: it holds no certificates",
        ),
        (
            with(Some(Path::new("/nowhere/ca.pem")), "https://127.0.0.1:9"),
            "/nowhere/ca.pem: No such file",
        ),
        (with(None, "mirror.example"), "it is not a URL"),
    ] {
        let error = resolve_with(config.clone(), "org/model", &NoProgress)
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
        resolve_with(config.clone(), model.root.to_str().unwrap(), &NoProgress).unwrap();

        resolve_with(
            HubConfig {
                offline: true,
                ..config
            },
            "org/model",
            &NoProgress,
        )
        .unwrap();
    }
}
