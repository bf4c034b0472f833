//! Adapters beside PEFT over bitsandbytes' int8 layers (`golden/lora`, `scripts/make_lora_golden.py`).

use crate::support::{golden, golden_text, relative_error};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use llm_int8_nn::checkpoint::Checkpoint;
use llm_int8_nn::linear::{FloatLinear, Int8Config, Int8Linear, Linear, OutlierRule};
use llm_int8_nn::lora::{LoraConfig, LoraLinear};
use llm_int8_nn::var_builder::var_builder;
use std::collections::HashMap;

/// The tensors of `expected.safetensors`, and a `VarBuilder` over them.
fn expected() -> (HashMap<String, Tensor>, VarBuilder<'static>) {
    let file = golden("lora/expected.safetensors");
    let tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    let checkpoint = Checkpoint::open_safetensors(&[file], None).unwrap();
    let vb = var_builder(checkpoint.into(), DType::F32, &Device::Cpu);
    (tensors, vb)
}

/// One of the two layers, its adapter as variables.
fn layer(tensors: &HashMap<String, Tensor>, name: &str, threshold: f32) -> (LoraLinear, [Var; 2]) {
    let config = LoraConfig::parse(golden_text("lora/adapter_config.json").as_bytes()).unwrap();
    let of = |part: &str| tensors[&format!("float.{name}.{part}")].clone();
    let float = FloatLinear::new(of("weight"), Some(of("bias"))).unwrap();
    let int8 = Int8Config {
        outliers: OutlierRule::batch(threshold),
        ..Int8Config::default()
    };
    let base = Linear::Int8(Int8Linear::quantize(&float, int8).unwrap());

    let variables = ["A", "B"].map(|part| {
        let name = format!("base_model.model.{name}.lora_{part}.weight");
        Var::from_tensor(&tensors[&name]).unwrap()
    });
    let [a, b] = variables
        .each_ref()
        .map(|variable| variable.as_tensor().clone());
    let layer = LoraLinear::from_tensors(base, a, b, config.scale()).unwrap();
    (layer, variables)
}

/// The relative errors of the output and of every gradient.
fn errors(threshold: f32) -> Vec<f64> {
    let (tensors, _) = expected();
    let (up, up_variables) = layer(&tensors, "up", threshold);
    let (down, down_variables) = layer(&tensors, "down", threshold);

    let x = Var::from_tensor(&tensors["x"]).unwrap();
    let middle = up.forward(&x).unwrap().gelu_erf().unwrap();
    let output = down.forward(&middle).unwrap();
    let loss = (&output * &tensors["direction"])
        .unwrap()
        .sum_all()
        .unwrap();
    let gradients = loss.backward().unwrap();

    let mut errors = vec![
        relative_error(&output, &tensors["output"]),
        relative_error(gradients.get(&x).unwrap(), &tensors["gradient.x"]),
    ];
    for (name, variables) in [("up", up_variables), ("down", down_variables)] {
        for (part, variable) in ["A", "B"].iter().zip(&variables) {
            let name = format!("gradient.base_model.model.{name}.lora_{part}.weight");
            errors.push(relative_error(
                gradients.get(variable).unwrap(),
                &tensors[&name],
            ));
        }
    }
    errors
}

#[test]
fn output_and_gradients_are_those_of_peft() {
    // In training on a CPU bitsandbytes multiplies with the dequantised weights. So do we where every column is an outlier.
    for error in errors(1e-6) {
        assert!(error < 2e-5, "{error}");
    }
    // Quantised activations move them by the rounding.
    for error in errors(6.0) {
        assert!((1e-4..0.03).contains(&error), "{error}");
    }
}

#[test]
fn an_adapter_is_read_under_the_names_of_peft() {
    let (tensors, vb) = expected();
    let config = LoraConfig::parse(golden_text("lora/adapter_config.json").as_bytes()).unwrap();
    assert_eq!(config, LoraConfig::new(4, 6.0));
    let (of_tensors, _) = layer(&tensors, "up", 6.0);

    let base = of_tensors.base().clone();
    let vb = vb.pp("base_model.model.up");
    let read = LoraLinear::new(base.clone(), &config, vb.clone()).unwrap();
    let difference = relative_error(&read.delta().unwrap(), &of_tensors.delta().unwrap());
    assert_eq!(difference, 0.0);

    let error = LoraLinear::new(base, &LoraConfig::new(5, 6.0), vb).unwrap_err();
    assert!(error.to_string().contains("lora_A.weight"), "{error}");
}

#[test]
fn adapters_that_compute_something_else_are_refused_by_the_key() {
    let config = |more: &str| {
        let text = format!(r#"{{"peft_type": "LORA", "r": 4, "lora_alpha": 8, {more}}}"#);
        LoraConfig::parse(text.as_bytes()).map_err(|error| error.to_string())
    };
    assert!(config(r#""bias": "none", "use_dora": false, "rank_pattern": {}"#).is_ok());
    assert_eq!(config(r#""use_rslora": true"#).unwrap().scale(), 4.0);
    for (more, key) in [
        (r#""use_dora": true"#, "`use_dora`"),
        (r#""bias": "all""#, "`bias`"),
        (r#""rank_pattern": {"up": 2}"#, "`rank_pattern`"),
        (r#""modules_to_save": ["lm_head"]"#, "`modules_to_save`"),
        (
            r#""trainable_token_indices": [1]"#,
            "`trainable_token_indices`",
        ),
        (r#""target_parameters": ["w"]"#, "`target_parameters`"),
        (r#""r": 0"#, "`r`"),
        (r#""lora_alpha": "8""#, "`lora_alpha`"),
    ] {
        let error = config(more).unwrap_err();
        assert!(
            error.contains(key) && error.starts_with("adapter_config.json: "),
            "{error}"
        );
    }
    assert!(LoraConfig::parse(b"[").is_err());
}
