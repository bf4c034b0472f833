//! Helpers that several tests share: golden files, tensors, and runs of the program.

pub(crate) mod browser;
pub(crate) mod devices;
pub(crate) mod fake_server;
pub(crate) mod field_llama;
pub(crate) mod golden_models;
pub(crate) mod served;
pub(crate) mod source_rules;
pub(crate) mod stand_ins;

use candle_core::{Device, Tensor};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The checkout, or the copy of its test data that `LLM_INT8_TEST_ROOT` names.
pub(crate) fn root() -> PathBuf {
    std::env::var_os("LLM_INT8_TEST_ROOT")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// The path of a file or folder in `tests/golden`.
pub(crate) fn golden(path: &str) -> PathBuf {
    root().join("tests/golden").join(path)
}

/// A tensor of a golden file.
pub(crate) fn golden_tensor(path: &str, name: &str) -> Tensor {
    let tensors = candle_core::safetensors::load(golden(path), &Device::Cpu).unwrap();
    tensors
        .get(name)
        .unwrap_or_else(|| panic!("{path} has no {name}"))
        .clone()
}

/// The text of a file in `tests/golden`.
pub(crate) fn golden_text(path: &str) -> String {
    std::fs::read_to_string(golden(path)).unwrap()
}

/// ‖a − b‖ / ‖b‖ over all elements.
pub(crate) fn relative_error(a: &Tensor, b: &Tensor) -> f64 {
    let values = |t: &Tensor| -> Vec<f64> {
        let flat = t
            .to_dtype(candle_core::DType::F64)
            .unwrap()
            .flatten_all()
            .unwrap();
        flat.to_vec1().unwrap()
    };

    let a = values(a);
    let b = values(b);
    assert_eq!(a.len(), b.len());

    let difference: f64 = a.iter().zip(&b).map(|(x, y)| (x - y).powi(2)).sum();

    (difference / b.iter().map(|y| y * y).sum::<f64>()).sqrt()
}

/// Tensors of a safetensors file, which tests change and write again: name → dtype, shape, bytes.
pub(crate) type Tensors =
    std::collections::BTreeMap<String, (safetensors::Dtype, Vec<usize>, Vec<u8>)>;

/// The tensors of a golden safetensors file.
pub(crate) fn read_tensors(path: &str) -> Tensors {
    tensors_in(&golden(path))
}

/// The tensors of all safetensors files in a folder.
pub(crate) fn tensors_of(folder: &Path) -> Tensors {
    let files = std::fs::read_dir(folder)
        .unwrap()
        .flatten()
        .map(|entry| entry.path());
    files
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .flat_map(|path| tensors_in(&path))
        .collect()
}

fn tensors_in(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let owned = |view: safetensors::tensor::TensorView<'_>| {
        (view.dtype(), view.shape().to_vec(), view.data().to_vec())
    };

    file.tensors()
        .into_iter()
        .map(|(name, view)| (name, owned(view)))
        .collect()
}

/// Writes tensors as a safetensors file.
pub(crate) fn write_tensors(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (
            name,
            safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap(),
        )
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Environment variables through which a user's settings could reach the program.
const USER_VARIABLES: [&str; 12] = [
    "CURL_CA_BUNDLE",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "HUGGINGFACE_HUB_CACHE",
    "HUGGING_FACE_HUB_TOKEN",
    "LLM_INT8_ISA",
    "PYTORCH_PRETRAINED_BERT_CACHE",
    "PYTORCH_TRANSFORMERS_CACHE",
    "REQUESTS_CA_BUNDLE",
    "TRANSFORMERS_CACHE",
    "TRANSFORMERS_OFFLINE",
];

/// Runs the program without the user's cache, token or network.
pub(crate) fn llm_int8(arguments: &[&str]) -> Output {
    llm_int8_with_input(arguments, "")
}

/// As [`llm_int8`], with text on standard input.
pub(crate) fn llm_int8_with_input(arguments: &[&str], input: &str) -> Output {
    let nowhere = tempfile::tempdir().unwrap();
    let mut child = program(arguments, nowhere.path()).spawn().unwrap();

    // A program that reads no input may exit before all of it is written.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());

    child.wait_with_output().unwrap()
}

/// The program without the user's cache, token or network, with pipes to it.
pub(crate) fn program(arguments: &[&str], home: &Path) -> Command {
    let program = std::env::var_os("LLM_INT8_TEST_PROGRAM");
    let mut command =
        Command::new(program.unwrap_or_else(|| env!("CARGO_BIN_EXE_llm-int8").into()));
    for name in USER_VARIABLES {
        command.env_remove(name);
    }
    command
        .env("HF_HOME", home)
        .env("HF_ENDPOINT", "http://127.0.0.1:9");
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The standard output of a command that succeeded.
pub(crate) fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The exit code and standard error of a command that prints nothing else.
pub(crate) fn failure(arguments: &[&str]) -> (i32, String) {
    let output = llm_int8(arguments);
    assert!(output.stdout.is_empty(), "{arguments:?}");
    (output.status.code().unwrap(), stderr(&output))
}

/// The folder of a tiny gpt2, as a command-line argument.
pub(crate) fn gpt2() -> String {
    golden("models/gpt2").display().to_string()
}
