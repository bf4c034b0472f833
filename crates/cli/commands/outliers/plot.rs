//! The heat map layer x feature as an SVG picture, legible on light and on dark pages.
//!
//! A picture may have a hundred thousand cells. Neighbours of the same shade are one stroke of a
//! path, and each shade is one path, so the file stays small; plotters would write a rectangle for
//! each cell.

use super::{MOST_CELLS, kind};
use llm_int8::outliers::{InputReport, OutlierReport};
use std::fmt::Write;

/// Shades besides that of magnitudes up to 1, which stay blank.
const SHADES: usize = 8;

/// The darkest shade is for this magnitude and more: one scale for every model.
const DARKEST: f32 = 64.0;

/// Sizes in pixels.
const WIDTH: usize = 880;
const MARGIN: usize = 20;
const TITLE: usize = 56;
const LABEL: usize = 26;
const LEGEND: usize = 44;

const STYLE: &str = "\
svg{background:#fff}text{font:13px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;fill:#1b1d22}\
.h{font-size:17px;font-weight:600}.s{fill:#5b616b}.b{fill:#f4f5f7}\
path,.k{stroke:#3446c4}.k{fill:#3446c4;stroke:none}\
@media(prefers-color-scheme:dark){svg{background:#14161a}text{fill:#e7e9ee}.s{fill:#a0a6b2}.b{fill:#1d2026}\
path{stroke:#93a1ff}.k{fill:#93a1ff}}";

/// The inputs of one kind, block after block.
struct Panel<'a> {
    name: String,
    inputs: Vec<&'a InputReport>,
}

impl Panel<'_> {
    fn row_height(&self) -> usize {
        (200 / self.inputs.len().max(1)).clamp(4, 14)
    }

    fn height(&self) -> usize {
        LABEL + self.inputs.len() * self.row_height() + 10
    }
}

pub(super) fn svg(name: &str, report: &OutlierReport) -> String {
    let panels = panels(report);
    let height = TITLE + panels.iter().map(Panel::height).sum::<usize>() + LEGEND;

    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\">\n<title>Largest magnitude of each feature, {}</title>\n\
         <style>{STYLE}</style>\n",
        escaped(name)
    );
    label(
        &mut text,
        "h",
        MARGIN,
        26,
        &format!("Activations of {name}"),
    );
    let line = "the largest magnitude of each feature (columns) in each block (rows)";
    label(&mut text, "s", MARGIN, 45, line);

    let mut top = TITLE;
    for panel in &panels {
        draw(&mut text, panel, top);
        top += panel.height();
    }
    legend(&mut text, top);
    text.push_str("</svg>\n");
    text
}

fn panels(report: &OutlierReport) -> Vec<Panel<'_>> {
    let mut panels: Vec<Panel<'_>> = Vec::new();
    for input in &report.inputs {
        let name = kind::shared(&input.layers).1;
        let fits = |panel: &&mut Panel<'_>| {
            panel.name == name && panel.inputs[0].features == input.features
        };
        match panels.iter_mut().find(fits) {
            Some(panel) => panel.inputs.push(input),
            None => panels.push(Panel {
                name,
                inputs: vec![input],
            }),
        }
    }
    panels
}

/// Draws a panel: its name, a blank field, and the strokes of each shade.
fn draw(text: &mut String, panel: &Panel<'_>, top: usize) {
    let features = panel
        .inputs
        .first()
        .map_or(1, |input| input.features)
        .max(1);
    let cells = features.min(MOST_CELLS).min(WIDTH - 2 * MARGIN);
    let row = panel.row_height();
    let field = top + LABEL;
    label(
        text,
        "",
        MARGIN,
        top + 18,
        &format!("{} ({features} features)", panel.name),
    );

    // Cells are units wide; the picture is scaled to its width.
    let scale = (WIDTH - 2 * MARGIN) as f64 / cells as f64;
    let _ = write!(
        text,
        "<g transform=\"translate({MARGIN} {field}) scale({scale:.4} 1)\" stroke-width=\"{row}\">\
         <rect class=\"b\" width=\"{cells}\" height=\"{}\"/>",
        panel.inputs.len() * row
    );
    for shade in 1..=SHADES {
        let mut path = String::new();
        for (number, input) in panel.inputs.iter().enumerate() {
            let middle = (number * row) as f64 + row as f64 / 2.0;
            for (start, length) in runs(&shades(input, cells), shade) {
                let _ = write!(path, "M{start} {middle}h{length}");
            }
        }
        if !path.is_empty() {
            let opacity = opacity(shade);
            let _ = write!(text, "<path d=\"{path}\" stroke-opacity=\"{opacity:.2}\"/>");
        }
    }
    text.push_str("</g>\n");
}

/// The shade of each cell of a row.
fn shades(input: &InputReport, cells: usize) -> Vec<usize> {
    let features = input.maxima.len();
    let cell = |cell: usize| {
        let first = cell * features / cells;
        let after = ((cell + 1) * features / cells).max(first + 1);
        input.maxima[first..after.min(features)]
            .iter()
            .copied()
            .fold(0.0, f32::max)
    };
    (0..cells).map(|i| shade(cell(i))).collect()
}

/// The shade of a magnitude, by its logarithm; 0 up to 1.
fn shade(value: f32) -> usize {
    if value <= 1.0 {
        return 0;
    }
    let share = (value.ln() / DARKEST.ln()).min(1.0);
    ((share * SHADES as f32).ceil() as usize).clamp(1, SHADES)
}

fn opacity(shade: usize) -> f64 {
    0.1 + 0.9 * (shade as f64 / SHADES as f64)
}

/// Start and length of each run of this shade.
fn runs(shades: &[usize], shade: usize) -> Vec<(usize, usize)> {
    let mut found: Vec<(usize, usize)> = Vec::new();
    for (cell, _) in shades
        .iter()
        .enumerate()
        .filter(|(_, other)| **other == shade)
    {
        match found.last_mut() {
            Some((start, length)) if *start + *length == cell => *length += 1,
            _ => found.push((cell, 1)),
        }
    }
    found
}

fn legend(text: &mut String, top: usize) {
    label(text, "s", MARGIN, top + 24, "up to 1");
    for shade in 1..=SHADES {
        let x = MARGIN + 60 + 24 * (shade - 1);
        let _ = writeln!(
            text,
            "<rect class=\"k\" x=\"{x}\" y=\"{}\" width=\"24\" height=\"12\" fill-opacity=\"{:.2}\"/>",
            top + 14,
            opacity(shade)
        );
    }
    let end = MARGIN + 68 + 24 * SHADES;
    label(text, "s", end, top + 24, &format!("{DARKEST} and more"));
}

fn label(text: &mut String, class: &str, x: usize, y: usize, words: &str) {
    let _ = writeln!(
        text,
        "<text class=\"{class}\" x=\"{x}\" y=\"{y}\">{}</text>",
        escaped(words)
    );
}

/// Text for XML, which has no control characters.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shades_are_logarithmic() {
        let shades = [0.0, 1.0, 1.01, 7.9, 63.9, 64.0, f32::INFINITY].map(shade);
        assert_eq!(shades, [0, 0, 1, 4, 8, 8, 8]);
    }

    #[test]
    fn neighbours_of_one_shade_are_one_stroke() {
        assert_eq!(runs(&[2, 2, 0, 2, 1, 2, 2], 2), [(0, 2), (3, 1), (5, 2)]);
        assert!(runs(&[0, 1], 2).is_empty());
    }

    #[test]
    fn names_are_text() {
        assert_eq!(
            escaped("a<b>&\"\u{1b}\n"),
            "a&lt;b&gt;&amp;&quot;\u{fffd}\u{fffd}"
        );
    }
}
