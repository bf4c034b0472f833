//! `config.json` in the forms that published models have, and in invalid and hostile forms.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use llm_int8_decoder::spec::with_model_type;
use llm_int8_decoder::{DecoderSpec, FAMILIES, ModelConfig};
use serde_json::{Value, json};

fn describe(config: &Value) -> Result<DecoderSpec, String> {
    let config = ModelConfig::parse(config.to_string().as_bytes()).unwrap();
    DecoderSpec::from_config(&config).map_err(|error| error.to_string())
}

fn with(mut config: Value, changes: &[(&str, Value)]) -> Value {
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    config
}

/// A small model under Llama's keys.
fn llama_style(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 256,
    })
}

/// The second value of a head `[0, 1, 0, …]` after the rotation of position 200.
fn angle(spec: &DecoderSpec, layer: usize) -> f32 {
    let rope = &spec.attention.ropes[spec.layers[layer].rope.unwrap()];
    let mut head = vec![0f32; spec.attention.head_size];
    head[1] = 1.0;
    rope.table(200, 1).rotate(0, &mut head);
    head[1]
}

#[test]
fn bloom_files_from_2022_have_other_names_for_sizes() {
    let old = json!({
        "model_type": "bloom", "n_embed": 64, "n_layer": 2, "num_attention_heads": 8, "vocab_size": 250, "n_inner": null,
        "offset_alibi": 100, "skip_bias_add": true,
    });
    let spec = describe(&old).unwrap();
    assert_eq!(
        (
            spec.hidden_size,
            spec.layers.len(),
            spec.attention.heads,
            spec.vocab_size()
        ),
        (64, 2, 8, 250)
    );
}

#[test]
fn a_missing_window_has_a_default_and_a_null_window_means_none() {
    let windows = |changes: &[(&str, Value)]| {
        let spec = describe(&with(llama_style("mistral"), changes)).unwrap();
        spec.layers
            .iter()
            .map(|layer| layer.window)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        windows(&[]),
        [Some(4096); 6],
        "the default of MistralConfig"
    );
    assert_eq!(windows(&[("sliding_window", Value::Null)]), [None; 6]);
    assert_eq!(windows(&[("sliding_window", 8.into())]), [Some(8); 6]);
}

#[test]
fn windows_follow_patterns_and_lists() {
    let windows = |model_type: &str, changes: &[(&str, Value)]| {
        let spec = describe(&with(llama_style(model_type), changes)).unwrap();
        spec.layers
            .iter()
            .map(|layer| layer.window.is_some())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        windows("gemma2", &[]),
        [true, false, true, false, true, false]
    );
    assert_eq!(
        windows("gemma3_text", &[]),
        [true, true, true, true, true, false]
    );
    assert_eq!(
        windows("gemma3_text", &[("sliding_window_pattern", 2.into())]),
        [true, false, true, false, true, false]
    );
    let qwen = [
        ("use_sliding_window", true.into()),
        ("max_window_layers", 4.into()),
    ];
    assert_eq!(
        windows("qwen2", &qwen),
        [false, false, false, false, true, true]
    );
    assert_eq!(
        windows("qwen2", &[("sliding_window", 8.into())]),
        [false; 6],
        "ignored without use_sliding_window"
    );
    let list = json!([
        "full_attention",
        "sliding_attention",
        "full_attention",
        "full_attention",
        "full_attention",
        "full_attention"
    ]);
    assert_eq!(
        windows("gemma2", &[("layer_types", list.clone())]),
        [false, true, false, false, false, false]
    );
    let short = with(
        llama_style("gemma2"),
        &[("layer_types", json!(["full_attention"]))],
    );
    assert!(
        describe(&short)
            .unwrap_err()
            .contains("names 1 layers of 6")
    );
    let other = with(
        llama_style("gemma2"),
        &[("layer_types", json!(vec!["chunked_attention"; 6]))],
    );
    assert!(
        describe(&other)
            .unwrap_err()
            .contains("`chunked_attention`")
    );
}

#[test]
fn rotations_are_read_in_the_forms_of_transformers_4_and_5() {
    let four = with(
        llama_style("llama"),
        &[
            ("rope_theta", 5e5.into()),
            (
                "rope_scaling",
                json!({ "rope_type": "linear", "factor": 4.0 }),
            ),
        ],
    );
    let five = with(
        llama_style("llama"),
        &[(
            "rope_parameters",
            json!({ "rope_theta": 5e5, "rope_type": "linear", "factor": 4.0 }),
        )],
    );
    assert_eq!(
        describe(&four).unwrap().attention.ropes,
        describe(&five).unwrap().attention.ropes
    );
    let plain = describe(&llama_style("llama")).unwrap();
    assert_ne!(angle(&plain, 0), angle(&describe(&four).unwrap(), 0));
    assert_eq!(describe(&four).unwrap().positions, 4 * plain.positions);

    let four = with(
        llama_style("gemma3_text"),
        &[
            ("rope_theta", 1e6.into()),
            ("rope_local_base_freq", 1e4.into()),
        ],
    );
    let by_type = json!({
        "full_attention": { "rope_type": "default", "rope_theta": 1e6 },
        "sliding_attention": { "rope_type": "default", "rope_theta": 1e4 },
    });
    let five = with(llama_style("gemma3_text"), &[("rope_parameters", by_type)]);
    let (four, five) = (describe(&four).unwrap(), describe(&five).unwrap());
    assert_eq!(four.attention.ropes, five.attention.ropes);
    assert_ne!(
        angle(&four, 0),
        angle(&four, 5),
        "layers with a window have a rotation of their own"
    );
    let neox = |changes: &[(&str, Value)]| {
        let mut config = llama_style("gpt_neox");
        config["num_key_value_heads"] = Value::Null;
        describe(&with(config, changes)).unwrap().attention.ropes
    };
    let old = [("rotary_pct", 0.5.into()), ("rotary_emb_base", 5000.into())];
    let new = [(
        "rope_parameters",
        json!({ "rope_theta": 5000.0, "partial_rotary_factor": 0.5 }),
    )];
    assert_eq!(neox(&old), neox(&new));
}

#[test]
fn padding_idx_is_what_pytorch_prints() {
    let first = |model_type: &str, changes: &[(&str, Value)]| {
        let spec = describe(&with(llama_style(model_type), changes)).unwrap();
        format!("{:?}", spec.tree.parts()[0].1)
    };
    assert!(first("llama", &[]).contains("padding: None"));
    assert!(first("llama", &[("pad_token_id", (-1).into())]).contains("padding: Some(99)"));
    for outside in [json!(100), json!(-101), json!("0"), json!([0])] {
        let error =
            describe(&with(llama_style("llama"), &[("pad_token_id", outside)])).unwrap_err();
        assert!(error.contains("`pad_token_id`"), "{error}");
    }
    assert!(
        first("gemma2", &[]).contains("padding: Some(0)"),
        "the default of Gemma2Config"
    );
    assert!(first("gemma2", &[("pad_token_id", Value::Null)]).contains("padding: None"));
}

#[test]
fn unsupported_settings_are_refused_with_a_config_error() {
    for (model_type, key, value) in [
        (
            "bloom",
            "apply_residual_connection_post_layernorm",
            json!(true),
        ),
        (
            "falcon",
            "apply_residual_connection_post_layernorm",
            json!(true),
        ),
        ("falcon", "num_ln_in_parallel_attn", json!(2)),
        ("falcon", "partial_rotary_factor", json!(0.5)),
        ("gpt_neox", "head_dim", json!(16)),
        ("gemma2", "sliding_window", Value::Null),
        ("gemma3_text", "use_bidirectional_attention", json!(true)),
        ("gpt2", "add_cross_attention", json!(true)),
        ("gpt2", "pruned_heads", json!({ "0": [1] })),
        ("gpt2", "attn_pdrop", json!(1.5)),
        ("gpt_bigcode", "add_cross_attention", json!(true)),
        ("gpt_neo", "attention_types", json!([[["global"], 5]])),
        ("gptj", "rotary_dim", Value::Null),
        ("llama", "hidden_act", json!("prelu")),
        ("llama", "rope_scaling", json!({ "rope_type": "spiral" })),
        ("llama", "rope_scaling", json!({ "rope_type": "mrope" })),
        ("llama", "rope_scaling", json!({ "type": "su" })),
        ("llama", "rope_scaling", json!({})),
        ("llama", "rope_scaling", json!("linear")),
        ("llama", "partial_rotary_factor", json!(0.5)),
        ("llama", "head_dim", json!(7)),
        ("llama", "num_key_value_heads", json!(3)),
        ("llama", "num_attention_heads", json!(5)),
        ("llama", "num_hidden_layers", json!(5000)),
        ("llama", "hidden_size", json!(1 << 20)),
        ("llama", "vocab_size", json!(1u64 << 40)),
        ("llama", "max_position_embeddings", json!(0)),
        ("mpt", "attn_config", json!({ "alibi": false })),
        ("mpt", "attn_config", json!({ "qk_ln": true })),
        (
            "mpt",
            "attn_config",
            json!({ "attn_type": "multiquery_attention" }),
        ),
        ("opt", "layer_norm_elementwise_affine", json!(false)),
        (
            "phi3",
            "rope_scaling",
            json!({ "type": "linear", "factor": 2.0 }),
        ),
        ("smollm3", "no_rope_layers", json!([1, 0])),
        ("stablelm", "head_dim", json!(16)),
    ] {
        let error = describe(&with(llama_style(model_type), &[(key, value.clone())])).unwrap_err();
        assert!(error.starts_with("config.json: "), "{key} {value}: {error}");
    }
}

#[test]
fn a_value_of_the_wrong_type_is_refused_with_its_key() {
    for (key, value) in [
        ("vocab_size", json!("many")),
        ("hidden_size", json!(32.0)),
        ("num_attention_heads", json!(true)),
        ("intermediate_size", Value::Null),
        ("rms_norm_eps", json!("1e-6")),
        ("rms_norm_eps", Value::Null),
        ("rope_theta", json!("10000")),
        ("rope_theta", Value::Null),
        ("attention_bias", json!("false")),
        ("hidden_act", Value::Null),
        ("hidden_act", json!(1)),
        ("head_dim", json!(8.5)),
    ] {
        let error = describe(&with(llama_style("llama"), &[(key, value.clone())])).unwrap_err();
        assert!(error.contains(&format!("`{key}` is {value}")), "{error}");
    }
    let text = with(llama_style("llama"), &[])
        .to_string()
        .replace("256", "Infinity");
    let config = ModelConfig::parse(text.as_bytes()).unwrap();
    let error = DecoderSpec::from_config(&config).unwrap_err().to_string();
    assert!(
        error.contains("`max_position_embeddings` is Infinity"),
        "{error}"
    );
}

/// A missing key has the default of the configuration class: the sizes of GPT-2 and of Llama 7B.
#[test]
fn an_empty_config_describes_the_default_model() {
    let spec = describe(&json!({ "model_type": "gpt2" })).unwrap();
    let attention = &spec.attention;
    assert_eq!(
        (
            spec.vocab_size(),
            spec.hidden_size,
            spec.layers.len(),
            attention.heads,
            spec.positions
        ),
        (50257, 768, 12, 12, 1024)
    );
    let spec = describe(&json!({ "model_type": "llama" })).unwrap();
    assert_eq!(
        (spec.vocab_size(), spec.hidden_size, spec.layers.len()),
        (32000, 4096, 32)
    );
    assert_eq!(
        (spec.attention.kv_heads, spec.positions, spec.tied_head),
        (32, 2048, false)
    );
    for family in FAMILIES {
        describe(&json!({ "model_type": family.model_type })).unwrap();
    }
}

#[test]
fn flags_follow_pythons_truth_values() {
    let is_tied = |value: Value| {
        describe(&with(
            llama_style("qwen2"),
            &[("tie_word_embeddings", value)],
        ))
        .unwrap()
        .tied_head
    };
    assert!(is_tied(json!(1)) && is_tied(json!(true)));
    assert!(!is_tied(json!(0)) && !is_tied(Value::Null));
}

#[test]
fn aliases_of_keys_are_resolved_as_in_transformers() {
    let common = json!({
        "hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 3, "max_position_embeddings": 64,
        "rotary_dim": 4, "attention_types": [[["global"], 3]], "vocab_size": 100,
    });
    for model_type in ["gpt2", "gptj", "gpt_bigcode", "gpt_neo", "mpt", "bloom"] {
        let spec = describe(&with(common.clone(), &[("model_type", model_type.into())])).unwrap();
        let found = (spec.hidden_size, spec.attention.heads, spec.layers.len());
        assert_eq!(found, (48, 6, 3), "{model_type}");
    }
    // The alias wins: transformers sets it last.
    let both = json!({ "model_type": "gpt2", "n_embd": 96, "hidden_size": 48, "n_head": 6 });
    assert_eq!(describe(&both).unwrap().hidden_size, 48);
    let both = json!({ "model_type": "bloom", "n_embed": 96, "hidden_size": 48, "n_head": 6 });
    assert_eq!(describe(&both).unwrap().hidden_size, 96);
}

#[test]
fn the_kind_of_a_rotation_is_read_from_the_key_that_the_class_prefers() {
    let ropes = |model_type: &str, scaling: Value| {
        describe(&with(llama_style(model_type), &[("rope_scaling", scaling)]))
            .unwrap()
            .attention
            .ropes
    };
    let both = json!({ "type": "linear", "rope_type": "dynamic", "factor": 2.0 });
    for (model_type, counts) in [
        ("llama", "linear"),
        ("qwen2", "linear"),
        ("mistral", "dynamic"),
    ] {
        let alone = json!({ "rope_type": counts, "factor": 2.0 });
        assert_eq!(
            ropes(model_type, both.clone()),
            ropes(model_type, alone),
            "{model_type}"
        );
    }
    // LongRoPE reads the original context next to `rope_scaling`, YaRN and Llama 3 inside of it.
    let factors = json!([1.0, 1.0, 1.0, 1.0]);
    let long = json!({ "rope_type": "longrope", "long_factor": factors, "short_factor": factors, "factor": 2.0 });
    let yarn = json!({ "rope_type": "yarn", "factor": 2.0 });
    for (scaling, counts_beside, counts_within) in [(long, true, false), (yarn, false, true)] {
        let of = |changes: &[(&str, Value)]| {
            describe(&with(llama_style("llama"), changes))
                .unwrap()
                .attention
                .ropes
        };
        let plain = of(&[("rope_scaling", scaling.clone())]);
        let beside = of(&[
            ("rope_scaling", scaling.clone()),
            ("original_max_position_embeddings", 32.into()),
        ]);
        let mut inner = scaling.clone();
        inner["original_max_position_embeddings"] = 32.into();
        let within = of(&[("rope_scaling", inner)]);
        assert_eq!(
            (plain != beside, plain != within),
            (counts_beside, counts_within),
            "{scaling}"
        );
    }
}

#[test]
fn the_window_of_a_family_without_windows_limits_its_context() {
    let positions = |changes: &[(&str, Value)]| {
        describe(&with(llama_style("llama"), changes))
            .unwrap()
            .positions
    };
    assert_eq!(positions(&[("sliding_window", Value::Null)]), 256);
    assert_eq!(positions(&[("sliding_window", 64.into())]), 64);
    assert_eq!(positions(&[("attention_chunk_size", 32.into())]), 32);
    let full = ("layer_types", json!(vec!["full_attention"; 6]));
    assert_eq!(positions(&[("sliding_window", 64.into()), full]), 256);
}

#[test]
fn a_missing_model_type_is_derived_from_the_class_or_the_name() {
    let named = |config: Value, name: &str| {
        let config = ModelConfig::parse(config.to_string().as_bytes()).unwrap();
        let config = with_model_type(config, name);
        config
            .model_type()
            .map(str::to_owned)
            .map_err(|error| error.to_string())
    };
    assert_eq!(named(json!({}), "llama-7b-hf").unwrap(), "llama");
    assert_eq!(named(json!({}), "gpt_neox-20b").unwrap(), "gpt_neox");
    assert_eq!(
        named(json!({ "architectures": ["GPT2LMHeadModel"] }), "DialoGPT").unwrap(),
        "gpt2"
    );
    assert_eq!(
        named(json!({ "model_type": "phi" }), "llama").unwrap(),
        "phi"
    );
    assert!(
        named(json!({ "architectures": ["LLaMAForCausalLM"] }), "weights")
            .unwrap_err()
            .contains("`model_type`")
    );
    assert!(
        named(json!({ "model_type": 7 }), "llama")
            .unwrap_err()
            .contains("`model_type` is 7")
    );
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]
    /// Any value of a key gives a description or an error, without a panic or a large allocation.
    #[test]
    fn hostile_values_never_panic(
        family in 0..FAMILIES.len(),
        key in proptest::sample::select(vec![
            "vocab_size", "hidden_size", "n_embd", "n_embed", "d_model", "num_hidden_layers", "n_layer", "n_layers", "num_layers",
            "num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads", "num_kv_heads", "head_dim",
            "intermediate_size", "max_position_embeddings", "n_positions", "max_seq_len", "rotary_dim", "rotary_pct",
            "partial_rotary_factor", "rope_theta", "rope_scaling", "sliding_window", "sliding_window_pattern", "layer_types",
            "attention_types", "attn_config", "no_rope_layers", "no_rope_layer_interval", "query_pre_attn_scalar",
            "logits_scaling", "pad_token_id", "max_window_layers",
        ]),
        value in proptest::sample::select(vec![
            json!(0), json!(1), json!(2), json!(-1), json!(3), json!(1_000_000), json!(268_435_456), json!(u64::MAX), json!(0.5),
            json!(1e300), json!("x"), json!([]), json!([[["global"], 1_000_000_000]]), json!({}), json!({ "rope_type": "yarn" }),
            json!({ "rope_type": "yarn", "factor": 1e300 }), json!({ "type": "dynamic", "factor": 1e308 }),
            json!({ "type": "longrope", "short_factor": [1], "long_factor": [1] }), json!(true), Value::Null,
        ]),
    ) {
        let sizes = json!({
            "model_type": FAMILIES[family].model_type, "vocab_size": 100, "hidden_size": 32, "n_embd": 32, "n_embed": 32,
            "d_model": 32, "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "num_attention_heads": 4,
            "n_head": 4, "n_heads": 4, "num_heads": 4, "intermediate_size": 64, "ffn_dim": 64,
            "max_position_embeddings": 256, "n_positions": 256, "max_seq_len": 256, "rotary_dim": 4,
        });
        if let Ok(spec) = describe(&with(sizes, &[(key, value)])) {
            spec.attention.ropes.iter().for_each(|rope| drop(rope.table(300, 1)));
        }
    }
}
