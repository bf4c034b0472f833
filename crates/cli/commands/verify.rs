//! `llm-int8 verify`: check whether the weights of a model are sound.

use super::{explain, hub_config};
use crate::args::{UsageError, VerifyArgs};
use crate::display::{Downloads, bar, bytes, escaped, grouped};
use llm_int8::LlmError;
use llm_int8::verify::{Finding, Note, Report, VerifyOptions};
use serde_json::{Value, json};
use std::io::Write;
use std::ops::ControlFlow;

/// How many findings and how many notes are printed as text; JSON has all of them.
const SHOWN: usize = 40;

pub(crate) fn verify(args: &VerifyArgs) -> anyhow::Result<()> {
    let options = VerifyOptions {
        against: args.against.clone(),
        hub: hub_config(args.offline),
    };
    let report = checked(args, &options)?;

    let text = match args.json {
        true => format!("{:#}\n", json_report(&report)),
        false => text_report(&report),
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;

    match report.findings.len() {
        0 => Ok(()),
        1 => Err(anyhow::anyhow!("{} is not sound: 1 finding", args.model)),
        count => Err(anyhow::anyhow!(
            "{} is not sound: {count} findings",
            args.model
        )),
    }
}

/// Verifies with a progress bar.
fn checked(args: &VerifyArgs, options: &VerifyOptions) -> anyhow::Result<Report> {
    let bar = bar("{msg:28!} {bar:30} {bytes}/{total_bytes} {eta} left");
    let found = llm_int8::verify::verify(
        &args.model,
        options,
        &Downloads::new(&options.hub),
        &mut |event| {
            bar.set_length(event.total);
            bar.set_position(event.done);
            bar.set_message(escaped(event.tensor));
            ControlFlow::Continue(())
        },
    );
    bar.finish_and_clear();
    found.map_err(|error| match error {
        LlmError::Setting { .. } => UsageError(error.to_string()).into(),
        LlmError::Against { model, source } => explain(*source, &model),
        error => explain(error, &args.model),
    })
}

fn json_report(report: &Report) -> Value {
    let finding = |finding: &Finding| {
        json!({
            "tensor": finding.tensor,
            "kind": finding.fault.name(),
            "count": finding.count,
            "rows": finding.rows,
            "detail": finding.detail,
        })
    };
    let note = |note: &Note| json!({ "tensor": note.tensor, "detail": note.detail });
    json!({
        "model": report.model,
        "against": report.against,
        "sound": report.is_sound(),
        "tensors": report.tensors,
        "int8_layers": report.int8_layers,
        "float_layers": report.float_layers,
        "bytes": report.bytes,
        "findings": report.findings.iter().map(finding).collect::<Vec<_>>(),
        "notes": report.notes.iter().map(note).collect::<Vec<_>>(),
    })
}

/// A table of the findings, the notes, and a summary.
fn text_report(report: &Report) -> String {
    let mut text = String::new();
    if !report.findings.is_empty() {
        text.push_str(&table(&report.findings));
    }
    for note in report.notes.iter().take(SHOWN) {
        let detail = escaped(&note.detail);
        match &note.tensor {
            Some(tensor) => text.push_str(&format!("note: {}: {detail}\n", escaped(tensor))),
            None => text.push_str(&format!("note: {detail}\n")),
        }
    }
    text.push_str(&hidden(report.notes.len(), "notes"));
    text.push_str(&summary(report));
    text
}

fn table(findings: &[Finding]) -> String {
    let shown = &findings[..findings.len().min(SHOWN)];
    let lines = shown.iter().map(|finding| {
        let rows: Vec<String> = finding.rows.iter().map(usize::to_string).collect();
        let mut rows = rows.join(",");
        if finding.count > finding.rows.len() as u64 && !rows.is_empty() {
            rows.push_str(",…");
        }
        [
            escaped(&finding.tensor),
            finding.fault.name().to_owned(),
            grouped(finding.count),
            rows,
            escaped(&finding.detail),
        ]
    });
    let header = ["tensor", "finding", "count", "rows", ""].map(str::to_owned);
    let lines: Vec<[String; 5]> = std::iter::once(header).chain(lines).collect();

    let width = |column: usize| {
        let widths = lines.iter().map(|line| line[column].chars().count());
        widths.max().unwrap_or(0)
    };
    let [name, kind, count, rows] = [0, 1, 2, 3].map(width);
    let mut text = String::new();
    for [a, b, c, d, e] in &lines {
        let line = format!("{a:name$}  {b:kind$}  {c:>count$}  {d:rows$}  {e}");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text + &hidden(findings.len(), "findings")
}

/// How many were not shown; empty if all were.
fn hidden(count: usize, what: &str) -> String {
    match count.saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!("… and {more} more {what}\n"),
    }
}

fn summary(report: &Report) -> String {
    let layers = |count: usize, what: &str| match count {
        0 => String::new(),
        1 => format!(", 1 {what} layer"),
        count => format!(", {count} {what} layers"),
    };
    let kinds: Vec<String> = report
        .counts()
        .iter()
        .map(|(fault, count)| format!("{} {count}", fault.name()))
        .collect();
    let (verdict, findings) = match report.is_sound() {
        true => ("sound", "no findings".to_owned()),
        false => ("not sound", kinds.join(", ")),
    };
    format!(
        "{verdict}: {} tensors{}{}, {}; {findings}\n",
        report.tensors,
        layers(report.int8_layers, "int8"),
        layers(report.float_layers, "float"),
        bytes(report.bytes),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use llm_int8::verify::Fault;

    fn report(findings: Vec<Finding>) -> Report {
        Report {
            model: "m".into(),
            against: None,
            tensors: 3,
            int8_layers: 1,
            float_layers: 0,
            bytes: 2048,
            findings,
            notes: vec![Note {
                tensor: Some("x\u{1b}".into()),
                detail: "two\nlines".into(),
            }],
        }
    }

    #[test]
    fn tables_are_aligned_and_names_escaped() {
        let finding = |tensor: &str, count| Finding {
            tensor: tensor.into(),
            fault: Fault::Nan,
            count,
            rows: vec![1, 2],
            detail: "values are NaN".into(),
        };
        let text = text_report(&report(vec![finding("a", 2), finding("b\u{7}", 1234)]));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "tensor  finding  count  rows",
                "a       nan          2  1,2    values are NaN",
                "b\\u{7}  nan      1,234  1,2,…  values are NaN",
                "note: x\\u{1b}: two\\nlines",
                "not sound: 3 tensors, 1 int8 layer, 2.00 KiB; nan 2",
            ]
        );
        let sound = text_report(&report(Vec::new()));
        assert!(sound.ends_with("\nsound: 3 tensors, 1 int8 layer, 2.00 KiB; no findings\n"));
    }

    #[test]
    fn long_lists_are_cut_in_text_and_whole_in_json() {
        let findings = vec![
            Finding {
                tensor: "t".into(),
                fault: Fault::Missing,
                count: 1,
                rows: Vec::new(),
                detail: "gone".into(),
            };
            SHOWN + 2
        ];
        let report = report(findings);
        let text = text_report(&report);
        assert!(text.contains("… and 2 more findings\n"), "{text}");
        let json = json_report(&report);
        assert_eq!(json["findings"].as_array().unwrap().len(), SHOWN + 2);
        assert_eq!(json["sound"], false);
        assert_eq!(json["findings"][0]["kind"], "missing");
    }
}
