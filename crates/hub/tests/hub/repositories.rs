//! Kinds of repositories: sharded, without a model, private, gated; and headers without weights.

use crate::fake_hub::{COMMIT, FakeHub, Fault};
use crate::{FILE, blobs, config, model_hub, resolve, resolve_with};
use llm_int8_hub::{Hub, NoProgress};
use tempfile::TempDir;

#[test]
fn shards_are_downloaded_but_nothing_outside_the_folder() {
    let hub = FakeHub::start();
    let cache = TempDir::new().unwrap();
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
fn headers_are_read_without_the_weights() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
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

#[test]
fn refusals_say_what_to_do() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
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
fn a_repository_without_a_model_is_an_error_that_names_what_it_lacks() {
    let hub = FakeHub::start();
    let cache = TempDir::new().unwrap();
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
fn repositories_of_other_kinds_say_what_to_do() {
    for (file, expected) in [
        (
            "model-Q4_K_M.gguf",
            "download one of its GGUF files, such as model-Q4_K_M.gguf",
        ),
        (
            "adapter_config.json",
            "load its base model, with this as the adapter",
        ),
        ("consolidated.safetensors", "a model's original weights"),
        ("tf_model.h5", "tf_model.h5 is for TensorFlow"),
    ] {
        let hub = FakeHub::start();
        hub.add("config.json", b"{}");
        hub.add(file, b"");
        let error = resolve(&hub, &TempDir::new().unwrap(), "org/model")
            .unwrap_err()
            .to_string();

        assert!(
            error.contains("has no model.safetensors") && error.contains(expected),
            "{error}"
        );
    }
}

#[test]
fn revisions_with_a_slash_are_one_segment_of_the_address() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    assert!(resolve(&hub, &cache, "org/model@refs/pr/1").is_err());
    assert_eq!(
        hub.log()[0].path,
        "/api/models/org/model/revision/refs%2Fpr%2F1"
    );
}

#[test]
fn a_password_in_the_endpoint_is_not_shown() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    let mut config = config(&hub, cache.path());
    config.endpoint = hub.endpoint().replace("http://", "http://me:secretive@");
    for name in ["org/gated", "org/private", "org/none", "org/model@nope"] {
        let error = resolve_with(config.clone(), name, &NoProgress).unwrap_err();
        assert!(
            !format!("{error} {error:?}").contains("secretive"),
            "{error:?}"
        );
    }
}

#[test]
fn a_listing_that_cannot_be_used_is_told_at_once() {
    let hub = model_hub();
    let cache = TempDir::new().unwrap();
    let files = r#"{"rfilename": "x"},"#.repeat(1_000_000);
    for (answer, reason) in [
        (
            format!(r#"{{"siblings": [{files}]}}"#),
            "more than 16777216 bytes",
        ),
        ("<html>Log in</html>".into(), "no listing of files"),
        ("[".repeat(100_000), "no listing of files"),
        (r#"{"id": "org/model"}"#.into(), "names no commit"),
        (
            format!(r#"{{"id": "org/model", "sha": "{COMMIT}"}}"#),
            "lists no files",
        ),
    ] {
        hub.api_faults([Fault::Listing(answer)]);
        let error = resolve(&hub, &cache, "org/model").unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }

    hub.api_faults(std::iter::repeat_n(
        Fault::Redirect("/api/models/org/model"),
        20,
    ));
    let error = resolve(&hub, &cache, "org/model").unwrap_err().to_string();
    assert!(error.contains("more than 10 redirects"), "{error}");
    assert_eq!(hub.log().len(), 5 + 10, "none was requested again");
}
