//! Presets of accuracy: `--accuracy`, thresholds in RMS, and columns kept in floating point.

use crate::support::{failure, golden, llm_int8, root, stderr, stdout};
use llm_int8::nn::linear::{Int8Config, OutlierRule};
use llm_int8::{Accuracy, AutoModelForCausalLM, LoadConfig};
use std::path::Path;

fn load(name: &str, int8: Int8Config) -> AutoModelForCausalLM {
    let mut config = LoadConfig::default();
    config.options.int8 = Some(int8);
    AutoModelForCausalLM::from_pretrained(name, &config).unwrap()
}

fn logits(model: &AutoModelForCausalLM) -> Vec<f32> {
    let ids: Vec<u32> = (1..30).map(|i| i * 37 % 500).collect();
    let logits = model.logits(&ids).unwrap();
    logits.flatten_all().unwrap().to_vec1().unwrap()
}

/// tiny-gpt2, quantised with `best` into `folder`.
fn saved(folder: &Path) -> String {
    let name = folder.join("saved").display().to_string();
    let arguments = ["quantize", "tiny-gpt2", "-o", &name, "--accuracy", "best"];
    stdout(&llm_int8(&arguments));
    name
}

#[test]
fn a_saved_model_gives_the_same_logits_with_its_kept_columns() {
    let scratch = tempfile::tempdir().unwrap();
    let name = saved(scratch.path());
    for accuracy in Accuracy::ALL {
        let config = accuracy.int8_config();
        let direct = logits(&load("tiny-gpt2", config));
        assert_eq!(logits(&load(&name, config)), direct, "{accuracy:?}");
    }

    // Saved once more, the columns are there again.
    let again = scratch.path().join("again").display().to_string();
    stdout(&llm_int8(&[
        "quantize",
        &name,
        "-o",
        &again,
        "--accuracy",
        "best",
    ]));
    let file =
        |name: &str| std::fs::read(Path::new(name).join("kept_columns.safetensors")).unwrap();
    assert_eq!(file(&name), file(&again));
}

#[test]
fn kept_columns_are_a_hundredth_of_the_weights() {
    let best = load("tiny-gpt2", Accuracy::Best.int8_config());
    let better = load("tiny-gpt2", Accuracy::Better.int8_config());
    let bytes = |model: &AutoModelForCausalLM| model.memory_footprint().actual();
    let more = bytes(&best) - bytes(&better);
    let codes = better.memory_footprint().parameters;
    assert!(more > codes / 200 && more < codes / 50, "{more} of {codes}");
}

#[test]
fn damaged_kept_columns_are_named() {
    let scratch = tempfile::tempdir().unwrap();
    let name = saved(scratch.path());
    let file = Path::new(&name).join("kept_columns.safetensors");
    let bytes = std::fs::read(&file).unwrap();

    // The header ends where the first tensor begins.
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut damaged = bytes.clone();
    damaged[header..header + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    std::fs::write(&file, &damaged).unwrap();
    let run = [
        "run",
        &name,
        "--prompt",
        "a",
        "-n",
        "1",
        "--accuracy",
        "best",
    ];
    let (code, error) = failure(&run);
    assert_eq!(code, 1, "{error}");
    assert!(
        error.contains("h.0.") && error.contains("columns"),
        "{error}"
    );

    std::fs::write(&file, &bytes[..header / 2]).unwrap();
    let (_, error) = failure(&run);
    assert!(error.contains("kept_columns.safetensors"), "{error}");

    // Nobody who does not ask for them is bothered.
    let output = llm_int8(&["run", &name, "--prompt", "a", "-n", "1"]);
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn an_8_bit_checkpoint_without_kept_columns_cannot_be_best() {
    let name = golden("bnb_checkpoints/gpt2").display().to_string();
    let mut config = LoadConfig::default();
    config.options.int8 = Some(Accuracy::Best.int8_config());
    let error = AutoModelForCausalLM::from_pretrained(&name, &config).unwrap_err();
    assert!(
        error.to_string().contains("full-precision weights"),
        "{error}"
    );
    load(&name, Accuracy::Better.int8_config());
}

#[test]
fn thresholds_in_rms_are_those_of_the_rule() {
    let of = |arguments: &[&str]| {
        let text = root().join("LICENSE-MIT").display().to_string();
        let base = ["eval", "tiny-gpt2", "--text", &text, "--max-tokens", "64"];
        stdout(&llm_int8(&[&base[..], arguments].concat()))
    };
    assert_eq!(of(&["--threshold", "4rms"]), of(&["--accuracy", "better"]));
    assert_eq!(of(&["--threshold", "0rms"]), of(&["--threshold", "0"]));
    assert_ne!(of(&["--threshold", "1rms"]), of(&["--threshold", "1"]));

    let better = Accuracy::Better.int8_config().outliers;
    assert_eq!(better, OutlierRule::row_rms(4.0));
    for wrong in ["rms", "-1rms", "4 parsecs", "infrms"] {
        let (code, error) = failure(&["inspect", "tiny-gpt2", "--threshold", wrong]);
        assert_eq!(code, 2, "{wrong}: {error}");
    }
    let batch = ["--threshold", "4rms", "--outliers", "batch"];
    let (code, error) = failure(&[&["run", "tiny-gpt2", "--prompt", "a"], &batch[..]].concat());
    assert!(code == 2 && error.contains("each row by itself"), "{error}");
}

#[test]
fn drafts_need_a_rule_by_row() {
    let arguments = [
        "run",
        "tiny-gpt2",
        "--prompt",
        "And it came",
        "-n",
        "4",
        "--speculate",
        "2",
    ];
    let with = |accuracy| [&arguments[..], &["--device", "cpu", "--accuracy", accuracy]].concat();
    assert_eq!(failure(&with("bitsandbytes")).0, 2);
    assert!(llm_int8(&with("better")).status.success());
}
