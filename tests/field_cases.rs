//! Models found in the wild: 37 inputs from public bug reports, rebuilt at small size, with what
//! transformers 4.57.1 (or llama.cpp, for GGUF) makes of each. `golden/cases/cases.json` lists the
//! arguments, what to check, and the weights, which several cases share.

use crate::support::{golden, golden_text, llm_int8_with_input};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The path of a case's model, after copying it and its weights into a folder of its own.
fn assembled(case: &Value, scratch: &Path) -> PathBuf {
    let name = case["model"].as_str().unwrap();
    let stored = golden("cases").join(name);
    if stored.is_file() {
        return stored;
    }

    let folder = scratch.join(name);
    std::fs::create_dir(&folder).unwrap();
    for entry in std::fs::read_dir(&stored).unwrap().flatten() {
        std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }

    for (file, weights) in case["large"].as_object().unwrap() {
        std::fs::copy(
            golden("cases").join(weights.as_str().unwrap()),
            folder.join(file),
        )
        .unwrap();
    }

    folder
}

/// Why a case fails, or `None` if it passes.
fn failure(case: &Value, model: &Path) -> Option<String> {
    let model = model.display().to_string();
    let arguments = case["arguments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|argument| argument.as_str().unwrap());
    let arguments: Vec<String> = arguments
        .map(|argument| argument.replace("{model}", &model))
        .collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let check = case["check"].as_str().unwrap();
    let expected = case["expect"].as_str().unwrap();
    let input = if check.contains("standard input is Hi") {
        "Hi\n"
    } else {
        ""
    };

    let output = llm_int8_with_input(&arguments, input);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let is_right = match check {
        "stdout" => stdout.trim() == expected,
        _ if check.starts_with("stdout contains") => stdout.contains(expected),
        _ if check.starts_with("stderr contains") => stderr.contains(expected),
        _ => !stderr.contains("error"),
    };
    let passed = output.status.success() && is_right;
    let why = case["why"].as_str().unwrap();

    (!passed)
        .then(|| format!("{model}: {why}: {expected:?} was expected, got {stdout:?} {stderr:?}"))
}

#[test]
fn files_from_bug_reports_load_as_in_transformers() {
    let cases: Vec<Value> = serde_json::from_str(&golden_text("cases/cases.json")).unwrap();
    assert_eq!(cases.len(), 37);

    let scratch = TempDir::new().unwrap();
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|case| failure(case, &assembled(case, scratch.path())))
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
