//! Weights as people have them: a tiny checkpoint (`golden/field/llama`) changed as
//! scripts/make_field_weights_golden.py changes it, beside what transformers makes of it
//! (`weights.json`).

use crate::support::{Tensors, golden, golden_text, llm_int8, read_tensors, write_tensors};
use candle_core::{Device, Tensor};
use half::f16;
use llm_int8::decoder::{LoadOptions, LoadWarning, WeightDtype};
use llm_int8::hub::{HubConfig, NoProgress};
use llm_int8::nn::linear::Int8Config;
use llm_int8::nn::module::SkipList;
use llm_int8::{AutoModelForCausalLM, LoadConfig, Warning};
use safetensors::Dtype;
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

const IDS: [u32; 7] = [5, 9, 33, 17, 60, 2, 7];
const UP: &str = "model.layers.0.mlp.up_proj";
const NORM: &str = "model.norm.weight";

fn config() -> Value {
    serde_json::from_str(&golden_text("field/llama/config.json")).unwrap()
}

fn tensors() -> Tensors {
    read_tensors("field/llama/model.safetensors")
}

fn expected(case: &str) -> Value {
    let all: Value = serde_json::from_str(&golden_text("field/weights.json")).unwrap();
    all[case].clone()
}

fn floats(value: &Value) -> Vec<f32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|x| x.as_f64().unwrap() as f32)
        .collect()
}

fn folder(config: &Value, tensors: &Tensors) -> TempDir {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    write_tensors(&folder.path().join("model.safetensors"), tensors);
    folder
}

fn load(folder: &Path, options: &LoadOptions) -> llm_int8::Result<AutoModelForCausalLM> {
    let hub = HubConfig {
        offline: true,
        ..HubConfig::from_env()
    };
    let config = LoadConfig {
        options: options.clone(),
        hub,
    };
    let model = AutoModelForCausalLM::from_pretrained(&folder.display().to_string(), &config);
    // Headers alone say the same.
    let plan = AutoModelForCausalLM::plan(&folder.display().to_string(), &config, &NoProgress);
    match (&model, plan) {
        (Ok(model), Ok(plan)) => {
            assert_eq!(plan.tree, *model.tree());
            assert_eq!(plan.warnings, model.load_report().warnings);
        }
        (Ok(_), Err(error)) => panic!("{error}"),
        (Err(_), _) => {}
    }
    model
}

fn floats_in_f32() -> LoadOptions {
    LoadOptions {
        int8: None,
        dtype: WeightDtype::Float32,
        ..LoadOptions::default()
    }
}

fn int8_in_f32() -> LoadOptions {
    LoadOptions {
        dtype: WeightDtype::Float32,
        ..LoadOptions::default()
    }
}

/// ‖ours − theirs‖ / ‖theirs‖ of the logits after the last token.
fn distance(model: &AutoModelForCausalLM, case: &str) -> f32 {
    let input = Tensor::new(&[IDS], &Device::Cpu).unwrap();
    let logits = model.decoder().logits(&input).unwrap();
    let logits = logits
        .to_dtype(candle_core::DType::F32)
        .unwrap()
        .to_vec3::<f32>()
        .unwrap();
    let theirs = floats(&expected(case)["logits"]);
    let ours = &logits[0][logits[0].len() - 1];
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>();
    (square(&mut ours.iter().zip(&theirs).map(|(a, b)| a - b))
        / square(&mut theirs.iter().copied()))
    .sqrt()
}

fn warnings(model: &AutoModelForCausalLM) -> Vec<String> {
    model
        .load_report()
        .warnings
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn ones(shape: &[usize]) -> (Dtype, Vec<usize>, Vec<u8>) {
    (
        Dtype::F32,
        shape.to_vec(),
        1f32.to_le_bytes().repeat(shape.iter().product()),
    )
}

#[test]
fn tensors_without_a_place_are_ignored_with_a_warning_unless_loading_is_strict() {
    let mut extra = tensors();
    extra.insert("v_head.summary.weight".into(), ones(&[1, 16]));
    extra.insert("score.weight".into(), ones(&[3, 16]));
    extra.insert(
        "model.layers.0.self_attn.rotary_emb.inv_freq".into(),
        ones(&[4]),
    );
    extra.insert(
        "model.layers.0.self_attn.rotary_emb.cos_cached".into(),
        ones(&[1, 1, 8, 8]),
    );
    extra.insert("model.layers.1.self_attn.q_proj.bias".into(), ones(&[16]));
    let folder = folder(&config(), &extra);
    let model = load(folder.path(), &floats_in_f32()).unwrap();
    assert!(distance(&model, "extra") < 1e-5);
    let [warning] = &warnings(&model)[..] else {
        panic!("{:?}", warnings(&model))
    };
    let named = "ignored 4 tensors that llama has no place for: `model.layers.0.self_attn.rotary_emb.cos_cached`, \
                 `model.layers.1.self_attn.q_proj.bias`, `score.weight`, `v_head.summary.weight`";
    assert!(
        warning.ends_with(named) && warning.contains("model.safetensors"),
        "{warning}"
    );

    let strict = LoadOptions {
        strict: true,
        ..floats_in_f32()
    };
    let error = load(folder.path(), &strict).unwrap_err().to_string();
    assert!(
        error.contains("4 tensor(s)") && error.contains("option `strict`"),
        "{error}"
    );
    let path = folder.path().display().to_string();
    for (more, code, message) in [
        (&["--headers-only"][..], 0, "warning: "),
        (&[], 0, "warning: "),
        (&["--strict"], 1, "cannot be loaded with --strict"),
    ] {
        let output = llm_int8(&[&["inspect", &path], more].concat());
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            (output.status.code(), text.contains(message)),
            (Some(code), true),
            "{text}"
        );
        assert!(text.contains("`score.weight`"), "{text}");
    }
}

#[test]
fn layers_beyond_the_configured_ones_are_ignored_and_missing_ones_are_not() {
    let mut fewer = config();
    fewer["num_hidden_layers"] = 1.into();
    let model = load(folder(&fewer, &tensors()).path(), &floats_in_f32()).unwrap();
    assert!(distance(&model, "fewer_layers") < 1e-5);
    let warning = &warnings(&model)[0];
    assert!(
        warning.contains("ignored 9 tensors")
            && warning.ends_with("`model.layers.1.post_attention_layernorm.weight` and 4 more"),
        "{warning}"
    );

    // Weights of another model have too much and too little.
    let other = read_tensors("models/gpt2/model.safetensors");
    let error = load(folder(&config(), &other).path(), &floats_in_f32())
        .unwrap_err()
        .to_string();
    assert!(error.contains("has no tensor"), "{error}");
}

/// Two shards with tensors in turn, and their map.
fn shards() -> (
    [&'static str; 2],
    [Tensors; 2],
    serde_json::Map<String, Value>,
) {
    let names = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ];
    let (mut shards, mut map) = ([Tensors::new(), Tensors::new()], serde_json::Map::new());
    for (i, (name, tensor)) in tensors().into_iter().enumerate() {
        map.insert(name.clone(), names[i % 2].into());
        shards[i % 2].insert(name, tensor);
    }
    (names, shards, map)
}

fn sharded(shards: &[Tensors; 2], map: &serde_json::Map<String, Value>) -> TempDir {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("config.json"), config().to_string()).unwrap();
    let names = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ];
    names
        .iter()
        .zip(shards)
        .for_each(|(name, shard)| write_tensors(&folder.path().join(name), shard));
    let index = json!({ "metadata": {}, "weight_map": map }).to_string();
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    folder
}

#[test]
fn the_index_says_which_copy_of_a_tensor_counts() {
    let (names, parts, map) = shards();
    let here = usize::from(map[NORM] == names[1]);
    for listed in [0, 1] {
        let (mut parts, mut map) = (parts.clone(), map.clone());
        parts[listed].insert(NORM.into(), parts[here][NORM].clone());
        parts[1 - listed].insert(NORM.into(), ones(&[16]));
        map.insert(NORM.into(), names[listed].into());
        let model = load(sharded(&parts, &map).path(), &floats_in_f32()).unwrap();
        assert!(distance(&model, "plain") < 1e-5, "{listed}");
        // transformers takes the last shard's copy.
        let warned = matches!(&model.load_report().warnings[..], [Warning::Weights(LoadWarning::CopiedTensors { names })] if names == &[NORM]);
        assert_eq!(warned, listed == 0, "{:?}", model.load_report().warnings);
    }
}

#[test]
fn an_index_may_name_another_shard_and_tensors_that_nobody_needs() {
    let (names, parts, map) = shards();
    let mut moved = map.clone();
    moved.insert(
        NORM.into(),
        names[usize::from(map[NORM] == names[0])].into(),
    );
    let model = load(sharded(&parts, &moved).path(), &floats_in_f32()).unwrap();
    assert!(distance(&model, "index_names_another_shard") < 1e-5 && warnings(&model).is_empty());

    let mut more = map.clone();
    more.insert("ghost".into(), names[0].into());
    let model = load(sharded(&parts, &more).path(), &floats_in_f32()).unwrap();
    assert!(
        distance(&model, "index_lists_nothing") < 1e-5 && warnings(&model)[0].contains("`ghost`")
    );

    // What the index does not list is not there, and no file that it does not name is opened.
    let (mut stale, mut unlisted) = (parts.clone(), map.clone());
    stale[0].insert("stale".into(), ones(&[1]));
    let folder = sharded(&stale, &map);
    std::fs::write(
        folder.path().join("model-00003-of-00003.safetensors"),
        "no tensors",
    )
    .unwrap();
    assert!(warnings(&load(folder.path(), &floats_in_f32()).unwrap()).is_empty());
    let strict = LoadOptions {
        strict: true,
        ..floats_in_f32()
    };
    assert!(
        load(folder.path(), &strict)
            .unwrap_err()
            .to_string()
            .contains("`stale`")
    );
    unlisted.remove(NORM);
    let error = load(sharded(&parts, &unlisted).path(), &floats_in_f32())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(NORM) && error.contains("but the index does not list it"),
        "{error}"
    );

    let mut lacking = parts.clone();
    lacking.iter_mut().for_each(|part| drop(part.remove(NORM)));
    let error = load(sharded(&lacking, &map).path(), &floats_in_f32())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(NORM) && error.contains("the index says that it is in model-0000"),
        "{error}"
    );
}

fn in_8_bit(more: Value) -> Value {
    let mut config = config();
    config["quantization_config"] = more;
    config
}

#[test]
fn floats_that_config_json_calls_8_bit_are_quantised_as_it_says() {
    let flag = json!({ "load_in_8bit": true });
    let with = |key: &str, value: Value| {
        let mut config = flag.clone();
        config[key] = value;
        config
    };
    let defaults = distance(
        &load(folder(&config(), &tensors()).path(), &int8_in_f32()).unwrap(),
        "int8",
    );
    assert!(defaults < 0.02, "{defaults}");
    for (case, stored) in [
        ("int8", flag.clone()),
        ("int8_gptq_too", with("quant_method", "gptq".into())),
        ("int8_threshold", with("llm_int8_threshold", 0.5.into())),
        (
            "int8_skip",
            with("llm_int8_skip_modules", json!(["mlp", "nothing"])),
        ),
        (
            "int8_skip_nothing",
            with("llm_int8_skip_modules", json!([])),
        ),
        (
            "int8_skip_paths",
            with(
                "llm_int8_skip_modules",
                json!(["lm_head", "ers.1", "q_proj"]),
            ),
        ),
        (
            "int8_fp16_weight",
            with("llm_int8_has_fp16_weight", true.into()),
        ),
    ] {
        let folder = folder(&in_8_bit(stored), &tensors());
        let model = load(folder.path(), &int8_in_f32()).unwrap();
        let mut layers: Vec<String> = model
            .load_report()
            .layers
            .replaced
            .iter()
            .map(ToString::to_string)
            .collect();
        layers.sort();
        assert_eq!(json!(layers), expected(case)["int8_layers"], "{case}");
        assert!(
            distance(&model, case) < 0.02,
            "{case}: {}",
            distance(&model, case)
        );
        assert!(!model.is_prequantized() && warnings(&model).is_empty());
        // Whoever asks for floats gets them.
        assert!(
            distance(&load(folder.path(), &floats_in_f32()).unwrap(), "plain") < 1e-5,
            "{case}"
        );
    }
    let folder = folder(
        &in_8_bit(with("llm_int8_threshold", 0.5.into())),
        &tensors(),
    );
    let threshold = |options: LoadOptions| {
        load(folder.path(), &options)
            .unwrap()
            .decoder()
            .int8_config()
            .unwrap()
            .threshold
    };
    assert_eq!(threshold(int8_in_f32()), 0.5);
    assert_eq!(
        threshold(LoadOptions {
            threshold: Some(3.0),
            ..int8_in_f32()
        }),
        3.0
    );
    assert_eq!(
        threshold(LoadOptions {
            int8: Some(Int8Config {
                threshold: 9.0,
                ..Int8Config::default()
            }),
            ..int8_in_f32()
        }),
        0.5
    );
    let mine = LoadOptions {
        skip_modules: SkipList::new(["layers.1"]),
        ..int8_in_f32()
    };
    assert_eq!(
        load(folder.path(), &mine)
            .unwrap()
            .load_report()
            .layers
            .replaced
            .len(),
        7,
        "names are added"
    );
}

#[test]
fn a_head_that_a_skip_list_leaves_out_is_saved_and_loaded_in_8_bit() {
    let stored = json!({ "load_in_8bit": true, "llm_int8_skip_modules": [] });
    let source = folder(&in_8_bit(stored), &tensors());
    let scratch = TempDir::new().unwrap();
    let target = scratch.path().join("saved");
    let output = llm_int8(&[
        "quantize",
        &source.path().display().to_string(),
        "-o",
        &target.display().to_string(),
    ]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let saved: Value =
        serde_json::from_slice(&std::fs::read(target.join("config.json")).unwrap()).unwrap();
    assert_eq!(
        saved["quantization_config"]["llm_int8_skip_modules"],
        json!([])
    );
    let model = load(&target, &int8_in_f32()).unwrap();
    assert!(model.is_prequantized() && model.load_report().layers.kept.is_empty());
}

#[test]
fn layers_of_a_mixed_file_are_what_they_are_there_or_quantised() {
    let source = folder(&in_8_bit(json!({ "load_in_8bit": true })), &tensors());
    let scratch = TempDir::new().unwrap();
    let target = scratch.path().join("saved");
    let output = llm_int8(&[
        "quantize",
        &source.path().display().to_string(),
        "-o",
        &target.display().to_string(),
    ]);
    assert!(output.status.success());
    let mut mixed = crate::support::tensors_of(&target);
    mixed.insert(
        format!("{UP}.weight"),
        tensors()[&format!("{UP}.weight")].clone(),
    );
    mixed.remove(&format!("{UP}.SCB"));
    mixed.remove(&format!("{UP}.weight_format"));
    let mut saved: Value =
        serde_json::from_slice(&std::fs::read(target.join("config.json")).unwrap()).unwrap();
    let model = load(folder(&saved, &mixed).path(), &int8_in_f32()).unwrap();
    assert!(model.is_prequantized() && model.load_report().layers.replaced.len() == 14);
    assert!(distance(&model, "int8_mixed") < 0.02);

    // Without a config nobody says that the float was to become int8.
    saved.as_object_mut().unwrap().remove("quantization_config");
    let model = load(folder(&saved, &mixed).path(), &int8_in_f32()).unwrap();
    assert_eq!(model.load_report().layers.replaced.len(), 13);
    let error = load(folder(&saved, &mixed).path(), &floats_in_f32())
        .unwrap_err()
        .to_string();
    assert!(error.contains("int8 already"), "{error}");

    // An absmax beside floats is a leftover, unless config.json says that it counts.
    let mut leftover = tensors();
    leftover.insert(format!("{UP}.SCB"), ones(&[32]));
    let model = load(folder(&config(), &leftover).path(), &floats_in_f32()).unwrap();
    assert!(warnings(&model)[0].contains("up_proj.SCB"));
    let flagged = in_8_bit(json!({ "load_in_8bit": true }));
    let error = load(folder(&flagged, &leftover).path(), &int8_in_f32())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(UP) && error.contains("float and not I8"),
        "{error}"
    );
}

#[test]
fn unknown_methods_are_ignored_and_known_ones_refused_by_name() {
    for (case, stored, method) in [
        (
            "unknown_method",
            json!({ "quant_method": "exl2", "bits": 4 }),
            "`exl2`",
        ),
        (
            "no_flag",
            json!({ "quant_method": "bitsandbytes", "load_in_8bit": false, "load_in_4bit": false }),
            "`bitsandbytes`",
        ),
    ] {
        let folder = folder(&in_8_bit(stored), &tensors());
        let model = load(folder.path(), &floats_in_f32()).unwrap();
        assert!(distance(&model, case) < 1e-5);
        assert!(
            warnings(&model)[0].contains(method),
            "{:?}",
            warnings(&model)
        );
        // As for any other floats, 8 bit is what the caller asks for.
        let model = load(folder.path(), &int8_in_f32()).unwrap();
        assert_eq!(model.load_report().layers.replaced.len(), 14);
    }
    for (stored, message) in [
        (
            json!({ "quant_method": "gptq", "bits": 4 }),
            "quantised by `gptq`",
        ),
        (json!({ "quant_method": "awq" }), "quantised by `awq`"),
        (json!({ "quant_method": "fp8" }), "quantised by `fp8`"),
        (json!({ "quant_method": "mxfp4" }), "quantised by `mxfp4`"),
        (
            json!({ "quant_method": "compressed-tensors" }),
            "quantised by `compressed-tensors`",
        ),
        (
            json!({ "quant_method": "bitsandbytes", "load_in_4bit": true }),
            "bitsandbytes in 4 bit",
        ),
        (
            json!({ "load_in_4bit": true, "load_in_8bit": true }),
            "are both true",
        ),
        (json!({ "bits": 4, "group_size": 64 }), "no `quant_method`"),
        (
            json!({ "load_in_8bit": "yes" }),
            "`load_in_8bit` is \"yes\"",
        ),
        (
            json!({ "load_in_8bit": true, "llm_int8_skip_modules": "lm_head" }),
            "a list of names was expected",
        ),
        (
            json!({ "load_in_8bit": true, "llm_int8_threshold": -1 }),
            "a number from 0 up",
        ),
    ] {
        let folder = folder(&in_8_bit(stored), &tensors());
        for options in [floats_in_f32(), int8_in_f32()] {
            let error = load(folder.path(), &options).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
    // An unknown method is named where tensors are missing.
    let mut packed = tensors();
    packed.remove(&format!("{UP}.weight"));
    packed.insert(format!("{UP}.q_weight"), ones(&[1]));
    let folder = folder(&in_8_bit(json!({ "quant_method": "exl2" })), &packed);
    let error = load(folder.path(), &int8_in_f32()).unwrap_err().to_string();
    assert!(
        error.contains("up_proj.weight") && error.contains("quantised by `exl2`"),
        "{error}"
    );
}

fn wide(factor: f64) -> Tensors {
    let widen = |bytes: &[u8]| -> Vec<u8> {
        let values = bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f64::from(f32::from_le_bytes(*b)) * factor);
        values.flat_map(f64::to_le_bytes).collect()
    };
    tensors()
        .into_iter()
        .map(|(name, (_, shape, bytes))| (name, (Dtype::F64, shape, widen(&bytes))))
        .collect()
}

#[test]
fn weights_in_float64_are_read_and_rounded_as_torch_rounds_them() {
    let folder = folder(&config(), &wide(1.0));
    assert!(distance(&load(folder.path(), &floats_in_f32()).unwrap(), "plain") < 1e-5);
    let rounding = expected("float64");
    let values: Vec<u8> = rounding["values"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|x| x.as_f64().unwrap().to_le_bytes())
        .collect();
    let file = TempDir::new().unwrap();
    let path = file.path().join("x.safetensors");
    write_tensors(
        &path,
        &[("x".to_owned(), (Dtype::F64, vec![6], values))].into(),
    );
    let checkpoint = llm_int8::nn::checkpoint::Checkpoint::open_safetensors(&[path], None).unwrap();
    for dtype in ["float16", "bfloat16", "float32"] {
        let wanted = llm_int8::nn::FloatDtype::from_name(dtype).unwrap();
        let tensor =
            llm_int8::nn::checkpoint::float_tensor(&checkpoint.tensor("x").unwrap(), wanted, false)
                .unwrap();
        let ours = tensor
            .to_dtype(candle_core::DType::F32)
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        assert_eq!(ours, floats(&rounding[dtype]), "{dtype}");
    }
    // Beyond float32 there is nothing to round to.
    let mut huge = wide(1.0);
    huge.get_mut(NORM).unwrap().2[..8].copy_from_slice(&1e300f64.to_le_bytes());
    let error = load(
        crate::field_weights::folder(&config(), &huge).path(),
        &floats_in_f32(),
    )
    .unwrap_err()
    .to_string();
    assert!(
        error.contains(NORM) && error.contains("beyond the range of float32"),
        "{error}"
    );
}

/// Absmax and codes of one layer, saved.
fn quantised(folder: &Path, dtype: WeightDtype) -> (Vec<f32>, Vec<i64>) {
    let model = load(
        folder,
        &LoadOptions {
            dtype,
            ..LoadOptions::default()
        },
    )
    .unwrap();
    let scratch = TempDir::new().unwrap();
    let target = scratch.path().join("saved");
    let go_on =
        &mut |_: llm_int8::nn::checkpoint::WriteEvent<'_>| std::ops::ControlFlow::Continue(());
    model
        .save_pretrained(&target, &llm_int8::SaveOptions::default(), go_on)
        .unwrap();
    let saved = crate::support::tensors_of(&target);
    let absmax = saved[&format!("{UP}.SCB")]
        .2
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect();
    (
        absmax,
        saved[&format!("{UP}.weight")]
            .2
            .iter()
            .map(|code| i64::from(*code as i8))
            .collect(),
    )
}

#[test]
fn weights_are_rounded_to_the_dtype_of_loading_before_they_are_quantised() {
    for (case, tensors, dtype) in [
        ("int8", tensors(), WeightDtype::Float32),
        ("int8_bfloat16", tensors(), WeightDtype::BFloat16),
        ("int8_float64", wide(1.0 + 1e-9), WeightDtype::Float16),
    ] {
        let (absmax, codes) = quantised(folder(&config(), &tensors).path(), dtype);
        assert_eq!(absmax, floats(&expected(case)["absmax"]), "{case}");
        assert_eq!(json!(codes), expected(case)["codes"], "{case}");
    }
}

#[test]
fn the_dtype_auto_is_that_of_config_json_or_of_the_first_float_tensor() {
    let auto = LoadOptions {
        int8: None,
        dtype: WeightDtype::Auto,
        ..LoadOptions::default()
    };
    let mut half = tensors();
    for (dtype, _, bytes) in half.values_mut() {
        *dtype = Dtype::F16;
        *bytes = bytes
            .as_chunks::<4>()
            .0
            .iter()
            .flat_map(|b| f16::from_f32(f32::from_le_bytes(*b)).to_le_bytes())
            .collect();
    }
    let with = |name: Option<&str>| {
        let mut config = config();
        config["dtype"] = name.into();
        config
    };
    for (config, tensors, dtype, is_warned) in [
        (with(Some("float64")), tensors(), "float32", true),
        (with(Some("double")), half.clone(), "float32", true),
        (with(None), wide(1.0), "float32", true),
        (with(Some("bfloat16")), wide(1.0), "bfloat16", false),
        (with(None), half.clone(), "float16", false),
        (with(Some("float32")), half, "float32", false),
    ] {
        let model = load(folder(&config, &tensors).path(), &auto).unwrap();
        assert_eq!(model.named_parameters()[0].dtype.name(), dtype);
        assert_eq!(
            warnings(&model).len(),
            usize::from(is_warned),
            "{:?}",
            warnings(&model)
        );
        assert!(!is_warned || warnings(&model)[0].contains("held in float32"));
    }
}

#[test]
fn weights_in_other_dtypes_are_refused_from_the_header_on() {
    for (dtype, name) in [
        (Dtype::F8_E4M3, "F8_E4M3"),
        (Dtype::F8_E5M2, "F8_E5M2"),
        (Dtype::I32, "I32"),
        (Dtype::U8, "U8"),
    ] {
        let mut changed = tensors();
        let weight = changed.get_mut(&format!("{UP}.weight")).unwrap();
        *weight = (
            dtype,
            weight.1.clone(),
            vec![0; 32 * 16 * dtype.bitsize() / 8],
        );
        for options in [floats_in_f32(), int8_in_f32()] {
            let error = load(folder(&config(), &changed).path(), &options)
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(name) && error.contains("up_proj.weight") && error.contains("F64"),
                "{error}"
            );
        }
    }
}

#[test]
fn int8_in_a_pickle_is_read_with_the_layout_as_a_text() {
    let model = load(&golden("field/llama_int8_bin"), &int8_in_f32()).unwrap();
    assert!(model.is_prequantized() && warnings(&model).is_empty());
    assert!(distance(&model, "int8") < 0.02);
    let bytes = std::fs::read(golden("field/llama_int8_bin/pytorch_model.bin")).unwrap();
    let place = bytes
        .windows(8)
        .position(|bytes| bytes == b"X\x03\0\0\0row")
        .unwrap();
    let mut changed = bytes;
    changed[place + 5..place + 8].copy_from_slice(b"col");
    let folder = TempDir::new().unwrap();
    std::fs::copy(
        golden("field/llama_int8_bin/config.json"),
        folder.path().join("config.json"),
    )
    .unwrap();
    std::fs::write(folder.path().join("pytorch_model.bin"), changed).unwrap();
    let error = load(folder.path(), &int8_in_f32()).unwrap_err().to_string();
    assert!(
        error.contains("only 'row' weight format is supported, got col"),
        "{error}"
    );
}
