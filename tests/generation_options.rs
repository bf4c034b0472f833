//! Generation options of the command line against the same settings in `generation_config.json`.

use crate::generation::llama;
use crate::support::llm_int8;
use serde_json::json;
use tempfile::TempDir;

/// The new token ids that the program prints.
fn printed(folder: &TempDir, options: &[&str]) -> Vec<u32> {
    let path = folder.path().to_str().unwrap();
    let model = [
        "run",
        path,
        "--token-ids",
        "5,9,33,77,9,33",
        "--no-quantize",
        "--dtype",
        "float32",
    ];
    let output = llm_int8(&[&model[..], &["--print-ids", "-q"], options].concat());
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );

    let text = String::from_utf8(output.stdout).unwrap();

    text.trim()
        .split(',')
        .map(|id| id.parse().unwrap())
        .collect()
}

#[test]
fn command_line_options_match_the_settings_of_the_file() {
    let plain = llama(json!({}));
    for (settings, options) in [
        (
            json!({ "no_repeat_ngram_size": 1 }),
            vec!["--no-repeat-ngram-size", "1"],
        ),
        (
            json!({ "encoder_no_repeat_ngram_size": 1 }),
            vec!["--encoder-no-repeat-ngram-size", "1"],
        ),
        (
            json!({ "encoder_repetition_penalty": 3.0 }),
            vec!["--encoder-repetition-penalty", "3"],
        ),
        (
            json!({ "repetition_penalty": 1.7 }),
            vec!["--repetition-penalty", "1.7"],
        ),
        (
            json!({ "bad_words_ids": [[20], [222, 172]] }),
            vec!["--bad-words-ids", "20", "--bad-words-ids", "222,172"],
        ),
        (
            json!({ "suppress_tokens": [20, 222] }),
            vec!["--suppress-tokens", "20,222"],
        ),
        (
            json!({ "begin_suppress_tokens": [20] }),
            vec!["--begin-suppress-tokens", "20"],
        ),
        (
            json!({ "forced_eos_token_id": 4 }),
            vec!["--forced-eos-token-id", "4"],
        ),
        (json!({ "max_new_tokens": 3 }), vec!["-n", "3"]),
    ] {
        let from_file = printed(&llama(settings.clone()), &[]);
        assert_eq!(printed(&plain, &options), from_file, "{settings}");
    }
}

#[test]
fn length_options_move_the_end_of_the_text() {
    let ends = llama(json!({ "eos_token_id": 222 }));
    assert_eq!(printed(&ends, &[]), [20, 222]);

    let later = printed(&ends, &["--min-new-tokens", "4", "-n", "8"]);
    assert!(later.len() > 4 && !later[..4].contains(&222), "{later:?}");

    let sooner = printed(
        &llama(json!({ "eos_token_id": 17 })),
        &["--exponential-decay-length-penalty", "2,1.8"],
    );
    assert_eq!(sooner, [20, 222, 172, 102, 29, 17]);
}

#[test]
fn the_command_line_overrides_the_length_in_the_file() {
    let most = llama(json!({ "max_new_tokens": 3, "max_length": 50 }));
    assert_eq!(printed(&most, &[]).len(), 3, "max_new_tokens in the file");
    assert_eq!(
        printed(&most, &["-n", "5"]).len(),
        5,
        "-n overrides the file"
    );
    assert_eq!(
        printed(&llama(json!({ "max_length": 10 })), &[]).len(),
        4,
        "max_length counts the prompt"
    );
    assert_eq!(printed(&llama(json!({})), &[]).len(), 64);
}

#[test]
fn sampling_draws_only_from_what_the_filters_keep() {
    let plain = llama(json!({}));
    let greedy = printed(&plain, &["-n", "12"]);

    // Filters that keep only the most likely token make sampling greedy, whatever the seed.
    for filter in [
        ["--top-k", "1"],
        ["--top-p", "0"],
        ["--epsilon-cutoff", "0.9999"],
        ["--min-p", "1"],
    ] {
        let drawn = printed(
            &plain,
            &[&["-n", "12", "--seed", "3"], &filter[..]].concat(),
        );
        assert_eq!(drawn, greedy, "{filter:?}");
    }

    let drawn = printed(
        &plain,
        &[
            "-n",
            "12",
            "--seed",
            "3",
            "--top-k",
            "0",
            "--temperature",
            "3",
        ],
    );
    assert_ne!(drawn, greedy);

    let processed = printed(
        &plain,
        &[
            "-n",
            "12",
            "--seed",
            "3",
            "--top-k",
            "1",
            "--no-repeat-ngram-size",
            "1",
        ],
    );
    assert_eq!(
        processed,
        printed(&plain, &["-n", "12", "--no-repeat-ngram-size", "1"])
    );
}
