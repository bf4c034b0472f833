//! 8-bit checkpoints in the format of bitsandbytes: reading its own (`golden/bnb_checkpoints`),
//! writing the same, and broken ones.

use crate::support::{
    Tensors, golden, golden_tensor, golden_text, llm_int8, read_tensors, relative_error,
    tensors_of, write_tensors,
};
use candle_core::{DType, Tensor};
use half::f16;
use llm_int8::decoder::{LoadOptions, WeightDtype};
use llm_int8::hub::HubConfig;
use llm_int8::nn::linear::{Int8Config, OutlierRule, OutlierWeights};
use llm_int8::{AutoModelForCausalLM, LoadConfig};
use safetensors::Dtype;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const FAMILIES: [&str; 2] = ["gpt2", "llama"];

fn config(options: LoadOptions) -> LoadConfig {
    LoadConfig {
        options,
        hub: HubConfig {
            offline: true,
            ..HubConfig::from_env()
        },
        ..LoadConfig::default()
    }
}

fn load(folder: &Path, options: LoadOptions) -> AutoModelForCausalLM {
    AutoModelForCausalLM::from_pretrained(&folder.display().to_string(), &config(options)).unwrap()
}

fn failure(folder: &Path) -> String {
    let name = folder.display().to_string();
    AutoModelForCausalLM::from_pretrained(&name, &config(LoadOptions::default()))
        .unwrap_err()
        .to_string()
}

/// The first sequence of the golden batch.
fn first_sequence(family: &str) -> Vec<u32> {
    let ids = golden_tensor(
        &format!("models/{family}/expected.safetensors"),
        "input_ids",
    );
    ids.to_dtype(DType::U32)
        .unwrap()
        .get(0)
        .unwrap()
        .to_vec1()
        .unwrap()
}

fn logits(model: &AutoModelForCausalLM, family: &str) -> Tensor {
    model.logits(&first_sequence(family)).unwrap()
}

/// The folder that a command writes.
fn written(command: &str, model: &Path, more: &[&str]) -> (TempDir, PathBuf) {
    let scratch = TempDir::new().unwrap();
    let target = scratch.path().join("written");
    let model = model.display().to_string();
    let out = target.display().to_string();
    let output = llm_int8(&[&[command, &model, "-o", &out], more].concat());
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(
        std::fs::read_dir(scratch.path()).unwrap().count(),
        1,
        "nothing was written beside the folder"
    );

    (scratch, target)
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn bitsandbytes_checkpoints_give_the_logits_of_the_original_model() {
    for family in FAMILIES {
        let theirs = load(
            &golden(&format!("bnb_checkpoints/{family}")),
            LoadOptions::default(),
        );
        let ours = load(&golden(&format!("models/{family}")), LoadOptions::default());
        assert_eq!(theirs.tree(), ours.tree());
        assert!(theirs.is_prequantized() && !ours.is_prequantized());

        let error = relative_error(&logits(&theirs, family), &logits(&ours, family));
        assert_eq!(error, 0.0, "{family}: the codes are the same");

        let in_f32 = LoadOptions {
            dtype: WeightDtype::Float32,
            ..LoadOptions::default()
        };
        let theirs = load(&golden(&format!("bnb_checkpoints/{family}")), in_f32);
        let expected = |name| golden_tensor(&format!("models/{family}/expected.safetensors"), name);
        let ours = logits(&theirs, family);
        let alone = relative_error(
            &ours,
            &expected("logits_int8_f32_row0")
                .reshape(ours.dims())
                .unwrap(),
        );
        let ids = expected("input_ids").to_dtype(DType::U32).unwrap();
        let decoder = theirs.decoder();
        let batch = decoder.logits(&ids).unwrap();
        let in_batch = relative_error(&batch, &expected("logits_int8_f32"));
        assert!(
            alone < 0.02 && in_batch < 0.02,
            "{family}: {alone}, {in_batch}"
        );
    }
}

#[test]
fn saved_checkpoints_match_those_of_bitsandbytes_byte_for_byte() {
    for family in FAMILIES {
        let theirs = golden(&format!("bnb_checkpoints/{family}"));
        for model in [&theirs, &golden(&format!("models/{family}"))] {
            let (_scratch, ours) = written("quantize", model, &[]);
            assert!(tensors_of(&ours) == tensors_of(&theirs), "{family}");
            let ours = json(&ours.join("config.json"));
            let theirs = json(&theirs.join("config.json"));
            assert_eq!(ours, theirs, "{family}");
        }
    }
}

#[test]
fn shards_match_those_of_transformers() {
    let theirs = golden("bnb_checkpoints/llama");
    let (_scratch, ours) = written("quantize", &theirs, &["--max-shard-size", "60KB"]);
    let index = "model.safetensors.index.json";
    assert_eq!(
        json(&ours.join(index))["weight_map"],
        json(&theirs.join(index))["weight_map"]
    );

    for shard in 1..=3 {
        let name = format!("model-0000{shard}-of-00003.safetensors");
        assert!(
            std::fs::read(ours.join(&name)).unwrap() == std::fs::read(theirs.join(&name)).unwrap(),
            "{name}"
        );
    }

    let model = load(&ours, LoadOptions::default());
    let error = relative_error(
        &logits(&model, "llama"),
        &logits(&load(&theirs, LoadOptions::default()), "llama"),
    );
    assert_eq!(error, 0.0);
}

#[test]
fn a_saved_skip_list_includes_the_default_names() {
    let (_scratch, folder) = written(
        "quantize",
        &golden("models/gpt2"),
        &["--skip-modules", "h.1.mlp"],
    );
    let skip = &json(&folder.join("config.json"))["quantization_config"]["llm_int8_skip_modules"];
    assert_eq!(
        *skip,
        serde_json::json!([
            "transformer.h.1.mlp.c_fc",
            "transformer.h.1.mlp.c_proj",
            "lm_head"
        ])
    );

    let kept = &tensors_of(&folder)["transformer.h.1.mlp.c_fc.weight"];
    assert_eq!(
        (kept.0, kept.1.as_slice()),
        (Dtype::F16, [48, 192].as_slice()),
        "the Conv1D weight is unchanged"
    );

    let model = load(&folder, LoadOptions::default());
    assert!(model.to_string().contains("(c_fc): Conv1D(nf=192, nx=48)"));
}

/// Checks that a layer's float weights are `code · absmax / 127`, with absmax by output row. gpt2
/// stores them transposed: `[in, out]`.
fn assert_code_times_step(layer: &str, int8: &Tensors, float: &Tensors) {
    let (_, shape, codes) = &int8[&format!("{layer}.weight")];
    let absmax = f32_values(&int8[&format!("{layer}.SCB")].2);
    let (_, float_shape, bytes) = &float[&format!("{layer}.weight")];
    let values = f32_values(bytes);

    let [rows, columns] = shape[..] else {
        panic!("a matrix")
    };
    let is_transposed = layer.starts_with("transformer.h.");
    let expected_shape = if is_transposed {
        [columns, rows]
    } else {
        [rows, columns]
    };
    assert_eq!(*float_shape, expected_shape);

    for (index, code) in codes.iter().enumerate() {
        let row = index / columns;
        let column = index % columns;
        let value = values[if is_transposed {
            column * rows + row
        } else {
            index
        }];
        let expected = f32::from(*code as i8) * absmax[row] / 127.0;
        assert!(
            (value - expected).abs() <= 1e-6 * expected.abs(),
            "{layer}: {value} and {expected}"
        );
    }
}

#[test]
fn dequantised_weights_are_code_times_step() {
    for family in FAMILIES {
        let theirs = golden(&format!("bnb_checkpoints/{family}"));
        let (_scratch, folder) = written("dequantize", &theirs, &["--dtype", "float32"]);
        let float = tensors_of(&folder);
        let int8 = tensors_of(&theirs);
        assert!(json(&folder.join("config.json"))["quantization_config"].is_null());

        let layers: Vec<&str> = int8
            .keys()
            .filter_map(|name| name.strip_suffix(".SCB"))
            .collect();
        assert!(!layers.is_empty());

        for layer in layers {
            assert_code_times_step(layer, &int8, &float);
        }

        let again = load(
            &folder,
            LoadOptions {
                int8: None,
                ..LoadOptions::default()
            },
        );
        assert!(!again.is_prequantized());

        let distance = relative_error(
            &logits(&again, family),
            &logits(&load(&theirs, LoadOptions::default()), family),
        );
        assert!(distance < 0.05, "{family}: {distance}");
    }
}

fn f32_values(bytes: &[u8]) -> Vec<f32> {
    bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect()
}

#[test]
fn the_stored_threshold_is_used_unless_another_is_requested() {
    let (_scratch, folder) = written("quantize", &golden("models/llama"), &["--threshold", "2.5"]);
    let of = |options: LoadOptions| {
        load(&folder, options)
            .decoder()
            .int8_config()
            .unwrap()
            .outliers
    };

    assert_eq!(of(LoadOptions::default()), OutlierRule::batch(2.5));
    assert_eq!(
        of(LoadOptions {
            threshold: Some(4.0),
            ..LoadOptions::default()
        }),
        OutlierRule::batch(4.0)
    );

    let plain = load(&golden("models/llama"), LoadOptions::default());
    assert_eq!(
        plain.decoder().int8_config().unwrap().outliers,
        OutlierRule::batch(6.0)
    );
    assert!(
        relative_error(
            &logits(&load(&folder, LoadOptions::default()), "llama"),
            &logits(&plain, "llama")
        ) > 0.0
    );
}

#[test]
fn existing_files_are_not_overwritten_and_contradictory_commands_are_rejected() {
    let scratch = TempDir::new().unwrap();
    std::fs::write(scratch.path().join("mine"), "x").unwrap();

    let model = golden("models/gpt2").display().to_string();
    let taken = scratch.path().display().to_string();
    let fresh = scratch.path().join("fresh").display().to_string();
    for (arguments, message) in [
        (
            vec!["quantize", &model, "-o", &taken],
            "exists and is not empty",
        ),
        (
            vec!["quantize", &model, "-o", &fresh, "--no-quantize"],
            "cannot be used with",
        ),
        (
            vec!["dequantize", &model, "-o", &fresh],
            "not an 8-bit checkpoint",
        ),
    ] {
        let output = llm_int8(&arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            (output.status.code(), error.contains(message)),
            (Some(2), true),
            "{error}"
        );
    }

    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1);
}

/// bitsandbytes' checkpoint of the tiny gpt2, with changed tensors.
fn changed(change: impl FnOnce(&mut Tensors)) -> TempDir {
    let folder = TempDir::new().unwrap();
    let mut tensors = read_tensors("bnb_checkpoints/gpt2/model.safetensors");
    change(&mut tensors);
    write_tensors(&folder.path().join("model.safetensors"), &tensors);
    std::fs::write(
        folder.path().join("config.json"),
        golden_text("bnb_checkpoints/gpt2/config.json"),
    )
    .unwrap();

    folder
}

const LAYER: &str = "transformer.h.0.attn.c_attn";

#[test]
fn broken_quantisation_states_are_named() {
    let weight = format!("{LAYER}.weight");
    let scb = format!("{LAYER}.SCB");
    let format = format!("{LAYER}.weight_format");
    let fails = |change: &dyn Fn(&mut Tensors), expected: &str| {
        let error = failure(changed(|tensors| change(tensors)).path());
        assert!(error.contains(LAYER) && error.contains(expected), "{error}");
    };

    fails(
        &|t| drop(t.remove(&scb)),
        "missing quantisation component `SCB`",
    );
    fails(
        &|t| drop(t.insert(scb.clone(), (Dtype::F32, vec![3], vec![0; 12]))),
        "SCB holds 3 values",
    );
    for (number, name) in [(1, "col32"), (2, "col_turing"), (3, "col_ampere")] {
        fails(
            &|t| drop(t.insert(format.clone(), (Dtype::U8, vec![], vec![number]))),
            name,
        );
    }
    fails(
        &|t| drop(t.insert(format.clone(), (Dtype::U8, vec![], vec![9]))),
        "U8 0 (row) was expected",
    );
    for bad in [f32::NAN, f32::INFINITY, -1.0] {
        let bytes = bad.to_le_bytes().repeat(144);
        fails(
            &|t| drop(t.insert(scb.clone(), (Dtype::F32, vec![144], bytes.clone()))),
            "SCB[0] is",
        );
    }
    fails(&|t| t.get_mut(&weight).unwrap().2[7] = 0x80, "-128");
    let float = f16::ONE.to_le_bytes().repeat(144 * 48);
    fails(
        &|t| drop(t.insert(weight.clone(), (Dtype::F16, vec![144, 48], float.clone()))),
        "not I8",
    );
}

#[test]
fn weight_format_may_be_absent() {
    let folder = changed(|tensors| tensors.retain(|name, _| !name.ends_with("weight_format")));
    assert!(load(folder.path(), LoadOptions::default()).is_prequantized());
}

#[test]
fn a_missing_or_truncated_shard_is_named() {
    let theirs = golden("bnb_checkpoints/llama");
    let folder = TempDir::new().unwrap();
    for entry in std::fs::read_dir(&theirs).unwrap().flatten() {
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }

    let shard = folder.path().join("model-00002-of-00003.safetensors");
    let bytes = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &bytes[..bytes.len() - 10]).unwrap();
    let error = failure(folder.path());
    assert!(
        error.contains("model-00002-of-00003.safetensors") && error.contains("truncated"),
        "{error}"
    );

    std::fs::remove_file(&shard).unwrap();
    let error = failure(folder.path());
    assert!(
        error.contains("has no model-00002-of-00003.safetensors"),
        "{error}"
    );
}

#[test]
fn other_quantisation_methods_are_rejected_by_name() {
    let folder = changed(|_| ());
    let mut config = json(&folder.path().join("config.json"));
    config["quantization_config"] = serde_json::json!({"quant_method": "gptq", "bits": 4});
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let error = failure(folder.path());
    assert!(
        error.contains("`gptq`") && error.contains("unquantised checkpoint"),
        "{error}"
    );
}

#[test]
fn an_error_in_the_forward_pass_names_the_layer() {
    let folder = golden("bnb_checkpoints/gpt2");
    let int8 = Int8Config {
        outlier_weights: OutlierWeights::Original,
        ..Int8Config::default()
    };
    let options = LoadOptions {
        // Every activation is an outlier, and a saved 8-bit layer has no float weights for it.
        threshold: Some(1e-6),
        int8: Some(int8),
        ..LoadOptions::default()
    };
    let error = load(&folder, options)
        .logits(&first_sequence("gpt2"))
        .unwrap_err();
    let expected = "layer `transformer.h.0.attn.c_attn` has no full-precision weights";
    assert!(error.to_string().starts_with(expected), "{error}");
}
