//! The outlier report: its figures against models whose outliers are known, and the program's text,
//! JSON, page and picture.

use crate::support::golden_models::{folders, input_ids};
use crate::support::{golden, golden_text, read_tensors, write_tensors};
use half::f16;
use llm_int8::decoder::{LoadOptions, WeightDtype};
use llm_int8::hub::{HubConfig, NoProgress};
use llm_int8::nn::linear::{Int8Config, OutlierRule, OutlierWeights};
use llm_int8::outliers::OutlierReport;
use llm_int8::{AutoModelForCausalLM, LlmError, LoadConfig, OutlierOptions, load};
use serde_json::Value;
use std::ops::ControlFlow;
use tempfile::TempDir;

fn config(outliers: OutlierRule, outlier_weights: OutlierWeights) -> LoadConfig {
    let int8 = Int8Config {
        outliers,
        outlier_weights,
    };
    LoadConfig {
        options: LoadOptions {
            int8: Some(int8),
            dtype: WeightDtype::Float32,
            ..LoadOptions::default()
        },
        hub: HubConfig {
            offline: true,
            ..HubConfig::default()
        },
        ..LoadConfig::default()
    }
}

/// The report of a model, with the float weights of its checkpoint.
fn report(name: &str, config: &LoadConfig, ids: &[u32], window: usize) -> OutlierReport {
    let model = AutoModelForCausalLM::from_pretrained(name, config).unwrap();
    let checkpoint = load::checkpoint(name, &config.hub, &NoProgress).unwrap();
    let options = OutlierOptions {
        window,
        checkpoint: Some(&checkpoint),
    };
    let observe = &mut |_, _| ControlFlow::Continue(());
    model.outliers(ids, &options, observe).unwrap()
}

fn path(folder: &str) -> String {
    golden(folder).display().to_string()
}

/// A model with one outlier feature: every token's embedding is 40 at feature `loud` and small
/// elsewhere, so after a norm with weights of 1 that feature is about √48 = 6.9, and the others
/// below 1.
fn with_one_outlier(loud: usize) -> TempDir {
    let folder = TempDir::new().unwrap();
    let config = golden("models/llama/config.json");
    std::fs::copy(config, folder.path().join("config.json")).unwrap();

    let mut tensors = read_tensors("models/llama/model.safetensors");
    for (name, (_, shape, bytes)) in &mut tensors {
        let values: &mut [f16] = bytemuck::cast_slice_mut(bytes);
        if name.ends_with("norm.weight") {
            values.fill(f16::ONE);
        }
        if name.ends_with("embed_tokens.weight") {
            for row in values.chunks_mut(shape[1]) {
                row[loud] = f16::from_f32(40.0);
            }
        }
    }
    write_tensors(&folder.path().join("model.safetensors"), &tensors);
    folder
}

#[test]
fn a_feature_that_is_an_outlier_by_construction_is_named_and_no_other() {
    let loud = 31;
    let folder = with_one_outlier(loud);
    let name = folder.path().display().to_string();
    let ids: Vec<u32> = (0..40).map(|i| (i * 37 + 5) % 256).collect();

    for rule in [
        OutlierRule::batch(6.0),
        OutlierRule::row(6.0),
        OutlierRule::row_rms(4.0),
    ] {
        let found = report(&name, &config(rule, OutlierWeights::Dequantized), &ids, 16);
        assert_eq!((found.tokens, found.window, found.rule), (40, 16, rule));
        let stream: Vec<_> = found.inputs.iter().filter(|x| x.reads_stream).collect();
        assert_eq!(stream.len(), 2 * 3, "two inputs in each of three blocks");
        for input in stream {
            let what = format!("{rule:?}: {:?}", input.layers);
            assert_eq!((input.features, input.rows), (48, 40), "{what}");
            assert_eq!(
                (input.outlier_columns, input.outlier_values),
                (1, 40),
                "{what}"
            );
            assert!((input.float_share - 1.0 / 48.0).abs() < 1e-12, "{what}");
            assert_eq!(input.largest.unwrap().feature, loud, "{what}");
            let others = (input.maxima.iter().enumerate()).filter(|(i, _)| *i != loud);
            assert!(
                others.clone().count() == 47 && others.map(|(_, x)| *x).fold(0.0, f32::max) < 3.0
            );
        }
        assert_eq!(found.inputs[0].outliers_per_row(), 1.0);

        let recurring = &found.recurring;
        assert_eq!((recurring.inputs, recurring.features.len()), (6, 1));
        let feature = recurring.features[0];
        assert_eq!(
            (feature.feature, feature.inputs, feature.row_share),
            (loud, 6, 1.0)
        );
        assert!(recurring.is_emergent(&feature) && feature.largest > 6.0);
    }
}

#[test]
fn golden_models_have_as_many_outlier_columns_as_bitsandbytes_found() {
    let mut checked = 0;
    for name in folders() {
        let facts: Value =
            serde_json::from_str(&golden_text(&format!("models/{name}/facts.json"))).unwrap();
        let Some(theirs) = facts["outlier_columns_total"].as_u64() else {
            continue;
        };
        let ids = input_ids(&name);
        let window = ids.dims()[1];
        let ids: Vec<u32> = ids.flatten_all().unwrap().to_vec1().unwrap();
        let config = config(OutlierRule::batch(6.0), OutlierWeights::Dequantized);
        let found = report(&path(&format!("models/{name}")), &config, &ids, window);
        let ours: usize = (found.int8_layers())
            .map(|(_, layer)| found.inputs[layer.input].outlier_columns)
            .sum();
        // Counted with bitsandbytes' own layers, which facts.json does not see for falcon.
        let theirs = if name == "falcon" { 8 } else { theirs };
        assert_eq!(ours as u64, theirs, "{name}: summed over layers, as there");
        checked += 1;
    }
    assert!(checked >= 15);
}

#[test]
fn the_counts_of_the_ladders_are_those_of_the_kernels() {
    let text = golden_text("smollm2/text.txt");
    let tokenizer = AutoModelForCausalLM::from_pretrained("tiny-gpt2", &LoadConfig::default());
    let ids = tokenizer
        .unwrap()
        .tokenizer()
        .unwrap()
        .encode(&text[..1500])
        .unwrap();
    for rule in [
        OutlierRule::batch(2.5),
        OutlierRule::row(2.25),
        OutlierRule::row_rms(3.3),
        OutlierRule::batch(0.0),
    ] {
        let found = report(
            "tiny-gpt2",
            &config(rule, OutlierWeights::Dequantized),
            &ids,
            64,
        );
        let mut float = 0;
        for input in &found.inputs {
            assert_eq!(input.rows, ids.len());
            let (ladder, counts) = match rule {
                OutlierRule::Absolute { .. } => (&found.ladders.absolute, &input.absolute),
                OutlierRule::RowRms { .. } => (&found.ladders.rms, &input.rms),
            };
            let limit = match rule {
                OutlierRule::Absolute { threshold, .. } => threshold,
                OutlierRule::RowRms { factor } => factor,
            };
            let step = ladder.iter().position(|step| *step == limit);
            let [values, columns, taken] = match step {
                None => [0; 3],
                Some(step) if rule == OutlierRule::batch(2.5) => [
                    counts.values[step],
                    counts.columns[step],
                    counts.pooled_values[step],
                ],
                Some(step) => [
                    counts.values[step],
                    counts.columns[step],
                    counts.values[step],
                ],
            };
            assert_eq!(input.outlier_values, values, "{rule:?} {:?}", input.layers);
            assert_eq!(input.outlier_columns as u64, columns);
            let multiplied = input.float_share * (input.rows * input.features) as f64;
            assert_eq!(
                multiplied.round() as u64,
                taken,
                "{rule:?} {:?}",
                input.layers
            );
            assert!(counts.values.is_sorted_by(|a, b| a >= b));
            float += taken;
        }
        assert_eq!(
            float > 0,
            !rule.finds_none(),
            "{rule:?} finds what it should"
        );
        assert_eq!(found.float_share() > 0.0, float > 0);
    }
}

/// ‖W − dequantised W‖ / ‖W‖ by the definition, for a weight `[rows, columns]` whose absmax are those
/// of its rows, or of its columns if `transposed`.
fn weight_error(values: &[f16], columns: usize, transposed: bool) -> f64 {
    let rows = values.len() / columns;
    let [outer, inner] = if transposed {
        [columns, rows]
    } else {
        [rows, columns]
    };
    let at = |o: usize, i: usize| {
        let index = if transposed {
            i * columns + o
        } else {
            o * columns + i
        };
        values[index].to_f32()
    };
    let mut sums = [0f64; 2];
    for o in 0..outer {
        let absmax = (0..inner).map(|i| at(o, i).abs()).fold(0f32, f32::max);
        for i in 0..inner {
            let code = (at(o, i) * (1.0 / absmax * 127.0)).round_ties_even();
            let difference = f64::from(code * absmax / 127.0) - f64::from(at(o, i));
            sums[0] += difference * difference;
            sums[1] += f64::from(at(o, i)).powi(2);
        }
    }
    (sums[0] / sums[1]).sqrt()
}

#[test]
fn errors_of_weights_are_those_of_their_codes() {
    for (name, layer, key, transposed) in [
        (
            "llama",
            "model.layers.1.mlp.up_proj",
            "model.layers.1.mlp.up_proj.weight",
            false,
        ),
        (
            "gpt2",
            "transformer.h.1.mlp.c_fc",
            "transformer.h.1.mlp.c_fc.weight",
            true,
        ),
    ] {
        let tensors = read_tensors(&format!("models/{name}/model.safetensors"));
        let (_, shape, bytes) = &tensors[key];
        let expected = weight_error(bytemuck::cast_slice(bytes), shape[1], transposed);

        let config = config(OutlierRule::batch(6.0), OutlierWeights::Dequantized);
        let found = report(
            &path(&format!("models/{name}")),
            &config,
            &[5, 9, 33, 17],
            4,
        );
        let (_, errors) = (found.int8_layers())
            .find(|(x, _)| x.path.as_str() == layer)
            .unwrap();
        let ours = errors.weight_error.unwrap();
        assert!(
            (ours / expected - 1.0).abs() < 1e-5,
            "{name}: {ours} and {expected}"
        );
        // Outputs add the error of the activations.
        let output = errors.output_error.unwrap();
        assert!(output > 0.1 * ours && output < 0.05, "{name}: {output}");
    }
}

#[test]
fn outputs_lose_less_with_better_rules() {
    let text = golden_text("smollm2/text.txt");
    let model = AutoModelForCausalLM::from_pretrained("tiny-gpt2", &LoadConfig::default());
    let ids = model
        .unwrap()
        .tokenizer()
        .unwrap()
        .encode(&text[..800])
        .unwrap();
    let mean = |rule, weights| {
        let found = report("tiny-gpt2", &config(rule, weights), &ids, 128);
        let errors: Vec<f64> = (found.int8_layers())
            .map(|(_, layer)| layer.output_error.unwrap())
            .collect();
        errors.iter().sum::<f64>() / errors.len() as f64
    };
    let none = mean(OutlierRule::batch(0.0), OutlierWeights::Dequantized);
    let rms = mean(OutlierRule::row_rms(3.0), OutlierWeights::Dequantized);
    let original = mean(OutlierRule::row_rms(3.0), OutlierWeights::Original);
    assert!(original < rms && rms < none, "{original} {rms} {none}");
}

#[test]
fn an_8_bit_checkpoint_has_no_errors_of_weights() {
    let config = config(OutlierRule::batch(6.0), OutlierWeights::Dequantized);
    let ids = [5, 9, 33, 17, 60, 2];
    let saved = report(&path("bnb_checkpoints/llama"), &config, &ids, 6);
    let float = report(&path("models/llama"), &config, &ids, 6);
    assert!(!saved.knows_float_weights() && float.knows_float_weights());
    assert_eq!(
        saved.inputs, float.inputs,
        "the same codes, so the same activations"
    );
    for ((_, saved), (_, float)) in saved.int8_layers().zip(float.int8_layers()) {
        assert_eq!(saved.weight_error, None);
        assert!(saved.output_error.unwrap() < float.output_error.unwrap());
    }
}

#[test]
fn the_head_is_listed_and_measured_only_if_it_is_8_bit() {
    let mut config = config(OutlierRule::batch(6.0), OutlierWeights::Dequantized);
    let ids = [5, 9, 33, 17, 60, 2];
    let name = path("models/llama");
    let plain = report(&name, &config, &ids, 4);
    let head = plain.layers.last().unwrap();
    assert_eq!(
        (head.path.as_str(), head.dtype.name()),
        ("lm_head", "float32")
    );
    assert_eq!((head.int8, head.bytes), (None, 4 * 256 * 48));

    config.options.quantize_head = true;
    for (name, tied) in [(name, false), (path("models/phi_tied"), true)] {
        let found = report(&name, &config, &ids, 4);
        let head = found.layers.last().unwrap();
        let input = &found.inputs[head.int8.unwrap().input];
        assert_eq!((head.path.as_str(), head.dtype.name()), ("lm_head", "int8"));
        assert_eq!(
            (input.rows, input.reads_stream),
            (6, true),
            "every position"
        );
        assert!(head.int8.unwrap().weight_error.unwrap() < 0.02, "{tied}");
        // A tied head lies in the token table; the one of phi has a bias of its own.
        let bytes = if tied { 4 * 256 } else { 256 * 48 + 4 * 256 };
        assert_eq!(head.bytes, bytes);
    }
}

#[test]
fn the_library_refuses_what_it_cannot_report() {
    let model =
        |config: &LoadConfig| AutoModelForCausalLM::from_pretrained(&path("models/gpt2"), config);
    let mut config = config(OutlierRule::batch(6.0), OutlierWeights::Dequantized);
    let int8 = model(&config).unwrap();
    config.options.int8 = None;
    let float = model(&config).unwrap();
    let other = load::checkpoint(&path("models/llama"), &config.hub, &NoProgress).unwrap();

    let run = |model: &AutoModelForCausalLM, ids: &[u32], window, checkpoint| {
        let options = OutlierOptions { window, checkpoint };
        let observe = &mut |_, _| ControlFlow::Continue(());
        model
            .outliers(ids, &options, observe)
            .unwrap_err()
            .to_string()
    };
    for (error, words) in [
        (
            run(&int8, &[1, 2], 0, None),
            "window is 0; it must be at least 1",
        ),
        (
            run(&int8, &[1, 2], 1000, None),
            "window is 1000; it must be at least 1",
        ),
        (
            run(&int8, &[], 4, None),
            "the number of tokens is 0; one or more",
        ),
        (
            run(&float, &[1, 2], 4, None),
            "the number of 8-bit layers is 0; outliers are those of",
        ),
        (
            run(&int8, &[1, 2], 4, Some(&other)),
            "transformer.h.0.attn.c_attn.weight",
        ),
    ] {
        assert!(error.contains(words), "{error}");
    }

    let stop = &mut |done, total| {
        assert_eq!((done, total), (2, 3));
        ControlFlow::Break(())
    };
    let options = OutlierOptions {
        window: 2,
        checkpoint: None,
    };
    let stopped = int8.outliers(&[1, 2, 3], &options, stop);
    assert!(matches!(stopped, Err(LlmError::Interrupted)));
}
