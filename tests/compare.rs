//! `eval --compare` and `AccuracyComparison`: what 8 bit loses under each rule.

use crate::support::{failure, golden, llm_int8, stdout};
use llm_int8::nn::linear::Int8Config;
use llm_int8::nn::{CacheDtype, FloatDtype};
use llm_int8::{
    Accuracy, AccuracyComparison, AutoModelForCausalLM, ComparedRule, Comparison, LoadConfig,
    PerplexityOptions, RuleResult, hub::NoProgress,
};
use std::ops::ControlFlow;

/// Text that tiny-gpt2 has not seen.
const TEXT: &str = "The harbour was quiet when the two engineers came down to count the boats. Of the forty that had \
    left in the spring, thirty-one were tied to the wall; the others, said the old man at the gate, were still out \
    beyond the islands, where the herring had gone this year. \"You will want to write that down,\" he said, and they did.";

fn config(int8: Option<Int8Config>, cache_dtype: Option<CacheDtype>) -> LoadConfig {
    let mut config = LoadConfig::default();
    config.options.int8 = int8;
    config.options.cache_dtype = cache_dtype;
    config
}

fn compare(name: &str, ids: &[u32], window: usize) -> Comparison {
    compare_with(name, None, ids, window)
}

fn compare_with(
    name: &str,
    cache_dtype: Option<CacheDtype>,
    ids: &[u32],
    window: usize,
) -> Comparison {
    let config = config(None, cache_dtype);
    let mut comparison = AccuracyComparison::load(name, &config, &NoProgress).unwrap();
    let options = PerplexityOptions {
        window,
        stride: window,
    };
    let rules = comparison.rules();
    comparison
        .run(&rules, ids, options, &mut |_, _| ControlFlow::Continue(()))
        .unwrap()
}

fn result(found: &Comparison, name: &str) -> RuleResult {
    let rule = found.rules.iter().find(|result| result.rule.name() == name);
    rule.unwrap_or_else(|| panic!("no rule {name}")).clone()
}

fn ids() -> Vec<u32> {
    let model = AutoModelForCausalLM::from_pretrained("tiny-gpt2", &config(None, None)).unwrap();
    model.tokenizer().unwrap().encode(TEXT).unwrap()
}

/// Softmax of each row but the last, f64.
fn distributions(
    int8: Option<Int8Config>,
    cache: Option<CacheDtype>,
    ids: &[u32],
) -> Vec<Vec<f64>> {
    let config = config(int8, cache);
    let model = AutoModelForCausalLM::from_pretrained("tiny-gpt2", &config).unwrap();
    let rows = model.logits(ids).unwrap().squeeze(0).unwrap();
    let mut rows = rows.to_vec2::<f32>().unwrap();
    rows.pop();
    rows.iter()
        .map(|row| {
            let exp: Vec<f64> = row.iter().map(|x| f64::from(*x).exp()).collect();
            let sum: f64 = exp.iter().sum();
            exp.iter().map(|x| x / sum).collect()
        })
        .collect()
}

/// The divergence of each row of `q` from that of `p`.
fn divergences(p: &[Vec<f64>], q: &[Vec<f64>]) -> Vec<f64> {
    let of_row = |p: &[f64], q: &[f64]| p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum();
    p.iter().zip(q).map(|(p, q)| of_row(p, q)).collect()
}

/// Against keys and values in f32: those in f16, and those in int8, which lose more.
#[test]
fn caches_are_compared_with_the_one_that_was_asked_for() {
    let ids = ids();
    let f32 = Some(CacheDtype::Float(FloatDtype::F32));
    let found = compare_with("tiny-gpt2", f32, &ids, 512);
    let baseline = distributions(None, f32, &ids);
    let mut all = Vec::new();
    for (name, dtype) in [
        ("float16 cache", CacheDtype::Float(FloatDtype::F16)),
        ("int8 cache", CacheDtype::Int8),
    ] {
        let other = distributions(None, Some(dtype), &ids);
        let expected = divergences(&baseline, &other);
        let kl = expected.iter().sum::<f64>() / expected.len() as f64;
        let found = result(&found, name).kl;
        // f16 loses less than the sums in f32 can tell exactly.
        assert!(
            (found - kl).abs() < 0.05 * kl + 3e-7,
            "{name}: {found} {kl}"
        );
        all.push(found);
    }
    assert!(all[1] > 4.0 * all[0] && all[1] > 2e-6, "{all:?}");
}

#[test]
fn divergences_are_those_of_the_models_loaded_one_by_one() {
    let ids = ids();
    let found = compare("tiny-gpt2", &ids, 512);
    assert_eq!(found.baseline, ComparedRule::Float);
    assert_eq!(found.tokens, ids.len() - 1);
    assert_eq!(found.rules[0].kl, 0.0);

    let float = distributions(None, None, &ids);
    for accuracy in Accuracy::ALL {
        let other = distributions(Some(accuracy.int8_config()), None, &ids);
        let divergences = divergences(&float, &other);
        let kl = divergences.iter().sum::<f64>() / divergences.len() as f64;

        let result = result(&found, accuracy.name());
        assert!(
            (result.kl - kl).abs() < 0.02 * kl,
            "{accuracy:?}: {kl}, {result:?}"
        );
        let worst = divergences.iter().copied().fold(0.0, f64::max);
        assert!(
            (result.worst_kl - worst).abs() < 0.02 * worst,
            "{accuracy:?}"
        );
        assert!(divergences[result.worst_position - 1] > 0.98 * worst);
    }
}

#[test]
fn rules_are_ordered_as_they_should_be() {
    let found = compare("tiny-gpt2", &ids(), 512);
    let kl = |name| result(&found, name).kl;
    assert!(kl("better") < 0.8 * kl("bitsandbytes"));
    assert!(kl("best") < kl("better"));
    assert!(kl("float activations") < kl("better"));
    assert!(kl("absmax vector-wise") < kl("absmax row-wise"));
    assert!(kl("absmax row-wise") < kl("absmax"));
    assert!(kl("zeropoint vector-wise") < kl("zeropoint"));

    let bytes = |name| result(&found, name).bytes;
    assert_eq!(bytes("better"), bytes("bitsandbytes"));
    assert!(bytes("best") > bytes("better") && bytes("float") > bytes("best"));
    let share = |name| result(&found, name).outlier_share;
    assert!(share("better") > 0.001 && share("better") < 0.05);
    assert_eq!(share("absmax vector-wise"), 0.0);
}

#[test]
fn windows_are_compared_one_by_one_and_every_token_once() {
    let ids = ids();
    let found = compare("tiny-gpt2", &ids, 16);
    assert_eq!(found.tokens, ids.len() - ids.len().div_ceil(16));
    assert!(result(&found, "bitsandbytes").worst_position < ids.len());
}

#[test]
fn an_8_bit_checkpoint_is_compared_with_float_activations() {
    let name = golden("bnb_checkpoints/gpt2");
    let ids: Vec<u32> = (1..40).collect();
    let found = compare(name.to_str().unwrap(), &ids, 32);
    assert_eq!(found.baseline, ComparedRule::FloatActivations);
    let names: Vec<_> = found
        .rules
        .iter()
        .map(|result| result.rule.name())
        .collect();
    let expected = [
        "float activations",
        "bitsandbytes",
        "better",
        "absmax vector-wise",
        "int8 cache",
    ];
    assert_eq!(names, expected);
    assert!(result(&found, "int8 cache").kl > 0.0);
    assert!(result(&found, "bitsandbytes").kl > 0.0);
}

#[test]
fn the_program_prints_a_table_or_json() {
    let scratch = tempfile::tempdir().unwrap();
    let text = scratch.path().join("text.txt");
    std::fs::write(&text, TEXT).unwrap();
    let arguments = [
        "eval",
        "tiny-gpt2",
        "--compare",
        "--text",
        text.to_str().unwrap(),
    ];

    let table = stdout(&llm_int8(&arguments));
    for rule in [
        "float ",
        "bitsandbytes ",
        "better ",
        "best ",
        "zeropoint vector-wise ",
        "int8 cache ",
    ] {
        assert!(table.lines().any(|line| line.starts_with(rule)), "{table}");
    }

    let output = llm_int8(&[&arguments[..], &["--json"]].concat());
    let json: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    let rules = json["rules"].as_array().unwrap();
    assert_eq!(rules[0]["name"], "float");
    for key in [
        "bytes",
        "perplexity",
        "kl",
        "kl_standard_error",
        "agreement",
        "outlier_share",
        "seconds",
    ] {
        assert!(rules[1][key].is_number(), "{key}");
    }
}

#[test]
fn a_comparison_takes_no_rule_and_no_gpu() {
    let arguments = ["eval", "tiny-gpt2", "--compare", "--text", "Cargo.toml"];
    for more in [
        ["--accuracy", "best"],
        ["--threshold", "4"],
        ["--device", "cuda"],
    ] {
        let (code, _) = failure(&[&arguments[..], &more].concat());
        assert_eq!(code, 2, "{more:?}");
    }
}
