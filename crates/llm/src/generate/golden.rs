//! Processors and filters compared with transformers' (golden values of
//! `scripts/make_generation_golden.py`).

use super::GenerationConfig;
use super::filters::kept;
use super::processors::Processors;
use super::sampler::top_k;
use llm_int8_decoder::{ModelConfig, largest};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

fn golden(name: &str) -> Vec<Value> {
    let path = format!(
        "{}/../../tests/golden/generation/{name}",
        env!("CARGO_MANIFEST_DIR")
    );
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// JSON has no infinities and no NaN, so they are strings.
fn number(value: &Value) -> f32 {
    match value.as_str() {
        Some(text) => text.parse().unwrap(),
        None => value.as_f64().unwrap() as f32,
    }
}

fn rows() -> Vec<Vec<f32>> {
    golden("rows.json")
        .iter()
        .map(|row| row.as_array().unwrap().iter().map(number).collect())
        .collect()
}

fn size(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

fn ids(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_u64().unwrap() as u32)
        .collect()
}

fn config(case: &Value) -> GenerationConfig {
    GenerationConfig::from_json(case["settings"].to_string().as_bytes(), "the settings").unwrap()
}

/// The logits of a case after the processors.
fn processed(
    case: &Value,
    config: &GenerationConfig,
    prompt: usize,
    new_tokens: usize,
) -> Vec<f32> {
    let mut scores = rows()[size(&case["row"])].clone();
    let seen = ids(&case["ids"]);
    let processors = Processors::new(Arc::new(config.clone()), prompt, new_tokens);
    let before = scores.clone();
    processors.apply(&seen, &mut scores);

    let is_penalised = config.repetition_penalty != 1.0;
    let is_same = before
        .iter()
        .zip(&scores)
        .all(|(a, b)| a.to_bits() == b.to_bits());
    assert!(
        is_same || is_penalised || processors.act_on(&seen),
        "`act_on` missed a change: {case}"
    );
    scores
}

#[test]
fn processors_match_transformers() {
    let cases = golden("processors.json");
    assert!(cases.len() > 100);
    for case in cases {
        let config = config(&case);
        let scores = processed(
            &case,
            &config,
            size(&case["prompt"]),
            size(&case["new_tokens"]),
        );

        let mut expected = rows()[size(&case["row"])].clone();
        for (id, score) in case["changed"].as_object().unwrap() {
            expected[id.parse::<usize>().unwrap()] = number(score);
        }

        for (id, (ours, theirs)) in scores.iter().zip(&expected).enumerate() {
            // The decay factor is a power, whose last bits may differ.
            let is_near = (ours - theirs).abs() <= 4.0 * f32::EPSILON * theirs.abs();
            let is_same = ours == theirs || (ours.is_nan() && theirs.is_nan());
            assert!(
                is_same || is_near,
                "token {id}: {ours}, expected {theirs}: {case}"
            );
        }
    }
}

#[test]
fn filters_match_transformers() {
    let cases = golden("filters.json");
    assert!(cases.len() > 50);
    for case in cases {
        let config = config(&case);
        config.check().unwrap();
        let scores = processed(&case, &config, 3, 10);
        let tokens = top_k(&mut |count| Ok(largest(&scores, count)), config.top_k).unwrap();
        let kept = kept(&tokens, &config);

        let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
        let ours: BTreeMap<u32, f64> = kept
            .iter()
            .map(|(id, weight)| (*id, weight / total))
            .collect();
        let theirs: BTreeMap<u32, f64> = case["probabilities"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(id, p)| (id.parse().unwrap(), p.as_f64().unwrap()))
            .collect();
        assert_eq!(
            ours.keys().collect::<Vec<_>>(),
            theirs.keys().collect::<Vec<_>>(),
            "{case}"
        );

        for (id, p) in &theirs {
            assert!(
                (ours[id] - p).abs() < 1e-5 * p + 1e-9,
                "token {id}: {}, expected {p}: {case}",
                ours[id]
            );
        }
    }
}

#[test]
fn end_tokens_of_families_match_their_config_classes() {
    let classes = golden("class_tokens.json");
    for family in llm_int8_decoder::FAMILIES {
        let class = classes.iter().find(|class| class[0] == family.model_type);
        let class =
            class.unwrap_or_else(|| panic!("{} is not in class_tokens.json", family.model_type));
        let config = serde_json::json!({ "model_type": family.model_type }).to_string();
        let config = ModelConfig::parse(config.as_bytes()).unwrap();
        let ours =
            GenerationConfig::from_model_config(&config, "config.json", &mut Vec::new()).unwrap();
        let id = |value: &Value| value.as_u64().map(|id| id as u32);
        assert_eq!(ours.bos_token_id, id(&class[1]), "{}", family.model_type);
        let ends: Vec<u32> = match class[2].as_array() {
            Some(several) => several.iter().filter_map(id).collect(),
            None => id(&class[2]).into_iter().collect(),
        };
        assert_eq!(ours.eos_token_ids, ends, "{}", family.model_type);
    }
}
