//! Every program in `examples/` runs offline and prints what it is about.

use std::path::PathBuf;
use std::process::Command;

/// Example → lines or pieces of lines that it prints without arguments.
const EXAMPLES: &[(&str, &[&str])] = &[
    (
        "affine",
        &["PerTensorAffine: codes [101, -115, 25, 127, -128, 89]"],
    ),
    ("batch", &["In the beginning", "SequenceId(2)"]),
    (
        "bert_embeddings",
        &[
            "0 of 12 linear layers are int8, 129216 bytes",
            "12 of 12 linear layers are int8, 36672 bytes",
            "the cat sleeps under the tree | a small cat sleeps in the house",
        ],
    ),
    ("candle_model", &["int8: true", "relative error 0.0"]),
    ("chat", &["> And what is thy name?", "[16 tokens]"]),
    (
        "generate",
        &[
            "(c_fc): Linear8bitLt(in_features=256, out_features=1024, bias=True)",
            "transformer.h.0.attn.c_attn.weight torch.int8 (768, 256)",
            ", that the king of",
        ],
    ),
    (
        "inspect",
        &[
            "16 layers become int8",
            "lm_head is kept, because of `lm_head`",
            "5569536 bytes",
        ],
    ),
    ("int8_linear", &["[2, 10, 256], relative error 0.0"]),
    ("library", &["GPT2LMHeadModel("]),
    (
        "logits_processor",
        &[
            "ArgMax\nAnd it came to pass, that the king of",
            "TopKThenTopP",
        ],
    ),
    (
        "lora",
        &[
            "without a gradient: []",
            "step 30: loss 0.",
            "base unchanged: true",
        ],
    ),
    ("quantize", &["5532672 bytes"]),
];

/// Where cargo puts the examples: beside the folder of this test's executable.
fn folder() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().join("examples")
}

#[test]
fn every_example_runs_offline() {
    for (name, expected) in EXAMPLES {
        let path = folder().join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
        assert!(
            path.exists(),
            "{} is missing: `cargo build --release --examples` makes it",
            path.display()
        );
        let done = Command::new(path)
            .env("HF_HUB_OFFLINE", "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&done.stdout);
        let errors = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{name}: {errors}");
        for piece in *expected {
            assert!(
                text.contains(piece),
                "{name} does not print `{piece}`:\n{text}"
            );
        }
    }
}

#[test]
fn every_example_is_tested() {
    let sources = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut found: Vec<String> = std::fs::read_dir(sources)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        // examples/ray is Python's.
        .filter(|name| name.ends_with(".rs"))
        .collect();
    found.sort();
    let tested: Vec<String> = EXAMPLES
        .iter()
        .map(|(name, _)| format!("{name}.rs"))
        .collect();
    assert_eq!(found, tested);
}
