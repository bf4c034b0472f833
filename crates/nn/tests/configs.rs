//! `config.json` in the forms that published models have, and in forms no model has.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use llm_int8_nn::models::{DecoderSpec, FAMILIES, ModelConfig};
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

/// Sizes under Llama's keys.
fn llama_style(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 256,
    })
}

/// Where position 200 turns the first pair of a head to.
fn angle(spec: &DecoderSpec, layer: usize) -> f32 {
    let rope = &spec.attention.ropes[spec.layers[layer].rope.unwrap()];
    let mut head = vec![0f32; spec.attention.head_size];
    head[1] = 1.0;
    rope.table(200, 1).rotate(0, &mut head);
    head[1]
}

#[test]
fn files_of_2022_name_blooms_sizes_otherwise() {
    let old = json!({
        "model_type": "bloom", "n_embed": 64, "n_layer": 2, "num_attention_heads": 8, "vocab_size": 250, "n_inner": null,
        "offset_alibi": 100, "skip_bias_add": true,
    });
    let spec = describe(&old).unwrap();
    assert_eq!(
        (spec.hidden_size, spec.layers.len(), spec.attention.heads, spec.vocab_size()),
        (64, 2, 8, 250)
    );
}

#[test]
fn a_window_that_is_missing_and_one_that_is_null_are_two_things() {
    let windows = |changes: &[(&str, Value)]| {
        let spec = describe(&with(llama_style("mistral"), changes)).unwrap();
        spec.layers.iter().map(|layer| layer.window).collect::<Vec<_>>()
    };
    assert_eq!(windows(&[]), [Some(4096); 6], "the default of MistralConfig");
    assert_eq!(windows(&[("sliding_window", Value::Null)]), [None; 6]);
    assert_eq!(windows(&[("sliding_window", 8.into())]), [Some(8); 6]);
}

#[test]
fn windows_follow_patterns_and_lists() {
    let windows = |model_type: &str, changes: &[(&str, Value)]| {
        let spec = describe(&with(llama_style(model_type), changes)).unwrap();
        spec.layers.iter().map(|layer| layer.window.is_some()).collect::<Vec<_>>()
    };
    assert_eq!(windows("gemma2", &[]), [true, false, true, false, true, false]);
    assert_eq!(windows("gemma3_text", &[]), [true, true, true, true, true, false]);
    assert_eq!(
        windows("gemma3_text", &[("sliding_window_pattern", 2.into())]),
        [true, false, true, false, true, false]
    );
    let qwen = [("use_sliding_window", true.into()), ("max_window_layers", 4.into())];
    assert_eq!(windows("qwen2", &qwen), [false, false, false, false, true, true]);
    assert_eq!(windows("qwen2", &[("sliding_window", 8.into())]), [false; 6], "only where it is used");
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
    let short = with(llama_style("gemma2"), &[("layer_types", json!(["full_attention"]))]);
    assert!(describe(&short).unwrap_err().contains("names 1 layers of 6"));
    let other = with(llama_style("gemma2"), &[("layer_types", json!(vec!["chunked_attention"; 6]))]);
    assert!(describe(&other).unwrap_err().contains("`chunked_attention`"));
}

#[test]
fn rotations_are_read_as_transformers_4_and_5_write_them() {
    let four = with(
        llama_style("llama"),
        &[("rope_theta", 5e5.into()), ("rope_scaling", json!({ "rope_type": "linear", "factor": 4.0 }))],
    );
    let five = with(
        llama_style("llama"),
        &[("rope_parameters", json!({ "rope_theta": 5e5, "rope_type": "linear", "factor": 4.0 }))],
    );
    assert_eq!(describe(&four).unwrap().attention.ropes, describe(&five).unwrap().attention.ropes);
    let plain = describe(&llama_style("llama")).unwrap();
    assert_ne!(angle(&plain, 0), angle(&describe(&four).unwrap(), 0));
    assert_eq!(describe(&four).unwrap().positions, 4 * plain.positions);

    let four =
        with(llama_style("gemma3_text"), &[("rope_theta", 1e6.into()), ("rope_local_base_freq", 1e4.into())]);
    let by_type = json!({
        "full_attention": { "rope_type": "default", "rope_theta": 1e6 },
        "sliding_attention": { "rope_type": "default", "rope_theta": 1e4 },
    });
    let five = with(llama_style("gemma3_text"), &[("rope_parameters", by_type)]);
    let (four, five) = (describe(&four).unwrap(), describe(&five).unwrap());
    assert_eq!(four.attention.ropes, five.attention.ropes);
    assert_ne!(angle(&four, 0), angle(&four, 5), "windowed layers rotate by themselves");
    let neox = |changes: &[(&str, Value)]| {
        let mut config = llama_style("gpt_neox");
        config["num_key_value_heads"] = Value::Null;
        describe(&with(config, changes)).unwrap().attention.ropes
    };
    let old = [("rotary_pct", 0.5.into()), ("rotary_emb_base", 5000.into())];
    let new = [("rope_parameters", json!({ "rope_theta": 5000.0, "partial_rotary_factor": 0.5 }))];
    assert_eq!(neox(&old), neox(&new));
}

#[test]
fn the_row_of_padding_is_printed_as_pytorch_prints_it() {
    let first = |model_type: &str, changes: &[(&str, Value)]| {
        let spec = describe(&with(llama_style(model_type), changes)).unwrap();
        format!("{:?}", spec.tree.parts()[0].1)
    };
    assert!(first("llama", &[]).contains("padding: None"));
    assert!(first("llama", &[("pad_token_id", (-1).into())]).contains("padding: Some(99)"));
    assert!(first("gemma2", &[]).contains("padding: Some(0)"), "the default of Gemma2Config");
    assert!(first("gemma2", &[("pad_token_id", Value::Null)]).contains("padding: None"));
}

#[test]
fn what_is_not_built_is_refused_by_its_key() {
    for (model_type, key, value) in [
        ("bloom", "apply_residual_connection_post_layernorm", json!(true)),
        ("gemma3_text", "use_bidirectional_attention", json!(true)),
        ("llama", "hidden_act", json!("mish")),
        ("llama", "rope_scaling", json!({ "rope_type": "spiral" })),
        ("llama", "head_dim", json!(7)),
        ("llama", "num_key_value_heads", json!(3)),
        ("llama", "num_attention_heads", json!(5)),
        ("llama", "num_hidden_layers", json!(5000)),
        ("llama", "hidden_size", json!(1 << 20)),
        ("llama", "vocab_size", json!(1u64 << 40)),
        ("llama", "vocab_size", json!("many")),
        ("llama", "max_position_embeddings", json!(0)),
    ] {
        let error = describe(&with(llama_style(model_type), &[(key, value.clone())])).unwrap_err();
        assert!(error.starts_with("config.json: "), "{key} {value}: {error}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]
    /// Whatever stands under a key, there is a description or an error, and nothing large is allocated.
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
