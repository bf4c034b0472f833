//! Weights that `config.json` or their own tensors declare to be 8 bit, as found in the wild,
//! against what transformers makes of them (`golden/field/weights.json`).

use crate::support::field_llama::{
    UP, config, distance, expected, floats_in_f32, folder, int8_in_f32, load, ones, tensors,
    warnings,
};
use crate::support::{golden, llm_int8};
use llm_int8::AutoModelForCausalLM;
use llm_int8::decoder::LoadOptions;
use llm_int8::nn::linear::{Int8Config, OutlierRule};
use llm_int8::nn::module::SkipList;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The tiny model's `config.json` with this `quantization_config`.
fn config_with(quantization_config: Value) -> Value {
    let mut config = config();
    config["quantization_config"] = quantization_config;
    config
}

/// The sorted paths of the layers that were quantised.
fn int8_layers(model: &AutoModelForCausalLM) -> Vec<String> {
    let layers = &model.load_report().layers.replaced;
    let mut paths: Vec<String> = layers.iter().map(ToString::to_string).collect();
    paths.sort();
    paths
}

/// A `quantization_config` that requests 8 bit, with one more key.
fn load_in_8bit_with(key: &str, value: Value) -> Value {
    let mut config = json!({ "load_in_8bit": true });
    config[key] = value;
    config
}

#[test]
fn float_weights_are_quantised_as_config_json_says() {
    let defaults = distance(
        &load(folder(&config(), &tensors()).path(), &int8_in_f32()).unwrap(),
        "int8",
    );
    assert!(defaults < 0.02, "{defaults}");

    for (case, stored) in [
        ("int8", json!({ "load_in_8bit": true })),
        (
            "int8_gptq_too",
            load_in_8bit_with("quant_method", "gptq".into()),
        ),
        (
            "int8_threshold",
            load_in_8bit_with("llm_int8_threshold", 0.5.into()),
        ),
        (
            "int8_skip",
            load_in_8bit_with("llm_int8_skip_modules", json!(["mlp", "nothing"])),
        ),
        (
            "int8_skip_nothing",
            load_in_8bit_with("llm_int8_skip_modules", json!([])),
        ),
        (
            "int8_skip_paths",
            load_in_8bit_with(
                "llm_int8_skip_modules",
                json!(["lm_head", "ers.1", "q_proj"]),
            ),
        ),
        (
            "int8_fp16_weight",
            load_in_8bit_with("llm_int8_has_fp16_weight", true.into()),
        ),
    ] {
        let folder = folder(&config_with(stored), &tensors());
        let model = load(folder.path(), &int8_in_f32()).unwrap();
        assert_eq!(
            json!(int8_layers(&model)),
            expected(case)["int8_layers"],
            "{case}"
        );
        assert!(
            distance(&model, case) < 0.02,
            "{case}: {}",
            distance(&model, case)
        );
        assert!(!model.is_prequantized() && warnings(&model).is_empty());

        // A caller that requests floats gets them.
        assert!(
            distance(&load(folder.path(), &floats_in_f32()).unwrap(), "plain") < 1e-5,
            "{case}"
        );
    }
}

#[test]
fn options_override_or_extend_the_quantization_config() {
    let folder = folder(
        &config_with(load_in_8bit_with("llm_int8_threshold", 0.5.into())),
        &tensors(),
    );
    let rule = |options: LoadOptions| {
        load(folder.path(), &options)
            .unwrap()
            .decoder()
            .int8_config()
            .unwrap()
            .outliers
    };

    assert_eq!(rule(int8_in_f32()), OutlierRule::batch(0.5));
    assert_eq!(
        rule(LoadOptions {
            threshold: Some(3.0),
            ..int8_in_f32()
        }),
        OutlierRule::batch(3.0)
    );
    assert_eq!(
        rule(LoadOptions {
            int8: Some(Int8Config {
                outliers: OutlierRule::row(9.0),
                ..Int8Config::default()
            }),
            ..int8_in_f32()
        }),
        OutlierRule::row(0.5)
    );
    let rms = LoadOptions {
        int8: Some(Int8Config {
            outliers: OutlierRule::row_rms(4.0),
            ..Int8Config::default()
        }),
        ..int8_in_f32()
    };
    assert_eq!(rule(rms), OutlierRule::row_rms(4.0));

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
        "the names are added to those of config.json"
    );
}

#[test]
fn a_head_absent_from_the_skip_list_is_saved_and_loaded_in_8_bit() {
    let stored = json!({ "load_in_8bit": true, "llm_int8_skip_modules": [] });
    let source = folder(&config_with(stored), &tensors());
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
fn float_layers_of_an_int8_checkpoint_are_quantised_on_loading() {
    let source = folder(&config_with(json!({ "load_in_8bit": true })), &tensors());
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

    // Without a quantization_config nothing says that the float layer should become int8.
    saved.as_object_mut().unwrap().remove("quantization_config");
    let model = load(folder(&saved, &mixed).path(), &int8_in_f32()).unwrap();
    assert_eq!(model.load_report().layers.replaced.len(), 13);

    let error = load(folder(&saved, &mixed).path(), &floats_in_f32())
        .unwrap_err()
        .to_string();
    assert!(error.contains("int8 already"), "{error}");

    // An absmax beside float weights is a leftover, unless config.json declares the weights 8 bit.
    let mut leftover = tensors();
    leftover.insert(format!("{UP}.SCB"), ones(&[32]));
    let model = load(folder(&config(), &leftover).path(), &floats_in_f32()).unwrap();
    assert!(warnings(&model)[0].contains("up_proj.SCB"));

    let flagged = config_with(json!({ "load_in_8bit": true }));
    let error = load(folder(&flagged, &leftover).path(), &int8_in_f32())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(UP) && error.contains("float and not I8"),
        "{error}"
    );
}

#[test]
fn unknown_quantisation_methods_are_ignored_with_a_warning() {
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
        let folder = folder(&config_with(stored), &tensors());
        let model = load(folder.path(), &floats_in_f32()).unwrap();
        assert!(distance(&model, case) < 1e-5);
        assert!(
            warnings(&model)[0].contains(method),
            "{:?}",
            warnings(&model)
        );

        // As with any other float weights, the caller may request 8 bit.
        let model = load(folder.path(), &int8_in_f32()).unwrap();
        assert_eq!(model.load_report().layers.replaced.len(), 14);
    }
}

#[test]
fn unsupported_quantisation_methods_are_rejected_by_name() {
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
        let folder = folder(&config_with(stored), &tensors());
        for options in [floats_in_f32(), int8_in_f32()] {
            let error = load(folder.path(), &options).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}

#[test]
fn an_unknown_quantisation_method_is_named_when_tensors_are_missing() {
    let mut packed = tensors();
    packed.remove(&format!("{UP}.weight"));
    packed.insert(format!("{UP}.q_weight"), ones(&[1]));
    let folder = folder(&config_with(json!({ "quant_method": "exl2" })), &packed);
    let error = load(folder.path(), &int8_in_f32()).unwrap_err().to_string();
    assert!(
        error.contains("up_proj.weight") && error.contains("quantised by `exl2`"),
        "{error}"
    );
}

#[test]
fn a_pickle_stores_the_weight_format_of_int8_layers_as_a_string() {
    let model = load(&golden("field/llama_int8_bin"), &int8_in_f32()).unwrap();
    assert!(model.is_prequantized() && warnings(&model).is_empty());
    assert!(distance(&model, "int8") < 0.02);

    let bytes = std::fs::read(golden("field/llama_int8_bin/pytorch_model.bin")).unwrap();
    let offset = bytes
        .windows(8)
        .position(|bytes| bytes == b"X\x03\0\0\0row")
        .unwrap();
    let mut changed = bytes;
    changed[offset + 5..offset + 8].copy_from_slice(b"col");
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
