//! Goldens made with torch 2.8 (`tests/golden/torch_affine*.json` of the repository): codes, zero
//! points, scales, dequantised values, outputs and printed forms.

#![allow(clippy::unwrap_used, reason = "tests panic on the first surprise")]

use llm_int8_affine::module::{
    DynamicQuantizedLinear, Linear, Model, QConfig, QuantizedLinear, QuantizedModel,
};
use llm_int8_affine::print::Printed;
use llm_int8_affine::*;
use serde_json::Value;

fn golden(name: &str) -> Value {
    let path = format!("{}/../../tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The numbers of nested lists, flattened, as f32.
fn floats(value: &Value) -> Vec<f32> {
    match value {
        Value::Array(items) => items.iter().flat_map(floats).collect(),
        number => vec![number.as_f64().unwrap() as f32],
    }
}

fn doubles(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(items) => items.iter().flat_map(doubles).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}

fn integers(value: &Value) -> Vec<i32> {
    doubles(value).into_iter().map(|x| x as i32).collect()
}

/// The shape of nested lists.
fn shape(value: &Value) -> Vec<usize> {
    match value.as_array() {
        Some(items) => [
            vec![items.len()],
            items.first().map(shape).unwrap_or_default(),
        ]
        .concat(),
        None => Vec::new(),
    }
}

fn items(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn dtype(value: &Value) -> QuantizedDtype {
    match text(value) {
        "qint8" => QuantizedDtype::Qint8,
        "quint8" => QuantizedDtype::Quint8,
        other => unreachable!("{other}"),
    }
}

fn scheme(value: &Value) -> QScheme {
    match text(value).trim_start_matches("torch.") {
        "per_tensor_affine" => QScheme::PerTensorAffine,
        "per_tensor_symmetric" => QScheme::PerTensorSymmetric,
        "per_channel_affine" => QScheme::PerChannelAffine,
        "per_channel_symmetric" => QScheme::PerChannelSymmetric,
        other => unreachable!("{other}"),
    }
}

fn unzip(qparams: &QParams) -> (Vec<f64>, Vec<i32>) {
    qparams.channels().unzip()
}

/// Bit patterns, so that comparisons are exact and tell -0 from 0.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn tensors_of_every_kind() {
    let golden = golden("torch_affine.json");
    let tensors = items(&golden["tensors"]);
    assert_eq!(tensors.len(), 44);

    for case in tensors {
        let (values, shape) = (floats(&case["values"]), shape(&case["values"]));
        let kind = match case.get("axis") {
            Some(axis) => ObserverKind::PerChannelMinMax(axis.as_u64().unwrap() as usize),
            None => ObserverKind::MinMax,
        };

        let x = TensorRef::new(&values, &shape).unwrap();
        let mut observer =
            ObserverConfig::new(kind, dtype(&case["dtype"]), scheme(&case["scheme"]))
                .build()
                .unwrap();
        observer.observe(x).unwrap();
        let q =
            QuantizedTensor::quantize(x, observer.dtype(), &observer.qparams().unwrap()).unwrap();
        let expected = (doubles(&case["scale"]), integers(&case["zero_point"]));
        assert_eq!(unzip(q.qparams()), expected, "{case}");
        assert_eq!(q.int_repr(), integers(&case["int_repr"]), "{case}");
        assert_eq!(
            bits(&q.dequantize()),
            bits(&floats(&case["dequantized"])),
            "{case}"
        );
    }
}

#[test]
fn the_notebook() {
    for case in items(&golden("torch_affine_notebook.json")) {
        let values = floats(&case["values"]);
        let x = TensorRef::new(&values, &[6]).unwrap();
        for name in ["torch.per_tensor_affine", "torch.per_tensor_symmetric"] {
            let mut observer =
                MinMaxObserver::new(QuantizedDtype::Qint8, scheme(&Value::from(name))).unwrap();
            observer.observe(x).unwrap();
            let q =
                QuantizedTensor::quantize(x, QuantizedDtype::Qint8, &observer.qparams().unwrap())
                    .unwrap();
            compare(&q, &case[name]);

            // The textbook formulae agree with torch on these tensors.
            let by_hand = if name.ends_with("symmetric") {
                custom::symmetric(x)
            } else {
                custom::asymmetric(x)
            };
            let QParams::PerTensor { scale, zero_point } = by_hand.unwrap() else {
                unreachable!()
            };
            assert_eq!(QParams::PerTensor { scale, zero_point }, *q.qparams());
            assert_eq!(
                custom::codes(&values, scale as f32, zero_point),
                q.int_repr()
            );
            assert_eq!(
                custom::recovered(q.int_repr(), scale as f32, zero_point),
                q.dequantize()
            );
        }

        let qconfigs = [
            ("fbgemm", QConfig::fbgemm()),
            ("affine", QConfig::asymmetric()),
            ("symm", QConfig::symmetric()),
        ];

        for (name, qconfig) in qconfigs {
            let linear = Linear::new(values.clone(), 6, 1, None).unwrap();
            let converted = Model::new("M", linear)
                .prepare(&qconfig)
                .unwrap()
                .convert()
                .unwrap();
            let weight = converted.linear().weight();
            compare(weight, &case[name]);
            assert_eq!(weight.to_string(), text(&case[name]["repr"]));
            assert_eq!(converted.to_string(), text(&case[name]["module"]));
            assert_eq!(
                weight.qparams().scheme().to_string(),
                text(&case[name]["scheme"])
            );
        }
    }
}

fn compare(q: &QuantizedTensor, expected: &Value) {
    assert_eq!(
        unzip(q.qparams()),
        (doubles(&expected["scale"]), integers(&expected["zp"])),
        "{expected}"
    );
    assert_eq!(q.int_repr(), integers(&expected["int_repr"]), "{expected}");
    assert_eq!(
        bits(&q.dequantize()),
        bits(&floats(&expected["dequant"])),
        "{expected}"
    );
}

fn linear(case: &Value) -> Linear {
    let shape = shape(&case["weight"]);
    let bias = (!case["bias"].is_null()).then(|| floats(&case["bias"]));
    Linear::new(floats(&case["weight"]), shape[1], shape[0], bias).unwrap()
}

fn qconfig(name: &str) -> QConfig {
    match name {
        "affine" => QConfig::asymmetric(),
        "symmetric" => QConfig::symmetric(),
        "fbgemm" => QConfig::fbgemm(),
        "per_channel" => QConfig {
            activation: ObserverConfig {
                reduce_range: true,
                ..QConfig::asymmetric().activation
            },
            weight: QConfig::fbgemm().weight,
        },
        other => unreachable!("{other}"),
    }
}

/// Prepares a case's layer, calibrates it with the case's batches and converts it.
fn converted(case: &Value, qconfig: &QConfig) -> QuantizedModel {
    let mut prepared = Model::new("M", linear(case))
        .with_stubs()
        .prepare(qconfig)
        .unwrap();
    for batch in items(&case["calibration"]) {
        prepared
            .forward(TensorRef::new(&floats(batch), &shape(batch)).unwrap())
            .unwrap();
    }

    prepared.convert().unwrap()
}

#[test]
fn calibrated_and_converted_linears() {
    let golden = golden("torch_affine.json");
    let linears = items(&golden["linears"]);
    assert_eq!(linears.len(), 8);

    let mut saturated = 0;
    for case in linears {
        let name = text(&case["qconfig"]);
        let qconfig = qconfig(name);
        let converted = converted(case, &qconfig);
        let input = (
            doubles(&case["input_scale"]),
            integers(&case["input_zero_point"]),
        );
        assert_eq!(unzip(converted.input_qparams().unwrap()), input, "{name}");

        // The range of outputs depends on the summation order of torch's sgemm: one bit of f32.
        let scale = case["output_scale"].as_f64().unwrap();
        let zero_point = integers(&case["output_zero_point"])[0];
        let (scales, zero_points) = unzip(&converted.linear().output_qparams());
        assert_eq!(zero_points, [zero_point], "{name}");
        let found = (scales[0] as f32).to_bits();
        assert!(found.abs_diff((scale as f32).to_bits()) <= 1, "{name}");

        // From here on everything is compared bit for bit, with torch's own scale.
        let output = QParams::PerTensor { scale, zero_point };
        let layer = QuantizedLinear::from_float(&linear(case), &qconfig.weight, &output).unwrap();
        assert!(text(&case["module"]).contains(&layer.to_string()), "{name}");
        let codes = integers(&case["weight_int_repr"]);
        assert_eq!(layer.weight().int_repr(), codes, "{name}");
        let scales = doubles(&case["weight_scale"]);
        assert_eq!(unzip(layer.weight().qparams()).0, scales, "{name}");

        // The golden was made on a machine without VNNI.
        let input = floats(&case["input"]);
        let shape = shape(&case["input"]);
        let q = converted
            .quantize(TensorRef::new(&input, &shape).unwrap())
            .unwrap();
        let y = layer.forward_saturating(&q).unwrap().dequantize();
        assert_eq!(bits(&y), bits(&floats(&case["output"])), "{name}");

        let exact = layer.forward(&q).unwrap().dequantize();
        if qconfig.activation.reduce_range {
            assert_eq!(bits(&exact), bits(&y), "half of the codes cannot saturate");
        } else {
            saturated += usize::from(exact != y);
        }
    }

    assert!(saturated > 0, "at least one golden must saturate");
}

#[test]
fn observers_over_several_batches() {
    let golden = golden("torch_affine_more.json");
    let cases = items(&golden["observers"]);
    assert!(cases.len() > 100);

    for case in cases {
        let kind = match text(&case["observer"]) {
            "MinMaxObserver" => ObserverKind::MinMax,
            "MovingAverageMinMaxObserver" => ObserverKind::MovingAverageMinMax(0.125),
            "PerChannelMinMaxObserver" => ObserverKind::PerChannelMinMax(1),
            "HistogramObserver" => ObserverKind::Histogram,
            other => unreachable!("{other}"),
        };

        let config = ObserverConfig {
            reduce_range: case["reduce_range"].as_bool().unwrap(),
            ..ObserverConfig::new(kind, dtype(&case["dtype"]), scheme(&case["scheme"]))
        };

        let mut observer = config.build().unwrap();
        let name = format!("{config:?} {}", case["kind"]);

        for (batch, after) in items(&golden["batches"][text(&case["kind"])])
            .iter()
            .zip(items(&case["after"]))
        {
            observer
                .observe(TensorRef::new(&floats(batch), &[8, 33]).unwrap())
                .unwrap();
            let expected = (doubles(&after["scale"]), integers(&after["zero_point"]));
            assert_eq!(unzip(&observer.qparams().unwrap()), expected, "{name}");
        }

        assert_eq!(observer.to_string(), text(&case["text"]), "{name}");
    }
}

#[test]
fn histograms_of_many_values() {
    for case in items(&golden("torch_affine_more.json")["histograms"]) {
        let mut observer = ObserverConfig {
            ..QConfig::fbgemm().activation
        }
        .build()
        .unwrap();
        for batch in items(&case["batches"]) {
            observer
                .observe(TensorRef::new(&floats(batch), &shape(batch)).unwrap())
                .unwrap();
        }

        let expected = (doubles(&case["scale"]), integers(&case["zero_point"]));
        assert_eq!(unzip(&observer.qparams().unwrap()), expected);
    }
}

#[test]
fn dynamic_linears() {
    for case in items(&golden("torch_affine_more.json")["dynamic"]) {
        let layer = DynamicQuantizedLinear::from_float(&linear(case)).unwrap();
        assert_eq!(layer.to_string(), text(&case["text"]));
        assert_eq!(layer.weight().int_repr(), integers(&case["weight_codes"]));
        assert_eq!(
            unzip(layer.weight().qparams()).0,
            doubles(&case["weight_scale"])
        );
        let y = layer
            .forward(TensorRef::new(&floats(&case["input"]), &shape(&case["input"])).unwrap())
            .unwrap();
        assert_eq!(bits(&y), bits(&floats(&case["output"])), "{}", case["text"]);
    }
}

#[test]
fn prepared_and_converted_modules_print_as_torch_does() {
    for case in items(&golden("torch_affine_more.json")["prepared"]) {
        let qconfig = match text(&case["qconfig"]) {
            "default" => QConfig::default_qconfig(),
            _ => QConfig::fbgemm(),
        };

        let model = Model::new("M", linear(case)).with_stubs();
        assert_eq!(model.to_string(), text(&case["float"]));

        let mut prepared = model.prepare(&qconfig).unwrap();
        assert_eq!(prepared.to_string(), text(&case["prepared"]));

        let (input, shape) = (floats(&case["input"]), shape(&case["input"]));
        let x = TensorRef::new(&input, &shape).unwrap();
        prepared.forward(x).unwrap();
        let converted = prepared.convert().unwrap();
        assert_eq!(converted.to_string(), text(&case["converted"]));
        assert_eq!(
            bits(&converted.forward(x).unwrap()),
            bits(&floats(&case["output"]))
        );
    }
}

#[test]
fn tensors_print_as_torch_does() {
    for case in items(&golden("torch_affine_more.json")["printed"]) {
        let shape: Vec<usize> = integers(&case["shape"])
            .into_iter()
            .map(|size| size as usize)
            .collect();
        let values = floats(&case["values"]);
        let x = TensorRef::new(&values, &shape).unwrap();
        assert_eq!(
            Printed::floats(&values, &shape).to_string(),
            text(&case["float"])
        );
        let mut observer =
            MinMaxObserver::new(QuantizedDtype::Qint8, QScheme::PerTensorAffine).unwrap();
        observer.observe(x).unwrap();
        let q = QuantizedTensor::quantize(x, QuantizedDtype::Qint8, &observer.qparams().unwrap())
            .unwrap();
        assert_eq!(q.to_string(), text(&case["quantized"]));

        let codes = Printed::integers(q.int_repr(), &shape, Some("torch.int8"));
        assert_eq!(codes.to_string(), text(&case["codes"]));
    }
}
