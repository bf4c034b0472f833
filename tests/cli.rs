//! The program as a user runs it: its output, the ways to load a model, exit codes.

use crate::support::llm_int8 as run;
use crate::support::{failure, golden, gpt2, stderr, stdout};
use tempfile::TempDir;

#[test]
fn the_built_in_model_writes_text_to_stdout_and_a_report_to_stderr() {
    let output = run(&[
        "run",
        "tiny-gpt2",
        "--prompt",
        "And it came to pass",
        "-n",
        "12",
    ]);
    let text = stdout(&output);
    assert!(text.trim().len() > 10 && text.ends_with('\n'), "{text:?}");

    let report = stderr(&output);
    for part in [
        "device:  cpu",
        "load:",
        "16 int8 layers, 1 kept",
        "prefill:",
        "decode:",
        "tokens/s",
        "memory:",
        "peak",
    ] {
        assert!(report.contains(part), "{part} is missing in {report}");
    }

    let quiet = run(&[
        "run",
        "tiny-gpt2",
        "--prompt",
        "And it came to pass",
        "-n",
        "12",
        "-q",
    ]);
    assert_eq!((stdout(&quiet), stderr(&quiet)), (text, String::new()));
}

#[test]
fn the_same_seed_repeats_the_text_and_another_seed_changes_it() {
    let draw = |seed: &str| {
        stdout(&run(&[
            "run",
            "tiny-gpt2",
            "-p",
            "ROMEO:",
            "-n",
            "24",
            "-t",
            "0.9",
            "--top-p",
            "0.95",
            "--seed",
            seed,
            "-q",
        ]))
    };

    assert_eq!(draw("1"), draw("1"));
    assert_ne!(draw("1"), draw("2"));

    let greedy = |more: &[&str]| {
        stdout(&run(&[
            &["run", "tiny-gpt2", "-p", "ROMEO:", "-n", "8", "-q"],
            more,
        ]
        .concat()))
    };

    assert_eq!(greedy(&["-t", "0"]), greedy(&["--greedy"]));
}

#[test]
fn a_model_without_a_tokenizer_reads_and_prints_token_ids() {
    let text = stdout(&run(&[
        "run",
        &gpt2(),
        "--token-ids",
        "1,2,3",
        "--print-ids",
        "-n",
        "5",
        "-q",
    ]));
    let ids: Vec<u32> = text
        .trim()
        .split(',')
        .map(|id| id.parse().unwrap())
        .collect();
    assert_eq!(ids.len(), 5);

    let (code, error) = failure(&["run", &gpt2(), "--prompt", "x"]);
    assert_eq!(code, 1);
    assert!(
        error.contains("has no tokenizer") && error.contains("--token-ids"),
        "{error}"
    );

    let (code, error) = failure(&[
        "run",
        &gpt2(),
        "--token-ids",
        "999",
        "--print-ids",
        "-n",
        "5",
    ]);
    assert!(
        code == 1 && error.contains("token id 999 is beyond the vocabulary of 256"),
        "{error}"
    );
}

/// A model can be inspected and run on token ids even if its tokenizer is broken.
#[test]
fn a_broken_tokenizer_fails_only_commands_that_need_it() {
    let folder = TempDir::new().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(golden("models/gpt2").join(name), folder.path().join(name)).unwrap();
    }
    std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    let name = folder.path().to_str().unwrap();
    stdout(&run(&["inspect", name]));
    stdout(&run(&[
        "run",
        name,
        "--token-ids",
        "1",
        "--print-ids",
        "-n",
        "2",
        "-q",
    ]));
    let (code, error) = failure(&["run", name, "--prompt", "x", "-n", "2"]);
    assert!(code == 1 && error.contains("tokenizer.json: "), "{error}");
}

#[test]
fn stop_strings_and_the_context_length_are_respected() {
    let all = stdout(&run(&[
        "run",
        "tiny-gpt2",
        "-p",
        "In the beginning",
        "-n",
        "30",
        "-q",
    ]));
    let stop = all.split_whitespace().nth(3).unwrap();
    let stopped = stdout(&run(&[
        "run",
        "tiny-gpt2",
        "-p",
        "In the beginning",
        "-n",
        "30",
        "-q",
        "--stop",
        stop,
    ]));
    assert_eq!(
        stopped.trim_end_matches('\n'),
        &all[..all.find(stop).unwrap()]
    );

    let (code, error) = failure(&["run", "tiny-gpt2", "-p", "In the beginning", "-n", "600"]);
    assert!(
        code == 1 && error.contains("the model has 512 positions") && error.contains("--truncate"),
        "{error}"
    );

    let long = "word ".repeat(600);
    assert_eq!(
        failure(&["run", "tiny-gpt2", "-p", &long, "-n", "4", "-q"]).0,
        1
    );

    stdout(&run(&[
        "run",
        "tiny-gpt2",
        "-p",
        &long,
        "-n",
        "4",
        "-q",
        "--truncate",
    ]));
}

#[test]
fn loading_options_work_and_change_the_logits_where_they_should() {
    let logits = |more: &[&str]| -> Vec<f32> {
        let folder = TempDir::new().unwrap();
        let out = folder.path().join("out.safetensors").display().to_string();
        let base = ["logits", &gpt2(), "--token-ids", "1,2,3,250", "--out", &out];
        stdout(&run(&[&base[..], more].concat()));
        let tensors = candle_core::safetensors::load(&out, &candle_core::Device::Cpu).unwrap();
        assert_eq!(tensors["logits"].dims(), [1, 4, 256]);
        assert_eq!(
            tensors["token_ids"].to_vec2::<i64>().unwrap(),
            [[1, 2, 3, 250]]
        );
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            1,
            "only the output file is there"
        );

        tensors["logits"].flatten_all().unwrap().to_vec1().unwrap()
    };

    let default = logits(&[]);
    for more in [
        &["--no-quantize"][..],
        &["--no-quantize", "--dtype", "bfloat16"],
        &["--dtype", "bfloat16"],
        &["--threshold", "0"],
        &["--outliers", "row"],
        &["--outlier-weights", "original"],
        &["--skip-modules", "c_fc,h.1"],
    ] {
        assert_ne!(logits(more), default, "{more:?}");
    }

    // The checkpoint is f16. The default and `auto` both keep that dtype.
    for same in [
        &["--dtype", "auto"][..],
        &["--threads", "1"],
        &["--device", "cpu"],
    ] {
        assert_eq!(logits(same), default, "{same:?}");
    }
}

#[test]
fn usage_errors_exit_with_2_and_say_what_is_expected() {
    for (arguments, expected) in [
        (&["run", "tiny-gpt2"][..], "--prompt"),
        (
            &["run", "tiny-gpt2", "--prompt", "x", "--token-ids", "1"],
            "cannot be used with",
        ),
        (
            &["run", "tiny-gpt2", "--prompt", "x", "--greedy", "-t", "1"],
            "cannot be used with",
        ),
        (
            &["inspect", "tiny-gpt2", "--threshold", "-1"],
            "a number from 0 up",
        ),
        (
            &["inspect", "tiny-gpt2", "--dtype", "int4"],
            "possible values",
        ),
        (
            &["inspect", "tiny-gpt2", "--device", "gpu"],
            "cuda or cuda:N",
        ),
        (
            &["inspect", "tiny-gpt2", "--skip-modules", "c_atn"],
            "did you mean `c_attn`?",
        ),
        (&["inspect", "a/b/c"], "is not a model's name"),
        (&["pull", "./tests"], "pull takes a model of the hub"),
        (&["inspcet"], "unrecognized subcommand"),
    ] {
        let (code, error) = failure(arguments);
        assert_eq!(code, 2, "{arguments:?}: {error}");
        assert!(error.contains(expected), "{arguments:?}: {error}");
    }
}

#[test]
fn failures_exit_with_1_and_one_error_line() {
    let empty = TempDir::new().unwrap();
    let no_config = empty.path().display().to_string();
    std::fs::write(empty.path().join("notes.txt"), "x").unwrap();

    let truncated = TempDir::new().unwrap();
    let bytes = std::fs::read(golden("models/gpt2/model.safetensors")).unwrap();
    std::fs::write(
        truncated.path().join("model.safetensors"),
        &bytes[..bytes.len() / 2],
    )
    .unwrap();
    std::fs::copy(
        golden("models/gpt2/config.json"),
        truncated.path().join("config.json"),
    )
    .unwrap();

    for (name, expected) in [
        ("gpt2-large", "127.0.0.1 cannot be reached"),
        ("gpt2-large", "Models that need no network: tiny-gpt2"),
        (
            no_config.as_str(),
            "has no config.json; it holds: notes.txt",
        ),
        (
            truncated.path().to_str().unwrap(),
            "it is truncated or damaged",
        ),
        ("./no/such/folder", "there is no folder ./no/such/folder"),
    ] {
        let (code, error) = failure(&["inspect", name]);
        assert_eq!(code, 1, "{error}");
        assert!(error.contains(expected), "{error}");
        assert_eq!(
            error
                .lines()
                .filter(|line| line.starts_with("error"))
                .count(),
            1,
            "{error}"
        );
    }
}

#[test]
fn offline_mode_and_unwritable_output_are_named() {
    let (code, error) = failure(&["inspect", "gpt2-large", "--offline"]);
    assert!(
        code == 1 && error.contains("is not in the cache") && error.contains("offline mode is on"),
        "{error}"
    );

    let (code, error) = failure(&[
        "logits",
        "tiny-gpt2",
        "--token-ids",
        "1",
        "--out",
        "/no/such/folder/x",
    ]);
    assert!(
        code == 1 && error.contains("cannot write /no/such/folder/x"),
        "{error}"
    );
}

#[test]
fn drafts_keep_the_text_are_counted_and_need_per_row_outliers() {
    let prompt = "the king said unto him, the king said unto them, the king said unto";
    let arguments = [
        "run",
        "tiny-gpt2",
        "--greedy",
        "--prompt",
        prompt,
        "--outliers",
        "row",
    ];
    let plain = run(&arguments);
    let drafted = run(&[&arguments[..], &["--speculate", "6"]].concat());
    assert_eq!(stdout(&plain), stdout(&drafted));
    assert!(stderr(&drafted).contains("drafts:  ") && !stderr(&plain).contains("drafts:  "));

    let (code, text) = failure(&["run", "tiny-gpt2", "--prompt", "a", "--speculate", "6"]);
    assert_eq!(code, 2);
    assert!(text.contains("--outliers row"), "{text}");
}

#[test]
fn a_prompts_file_gives_one_json_object_per_prompt() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("prompts.txt");
    std::fs::write(&file, "And it came\n\nROMEO:\n").unwrap();
    let file = file.display().to_string();
    let options = ["--greedy", "-n", "8", "--outliers", "row"];
    let with = |more: &[&str]| run(&[&["run", "tiny-gpt2"], &options[..], more].concat());
    let output = with(&["--prompts-file", &file]);
    let lines: Vec<serde_json::Value> = stdout(&output)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);

    for (line, prompt) in lines.iter().zip(["And it came", "ROMEO:"]) {
        assert_eq!(line["prompt"], prompt);
        let alone = stdout(&with(&["--prompt", prompt]));
        assert_eq!(
            line["text"].as_str().unwrap(),
            alone.strip_suffix('\n').unwrap()
        );
        assert_eq!(line["token_ids"].as_array().unwrap().len(), 8);
    }

    assert!(
        stderr(&output).contains("2 prompts, 2 at once: 16 new tokens"),
        "{}",
        stderr(&output)
    );
    assert_eq!(
        stdout(&with(&["--prompts-file", &file, "--speculate", "3"])),
        stdout(&output)
    );

    let empty = folder.path().join("empty.txt").display().to_string();
    std::fs::write(&empty, "\n").unwrap();
    assert_eq!(
        failure(&["run", "tiny-gpt2", "--prompts-file", &empty]).0,
        2
    );
    assert_eq!(
        failure(&["run", "tiny-gpt2", "--prompts-file", "/nowhere"]).0,
        1
    );
    assert_eq!(
        failure(&[
            "run",
            "tiny-gpt2",
            "--prompts-file",
            &empty,
            "--prompt",
            "a"
        ])
        .0,
        2
    );
}

#[test]
fn an_int8_head_runs_but_cannot_be_saved() {
    let text = stdout(&run(&["inspect", "tiny-gpt2", "--quantize-head"]));
    assert!(text.contains("Embedding8bit(4096, 256)"), "{text}");
    assert_eq!(
        text,
        stdout(&run(&[
            "inspect",
            "tiny-gpt2",
            "--quantize-head",
            "--headers-only"
        ]))
    );

    let text = stdout(&run(&[
        "run",
        "tiny-gpt2",
        "--quantize-head",
        "--prompt",
        "And it came",
        "-n",
        "4",
    ]));
    assert!(text.len() > 4);

    let (code, text) = failure(&[
        "quantize",
        "tiny-gpt2",
        "--quantize-head",
        "-o",
        "/tmp/never",
    ]);
    assert!(
        code == 2 && text.contains("bitsandbytes does not know"),
        "{text}"
    );
    assert_eq!(
        failure(&[
            "run",
            "tiny-gpt2",
            "--quantize-head",
            "--no-quantize",
            "--prompt",
            "a"
        ])
        .0,
        2
    );
}

#[test]
fn shell_completions_and_man_pages_are_written() {
    let text = stdout(&run(&["completions", "bash"]));
    assert!(text.contains("complete -F") && text.contains("--outlier-weights"));

    let folder = TempDir::new().unwrap();
    stdout(&run(&["man", folder.path().to_str().unwrap()]));
    let page = std::fs::read_to_string(folder.path().join("llm-int8-run.1")).unwrap();
    assert!(page.contains("threshold"));
}
