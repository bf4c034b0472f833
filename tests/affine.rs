//! `llm-int8 affine` as a user types it.

use crate::support::llm_int8;
use serde_json::Value;

fn json(arguments: &[&str]) -> Value {
    let output = llm_int8(&[&["affine", "--json"], arguments].concat());
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );

    serde_json::from_slice(&output.stdout).unwrap()
}

fn stdout(arguments: &[&str]) -> String {
    let output = llm_int8(arguments);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );

    String::from_utf8(output.stdout).unwrap()
}

/// Exit code and standard error of a command that prints nothing else.
fn failure(arguments: &[&str]) -> (i32, String) {
    let output = llm_int8(&[&["affine"], arguments].concat());
    assert!(output.stdout.is_empty());

    (
        output.status.code().unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn negative_numbers_need_no_double_dash() {
    let numbers = ["3", "-5.5", "0", "4", "-6", "2.5"];
    let result = json(&numbers);
    assert_eq!(
        result["results"][0]["codes"],
        serde_json::json!([101, -115, 25, 127, -128, 89])
    );
    assert_eq!(result["results"][0]["zero_point"], 25);
    assert_eq!(result["results"][1]["scheme"], "per_tensor_symmetric");
    assert_eq!(result, json(&[&["--"], &numbers[..]].concat()));
}

/// Numbers, and the scale, zero point and codes that MinMaxObserver(dtype=torch.qint8) of torch 2.8
/// gives for them.
const AFFINE_OF_TORCH: [(&[&str], f64, i64, &[i64]); 6] = [
    (
        &["3e-05", "-2e-05"],
        1.960784317134312e-07,
        -26,
        &[127, -128],
    ),
    (
        &["tensor([ 3.0000e-05, -2.0000e-05])"],
        1.960784317134312e-07,
        -26,
        &[127, -128],
    ),
    (&["-1E-3"], 3.921568804798881e-06, 127, &[-128]),
    (
        &["-.5", "+2", "5."],
        0.021568628028035164,
        -105,
        &[-128, -12, 127],
    ),
    (&["1e+10", "-1_000"], 39215692.0, -128, &[127, -128]),
    (&["[-0.0,", "1]"], 0.003921568859368563, -128, &[-128, 127]),
];

#[test]
fn numbers_are_read_in_every_form_python_prints() {
    for (numbers, scale, zero_point, codes) in AFFINE_OF_TORCH {
        let result = json(numbers);
        let affine = &result["results"][0];
        assert_eq!(affine["scale"].as_f64().unwrap(), scale, "{numbers:?}");
        assert_eq!(affine["zero_point"], zero_point, "{numbers:?}");
        assert_eq!(affine["codes"], serde_json::json!(codes), "{numbers:?}");
    }
}

#[test]
fn options_are_recognised_among_negative_numbers() {
    let result = json(&[
        "-2e-05",
        "--dtype",
        "quint8",
        "-.5",
        "--scheme",
        "per_tensor_affine",
        "-1E-3",
    ]);
    assert_eq!(result["values"].as_array().unwrap().len(), 3);
    assert_eq!(
        (&result["results"][0]["dtype"], &result["results"][1]),
        (&"quint8".into(), &Value::Null)
    );

    let help = llm_int8(&["affine", "-1", "-h"]);
    assert!(help.status.success() && String::from_utf8(help.stdout).unwrap().contains("Usage"));
}

#[test]
fn schemes_dtypes_and_channels_can_be_chosen() {
    let result = json(&[
        "1",
        "2",
        "--scheme",
        "per_tensor_symmetric",
        "--dtype",
        "quint8",
        "--per-channel",
        "0",
    ]);
    let results = result["results"].as_array().unwrap();
    let schemes: Vec<_> = results
        .iter()
        .map(|result| result["scheme"].as_str().unwrap())
        .collect();
    assert_eq!(schemes, ["per_tensor_symmetric", "per_channel_symmetric"]);
    assert_eq!(results[0]["dtype"], "quint8");
    assert_eq!(results[1]["zero_point"], serde_json::json!([128, 128]));
}

#[test]
fn a_tensor_of_a_model_is_found_by_its_path() {
    let text = stdout(&[
        "affine",
        "--model",
        "tiny-gpt2",
        "--tensor",
        "transformer.h.0.attn.c_attn.weight",
    ]);
    assert!(text.contains("shape [256, 768]: 196608 numbers"), "{text}");
    assert!(text.contains("per_tensor_affine:\ntensor([["), "{text}");
}

#[test]
fn the_notebook_agrees_with_itself() {
    let text = stdout(&["affine", "--notebook"]);
    for (scale, zero_point) in [("0.03921568766236305", 25), ("0.054901961237192154", -19)] {
        // By torch, by hand, and as the weight of the asymmetric qconfig.
        assert_eq!(
            text.matches(&format!("scale {scale}, zero_point {zero_point}"))
                .count(),
            3,
            "{text}"
        );
    }

    assert_eq!(text.matches("# The tensor").count(), 3);
}

#[test]
fn plots_are_complete_svg_and_png_files() {
    let folder = tempfile::tempdir().unwrap();
    for (name, arguments) in [
        ("few.svg", &["1", "-2", "0.5"][..]),
        ("few.png", &["1", "-2", "0.5"]),
        (
            "many.svg",
            &[
                "--model",
                "tiny-gpt2",
                "--tensor",
                "transformer.wpe.weight",
                "--per-channel",
                "1",
            ],
        ),
        (
            "many.png",
            &["--model", "tiny-gpt2", "--tensor", "transformer.ln_f.bias"],
        ),
        ("one.svg", &["0"]),
    ] {
        let path = folder.path().join(name);
        stdout(&[&["affine", "--plot", path.to_str().unwrap()], arguments].concat());
        let bytes = std::fs::read(&path).unwrap();
        if name.ends_with("png") {
            assert_eq!(
                (&bytes[1..4], &bytes[bytes.len() - 8..][..4]),
                (&b"PNG"[..], &b"IEND"[..]),
                "{name}"
            );
        } else {
            let text = String::from_utf8(bytes).unwrap();
            assert!(
                text.contains("<svg") && text.trim_end().ends_with("</svg>"),
                "{name}"
            );
            assert!(
                text.contains("per_tensor_affine") && !text.contains("NaN"),
                "{name}"
            );
        }
    }

    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        5,
        "only the plots are there"
    );
}

#[test]
fn wrong_input_gives_one_clear_error() {
    for (arguments, code, words) in [
        (
            &[][..],
            2,
            "<NUMBER|--file <FILE>|--model <MODEL>|--notebook>",
        ),
        (&["nan"], 2, "value 0 is NaN"),
        (&["1", "inf"], 2, "value 1 is inf"),
        (&["1", "-inf"], 2, "value 1 is -inf"),
        (&["1", "-two"], 2, "unexpected argument '-t'"),
        (&["1", "-5x"], 2, "`-5x` is not a number"),
        (&["1", "--jsn"], 2, "a similar argument exists: '--json'"),
        (&["1e40"], 2, "`1e40` is beyond float32"),
        (&["1__0"], 2, "`1__0` is not a number"),
        (&["[1,", "2"], 2, "a `[` lacks its `]`"),
        (
            &["[[1, 2], [3]]"],
            2,
            "a list of shape [2] beside a list of shape [1]",
        ),
        (&["[]"], 1, "the tensor is empty"),
        (&["1", "--per-channel", "1"], 2, "axis 1 is out of range"),
        (&["1", "--plot", "picture.jpg"], 2, ".svg or .png"),
        (&["--file", "x.safetensors"], 2, "--tensor <NAME>"),
        (
            &["--file", "nowhere.safetensors", "--tensor", "x"],
            1,
            "cannot read nowhere.safetensors",
        ),
        (
            &[
                "--model",
                "tiny-gpt2",
                "--tensor",
                "transformer.h.0.attn.c_atn.weight",
            ],
            1,
            "c_attn",
        ),
        (
            &["1", "--plot", "/nowhere/x.svg"],
            1,
            "cannot write /nowhere/x.svg",
        ),
    ] {
        let output = llm_int8(&[&["affine"], arguments].concat());
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
        assert!(
            message.starts_with("error: ") && message.contains(words),
            "{arguments:?}: {message}"
        );
    }
}

#[test]
fn an_empty_tensor_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("empty.safetensors");
    let view =
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![0, 4], &[]).unwrap();
    std::fs::write(
        &path,
        safetensors::serialize([("nothing", view)], None).unwrap(),
    )
    .unwrap();
    let (code, message) = failure(&["--file", path.to_str().unwrap(), "--tensor", "nothing"]);
    assert_eq!(
        (code, message.contains("the tensor is empty")),
        (1, true),
        "{message}"
    );
}
