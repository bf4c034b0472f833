//! Signals that reach the program while it writes. `scripts/torture.py` sends more of them.

use crate::support::{Tensors, write_tensors};
use safetensors::Dtype;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use tempfile::TempDir;

/// Attempts to send a signal while the program writes, before it has ended.
const ATTEMPTS: usize = 50;

/// A model of 50 MB, nearly all of them embeddings, which take some time to write.
fn model(folder: &Path) {
    const C: usize = 128;
    let mut tensors = Tensors::new();
    let mut add = |name: &str, shape: &[usize]| {
        let bytes = vec![0; 2 * shape.iter().product::<usize>()];
        tensors.insert(name.to_owned(), (Dtype::F16, shape.to_vec(), bytes));
    };
    add("wte.weight", &[200_000, C]);
    add("wpe.weight", &[16, C]);
    for (name, rows, columns) in [
        ("attn.c_attn", C, 3 * C),
        ("attn.c_proj", C, C),
        ("mlp.c_fc", C, 4 * C),
        ("mlp.c_proj", 4 * C, C),
    ] {
        add(&format!("h.0.{name}.weight"), &[rows, columns]);
        add(&format!("h.0.{name}.bias"), &[columns]);
    }
    for name in ["h.0.ln_1", "h.0.ln_2", "ln_f"] {
        add(&format!("{name}.weight"), &[C]);
        add(&format!("{name}.bias"), &[C]);
    }

    std::fs::create_dir(folder).unwrap();
    write_tensors(&folder.join("model.safetensors"), &tensors);
    let config = r#"{"model_type": "gpt2", "n_embd": 128, "n_head": 2, "n_layer": 1, "n_positions": 16, "vocab_size": 200000}"#;
    std::fs::write(folder.join("config.json"), config).unwrap();
}

/// Starts `quantize model -o out` in this folder, after a line of shell.
fn quantize(folder: &Path, before: &str) -> Child {
    let program = env!("CARGO_BIN_EXE_llm-int8");
    Command::new("sh")
        .args(["-c", &format!("{before} exec \"$0\" \"$@\""), program])
        .args(["quantize", "model", "-o", "out"])
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Sends a signal once the program has begun to write. Returns how it ended.
fn interrupted(folder: &Path, before: &str, signal: &str) -> ExitStatus {
    let mut child = quantize(folder, before);
    while child.try_wait().unwrap().is_none() {
        if names(folder).iter().any(|name| name.ends_with(".partial")) {
            let command = format!("kill -{signal} {} 2> /dev/null", child.id());
            Command::new("sh").args(["-c", &command]).status().unwrap();
            break;
        }
    }
    child.wait().unwrap()
}

#[test]
fn signals_end_the_program_and_leave_no_temporary_files() {
    let folder = TempDir::new().unwrap();
    model(&folder.path().join("model"));
    for (signal, number) in [("TERM", 15), ("HUP", 1)] {
        let was_interrupted = (0..ATTEMPTS).any(|_| {
            let status = interrupted(folder.path(), "", signal);
            if status.success() {
                std::fs::remove_dir_all(folder.path().join("out")).unwrap();
            } else {
                assert_eq!(status.signal(), Some(number), "{status}");
            }
            assert_eq!(names(folder.path()), ["model"], "{signal}");
            !status.success()
        });
        assert!(was_interrupted, "{signal} never came in time");
    }

    // What the program was told to ignore stays ignored, as with nohup.
    let status = interrupted(folder.path(), "trap '' HUP;", "HUP");
    assert!(status.success(), "{status}");
    assert_eq!(names(folder.path()), ["model", "out"]);
}

#[test]
fn a_limit_on_the_size_of_files_is_an_error() {
    let folder = TempDir::new().unwrap();
    model(&folder.path().join("model"));
    let output = quantize(folder.path(), "ulimit -f 1000;")
        .wait_with_output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", output.status);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("cannot write"), "{message}");
    assert_eq!(names(folder.path()), ["model"]);
}
