//! `llm-int8 outliers`: text, JSON, page and picture; what it refuses; names that are not markup.

use crate::support::{failure, golden, llm_int8, root, stderr, stdout};
use serde_json::Value;
use std::path::Path;
use tempfile::TempDir;

fn text_file() -> String {
    golden("smollm2/text.txt").display().to_string()
}

/// Runs the command on 96 tokens of a text.
fn outliers(model: &str, more: &[&str]) -> String {
    let text = text_file();
    let mut arguments = vec!["outliers", model, "--text", &text];
    arguments.extend(["--max-tokens", "96", "--window", "48", "--dtype", "float32"]);
    arguments.extend(more);
    stdout(&llm_int8(&arguments))
}

pub(crate) fn json(model: &str, more: &[&str]) -> Value {
    let mut arguments = vec!["--json"];
    arguments.extend(more);
    serde_json::from_str(&outliers(model, &arguments)).unwrap()
}

/// tiny-gpt2 in a folder of this name.
pub(crate) fn tiny_gpt2_in(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    for name in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        let from = root().join("models/tiny-gpt2").join(name);
        std::fs::copy(from, folder.join(name)).unwrap();
    }
}

#[test]
fn the_table_lists_every_layer() {
    let text = outliers("tiny-gpt2", &["--threshold", "3"]);
    assert!(
        text.starts_with(
            "96 tokens in windows of 48; outliers: magnitudes of 3 and more; their columns in the whole window are float\n"
        ),
        "{text}"
    );
    let head = text.lines().nth(2).unwrap();
    assert!(
        head.starts_with("layer ") && head.ends_with("outputs"),
        "{head}"
    );
    let layers = text
        .lines()
        .filter(|line| line.starts_with("transformer.h."));
    let layers: Vec<&str> = layers.collect();
    assert_eq!(layers.len(), 4 * 4);
    assert!(
        layers
            .iter()
            .all(|line| line.contains("  int8  ") && line.ends_with(" %"))
    );
    assert!(
        text.contains("\nlm_head: float32, 4096 x 256, not 8 bit\n"),
        "{text}"
    );
    assert!(text.contains("\nwork in float: "), "{text}");
    assert!(
        text.contains("against the checkpoint's float weights\n"),
        "{text}"
    );

    let rms = outliers("tiny-gpt2", &["--accuracy", "better"]);
    assert!(rms.contains("outliers: magnitudes of 4 × the root mean square of their row and more"));
    let none = outliers("tiny-gpt2", &["--threshold", "0"]);
    assert!(none.contains("outliers: none (threshold 0)") && none.contains("work in float: 0 %"));
}

#[test]
fn json_has_all_figures() {
    let report = json("tiny-gpt2", &["--threshold", "3"]);
    let inputs = report["inputs"].as_array().unwrap();
    assert_eq!(inputs.len(), 16);
    assert_eq!(
        report["rule"].to_string(),
        r#"{"unit":"absolute","threshold":3,"scope":"batch"}"#
    );
    assert_eq!(report["errors_against"], "float weights");

    let input = &inputs[2];
    assert_eq!(input["layers"][0], "transformer.h.0.mlp.c_fc");
    assert_eq!(
        (&input["kind"], &input["block"]),
        (&"mlp.c_fc".into(), &0.into())
    );
    assert_eq!(
        (&input["features"], &input["rows"]),
        (&256.into(), &96.into())
    );
    let step = report["ladders"]["absolute"].as_array().unwrap();
    let step = step.iter().position(|step| step == 3).unwrap();
    assert_eq!(input["absolute"]["values"][step], input["outlier_values"]);
    assert_eq!(input["absolute"]["columns"][step], input["outlier_columns"]);
    assert_eq!(input["cells"].as_array().unwrap().len(), 256);
    assert_eq!(
        inputs[3]["features_per_cell"], 1,
        "1,024 features fit a map"
    );
    let largest = input["cells"]
        .as_array()
        .unwrap()
        .iter()
        .map(|x| x.as_f64().unwrap());
    let value = input["largest"]["value"].as_f64().unwrap().abs();
    assert!((largest.fold(0.0, f64::max) / value - 1.0).abs() < 1e-3);

    let layer = &report["layers"][0];
    assert_eq!(layer["path"], "transformer.h.0.attn.c_attn");
    assert_eq!(
        (&layer["dtype"], &layer["bytes"]),
        (&"int8".into(), &(768 * 256 + 768 * 8).into())
    );
    for error in ["weight_error", "output_error"] {
        let error = layer[error].as_f64().unwrap();
        assert!(error > 1e-4 && error < 0.05, "{error}");
    }
    assert_eq!(
        report["layers"].as_array().unwrap().last().unwrap()["input"],
        Value::Null
    );
    assert_eq!(report["tree"]["class"], "GPT2LMHeadModel");
    assert_eq!(
        report["tree"]["children"][0]["children"][0]["bytes"],
        4096 * 256 * 4
    );
}

#[test]
fn the_picture_is_written() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("map.svg");
    outliers("tiny-gpt2", &["--plot", &path.display().to_string()]);
    let svg = std::fs::read_to_string(path).unwrap();
    assert!(svg.starts_with("<svg xmlns=") && svg.ends_with("</svg>\n"));
    for panel in ["attn.c_attn (256 features)", "mlp.c_proj (1024 features)"] {
        assert!(svg.contains(panel), "{panel}");
    }
    assert!(
        svg.contains("<path d=\"M") && svg.len() < 200_000,
        "{}",
        svg.len()
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn names_in_a_checkpoint_are_text() {
    let parent = TempDir::new().unwrap();
    // A folder of this name ends a script element where it is not escaped.
    let folder = parent
        .path()
        .join("a<\u{1b}[31m/script><script>alert(1)<\u{7}/script>&\"");
    tiny_gpt2_in(&folder);
    let [page, picture] = ["page.html", "map.svg"].map(|name| parent.path().join(name));
    let [to_page, to_picture] = [&page, &picture].map(|path| path.display().to_string());
    let name = folder.display().to_string();
    let text = outliers(&name, &["--html", &to_page, "--plot", &to_picture]);
    assert!(
        !text.contains('\u{1b}') && !text.contains("<script"),
        "{text}"
    );

    let html = std::fs::read_to_string(page).unwrap();
    assert_eq!(
        html.matches("<script").count(),
        2,
        "the data and the page's own"
    );
    assert_eq!(html.matches("</script").count(), 2);
    assert!(!html.contains('\u{1b}') && !html.contains('\u{7}'));
    let (_, data) = html.split_once("id=\"data\">").unwrap();
    let data: Value = serde_json::from_str(data.split_once("</script>").unwrap().0).unwrap();
    assert_eq!(data["model"], name);

    let svg = std::fs::read_to_string(picture).unwrap();
    assert!(
        !svg.contains("<script") && !svg.contains('\u{1b}') && svg.contains("a&lt;\u{fffd}[31m")
    );
}

#[test]
fn wrong_arguments_are_refused_before_anything_is_written() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(folder.path().join("latin1.txt"), b"caf\xe9").unwrap();
    std::fs::write(folder.path().join("empty.txt"), "").unwrap();
    let text = text_file();
    let page = at("page.html");
    let cases: [(&[&str], i32, &str); 11] = [
        (&["--text", &at("missing.txt")], 1, "cannot read "),
        (
            &["--text", &at("latin1.txt")],
            1,
            "is not UTF-8 text; convert it first",
        ),
        (
            &["--text", &at("empty.txt")],
            1,
            "the number of tokens is 0",
        ),
        (&["--text", &text, "--window", "0"], 1, "window is 0"),
        (
            &["--text", &text, "--no-quantize"],
            2,
            "--no-quantize leaves nothing to show",
        ),
        (
            &["--text", &text, "--device", "cuda"],
            2,
            "outliers runs on the CPU",
        ),
        (
            &["--text", &text, "--plot", &at("map.png")],
            2,
            "ends in .svg",
        ),
        (
            &[
                "--text",
                &text,
                "--plot",
                &at("x.svg"),
                "--html",
                &at("x.svg"),
            ],
            2,
            "name the same file",
        ),
        (
            &["--text", &text, "--html", &at("no/page.html")],
            2,
            "must be a file in a folder that exists",
        ),
        (
            &["--text", &text, "--html", &at("")],
            2,
            "must be a file in a folder that exists",
        ),
        (&[], 2, "--text <FILE>"),
    ];
    for (more, code, words) in cases {
        let mut arguments = vec!["outliers", "tiny-gpt2", "--max-tokens", "16"];
        arguments.extend(more);
        if !more.contains(&"--html") {
            arguments.extend(["--html", &page]);
        }
        let (found, error) = failure(&arguments);
        assert!(
            found == code && error.contains(words),
            "{arguments:?}: {found} {error}"
        );
    }
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 2, "nothing but the two texts");
}

#[test]
fn a_file_that_is_written_is_told() {
    let folder = TempDir::new().unwrap();
    let page = folder.path().join("page.html").display().to_string();
    let text = text_file();
    let done = llm_int8(&[
        "outliers",
        "tiny-gpt2",
        "--text",
        &text,
        "--max-tokens",
        "8",
        "--html",
        &page,
        "--json",
    ]);
    assert!(stdout(&done).starts_with('{'));
    assert_eq!(stderr(&done), format!("wrote {page}\n"));
}
