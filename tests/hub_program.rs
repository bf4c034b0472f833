//! The program with a model from a fake hub: a server on the loopback interface.

#[path = "../crates/hub/tests/hub/fake_hub.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "only the tests of crates/hub use the rest"
)]
mod fake_hub;

use crate::support::{golden, stderr};
use fake_hub::{FakeHub, Mirror};
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;

/// Runs the program with this hub, a home folder of its own and more environment variables.
fn run(hub: &FakeHub, home: &Path, variables: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llm-int8"));
    command
        .env_clear()
        .env("HOME", home)
        .env("HF_ENDPOINT", hub.endpoint());
    command
        .envs(variables.iter().copied())
        .args(arguments)
        .output()
        .unwrap()
}

/// Small files that belong to a model, besides its config and weights.
const SMALL: [&str; 6] = [
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
    "tokenizer.model",
];

fn gpt2_hub() -> FakeHub {
    let hub = FakeHub::start();
    for name in ["config.json", "model.safetensors"] {
        hub.add(
            name,
            &std::fs::read(golden("models/gpt2").join(name)).unwrap(),
        );
    }

    for name in SMALL {
        hub.add(name, format!("{{\"of\": \"{name}\"}}").as_bytes());
    }

    hub
}

#[test]
fn a_quantised_copy_of_a_hub_model_includes_every_small_file() {
    let hub = gpt2_hub();
    let home = TempDir::new().unwrap();
    hub.is_mirror(Mirror {
        prefix: "/a/mirror",
        encoding: Some("gzip"),
        hides_commit: true,
        ..Mirror::default()
    });
    let copy = home.path().join("copy");
    let output = run(
        &hub,
        home.path(),
        &[],
        &["quantize", "org/model", "-o", copy.to_str().unwrap()],
    );
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("downloading model.safetensors"),
        "{}",
        stderr(&output)
    );

    for name in SMALL {
        let text = std::fs::read_to_string(copy.join(name)).unwrap();
        assert_eq!(text, format!("{{\"of\": \"{name}\"}}"));
    }

    let inspected = run(&hub, home.path(), &[], &["inspect", copy.to_str().unwrap()]);
    assert!(
        String::from_utf8(inspected.stdout)
            .unwrap()
            .contains("Linear8bitLt")
    );
}

#[test]
fn legacy_environment_variables_are_read() {
    let hub = gpt2_hub();
    let home = TempDir::new().unwrap();
    let cache = home.path().join("elsewhere");
    let variables = [
        ("TRANSFORMERS_CACHE", cache.to_str().unwrap()),
        ("HUGGING_FACE_HUB_TOKEN", "hf_old"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
    ];
    let output = run(&hub, home.path(), &variables, &["pull", "org/model"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stderr(&output), "", "progress bars are disabled");
    assert!(cache.join("models--org--model").is_dir());
    assert!(
        hub.log()
            .iter()
            .all(|request| request.authorization.as_deref() == Some("Bearer hf_old"))
    );

    let before = hub.log().len();
    let offline = [variables[0], ("TRANSFORMERS_OFFLINE", "1")];
    let output = run(&hub, home.path(), &offline, &["inspect", "org/model"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(hub.log().len(), before, "offline mode sends no request");

    let output = run(
        &hub,
        home.path(),
        &[("TRANSFORMERS_OFFLINE", "ON")],
        &["inspect", "org/model"],
    );
    assert!(
        stderr(&output).contains("offline mode is on"),
        "the default cache does not have the model: {}",
        stderr(&output)
    );
}
