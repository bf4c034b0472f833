//! `llm-int8 bench`: what it measures, skips and rejects.

use crate::support::{failure, llm_int8, stdout};

#[test]
fn bench_measures_what_is_requested() {
    let few = [
        "bench",
        "tiny-gpt2",
        "--contexts",
        "8",
        "--prompts",
        "16,32",
        "-n",
        "4",
        "--runs",
        "1",
    ];
    let drafts = ["--json", "--speculate", "2", "--outliers", "row"];
    let report: serde_json::Value =
        serde_json::from_str(&stdout(&llm_int8(&[&few[..], &drafts].concat()))).unwrap();
    assert_eq!(
        (&report["model"], &report["decode"][0]["context"]),
        (&"tiny-gpt2".into(), &8.into())
    );

    for figure in [
        &report["decode"][0]["tokens_per_second"],
        &report["decode"][0]["bytes_per_token"],
        &report["prefill"][1]["tokens_per_second"],
        &report["limits"]["read_bytes_per_second"],
        &report["limits"]["multiply_adds_per_second"],
        &report["speculate"]["plain_tokens_per_second"],
        &report["load"]["seconds"],
    ] {
        assert!(figure.as_f64().unwrap() > 0.0, "{report}");
    }

    let text = stdout(&llm_int8(&few));
    assert!(
        text.contains("decode after") && text.contains("prompt of"),
        "{text}"
    );
}

#[test]
fn bench_skips_lengths_beyond_the_context_of_the_model() {
    let short = ["--runs", "1", "-n", "2", "--json"];
    let output = llm_int8(
        &[
            &["bench", "tiny-gpt2", "--contexts", "8,511,4000"],
            &short[..],
        ]
        .concat(),
    );
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{error}");
    assert!(
        error.contains(
            "left out: --contexts 511, 4000 and 2 new tokens are more than the model's 512 positions"
        ) && error.contains("left out: --prompts 512 and 1 new tokens"),
        "{error}"
    );

    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let lengths = |key: &str, name: &str| -> Vec<u64> {
        report[key]
            .as_array()
            .unwrap()
            .iter()
            .map(|rate| rate[name].as_u64().unwrap())
            .collect()
    };

    assert_eq!(
        (lengths("decode", "context"), lengths("prefill", "tokens")),
        (vec![8], vec![16, 128])
    );
}

#[test]
fn bench_rejects_what_it_cannot_measure_before_measuring() {
    for (more, words) in [
        (
            &["--contexts", "4000"][..],
            "--contexts 4000 and 32 new tokens are more than the model's 512 positions",
        ),
        (
            &["--prompts", "512,600"],
            "--prompts 512, 600 and 1 new tokens",
        ),
        (
            &["-n", "512", "--contexts", "32,128"],
            "--contexts 32, 128 and 512 new tokens",
        ),
        (
            &["-n", "512", "--prompts", "512"],
            "new tokens are more than the model's 512 positions",
        ),
        (
            &[
                "--contexts",
                "8",
                "--speculate",
                "2",
                "--outliers",
                "row",
                "-n",
                "400",
            ],
            "512 positions",
        ),
    ] {
        let (code, error) = failure(&[&["bench", "tiny-gpt2"], more].concat());
        assert!(code == 2 && error.contains(words), "{more:?}: {error}");
        assert!(!error.contains("measuring"), "{error}");
    }

    let (code, error) = failure(&["bench", "-", "--linear", "65536x65536", "--rows", "1048576"]);
    assert!(
        code == 2 && error.contains("GB for 1048576 rows") && error.contains("more than is free"),
        "{error}"
    );
}
