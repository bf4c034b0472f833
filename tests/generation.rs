//! Generation settings in a model's files against transformers (`golden/generation/greedy.json`,
//! made by `scripts/make_generation_golden.py`): alone, with drafts, in batches and on devices.

use crate::support::{golden, golden_text, llm_int8};
use llm_int8::decoder::{Placement, WeightDtype};
use llm_int8::{
    AutoModelForCausalLM, FinishReason, Generated, GenerationConfig, LlmError, LoadConfig, Request,
    Warning,
};
use llm_int8_cuda::testing;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn cases() -> Vec<Value> {
    serde_json::from_str(&golden_text("generation/greedy.json")).unwrap()
}

fn folder_of(model: &str) -> PathBuf {
    match model {
        "tiny-gpt2" => crate::support::root().join("models/tiny-gpt2"),
        model => golden("models").join(model),
    }
}

fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A copy of the case's model with the case's own settings files, as the script makes it.
fn folder(case: &Value) -> TempDir {
    let copy = TempDir::new().unwrap();
    let from = folder_of(case["model"].as_str().unwrap());
    for name in [
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        if from.join(name).exists() {
            std::fs::copy(from.join(name), copy.path().join(name)).unwrap();
        }
    }

    if !case["generation_config"].is_null() {
        let text = case["generation_config"].to_string();
        std::fs::write(copy.path().join("generation_config.json"), text).unwrap();
    }

    let mut config = json_file(&from.join("config.json"));
    for (key, value) in case["config"].as_object().into_iter().flatten() {
        config[key] = value.clone();
    }

    for key in case["config_without"].as_array().into_iter().flatten() {
        config
            .as_object_mut()
            .unwrap()
            .remove(key.as_str().unwrap());
    }
    std::fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
    if !case["special_token"].is_null() {
        let path = copy.path().join("tokenizer.json");
        let mut tokenizer = json_file(&path);
        tokenizer["added_tokens"]
            .as_array_mut()
            .unwrap()
            .push(case["special_token"].clone());
        std::fs::write(path, tokenizer.to_string()).unwrap();
    }

    copy
}

fn load_on(folder: &Path, placement: Placement) -> AutoModelForCausalLM {
    let mut config = LoadConfig::default();
    config.options.int8 = None;
    config.options.dtype = WeightDtype::Float32;
    config.options.placement = placement;
    AutoModelForCausalLM::from_pretrained(folder.to_str().unwrap(), &config).unwrap()
}

fn load(folder: &Path) -> AutoModelForCausalLM {
    load_on(folder, Placement::cpu())
}

fn ids(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_u64().unwrap() as u32)
        .collect()
}

/// The model's own settings, with the case's `max_new_tokens` if it has one.
fn settings(model: &AutoModelForCausalLM, case: &Value) -> GenerationConfig {
    let mut config = model.generation_config();
    if let Some(new) = case["max_new_tokens"].as_u64() {
        config.max_new_tokens = Some(new as usize);
    }
    config
}

fn run(
    model: &AutoModelForCausalLM,
    prompt: &[u32],
    config: &GenerationConfig,
) -> llm_int8::Result<Generated> {
    model
        .generation(prompt)
        .config(config.clone())
        .ids_only()
        .run()
}

fn generate(model: &AutoModelForCausalLM, prompt: &[u32], config: &GenerationConfig) -> Vec<u32> {
    run(model, prompt, config).unwrap().ids
}

/// Calls `check` with each case, its model, its settings and its prompt.
fn for_each_case(check: impl Fn(&Value, &AutoModelForCausalLM, &GenerationConfig, &[u32])) {
    for case in cases() {
        let folder = folder(&case);
        let model = load(folder.path());
        check(
            &case,
            &model,
            &settings(&model, &case),
            &ids(&case["prompt"]),
        );
    }
}

#[test]
fn settings_in_the_model_files_give_the_ids_of_transformers() {
    assert!(cases().len() > 100);

    for_each_case(|case, model, config, prompt| {
        assert_eq!(
            generate(model, prompt, config),
            ids(&case["ids"]),
            "{}",
            case["name"]
        );
    });
}

#[test]
fn drafts_and_batches_obey_the_same_settings() {
    for_each_case(|case, model, config, prompt| {
        let drafts = GenerationConfig {
            speculate: 5,
            ..config.clone()
        };
        assert_eq!(
            generate(model, prompt, &drafts),
            ids(&case["ids"]),
            "drafts: {}",
            case["name"]
        );

        let others = [prompt, &[8, 8, 9], prompt].map(|prompt| Request::new(prompt).ids_only());
        let all = model
            .generate_batch(others)
            .config(config.clone())
            .at_once(2)
            .run()
            .unwrap();

        for index in [0, 2] {
            assert_eq!(
                all[index].ids,
                ids(&case["ids"]),
                "prompt {index} of three: {}",
                case["name"]
            );
        }
    });
}

#[test]
fn devices_obey_the_same_settings() {
    for device in testing::devices(&[0]) {
        for case in cases().into_iter().filter(|case| case["model"] == "gpt2") {
            let folder = folder(&case);
            let model = load_on(folder.path(), Placement::on(device.clone()));
            let config = settings(&model, &case);
            let found = generate(&model, &ids(&case["prompt"]), &config);
            assert_eq!(found, ids(&case["ids"]), "{} on {device:?}", case["name"]);
        }
    }
}

#[test]
fn streamed_text_ends_before_the_stop_string_and_has_no_special_tokens() {
    let mut stopped = 0;
    for case in cases()
        .into_iter()
        .filter(|case| case["model"] == "tiny-gpt2")
    {
        let folder = folder(&case);
        let model = load(folder.path());
        let config = settings(&model, &case);
        let mut shown = String::new();
        let mut pieces = model
            .generation(ids(&case["prompt"]))
            .config(config.clone())
            .pieces()
            .unwrap();
        pieces
            .by_ref()
            .for_each(|piece| shown.push_str(&piece.unwrap().text));
        let generated = pieces.finish().unwrap();
        assert_eq!(
            (&generated.ids, &generated.text),
            (&ids(&case["ids"]), &shown),
            "{}",
            case["name"]
        );

        let tokenizer = model.tokenizer().unwrap();
        let whole = tokenizer.decode(&generated.ids).unwrap();
        let has_stop = config.stop.iter().any(|stop| shown.contains(stop.as_str()));
        assert!(
            !has_stop && whole.starts_with(&shown),
            "{}: {shown:?} of {whole:?}",
            case["name"]
        );

        match generated.finish_reason {
            FinishReason::StopString => stopped += 1,
            _ => assert_eq!(
                (&whole, generated.ids.len()),
                (&shown, 24),
                "{}",
                case["name"]
            ),
        }
    }
    assert!(stopped > 6, "{stopped}");
}

/// The golden llama with this `generation_config.json`.
pub(crate) fn llama(generation_config: Value) -> TempDir {
    folder(&json!({ "model": "llama", "generation_config": generation_config }))
}

#[test]
fn stop_strings_need_a_tokenizer_but_token_ids_alone_do_not() {
    let folder = llama(json!({ "stop_strings": ["x"] }));
    let model = load(folder.path());
    let config = model.generation_config();
    let error = run(&model, &[5, 9], &config).unwrap_err();
    assert!(matches!(error, LlmError::NoTokenizer { .. }), "{error}");

    let without = GenerationConfig {
        stop: Vec::new(),
        max_new_tokens: Some(3),
        ..config
    };
    assert_eq!(generate(&model, &[5, 9], &without).len(), 3);
}

#[test]
fn a_requested_length_must_fit_and_the_default_length_shrinks_to_fit() {
    let folder = llama(json!({ "max_length": 3 }));
    let model = load(folder.path());
    let config = model.generation_config();
    assert_eq!(generate(&model, &[5, 9], &config).len(), 1);

    let error = run(&model, &[5, 9, 33], &config).unwrap_err().to_string();
    assert!(
        error.contains("max_length") && error.contains("set max_new_tokens"),
        "{error}"
    );

    let positions = model.decoder().spec().positions;
    let long = vec![5; positions - 7];
    assert_eq!(
        generate(&model, &long, &GenerationConfig::default()).len(),
        7
    );

    let given = GenerationConfig {
        max_new_tokens: Some(8),
        ..GenerationConfig::default()
    };
    let error = run(&model, &long, &given).unwrap_err();
    assert!(matches!(error, LlmError::ContextExceeded { .. }), "{error}");
}

#[test]
fn max_time_ends_generation_and_ids_beyond_the_vocabulary_are_rejected() {
    let folder = llama(json!({ "max_time": 0.0 }));
    let model = load(folder.path());
    let config = model.generation_config();
    let generated = run(&model, &[5, 9], &config).unwrap();
    assert_eq!(
        (generated.ids.len(), generated.finish_reason),
        (1, FinishReason::Time)
    );

    for wrong in [
        GenerationConfig {
            bad_words_ids: vec![vec![5, 256]],
            ..GenerationConfig::default()
        },
        GenerationConfig {
            forced_eos_token_ids: vec![256],
            ..GenerationConfig::default()
        },
    ] {
        let error = run(&model, &[5, 9], &wrong).unwrap_err();
        assert!(
            matches!(error, LlmError::Setting { .. }) && error.to_string().contains("256"),
            "{error}"
        );
    }
}

#[test]
fn unsupported_settings_are_in_the_report_and_printed_once() {
    let folder = llama(json!({ "num_beams": 4, "top_p": 0.5, "eos_token_id": 2, "made_up": 1 }));
    let path = folder.path().to_str().unwrap();
    let file = folder
        .path()
        .join("generation_config.json")
        .display()
        .to_string();
    let expected = [
        Warning::IgnoredSettings {
            file: file.clone(),
            keys: vec!["num_beams".into()],
        },
        Warning::SamplingSettings {
            file,
            keys: vec!["top_p".into()],
        },
    ];
    assert_eq!(load(folder.path()).load_report().warnings, expected);

    let output = llm_int8(&[
        "run",
        path,
        "--token-ids",
        "5,9",
        "--print-ids",
        "-n",
        "2",
        "-q",
    ]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{error}");
    assert_eq!(error.matches("num_beams").count(), 1, "{error}");
    assert_eq!(error.matches("top_p").count(), 1, "{error}");
    assert!(!error.contains("made_up"), "{error}");
}

#[test]
fn a_value_of_the_wrong_type_is_named_with_its_file() {
    let folder = llama(json!({ "bad_words_ids": [5, 6] }));
    let path = folder.path().to_str().unwrap();
    let output = llm_int8(&["run", path, "--token-ids", "5,9", "--print-ids"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains("generation_config.json") && error.contains("`bad_words_ids` is [5,6]"),
        "{error}"
    );
}
