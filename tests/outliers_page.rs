//! The page of `llm-int8 outliers` in a browser: its numbers are those of the JSON, the slider
//! moves by keyboard, and names are text. Without Chromium these tests say that they are skipped.

use crate::outliers_program::{json, tiny_gpt2_in};
use crate::support::browser::{Browser, END, HOME, LEFT, RIGHT};
use serde_json::Value;
use std::path::PathBuf;
use tempfile::TempDir;

/// A page in a folder, and its data.
fn page(folder: &TempDir, model: &str, more: &[&str]) -> (PathBuf, Value) {
    let path = folder.path().join("page.html");
    let to = path.display().to_string();
    let mut arguments = vec!["--html", &to];
    arguments.extend(more);
    let report = json(model, &arguments);
    (path, report)
}

/// What the page must show at a step of a ladder: values, columns, and the share of the work in
/// float, which is the sum over layers of their own shares.
fn expected(report: &Value, unit: &str, step: Option<usize>) -> (u64, u64, f64) {
    let ladder = if unit == "rms" { "rms" } else { "absolute" };
    let (mut values, mut columns, mut float, mut all) = (0, 0, 0.0, 0.0);
    for layer in report["layers"].as_array().unwrap() {
        let Some(number) = layer["input"].as_u64() else {
            continue;
        };
        let input = &report["inputs"][number as usize];
        let at = |key: &str| step.map_or(0, |step| input[ladder][key][step].as_u64().unwrap());
        let size = |value: &Value| value.as_u64().unwrap() as f64;
        let work = size(&layer["in_features"]) * size(&layer["out_features"]);
        let taken = if unit == "batch" {
            "pooled_values"
        } else {
            "values"
        };
        float += work * at(taken) as f64 / (size(&input["rows"]) * size(&input["features"]));
        all += work;
        // In this model every layer has an input of its own.
        values += at("values");
        columns += at("columns");
    }
    (values, columns, float / all)
}

fn check(browser: &Browser, report: &Value, unit: &str, step: Option<usize>) {
    let (values, columns, share) = expected(report, unit, step);
    assert_eq!(browser.number("total-values"), values, "{unit} {step:?}");
    assert_eq!(browser.number("total-columns"), columns, "{unit} {step:?}");
    let shown = browser.text("total-share");
    let shown = shown.strip_suffix(" %").unwrap();
    match shown.strip_prefix("< ") {
        Some(limit) => assert!(share > 0.0 && 100.0 * share < limit.parse().unwrap()),
        None => {
            let shown: f64 = shown.parse().unwrap();
            assert!((shown - 100.0 * share).abs() < 0.051, "{shown} and {share}");
        }
    }
}

#[test]
fn the_slider_moves_and_the_numbers_are_those_of_the_report() {
    let Some(browser) = Browser::start(1200) else {
        return;
    };
    let folder = TempDir::new().unwrap();
    let (path, report) = page(&folder, "tiny-gpt2", &[]);
    let steps = |ladder: &str| report["ladders"][ladder].as_array().unwrap().clone();
    let step = |ladder: &str, limit: f64| {
        steps(ladder)
            .iter()
            .position(|step| step.as_f64() == Some(limit))
    };

    // As the model is loaded.
    browser.open(&path, "");
    let six = step("absolute", 6.0).unwrap();
    check(&browser, &report, "batch", Some(six));
    assert_eq!(browser.text("threshold"), "≥ 6");

    // By keyboard, step by step and to both ends.
    for presses in 1..=4 {
        browser.press("#slider", LEFT);
        check(&browser, &report, "batch", Some(six - presses));
    }
    browser.press("#slider", RIGHT);
    check(&browser, &report, "batch", Some(six - 3));
    browser.press("#slider", HOME);
    check(&browser, &report, "batch", Some(0));
    let lowest = browser.number("total-values");
    browser.press("#slider", END);
    check(&browser, &report, "batch", None);
    assert_eq!(browser.text("threshold"), "none");
    assert!(lowest > 1000);

    // Another rule keeps the magnitude; another unit begins with its usual threshold.
    browser.press("#slider", HOME);
    browser.click("input[value=row]");
    check(&browser, &report, "row", Some(0));
    browser.click("input[value=rms]");
    check(&browser, &report, "rms", step("rms", 4.0));
    browser.press("#slider", LEFT);
    check(&browser, &report, "rms", step("rms", 3.5));
    assert_eq!(browser.text("threshold"), "3.5 × RMS");
    let address = browser.run("return location.hash");
    assert_eq!(address, "#unit=rms&threshold=3.5");

    // A row of the table has the numbers of its layer.
    let cells =
        "return [...document.getElementById('inputs').rows[2].cells].map(c => c.textContent)";
    let cells = browser.run(cells);
    assert_eq!(cells[0], "0 · mlp.c_fc");
    let columns = &report["inputs"][2]["rms"]["columns"][step("rms", 3.5).unwrap()];
    assert_eq!(cells[2].as_str().unwrap(), columns.to_string());

    // An address says what to show.
    browser.open(&path, "unit=row&threshold=2");
    check(&browser, &report, "row", step("absolute", 2.0));
    assert_eq!(browser.complaints(), [] as [Value; 0]);
}

#[test]
fn the_page_is_whole_on_a_narrow_screen_and_by_keyboard() {
    let Some(browser) = Browser::start(500) else {
        return;
    };
    let folder = TempDir::new().unwrap();
    let (path, report) = page(&folder, "tiny-gpt2", &["--threshold", "4rms"]);
    browser.open(&path, "");
    check(
        &browser,
        &report,
        "rms",
        report["ladders"]["rms"]
            .as_array()
            .unwrap()
            .iter()
            .position(|x| x == 4),
    );

    // Nothing is wider than a telephone, but for what scrolls inside of its own box.
    let width = "document.body.style.width = '360px'; return [document.body.scrollWidth, document.querySelectorAll('canvas').length]";
    assert_eq!(browser.run(width), serde_json::json!([360, 4]));
    browser.press("canvas", RIGHT);
    let cell = browser.text("cell");
    assert!(
        cell.starts_with("0 · attn.c_attn, feature 1: at most "),
        "{cell}"
    );
    let unlabelled = browser.run(
        "return [...document.querySelectorAll('input,canvas,[role=img],[role=region]')]
            .filter(e => !e.getAttribute('aria-label') && !e.closest('label')).length",
    );
    assert_eq!(unlabelled, 0);
    let tiles = browser.run(
        "return ['before', 'after'].map(id => [...document.getElementById(id).children]
            .map(e => parseFloat(e.style.width) * parseFloat(e.style.height)).reduce((a, b) => a + b, 0) / 1e4)",
    );
    let share =
        report["bytes"]["int8"].as_f64().unwrap() / report["bytes"]["float16"].as_f64().unwrap();
    let close = |value: &Value, to: f64| (value.as_f64().unwrap() - to).abs() < 0.01;
    assert!(
        close(&tiles[0], 1f64.min(1.0 / share)) && close(&tiles[1], 1f64.min(share)),
        "{tiles} {share}"
    );
    assert_eq!(browser.complaints(), [] as [Value; 0]);
}

#[test]
fn names_are_text_in_the_browser() {
    let Some(browser) = Browser::start(800) else {
        return;
    };
    let parent = TempDir::new().unwrap();
    let name = "<img src=x onerror=document.title=1><\u{1b}/script><script>document.title=2<";
    let folder = parent.path().join(name);
    tiny_gpt2_in(&folder);
    let (path, report) = page(&parent, &folder.display().to_string(), &[]);
    browser.open(&path, "");
    assert_eq!(browser.text("model"), report["model"].as_str().unwrap());
    let counts = "return [document.querySelectorAll('img').length, document.scripts.length]";
    assert_eq!(browser.run(counts), serde_json::json!([0, 2]));
    assert_eq!(browser.complaints(), [] as [Value; 0]);
}
