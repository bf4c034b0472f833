//! LoRA adapters of PEFT applied by the decoder, beside PEFT over transformers and bitsandbytes
//! (`golden/adapters`, `scripts/make_adapter_golden.py`).

use crate::support::devices::{few_devices, on_device};
use crate::support::golden_models::load;
use crate::support::{
    Tensors, failure, golden, golden_tensor, golden_text, gpt2, llm_int8, read_tensors,
    relative_error, stderr, stdout, write_tensors,
};
use candle_core::{DType, Tensor};
use llm_int8::{AutoModelForCausalLM, LlmError, LoadConfig, SaveOptions, hub::NoProgress};
use llm_int8_decoder::{Decoder, DecoderError, LoadOptions, WeightDtype};
use llm_int8_nn::linear::Int8Config;
use llm_int8_nn::lora::Adapter;
use safetensors::Dtype;
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

const MODELS: [&str; 2] = ["gpt2", "llama"];

fn floats(adapter: Option<Adapter>) -> LoadOptions {
    LoadOptions {
        int8: None,
        dtype: WeightDtype::Float32,
        adapter: adapter.map(Arc::new),
        ..LoadOptions::default()
    }
}

fn int8(adapter: Option<Adapter>) -> LoadOptions {
    LoadOptions {
        int8: Some(Int8Config::default()),
        ..floats(adapter)
    }
}

fn adapter(name: &str) -> Option<Adapter> {
    Some(Adapter::open(&golden(&format!("adapters/{name}"))).unwrap())
}

fn expected(name: &str, what: &str) -> Tensor {
    golden_tensor(&format!("adapters/{name}/expected.safetensors"), what)
}

fn ids(name: &str, what: &str) -> Vec<Vec<u32>> {
    let ids = expected(name, what).to_dtype(DType::U32).unwrap();
    ids.to_vec2().unwrap()
}

/// The logits of both prompts, computed together.
fn logits(name: &str, model: &Decoder) -> Tensor {
    let ids = expected(name, "input_ids").to_dtype(DType::U32).unwrap();
    model.logits(&ids).unwrap()
}

/// A prompt with the tokens that follow greedily.
fn greedy(model: &Decoder, prompt: &[u32], len: usize) -> Vec<u32> {
    let mut cache = model.new_cache();
    let mut ids = prompt.to_vec();
    let mut fed = 0;
    while ids.len() < len {
        let logits = model.next_logits(&ids[fed..], &mut cache).unwrap();
        fed = ids.len();
        let best = (0..).zip(&logits).max_by(|a, b| a.1.total_cmp(b.1));
        ids.push(best.unwrap().0);
    }
    ids
}

#[test]
fn logits_of_float_layers_are_those_of_peft() {
    for name in MODELS {
        let theirs = expected(name, "logits_f32");
        let ours = logits(name, &load(name, &floats(adapter(name))));
        let error = relative_error(&ours, &theirs);
        assert!(error < 1e-5, "{name}: {error}");

        let without = logits(name, &load(name, &floats(None)));
        let error = relative_error(&without, &theirs);
        assert!(error > 0.3, "{name}: {error}");
    }
}

/// The codes are those of bitsandbytes; its CPU path multiplies them in another order.
#[test]
fn logits_of_int8_layers_are_as_near_as_those_of_peft() {
    for name in MODELS {
        let exact = expected(name, "logits_f32");
        let theirs = expected(name, "logits_int8");
        let ours = logits(name, &load(name, &int8(adapter(name))));

        let limit = 1.15 * relative_error(&theirs, &exact);
        let error = relative_error(&ours, &exact);
        assert!(error < limit, "{name}: {error}, {limit}");
        let error = relative_error(&ours, &theirs);
        assert!(error < limit, "{name}: {error}, {limit}");
    }
}

#[test]
fn greedy_text_is_that_of_peft() {
    for name in MODELS {
        for (what, options) in [
            ("greedy_f32", floats(adapter(name))),
            ("greedy_int8", int8(adapter(name))),
        ] {
            let model = load(name, &options);
            for (prompt, theirs) in ids(name, "input_ids").iter().zip(ids(name, what)) {
                assert_eq!(
                    greedy(&model, prompt, theirs.len()),
                    theirs,
                    "{name}, {what}"
                );
            }
        }

        let without = load(name, &floats(None));
        let (prompts, theirs) = (ids(name, "input_ids"), ids(name, "greedy_f32"));
        assert_ne!(greedy(&without, &prompts[0], theirs[0].len()), theirs[0]);
    }
}

#[test]
fn a_prompt_gives_the_same_bits_alone_and_in_a_batch_and_near_ones_token_by_token() {
    for name in MODELS {
        // Without outliers a row does not depend on the others.
        let no_outliers = LoadOptions {
            threshold: Some(0.0),
            ..int8(adapter(name))
        };
        for options in [floats(adapter(name)), no_outliers] {
            let model = load(name, &options);
            let all: Vec<Vec<Vec<f32>>> = logits(name, &model).to_vec3().unwrap();
            for (prompt, rows) in ids(name, "input_ids").iter().zip(all) {
                let alone = model.next_logits(prompt, &mut model.new_cache()).unwrap();
                assert_eq!(rows.last(), Some(&alone), "{name}");

                let mut cache = model.new_cache();
                for (id, row) in prompt.iter().zip(rows) {
                    let one = model.next_logits(&[*id], &mut cache).unwrap();
                    let errors = one.iter().zip(&row).map(|(a, b)| (a - b).abs());
                    assert!(errors.fold(0.0, f32::max) < 1e-4, "{name}");
                }
            }
        }
    }
}

#[test]
fn an_adapter_in_a_bin_file_is_the_same() {
    let folder = TempDir::new().unwrap();
    for file in ["adapter_config.json", "adapter_model.bin"] {
        std::fs::copy(golden("adapters/gpt2").join(file), folder.path().join(file)).unwrap();
    }
    let of_bin = load("gpt2", &int8(Some(Adapter::open(folder.path()).unwrap())));
    let of_safetensors = load("gpt2", &int8(adapter("gpt2")));
    let [a, b] = [of_bin, of_safetensors].map(|model| logits("gpt2", &model));
    assert_eq!(relative_error(&a, &b), 0.0);
}

/// A folder with the adapter of gpt2, changed.
fn changed(config: impl Fn(&mut Value), tensors: impl Fn(&mut Tensors)) -> TempDir {
    let folder = TempDir::new().unwrap();
    let text = golden_text("adapters/gpt2/adapter_config.json");
    let mut values: Value = serde_json::from_str(&text).unwrap();
    config(&mut values);
    std::fs::write(
        folder.path().join("adapter_config.json"),
        values.to_string(),
    )
    .unwrap();

    let mut all = read_tensors("adapters/gpt2/adapter_model.safetensors");
    tensors(&mut all);
    write_tensors(&folder.path().join("adapter_model.safetensors"), &all);
    folder
}

/// The error of the tiny gpt2 with the adapter in a folder.
fn error_of(folder: &Path) -> String {
    let config = LoadConfig {
        options: floats(None),
        adapter: Some(folder.display().to_string()),
        ..LoadConfig::default()
    };
    let plan = AutoModelForCausalLM::plan(&gpt2(), &config, &NoProgress).unwrap_err();
    let error = AutoModelForCausalLM::from_pretrained(&gpt2(), &config).unwrap_err();
    assert_eq!(plan.to_string(), error.to_string());
    error.to_string()
}

const QKV: &str = "base_model.model.transformer.h.0.attn.c_attn";

#[test]
fn configurations_that_do_not_fit_are_refused() {
    for (key, value, expected) in [
        ("use_dora", json!(true), "`use_dora` is true"),
        ("peft_type", json!("IA3"), "`peft_type` is IA3"),
        (
            "modules_to_save",
            json!(["lm_head"]),
            "`modules_to_save` is [\"lm_head\"]",
        ),
        (
            "init_lora_weights",
            json!("pissa"),
            "`init_lora_weights` is \"pissa\"",
        ),
        (
            "r",
            json!(8),
            "its shape is [4, 48]; the layer and the rank 8 of adapter_config.json need [8, 48]",
        ),
        ("rank_pattern", json!({"c_fc": 3}), "need [3, 48]"),
    ] {
        let folder = changed(|config| config[key] = value.clone(), |_| ());
        let error = error_of(folder.path());
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn tensors_that_do_not_fit_are_refused_by_name() {
    let renamed = |from: &'static str, to: &'static str| {
        move |all: &mut Tensors| {
            let moved: Vec<String> = all.keys().filter(|n| n.contains(from)).cloned().collect();
            for name in moved {
                let tensor = all.remove(&name).unwrap();
                all.insert(name.replace(from, to), tensor);
            }
        }
    };
    let zeros = |dtype: Dtype, shape: [usize; 2]| {
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        (dtype, shape.to_vec(), vec![0; bytes])
    };
    let a = format!("{QKV}.lora_A.weight");
    let put = |name: &str, tensor: (Dtype, Vec<usize>, Vec<u8>)| {
        let name = name.to_owned();
        move |all: &mut Tensors| {
            all.insert(name.clone(), tensor.clone());
        }
    };

    type Change = Box<dyn Fn(&mut Tensors)>;
    let cases: [(&str, Change); 10] = [
        (
            "its shape is [4, 47]; the layer and the rank 4 of adapter_config.json need [4, 48]",
            Box::new(put(&a, zeros(Dtype::F32, [4, 47]))),
        ),
        (
            "is stored as I32; F16, BF16, F32 or F64",
            Box::new(put(&a, zeros(Dtype::I32, [4, 48]))),
        ),
        (
            "no linear layer `transformer.h.0.attn.c_atn`; did you mean `transformer.h.0.attn.c_attn`",
            Box::new(renamed("h.0.attn.c_attn", "h.0.attn.c_atn")),
        ),
        (
            "no linear layer `transformer.h.9.attn.c_attn`",
            Box::new(renamed("h.2.attn.c_attn", "h.9.attn.c_attn")),
        ),
        (
            "no linear layer `transformer.ln_f`",
            Box::new(renamed("h.0.attn.c_attn", "ln_f")),
        ),
        (
            "the layer has no lora_B.weight",
            Box::new(|all| drop(all.remove(&format!("{QKV}.lora_B.weight")))),
        ),
        (
            "the layer has no lora_A.weight",
            Box::new(|all| drop(all.remove(&format!("{QKV}.lora_A.weight")))),
        ),
        (
            "`base_model.model.transformer.wte.weight` in",
            Box::new(put(
                "base_model.model.transformer.wte.weight",
                zeros(Dtype::F32, [256, 48]),
            )),
        ),
        (
            "is there for the same layer",
            Box::new(put(
                "transformer.h.0.attn.c_attn.lora_A.weight",
                zeros(Dtype::F32, [4, 48]),
            )),
        ),
        ("holds no tensors", Box::new(Tensors::clear)),
    ];
    for (expected, change) in cases {
        let error = error_of(changed(|_| (), change).path());
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn folders_without_an_adapter_and_adapters_of_other_models_are_refused() {
    let error = error_of(&golden("adapters/llama"));
    assert!(
        error.contains("`base_model.model.model.layers.0.mlp.down_proj.lora_A.weight` in")
            && error.ends_with(
                "the model has no linear layer `model.layers.0.mlp.down_proj`; is the adapter for another model?"
            ),
        "{error}"
    );

    let error = error_of(&golden("models/llama"));
    assert!(
        error.contains("models/llama holds no adapter: it has no adapter_config.json"),
        "{error}"
    );
    let folder = changed(|_| (), |_| ());
    std::fs::remove_file(folder.path().join("adapter_model.safetensors")).unwrap();
    let error = error_of(folder.path());
    assert!(
        error.contains("it has no adapter_model.safetensors"),
        "{error}"
    );
    let missing = folder.path().join("missing");
    assert!(error_of(&missing).starts_with("there is no folder"));
}

#[test]
fn a_model_with_an_adapter_prints_as_without_and_cannot_be_saved() {
    let config = LoadConfig {
        adapter: Some(golden("adapters/gpt2").display().to_string()),
        ..LoadConfig::default()
    };
    let model = AutoModelForCausalLM::from_pretrained(&gpt2(), &config).unwrap();
    let plain = AutoModelForCausalLM::from_pretrained(&gpt2(), &LoadConfig::default()).unwrap();
    assert_eq!(model.tree(), plain.tree());
    assert_eq!(model.decoder().adapted_layers(), 12);
    assert_eq!(plain.decoder().adapted_layers(), 0);
    // Four layers for each of three blocks: A of rank 4 in bf16, B in f32.
    let bytes = 3 * 4 * (2 * (48 + 48 + 48 + 192) + 4 * (144 + 48 + 192 + 48));
    let read = |model: &AutoModelForCausalLM| model.decoder().bytes_per_step(1, 1);
    assert_eq!(read(&model) - read(&plain), bytes);

    let folder = TempDir::new().unwrap();
    let target = folder.path().join("saved");
    let options = SaveOptions::default();
    let error = model
        .save_pretrained(&target, &options, &mut |_| ControlFlow::Continue(()))
        .unwrap_err();
    assert!(
        matches!(error, LlmError::Decoder(DecoderError::SavedAdapter)),
        "{error}"
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn an_adapter_on_a_device_is_refused() {
    for device in few_devices() {
        let options = LoadOptions {
            placement: on_device(&device),
            ..int8(None)
        };
        let config = LoadConfig {
            options,
            adapter: Some(golden("adapters/gpt2").display().to_string()),
            ..LoadConfig::default()
        };
        let error = AutoModelForCausalLM::from_pretrained(&gpt2(), &config).unwrap_err();
        assert!(
            matches!(error, LlmError::Decoder(DecoderError::AdapterOnDevice)),
            "{error}"
        );
    }
}

#[test]
fn the_program_applies_an_adapter() {
    let folder = golden("adapters/gpt2").display().to_string();
    let prompt = &ids("gpt2", "input_ids")[1];
    let list = |ids: &[u32]| {
        let words: Vec<String> = ids.iter().map(u32::to_string).collect();
        words.join(",")
    };
    let (model, tokens) = (gpt2(), list(prompt));
    let run = |more: &[&str]| {
        let command = [
            "run",
            &model,
            "--token-ids",
            &tokens,
            "--print-ids",
            "-n",
            "12",
        ];
        llm_int8(&[&command[..], &["--dtype", "float32"], more].concat())
    };
    let output = run(&["--adapter", &folder]);
    let theirs = list(&ids("gpt2", "greedy_int8")[1][prompt.len()..]);
    assert_eq!(stdout(&output).trim(), theirs);
    assert!(stderr(&output).contains("12 int8 layers, 1 kept, 12 with an adapter"));
    assert_ne!(stdout(&run(&[])).trim(), theirs);

    let out = TempDir::new().unwrap();
    let file = out.path().join("logits.safetensors").display().to_string();
    let command = ["logits", &model, "--token-ids", &tokens, "--out", &file];
    stdout(&llm_int8(
        &[
            &command[..],
            &["--no-quantize", "--dtype", "float32", "--adapter", &folder],
        ]
        .concat(),
    ));
    let ours = candle_core::safetensors::load(&file, &candle_core::Device::Cpu).unwrap();
    let theirs = expected("gpt2", "logits_f32").narrow(0, 1, 1).unwrap();
    assert!(relative_error(&ours["logits"], &theirs) < 1e-5);
}

/// An adapter of one layer of the built-in model, its matrices full of one value.
fn built_in_adapter() -> TempDir {
    let folder = TempDir::new().unwrap();
    let config = json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1});
    std::fs::write(
        folder.path().join("adapter_config.json"),
        config.to_string(),
    )
    .unwrap();
    let filled = |shape: [usize; 2]| {
        let bytes = 0.5f32.to_le_bytes().repeat(shape.iter().product());
        (Dtype::F32, shape.to_vec(), bytes)
    };
    let name = |part: &str| format!("base_model.model.lm_head.lora_{part}.weight");
    let vocabulary = AutoModelForCausalLM::from_pretrained("tiny-gpt2", &LoadConfig::default())
        .unwrap()
        .decoder()
        .spec()
        .vocab_size();
    let mut tensors = Tensors::new();
    tensors.insert(name("A"), filled([1, 256]));
    // Half of the vocabulary, so that it changes the probabilities.
    let (dtype, shape, mut bytes) = filled([vocabulary, 1]);
    let half = bytes.len() / 8 * 4;
    bytes[half..].fill(0);
    tensors.insert(name("B"), (dtype, shape, bytes));
    write_tensors(&folder.path().join("adapter_model.safetensors"), &tensors);
    folder
}

/// The head of this model is tied to its token table; the adapter changes the head alone.
#[test]
fn eval_and_chat_take_an_adapter() {
    let adapter = built_in_adapter();
    let adapter = adapter.path().display().to_string();
    let folder = TempDir::new().unwrap();
    let text = folder.path().join("text.txt").display().to_string();
    std::fs::write(&text, "And it came to pass in those days").unwrap();

    let perplexity = |more: &[&str]| {
        let command = ["eval", "tiny-gpt2", "--text", &text, "--json"];
        let output = llm_int8(&[&command[..], more].concat());
        let found: Value = serde_json::from_str(&stdout(&output)).unwrap();
        found["perplexity"].as_f64().unwrap()
    };
    let plain = perplexity(&[]);
    let changed = perplexity(&["--adapter", &adapter]);
    assert!((plain - changed).abs() > 0.01, "{plain} {changed}");

    let nothing = folder.path().display().to_string();
    for command in ["chat", "bench"] {
        let (code, error) = failure(&[command, "tiny-gpt2", "--adapter", &nothing]);
        assert_eq!(code, 1, "{error}");
        assert!(error.contains("it has no adapter_config.json"), "{error}");
    }
    let (code, error) = failure(&["quantize", "tiny-gpt2", "-o", &text, "--adapter", &nothing]);
    assert_eq!(code, 2, "{error}");
}
