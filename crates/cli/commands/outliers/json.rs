//! The report as one JSON object, which is also the data of the page.

use super::{MOST_CELLS, kind};
use llm_int8::AutoModelForCausalLM;
use llm_int8::nn::linear::{OutlierRule, OutlierScope};
use llm_int8::nn::module::Node;
use llm_int8::outliers::{InputReport, LayerReport, OutlierReport, RecurringFeatures, StepCounts};
use serde_json::{Value, json};

/// Recurring features that are listed.
const MOST_FEATURES: usize = 64;

pub(super) fn object(name: &str, model: &AutoModelForCausalLM, report: &OutlierReport) -> Value {
    let footprint = model.memory_footprint();
    json!({
        "model": name,
        "tokens": report.tokens,
        "window": report.window,
        "rule": rule(report.rule),
        "float_share": report.float_share(),
        "errors_against": match report.knows_float_weights() {
            true => "float weights",
            false => "dequantised weights",
        },
        "bytes": { "float16": 2 * elements(model.tree()), "int8": footprint.actual() },
        "ladders": { "absolute": numbers(&report.ladders.absolute), "rms": numbers(&report.ladders.rms) },
        "inputs": report.inputs.iter().map(input).collect::<Vec<_>>(),
        "layers": report.layers.iter().map(layer).collect::<Vec<_>>(),
        "recurring": recurring(&report.recurring),
        "tree": tree("", model.tree()),
    })
}

fn rule(rule: OutlierRule) -> Value {
    let (unit, threshold) = match rule {
        OutlierRule::Absolute { threshold, .. } => ("absolute", threshold),
        OutlierRule::RowRms { factor } => ("rms", factor),
    };
    let scope = match rule.scope() {
        OutlierScope::Batch => "batch",
        OutlierScope::Row => "row",
    };
    json!({ "unit": unit, "threshold": number(threshold), "scope": scope })
}

fn input(input: &InputReport) -> Value {
    let (block, kind) = kind::shared(&input.layers);
    let largest = input.largest.map(|largest| {
        json!({ "value": number(largest.value), "feature": largest.feature, "position": largest.position })
    });
    let per_cell = input.features.div_ceil(MOST_CELLS).max(1);
    let cells = input.maxima.chunks(per_cell);
    let cells: Vec<Value> = cells
        .map(|cell| number(short(cell.iter().copied().fold(0.0, f32::max))))
        .collect();

    json!({
        "layers": input.layers.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "block": block,
        "kind": kind,
        "features": input.features,
        "rows": input.rows,
        "reads_stream": input.reads_stream,
        "outlier_values": input.outlier_values,
        "outlier_columns": input.outlier_columns,
        "outliers_per_row": input.outliers_per_row(),
        "float_share": input.float_share,
        "largest": largest,
        "absolute": counts(&input.absolute),
        "rms": counts(&input.rms),
        "features_per_cell": per_cell,
        "cells": cells,
    })
}

fn counts(counts: &StepCounts) -> Value {
    json!({ "values": counts.values, "columns": counts.columns, "pooled_values": counts.pooled_values })
}

fn layer(layer: &LayerReport) -> Value {
    let (block, kind) = kind::split(&layer.path);
    json!({
        "path": layer.path.to_string(),
        "block": block,
        "kind": kind,
        "class": layer.class,
        "dtype": layer.dtype.name(),
        "in_features": layer.in_features,
        "out_features": layer.out_features,
        "bytes": layer.bytes,
        "input": layer.int8.map(|int8| int8.input),
        "weight_error": layer.int8.and_then(|int8| int8.weight_error),
        "output_error": layer.int8.and_then(|int8| int8.output_error),
    })
}

fn recurring(recurring: &RecurringFeatures) -> Value {
    let features = recurring.features.iter().take(MOST_FEATURES);
    let features: Vec<Value> = features
        .map(|feature| {
            json!({
                "feature": feature.feature,
                "inputs": feature.inputs,
                "row_share": feature.row_share,
                "largest": number(feature.largest),
                "emergent": recurring.is_emergent(feature),
            })
        })
        .collect();
    json!({ "inputs": recurring.inputs, "count": recurring.features.len(), "features": features })
}

/// A module with its own parameters and its children.
fn tree(name: &str, node: &Node) -> Value {
    let own: u64 = node
        .parameters
        .iter()
        .map(|parameter| parameter.bytes())
        .sum();
    let dtype = node
        .parameters
        .first()
        .map(|parameter| parameter.dtype.name());
    let children = node.children.iter().map(|(name, child)| tree(name, child));
    json!({
        "name": name,
        "class": node.class,
        "dtype": dtype,
        "elements": elements_of(node),
        "bytes": own + node.uncounted_bytes,
        "children": children.collect::<Vec<_>>(),
    })
}

/// Elements of a module's own parameters.
fn elements_of(node: &Node) -> u64 {
    let elements = node
        .parameters
        .iter()
        .map(|parameter| parameter.elements() as u64);
    elements.sum()
}

/// Elements of all parameters of a tree.
fn elements(node: &Node) -> u64 {
    let children = node.children.iter().map(|(_, child)| elements(child));
    elements_of(node) + children.sum::<u64>()
}

fn numbers(values: &[f32]) -> Vec<Value> {
    values.iter().map(|value| number(*value)).collect()
}

/// The shortest decimal that is this f32; null if it is not finite.
fn number(value: f32) -> Value {
    let exact = value.to_string().parse::<f64>().unwrap_or(f64::NAN);
    match value.fract() == 0.0 && value.abs() < 1e9 {
        true => json!(value as i64),
        false => json!(exact),
    }
}

/// Four significant digits: what a colour can show.
fn short(value: f32) -> f32 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_short_as_their_f32() {
        assert_eq!(number(0.1).to_string(), "0.1");
        assert_eq!(number(6.0).to_string(), "6");
        assert_eq!(number(short(1234.5678)).to_string(), "1235");
        assert_eq!(number(f32::INFINITY), Value::Null);
        assert_eq!(number(f32::NAN), Value::Null);
        assert_eq!(number(short(f32::INFINITY)), Value::Null);
    }
}
