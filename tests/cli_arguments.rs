//! Arguments that the program does not accept: it says what to give instead, before it does any
//! work.

use crate::support::{failure, golden, llm_int8, stderr};
use std::path::Path;
use tempfile::TempDir;

fn stdout(arguments: &[&str]) -> String {
    let output = llm_int8(arguments);
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );

    String::from_utf8(output.stdout).unwrap()
}

/// A folder whose subfolder `model` holds gpt2.
fn parent_of_gpt2() -> TempDir {
    let parent = TempDir::new().unwrap();
    let folder = parent.path().join("model");
    std::fs::create_dir(&folder).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(golden("models/gpt2").join(name), folder.join(name)).unwrap();
    }

    parent
}

#[test]
fn a_path_that_is_not_a_model_folder_gets_a_hint() {
    let parent = parent_of_gpt2();
    let at = |name: &str| parent.path().join(name).display().to_string();
    std::fs::write(parent.path().join("model.pth"), "").unwrap();
    let folder = at("model");
    for (name, code, words) in [
        (
            at("model/model.safetensors"),
            2,
            format!("give its folder, {folder}"),
        ),
        (
            at("model/config.json"),
            2,
            format!("give its folder, {folder}"),
        ),
        (
            at("model.pth"),
            2,
            "weights are read from .safetensors".into(),
        ),
        (at(""), 1, format!("did you mean {}model?", at(""))),
        (
            at("modle"),
            1,
            format!("there is no folder {}", at("modle")),
        ),
        (
            "model-00001-of-00002.safetensors".into(),
            1,
            "there is no folder model-00001".into(),
        ),
        (
            "./no/such/folder".into(),
            1,
            "there is no folder ./no/such/folder".into(),
        ),
        ("no/such/folder".into(), 2, "there is no such folder".into()),
        (at("nowhere.gguf"), 1, "nowhere.gguf".into()),
    ] {
        for command in [
            &["inspect", &name][..],
            &["affine", "--model", &name, "--tensor", "x"],
        ] {
            let (found, error) = failure(command);
            assert_eq!(found, code, "{command:?}: {error}");
            assert!(error.contains(&words), "{command:?}: {error}");
            assert_eq!(error.trim_end().lines().count(), 1, "{error}");
        }
    }

    stdout(&["inspect", &folder]);
}

#[test]
fn a_hub_url_is_accepted_as_a_model_name() {
    let (code, error) = failure(&["inspect", "https://huggingface.co/org/name/tree/v1"]);
    assert!(
        code == 1 && error.contains("127.0.0.1 cannot be reached"),
        "{error}"
    );

    let (code, error) = failure(&[
        "inspect",
        "--offline",
        "https://hf.co/org/name?library=transformers",
    ]);
    assert!(
        code == 1 && error.contains("org/name is not in the cache"),
        "{error}"
    );

    for (url, words) in [
        (
            "https://huggingface.co/org/name/blob/main/model.safetensors",
            "give org/name@main",
        ),
        (
            "https://huggingface.co/org/name/resolve/main/m.gguf",
            "download the GGUF file first",
        ),
        ("https://huggingface.co/datasets/org/name", "are not models"),
        ("https://mirror.example/org/name", "HF_ENDPOINT"),
    ] {
        let (code, error) = failure(&["run", url, "--prompt", "x"]);
        assert!(code == 2 && error.contains(words), "{error}");
    }
}

#[test]
fn built_in_models_and_local_paths_cannot_be_pulled() {
    let (code, error) = failure(&["pull", "tiny-gpt2"]);
    assert!(code == 2 && error.contains("built in"), "{error}");

    let (code, error) = failure(&["pull", "some.gguf"]);
    assert!(
        code == 2 && error.contains("some.gguf is a path"),
        "{error}"
    );
}

/// A quantised copy includes every small file, so that transformers finds the same tokenizer and
/// chat templates in it.
#[test]
fn a_saved_copy_includes_every_small_file() {
    let parent = parent_of_gpt2();
    let folder = parent.path().join("model");
    let small = [
        "added_tokens.json",
        "special_tokens_map.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "chat_template.json",
        "additional_chat_templates/rag.jinja",
        "tokenizer.model",
        "spiece.model",
        "vocab.txt",
    ];
    std::fs::create_dir(folder.join("additional_chat_templates")).unwrap();
    for name in small {
        let text = if name.ends_with("json") {
            "{}".to_owned()
        } else {
            format!("this is {name}")
        };
        std::fs::write(folder.join(name), text).unwrap();
    }
    std::fs::write(folder.join("additional_chat_templates/notes.txt"), "").unwrap();
    std::fs::write(folder.join("README.md"), "").unwrap();
    let copy = parent.path().join("copy");
    stdout(&[
        "quantize",
        folder.to_str().unwrap(),
        "-o",
        copy.to_str().unwrap(),
    ]);
    for name in small {
        let read = |folder: &Path| std::fs::read(folder.join(name)).unwrap();
        assert_eq!(read(&copy), read(&folder), "{name}");
    }

    let names = |folder: &Path| {
        let entries = std::fs::read_dir(folder).unwrap().flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };

    assert_eq!(
        names(&copy.join("additional_chat_templates")),
        ["rag.jinja"]
    );
    assert!(
        !names(&copy).contains(&"README.md".to_owned()),
        "{:?}",
        names(&copy)
    );
}

/// The largest u64.
const HUGE: &str = "18446744073709551615";

/// Arguments, and what the error says about the allowed range.
const OUT_OF_RANGE: &[(&[&str], &str)] = &[
    (
        &["run", "/nowhere", "--prompt", "x", "--threads", "1025"],
        "1025 is not in 1..=1024",
    ),
    (
        &["run", "/nowhere", "--prompt", "x", "--threads", "65535"],
        "is not in 1..=1024",
    ),
    (
        &[
            "run",
            "/nowhere",
            "--prompt",
            "x",
            "--threads",
            "99999999999",
        ],
        "is not in 1..=1024",
    ),
    (
        &["run", "/nowhere", "--prompt", "x", "--threads", "0"],
        "is not in 1..=1024",
    ),
    (
        &[
            "run",
            "/nowhere",
            "--prompts-file",
            "x",
            "--batch-size",
            HUGE,
        ],
        "from 1 to 65536",
    ),
    (
        &[
            "run",
            "/nowhere",
            "--prompt",
            "x",
            "--speculate",
            HUGE,
            "--outliers",
            "row",
        ],
        "from 0 to 1024",
    ),
    (
        &[
            "run",
            "/nowhere",
            "--prompt",
            "x",
            "-n",
            "99999999999999999999",
        ],
        "too large",
    ),
    (
        &["bench", "/nowhere", "--contexts", HUGE],
        "from 1 to 16777216",
    ),
    (
        &["bench", "/nowhere", "--contexts", "8,0"],
        "from 1 to 16777216",
    ),
    (
        &["bench", "/nowhere", "--prompts", HUGE],
        "from 1 to 16777216",
    ),
    (
        &["bench", "/nowhere", "--batch-sizes", HUGE],
        "from 1 to 65536",
    ),
    (&["bench", "/nowhere", "--runs", HUGE], "from 1 to 10000"),
    (&["bench", "/nowhere", "--runs", "0"], "from 1 to 10000"),
    (&["bench", "/nowhere", "-n", HUGE], "from 2 to 16777216"),
    (&["bench", "/nowhere", "-n", "1"], "from 2 to 16777216"),
    (
        &["bench", "/nowhere", "--speculate", HUGE],
        "from 0 to 1024",
    ),
    (
        &["bench", "-", "--linear", "64x64", "--rows", HUGE],
        "from 1 to 1048576",
    ),
    (
        &["bench", "-", "--linear", "9999999999x1"],
        "sizes from 1 to 1048576",
    ),
    (
        &["bench", "-", "--linear", "1048576x1048576"],
        "at most 4294967296 weights",
    ),
    (
        &[
            "quantize",
            "/nowhere",
            "-o",
            "/tmp/never",
            "--max-shard-size",
            "99999999999999999999GB",
        ],
        "a whole number",
    ),
];

#[test]
fn out_of_range_numbers_are_rejected_before_loading() {
    for (arguments, words) in OUT_OF_RANGE {
        let (code, error) = failure(arguments);
        assert_eq!(code, 2, "{arguments:?}: {error}");
        assert!(error.contains(words), "{arguments:?}: {error}");
    }
}

/// The largest values that sampling options take must not panic, abort or exhaust memory.
#[test]
fn the_largest_generation_options_do_no_harm() {
    let prompt = ["run", "tiny-gpt2", "--prompt", "And it came to pass", "-q"];
    let with = |more: &[&'static str]| stdout(&[&prompt[..], more].concat());
    let sample = |more: &[&'static str]| with(&[&["-n", "8", "-t", "1"], more].concat());
    assert_eq!(sample(&["--top-k", HUGE]), sample(&["--top-k", "0"]));
    assert_eq!(sample(&["--threads", "16"]), sample(&[]));
    assert!(!sample(&["--seed", HUGE]).is_empty());

    for more in [&["-n", HUGE][..], &["-n", HUGE, "--truncate"]] {
        let (code, error) = failure(&[&prompt[..], more].concat());
        assert!(
            code == 1 && error.contains("the model has 512 positions"),
            "{error}"
        );
    }

    assert_eq!(
        with(&["-n", "40", "--speculate", "1024", "--outliers", "row"]),
        with(&["-n", "40", "--outliers", "row"])
    );
}

/// The same for batches, windows, shards and memory limits.
#[test]
fn the_largest_sizes_do_no_harm() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("text.txt").display().to_string();
    std::fs::write(&file, "And it came to pass\nin those days\n").unwrap();

    let batch = [
        "run",
        "tiny-gpt2",
        "--prompts-file",
        &file,
        "--batch-size",
        "65536",
        "-n",
        "2",
        "-q",
    ];
    assert_eq!(stdout(&batch).lines().count(), 2);

    for more in [["--window", HUGE], ["--stride", HUGE]] {
        let (_, error) = failure(&[&["eval", "tiny-gpt2", "--text", &file], &more[..]].concat());
        assert!(error.contains(&format!("is {HUGE}; it must be")), "{error}");
    }

    assert!(
        stdout(&["eval", "tiny-gpt2", "--text", &file, "--max-tokens", HUGE])
            .contains("perplexity")
    );

    let copy = folder.path().join("copy").display().to_string();
    stdout(&[
        "quantize",
        "tiny-gpt2",
        "-o",
        &copy,
        "--max-shard-size",
        HUGE,
    ]);
    stdout(&["inspect", &copy]);

    let limits = format!("cpu={HUGE},0={HUGE}");
    stdout(&[
        "inspect",
        "tiny-gpt2",
        "--device-map",
        "auto",
        "--max-memory",
        &limits,
        "--device",
        "auto",
    ]);
}

/// The tensor as printed, line breaks included, is one argument.
#[test]
fn a_tensor_can_be_pasted_as_torch_prints_it() {
    let tensor = "tensor([[ 3.0000e-05, -2.0000e-05],\n        [ 1.0000e-05,  0.0000e+00]], grad_fn=<MulBackward0>)";
    let json = |arguments: &[&str]| -> serde_json::Value {
        let output = llm_int8(&[&["affine", "--json"], arguments].concat());
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).unwrap()
    };

    let pasted = json(&[tensor, "--per-channel", "0"]);
    assert_eq!(pasted["shape"], serde_json::json!([2, 2]));
    assert_eq!(pasted["results"][2]["scheme"], "per_channel_affine");
    assert_eq!(pasted["results"][2]["scale"].as_array().unwrap().len(), 2);

    let typed = json(&["3e-05", "-2e-05", "1e-05", "-0.0"]);
    assert_eq!(typed["results"][0]["codes"], pasted["results"][0]["codes"]);
    assert_eq!(
        json(&["[3e-05,", "-2e-05,", "1e-05,", "0]"])["results"],
        typed["results"]
    );
}

/// What is printed and cannot be written is an error, also where no command runs.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_under_standard_output_is_an_error() {
    for arguments in [&["--help"][..], &["--version"], &["inspect", "tiny-gpt2"]] {
        let full = std::fs::File::options().write(true).open("/dev/full");
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_llm-int8"))
            .args(arguments)
            .stdout(full.unwrap())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(stderr(&output).contains("No space left"), "{arguments:?}");
    }
}

#[test]
fn a_stray_argument_gets_the_name_of_its_option() {
    for (command, option) in [
        ("run", "--prompt"),
        ("eval", "--text"),
        ("logits", "--token-ids"),
    ] {
        let (code, error) = failure(&[command, "tiny-gpt2", "Once"]);
        assert_eq!(code, 2);
        assert!(error.contains("unexpected argument 'Once'"), "{error}");
        assert!(
            error.contains(&format!("is given with {option}")),
            "{error}"
        );
    }
    let (_, error) = failure(&["run", "tiny-gpt2", "--promt", "Once"]);
    assert!(!error.contains("is given with"), "{error}");
}
