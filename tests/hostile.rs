//! Models of strangers that are meant to harm, as the program meets them. Files are those of
//! `tests/golden/hostile`; most parsers have hostile cases of their own beside them.

use crate::support::{golden, llm_int8, llm_int8_with_input, stderr, stdout};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The built-in model in a folder.
fn tiny_model() -> TempDir {
    let folder = TempDir::new().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-gpt2");
    for name in [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        std::fs::copy(source.join(name), folder.path().join(name)).unwrap();
    }
    folder
}

/// Checks that the program ended with an error of its own and not with a panic.
fn refused(output: &Output) -> String {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("error: ") && !text.contains("panicked"),
        "{text}"
    );
    text
}

#[test]
fn a_hostile_tokenizer_is_an_error_where_it_is_needed_and_nowhere_else() {
    for name in ["tokenizer_prefix.json", "tokenizer_charsmap.json"] {
        let model = tiny_model();
        let path = model.path().to_str().unwrap();
        std::fs::copy(
            golden("hostile").join(name),
            model.path().join("tokenizer.json"),
        )
        .unwrap();

        let text = refused(&llm_int8(&["run", path, "--prompt", "Hello", "-n", "2"]));
        assert!(text.contains("the tokenizer of"), "{name}: {text}");
        refused(&llm_int8(&["tokenize", path, "Hello"]));

        stdout(&llm_int8(&["inspect", path]));
        let ids = ["--token-ids", "1,2", "-n", "2", "--print-ids"];
        let arguments = [&["run", path][..], &ids].concat();
        assert!(!stdout(&llm_int8(&arguments)).is_empty(), "{name}");
    }
}

/// Found by fuzzing: the library looks for such a token until memory ends.
#[test]
fn an_added_token_of_which_normalization_leaves_nothing_is_refused() {
    for adds in ["tokenizer.json", "added_tokens.json", "another of its id"] {
        let model = tiny_model();
        let file = model.path().join("tokenizer.json");
        let mut json: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        json["normalizer"] = json!({ "type": "Strip", "strip_left": true, "strip_right": true });
        let token = |content: &str| {
            json!({
                "id": 1000, "content": content, "normalized": true, "special": false,
                "single_word": false, "lstrip": false, "rstrip": false,
            })
        };
        let added = json["added_tokens"].as_array_mut().unwrap();
        match adds {
            "tokenizer.json" => added.push(token(" ")),
            "added_tokens.json" => {
                std::fs::write(model.path().join(adds), r#"{" ": 1000}"#).unwrap();
            }
            _ => added.extend([token(" "), token("b")]),
        }
        std::fs::write(file, json.to_string()).unwrap();

        let text = refused(&llm_int8(&[
            "tokenize",
            model.path().to_str().unwrap(),
            "a",
        ]));
        assert!(text.contains(r#"added token " ""#), "{adds}: {text}");
    }
}

#[test]
fn hostile_chat_templates_end_soon_with_an_error() {
    let mut count = 0;
    for entry in std::fs::read_dir(golden("hostile")).unwrap().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|ending| ending != "jinja") {
            continue;
        }
        let started = Instant::now();
        let template = path.to_str().unwrap();
        let output = llm_int8_with_input(
            &["chat", "tiny-gpt2", "--chat-template", template, "-n", "2"],
            "Hi\n",
        );
        let text = stderr(&output);
        assert!(!text.contains("panicked"), "{template}: {text}");
        assert!(
            matches!(output.status.code(), Some(0 | 1)),
            "{template}: {text}"
        );
        // Its work was not counted, so that it ran for seconds and came to its end.
        if template.ends_with("t_truncate.jinja") {
            assert!(text.contains("does not come to an end"), "{text}");
        }
        // Far above what it takes alone: tests share the machine.
        assert!(started.elapsed() < Duration::from_secs(60), "{template}");
        count += 1;
    }
    assert_eq!(count, 8);
}

/// A pipe would wait for its writer for ever, a device need never end.
#[cfg(unix)]
#[test]
fn what_is_no_regular_file_is_not_read() {
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        for device in [None, Some("/dev/zero")] {
            let model = tiny_model();
            let file = model.path().join(name);
            std::fs::remove_file(&file).unwrap();
            match device {
                Some(target) => std::os::unix::fs::symlink(target, &file).unwrap(),
                None => assert!(
                    Command::new("mkfifo")
                        .arg(&file)
                        .status()
                        .unwrap()
                        .success()
                ),
            }

            let path = model.path().to_str().unwrap();
            let text = refused(&llm_int8(&["run", path, "--prompt", "Hi", "-n", "1"]));
            assert!(
                text.contains("not a regular file") && text.contains(name),
                "{name}: {text}"
            );
        }
    }
}

/// A folder made by `quantize` is published; a link in a model may point anywhere.
#[cfg(unix)]
#[test]
fn quantize_does_not_copy_what_links_out_of_the_model() {
    let model = tiny_model();
    let outside = TempDir::new().unwrap();
    let secret = outside.path().join("secret");
    std::fs::write(&secret, "{}").unwrap();
    std::os::unix::fs::symlink(&secret, model.path().join("special_tokens_map.json")).unwrap();

    let target = outside.path().join("int8");
    let arguments = ["quantize", model.path().to_str().unwrap(), "-o"];
    let arguments = [&arguments[..], &[target.to_str().unwrap()]].concat();
    let text = refused(&llm_int8(&arguments));
    assert!(text.contains("link out of the model's folder"), "{text}");
    assert!(!target.exists());
}

#[cfg(unix)]
#[test]
fn outputs_go_into_special_files_and_do_not_replace_them() {
    use std::os::unix::fs::FileTypeExt;

    let arguments = ["logits", "tiny-gpt2", "--token-ids", "1", "--out"];
    let folder = TempDir::new().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::read(pipe).unwrap()
    });
    stdout(&llm_int8(
        &[&arguments[..], &[pipe.to_str().unwrap()]].concat(),
    ));

    let read = reader.join().unwrap();
    assert!(safetensors::SafeTensors::deserialize(&read).is_ok());
    assert!(pipe.symlink_metadata().unwrap().file_type().is_fifo());
}
