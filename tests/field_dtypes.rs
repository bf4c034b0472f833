//! Weights in the dtypes found in the wild: what they are loaded as, and how they are rounded
//! before they are quantised, against torch (`golden/field/weights.json`).

use crate::support::field_llama::{
    NORM, UP, config, distance, expected, floats, floats_in_f32, folder, int8_in_f32, load,
    tensors, warnings,
};
use crate::support::{Tensors, write_tensors};
use half::f16;
use llm_int8::decoder::{LoadOptions, WeightDtype};
use safetensors::Dtype;
use serde_json::json;
use std::path::Path;
use tempfile::TempDir;

/// The tiny checkpoint as float64, each value multiplied by `factor`.
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
        let requested = llm_int8::nn::FloatDtype::from_name(dtype).unwrap();
        let tensor = llm_int8::nn::checkpoint::float_tensor(
            &checkpoint.tensor("x").unwrap(),
            requested,
            false,
        )
        .unwrap();
        let ours = tensor
            .to_dtype(candle_core::DType::F32)
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        assert_eq!(ours, floats(&rounding[dtype]), "{dtype}");
    }

    // A value beyond the range of float32 is an error.
    let mut huge = wide(1.0);
    huge.get_mut(NORM).unwrap().2[..8].copy_from_slice(&1e300f64.to_le_bytes());

    let error = load(
        crate::support::field_llama::folder(&config(), &huge).path(),
        &floats_in_f32(),
    )
    .unwrap_err()
    .to_string();
    assert!(
        error.contains(NORM) && error.contains("beyond the range of float32"),
        "{error}"
    );
}

/// The absmax and the codes of one layer, read from the saved model.
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
fn weights_are_rounded_to_the_load_dtype_before_they_are_quantised() {
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
fn auto_dtype_is_that_of_config_json_or_of_the_first_float_tensor() {
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
fn weights_in_unsupported_dtypes_are_rejected_from_the_header() {
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
