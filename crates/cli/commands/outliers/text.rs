//! The report as text.

use super::{kind, rule_text};
use crate::display::grouped;
use llm_int8::outliers::{InputReport, Int8LayerReport, LayerReport, OutlierReport};

/// Layers that are listed one by one; of more, those of all blocks share a line.
const MOST_LAYERS: usize = 32;

/// Recurring features that are listed.
const MOST_FEATURES: usize = 12;

pub(super) fn text(report: &OutlierReport) -> String {
    let mut text = format!(
        "{} tokens in windows of {}; outliers: {}\n\n",
        grouped(report.tokens as u64),
        report.window,
        rule_text(report.rule)
    );
    text.push_str(&layers(report));
    text.push_str(&float_layers(report));
    text.push('\n');
    text.push_str(&recurring(report));
    text.push_str(&format!(
        "\nwork in float: {} of the multiplications in 8-bit layers\n\
         columns: features with an outlier in some row; per row: outliers of a row, on average\n{}\n",
        percent(Some(report.float_share())),
        match report.knows_float_weights() {
            true =>
                "weights, outputs: their relative root mean square errors, against the checkpoint's float weights",
            false =>
                "outputs: their relative root mean square error, against float activations on the \
                 dequantised weights; that of the weights is not known, as the checkpoint is 8 bit",
        }
    ));
    text
}

/// An 8-bit layer and its input.
struct Row<'a> {
    layer: &'a LayerReport,
    int8: &'a Int8LayerReport,
    input: &'a InputReport,
}

/// The table of 8-bit layers. Of many, layers with the same name in all blocks share a line: means
/// over the blocks, and the largest activation of all.
fn layers(report: &OutlierReport) -> String {
    let rows = report.int8_layers().map(|(layer, int8)| Row {
        layer,
        int8,
        input: &report.inputs[int8.input],
    });
    let rows: Vec<Row<'_>> = rows.collect();
    let is_long = rows.len() > MOST_LAYERS;

    let mut groups: Vec<(String, Vec<Row<'_>>)> = Vec::new();
    for row in rows {
        let name = match is_long {
            true => kind::split(&row.layer.path).1.to_owned(),
            false => row.layer.path.to_string(),
        };
        match groups.iter_mut().find(|(other, _)| *other == name) {
            Some((_, rows)) => rows.push(row),
            None => groups.push((name, vec![row])),
        }
    }

    let head = [
        if is_long {
            "layers of all blocks (means)"
        } else {
            "layer"
        },
        "out x in",
        "dtype",
        "bytes",
        "columns",
        "per row",
        "in float",
        "largest",
        "at",
        "weights",
        "outputs",
    ];
    let body = groups.iter().map(|(name, rows)| line(name, rows));
    table(&head, body)
}

/// A line of the table: one layer, or the same layer of several blocks.
fn line(name: &str, rows: &[Row<'_>]) -> Vec<String> {
    let mean = |value: &dyn Fn(&Row<'_>) -> f64| {
        rows.iter().map(value).sum::<f64>() / rows.len().max(1) as f64
    };
    let error = |value: &dyn Fn(&Row<'_>) -> Option<f64>| {
        let all: Option<Vec<f64>> = rows.iter().map(value).collect();
        percent(all.map(|all| all.iter().sum::<f64>() / all.len().max(1) as f64))
    };
    let largest = (rows.iter())
        .filter_map(|row| Some((row, row.input.largest?)))
        .max_by(|(_, a), (_, b)| a.value.abs().total_cmp(&b.value.abs()));
    let at = largest.map(|(row, largest)| match kind::split(&row.layer.path).0 {
        Some(block) if rows.len() > 1 => format!("block {block}, feature {}", largest.feature),
        _ => format!("feature {}", largest.feature),
    });

    let first = rows.first().map(|row| row.layer);
    let shape = first.map(|layer| format!("{} x {}", layer.out_features, layer.in_features));
    vec![
        match rows.len() {
            1 => name.to_owned(),
            blocks => format!("{blocks} x {name}"),
        },
        shape.unwrap_or_default(),
        first.map_or_else(String::new, |layer| layer.dtype.name().to_owned()),
        grouped(rows.iter().map(|row| row.layer.bytes).sum()),
        count(mean(&|row| row.input.outlier_columns as f64)),
        format!("{:.2}", mean(&|row| row.input.outliers_per_row())),
        percent(Some(mean(&|row| row.input.float_share))),
        largest.map_or_else(String::new, |(_, largest)| magnitude(largest.value)),
        at.unwrap_or_default(),
        error(&|row| row.int8.weight_error),
        error(&|row| row.int8.output_error),
    ]
}

/// The linear layers that are not 8 bit.
fn float_layers(report: &OutlierReport) -> String {
    let float = report.layers.iter().filter(|layer| layer.int8.is_none());
    let lines = float.map(|layer| {
        format!(
            "{}: {}, {} x {}, not 8 bit\n",
            layer.path,
            layer.dtype.name(),
            layer.out_features,
            layer.in_features
        )
    });
    lines.collect()
}

fn recurring(report: &OutlierReport) -> String {
    let all = &report.recurring;
    if all.features.is_empty() {
        return format!(
            "no feature of the residual stream is an outlier in two of the {} inputs that read it\n",
            all.inputs
        );
    }

    let listed = all.features.iter().take(MOST_FEATURES);
    let body = listed.map(|feature| {
        vec![
            format!("feature {}", feature.feature),
            format!("{} of {}", feature.inputs, all.inputs),
            percent(Some(feature.row_share)),
            magnitude(feature.largest),
            match all.is_emergent(feature) {
                true => "emergent".into(),
                false => String::new(),
            },
        ]
    });
    let head = ["residual stream", "inputs", "rows", "largest", ""];
    let left = all.features.len().saturating_sub(MOST_FEATURES);
    let more = match left {
        0 => String::new(),
        left => format!("and {left} more that are outliers in two inputs or more\n"),
    };
    format!(
        "{}{more}emergent (LLM.int8() paper): in a quarter of the inputs and in 6 % of the rows\n",
        table(&head, body)
    )
}

/// Columns with two spaces between them: the first to the left, the others to the right.
fn table(head: &[&str], body: impl Iterator<Item = Vec<String>>) -> String {
    let head: Vec<String> = head.iter().map(|name| (*name).to_owned()).collect();
    let lines: Vec<Vec<String>> = std::iter::once(head).chain(body).collect();
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();

    let mut text = String::new();
    for line in &lines {
        let mut cells = String::new();
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            match column {
                0 => cells.push_str(&format!("{cell:<width$}")),
                _ => cells.push_str(&format!("  {cell:>width$}")),
            }
        }
        text.push_str(cells.trim_end());
        text.push('\n');
    }
    text
}

fn percent(share: Option<f64>) -> String {
    match share.map(|share| 100.0 * share) {
        None => "not known".into(),
        Some(0.0) => "0 %".into(),
        Some(percent) if percent < 0.01 => "< 0.01 %".into(),
        Some(percent) => format!("{percent:.2} %"),
    }
}

/// A mean of counts, without a fraction if it has none.
fn count(mean: f64) -> String {
    match mean.fract() == 0.0 {
        true => format!("{mean}"),
        false => format!("{mean:.1}"),
    }
}

fn magnitude(value: f32) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned() {
        let body = [
            vec!["long name".to_owned(), "1".into()],
            vec!["b".into(), "1,000".into()],
        ];
        assert_eq!(
            table(&["layer", "n"], body.into_iter()),
            "layer          n\nlong name      1\nb          1,000\n"
        );
    }

    #[test]
    fn numbers_have_the_digits_that_matter() {
        let shares = [None, Some(0.0), Some(1e-6), Some(0.0123), Some(1.0)].map(percent);
        assert_eq!(
            shares,
            ["not known", "0 %", "< 0.01 %", "1.23 %", "100.00 %"]
        );
        let sizes = [-1234.5, 12.34, 0.5, f32::INFINITY].map(magnitude);
        assert_eq!(sizes, ["-1234", "12.3", "0.50", "inf"]);
        assert_eq!([count(3.0), count(2.25)], ["3", "2.2"]);
    }
}
