//! Configurations as published with their models: the folders of `golden/published`, made by
//! `scripts/make_published_golden.py`. Weights are computed from the parameters' names.

use crate::support::{Tensors, golden, golden_text, llm_int8, write_tensors};
use llm_int8_decoder::spec::with_model_type;
use llm_int8_decoder::{Decoder, FAMILIES, LoadOptions, ModelConfig, WeightDtype};
use llm_int8_nn::checkpoint::Checkpoint;
use llm_int8_nn::config::ConfigClass;
use llm_int8_nn::module::Module;
use serde_json::{Map, Value};
use std::sync::Arc;

/// Keys of configuration classes that change nothing in inference with a text-only causal model, or
/// that code other than the families reads.
const NOT_ACTED_ON: &[&str] = &[
    "initializer_range",
    "init_std",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    // Dropout rates that create no module, so the tree does not show them.
    "attn_pdrop",
    "attention_dropout",
    "hidden_dropout",
    "dropout",
    "layerdrop",
    "residual_dropout",
    "embedding_dropout",
    "embd_pdrop",
    "resid_pdrop",
    "emb_pdrop",
    "classifier_dropout",
    // Classification heads.
    "summary_type",
    "summary_use_proj",
    "summary_activation",
    "summary_proj_to_labels",
    "summary_first_dropout",
    // How sums are rounded or split, and keys that transformers itself ignores.
    "reorder_and_upcast_attn",
    "attention_softmax_in_fp32",
    "scale_attention_softmax_in_fp32",
    "pretraining_tp",
    "slow_but_exact",
    "attn_impl",
    "attn_logit_softcapping",
    "attn_uses_sequence_id",
    "expansion_ratio",
    "learned_pos_emb",
    "init_device",
    "logit_scale",
    "no_bias",
    "verbose",
    "embedding_fraction",
    "norm_type",
];

/// Keys we have defaults for although they are not parameters of the class's `__init__`.
const FROM_ELSEWHERE: &[(&str, &str)] = &[
    ("bloom", "n_embed"),
    ("falcon", "n_embed"),
    ("falcon", "apply_residual_connection_post_layernorm"),
    ("gemma3_text", "sliding_window_pattern"),
];

/// The folders of `golden/published`.
fn names() -> Vec<String> {
    let entries = std::fs::read_dir(golden("published")).unwrap().flatten();
    let folders = entries.filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> = folders
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();

    names
}

fn expected(name: &str) -> Value {
    serde_json::from_str(&golden_text(&format!("published/{name}/expected.json"))).unwrap()
}

/// A parameter's values as little-endian f32, computed as `values` in the script does.
fn values(name: &str, seed: &Value, shape: &[usize]) -> Vec<u8> {
    let start = format!("{name}#{seed}")
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |state, byte| {
            (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    let is_norm = shape.len() == 1 && name.ends_with("weight");
    let scale = if shape.len() == 1 { 0.25 } else { 0.5 };
    let value = |index: u64| {
        let z = start.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let u = ((z ^ (z >> 31)) >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
        if is_norm { u * scale + 1.0 } else { u * scale }
    };

    let count = shape.iter().product::<usize>() as u64;

    (0..count)
        .flat_map(|index| value(index).to_le_bytes())
        .collect()
}

/// The tensors of a model, from the names and shapes of its parameters.
fn tensors(expected: &Value) -> Tensors {
    let parameters = expected["parameters"].as_object().unwrap();
    let tensor = |(name, shape): (&String, &Value)| {
        let shape: Vec<usize> = serde_json::from_value(shape.clone()).unwrap();
        let bytes = values(name, &expected["seed"], &shape);
        (name.clone(), (safetensors::Dtype::F32, shape, bytes))
    };

    parameters.iter().map(tensor).collect()
}

fn load(name: &str, expected: &Value) -> Result<Decoder, String> {
    let text = golden_text(&format!("published/{name}/config.json"));
    let config = ModelConfig::parse(text.as_bytes()).map_err(|error| error.to_string())?;
    let config = with_model_type(config, name);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    write_tensors(&file, &tensors(expected));
    let checkpoint = Arc::new(Checkpoint::open_safetensors(&[file], None).unwrap());
    let options = LoadOptions {
        int8: None,
        dtype: WeightDtype::Float32,
        ..LoadOptions::default()
    };
    let loaded = Decoder::load(&config, &checkpoint, &options, &mut |_| ());

    loaded
        .map(|(decoder, _)| decoder)
        .map_err(|error| error.to_string())
}

/// Ten greedy tokens, and the first eight logits after the prompt.
fn greedy(model: &Decoder, prompt: &[u32]) -> (Vec<u32>, Vec<f32>) {
    let mut cache = model.new_cache();
    let mut ids = prompt.to_vec();
    let mut fed = 0;
    let mut first = Vec::new();
    for _ in 0..10 {
        let logits = model.next_logits(&ids[fed..], &mut cache).unwrap();
        if fed == 0 {
            first = logits[..8].to_vec();
        }
        fed = ids.len();
        ids.push(
            (0..)
                .zip(&logits)
                .max_by(|a, b| a.1.total_cmp(b.1))
                .unwrap()
                .0,
        );
    }

    (ids.split_off(prompt.len()), first)
}

fn check(name: &str) -> Result<(), String> {
    let expected = expected(name);
    let model = load(name, &expected)?;

    let tree = model.describe();
    let theirs = golden_text(&format!("published/{name}/tree.txt"));
    if format!("{tree}\n") != theirs {
        return Err(format!("ours:\n{tree}\ntransformers':\n{theirs}"));
    }

    let ours: Vec<String> = tree
        .named_parameters()
        .iter()
        .map(|parameter| parameter.name.clone())
        .collect();
    let theirs: Vec<&String> = expected["parameters"].as_object().unwrap().keys().collect();
    if ours.iter().collect::<std::collections::BTreeSet<_>>() != theirs.iter().copied().collect() {
        return Err(format!("parameters are {ours:?}, not {theirs:?}"));
    }

    let list = |key: &str| expected[key].as_array().unwrap().clone();
    let prompt: Vec<u32> = list("prompt")
        .iter()
        .map(|id| id.as_u64().unwrap() as u32)
        .collect();
    let (ids, first) = greedy(&model, &prompt);
    let theirs: Vec<f32> = list("logits")
        .iter()
        .map(|x| x.as_f64().unwrap() as f32)
        .collect();
    let largest = theirs.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    if first
        .iter()
        .zip(&theirs)
        .any(|(a, b)| (a - b).abs() > 1e-4 * largest)
    {
        return Err(format!("logits are {first:?}, not {theirs:?}"));
    }
    if serde_json::json!(ids) != expected["ids"] {
        return Err(format!("ids are {ids:?}, not {}", expected["ids"]));
    }

    Ok(())
}

#[test]
fn published_configurations_give_the_trees_and_ids_of_transformers() {
    let names = names();
    assert!(names.len() >= 35, "{names:?}");

    let faults: Vec<String> = names
        .iter()
        .filter_map(|name| check(name).err().map(|fault| format!("{name}: {fault}")))
        .collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// Python writes floats that are not finite as `Infinity` and `NaN`, which are not JSON. Saving a
/// model keeps them.
#[test]
fn infinity_and_nan_in_config_json_survive_saving() {
    let name = "llama-python-words";
    let folder = tempfile::tempdir().unwrap();
    let [model, saved] = ["model", "saved"].map(|part| folder.path().join(part));
    std::fs::create_dir(&model).unwrap();
    std::fs::copy(
        golden(&format!("published/{name}/config.json")),
        model.join("config.json"),
    )
    .unwrap();
    write_tensors(&model.join("model.safetensors"), &tensors(&expected(name)));

    let [from, to] = [&model, &saved].map(|path| path.to_str().unwrap());
    let output = llm_int8(&["quantize", from, "--output", to]);
    assert!(output.status.success(), "{output:?}");

    let text = std::fs::read_to_string(saved.join("config.json")).unwrap();
    for words in [
        "Infinity\n",
        "\"low\": -Infinity",
        "\"mean\": NaN",
        "\"NaN, Infinity and -Infinity stay in texts\"",
    ] {
        assert!(text.contains(words), "{words} in {text}");
    }

    let output = llm_int8(&["inspect", to]);
    assert!(output.status.success(), "{output:?}");
}

/// A family's defaults are those of its configuration class in transformers, and every key of the
/// class is either read or known to change nothing.
#[test]
fn defaults_and_aliases_match_the_configuration_classes() {
    let golden: Value = serde_json::from_str(&golden_text("published/defaults.json")).unwrap();
    for family in FAMILIES {
        let theirs = &golden[family.model_type];
        compare_defaults(family.model_type, &family.class, theirs);
        let aliases: Map<String, Value> = family
            .class
            .aliases
            .iter()
            .map(|(alias, name)| ((*alias).into(), (*name).into()))
            .collect();
        assert_eq!(
            theirs["aliases"],
            Value::Object(aliases),
            "{}",
            family.model_type
        );
    }
}

fn compare_defaults(family: &str, class: &ConfigClass, theirs: &Value) {
    let ours: Map<String, Value> = serde_json::from_str(class.defaults).unwrap();
    let theirs = theirs["defaults"].as_object().unwrap();
    for (key, value) in &ours {
        match theirs.get(key) {
            Some(other) => assert_eq!(value, other, "{family}: `{key}`"),
            None => assert!(
                FROM_ELSEWHERE.contains(&(family, key.as_str())),
                "{family}: `{key}`"
            ),
        }
    }

    for key in theirs.keys() {
        let is_read = ours.contains_key(key) || NOT_ACTED_ON.contains(&key.as_str());
        assert!(is_read, "{family}: nobody reads `{key}`");
    }
}
