//! Drawing of a few numbers on a number line: the grid of codes of each scheme, where zero is, what
//! is clipped, and the error of each number.

use super::picture::{ALARM, COLOURS, FAINT, INK, PALE, bold, text};
use super::{Input, Quantized};
use llm_int8_affine::QParams;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

const WIDTH: i32 = 1200;
const PANEL: i32 = 380;
const TOP: i32 = 80;
const LEFT: i32 = 60;
const RIGHT: i32 = WIDTH - 60;

/// The part of the drawing for one scheme.
struct Panel<'a> {
    input: &'a Input,
    result: &'a Quantized,
    scale: f64,
    zero_point: i32,
    colour: RGBColor,
    top: i32,
    /// Smallest and largest number on the line.
    range: (f64, f64),
    largest_error: f64,
}

type Canvas<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

pub(super) fn draw(input: &Input, results: &[Quantized]) -> anyhow::Result<String> {
    // Per-channel schemes have no common grid to draw.
    let shown: Vec<_> = results
        .iter()
        .filter_map(|result| match *result.tensor.qparams() {
            QParams::PerTensor { scale, zero_point } => Some((result, scale, zero_point)),
            QParams::PerChannel { .. } => None,
        })
        .collect();
    let x = input.tensor()?;
    let (min, max) = x.min_max()?;
    let mut low = f64::from(min).min(0.0);
    let mut high = f64::from(max).max(0.0);
    let mut largest_error = f64::MIN_POSITIVE;
    for &(result, scale, zero_point) in &shown {
        let (first, last) = grid_ends(result, scale, zero_point);
        low = low.min(first);
        high = high.max(last);
        largest_error = largest_error
            .max(result.tensor.errors(x).max)
            .max(scale / 2.0);
    }

    let margin = (high - low) * 0.03;
    let mut svg = String::new();
    {
        let height = TOP + PANEL * shown.len() as i32;
        let canvas =
            SVGBackend::with_string(&mut svg, (WIDTH as u32, height as u32)).into_drawing_area();
        canvas.fill(&WHITE)?;
        let title = "Numbers on a grid of 256 codes";
        canvas.draw(&Text::new(title, (LEFT, 36), bold(26, INK, HPos::Left)))?;
        for (i, (result, scale, zero_point)) in shown.into_iter().enumerate() {
            let panel = Panel {
                input,
                result,
                scale,
                zero_point,
                colour: COLOURS[i % COLOURS.len()],
                top: TOP + PANEL * i as i32,
                range: (low - margin, high + margin),
                largest_error,
            };
            panel.draw(&canvas)?;
        }

        canvas.present()?;
    }

    Ok(svg)
}

/// The numbers that the smallest and the largest code represent.
fn grid_ends(result: &Quantized, scale: f64, zero_point: i32) -> (f64, f64) {
    let (min, max) = result.tensor.dtype().range();
    (
        f64::from(min - zero_point) * scale,
        f64::from(max - zero_point) * scale,
    )
}

impl Panel<'_> {
    fn at(&self, x: f64) -> i32 {
        let (low, high) = self.range;
        LEFT + ((x - low) / (high - low) * f64::from(RIGHT - LEFT)).round() as i32
    }

    fn draw(&self, canvas: &Canvas<'_>) -> anyhow::Result<()> {
        self.heading(canvas)?;
        self.grid(canvas)?;
        self.values(canvas)?;
        self.errors(canvas)
    }

    fn heading(&self, canvas: &Canvas<'_>) -> anyhow::Result<()> {
        let name = self.result.name();
        canvas.draw(&Text::new(
            name,
            (LEFT, self.top + 14),
            bold(18, self.colour, HPos::Left),
        ))?;
        let errors = self.result.tensor.errors(self.input.tensor()?);
        let facts = format!(
            "scale {:.6} · zero point {} · mean error {:.4} · SNR {:.1} dB",
            self.scale, self.zero_point, errors.mean, errors.signal_to_noise
        );
        canvas.draw(&Text::new(
            facts,
            (RIGHT, self.top + 14),
            text(15, FAINT, HPos::Right),
        ))?;

        Ok(())
    }

    /// Draws a tick for each code; every 32nd is longer and labelled.
    fn grid(&self, canvas: &Canvas<'_>) -> anyhow::Result<()> {
        let y = self.top + 150;
        let (first, last) = grid_ends(self.result, self.scale, self.zero_point);
        let band = [(self.at(first), y - 16), (self.at(last), y + 16)];
        canvas.draw(&Rectangle::new(band, self.colour.mix(0.08).filled()))?;
        canvas.draw(&PathElement::new(
            [(LEFT, y), (RIGHT, y)],
            INK.stroke_width(1),
        ))?;
        let (min, max) = self.result.tensor.dtype().range();
        for code in min..=max {
            let x = self.at(f64::from(code - self.zero_point) * self.scale);
            let ends = code == min || code == max;
            let long = ends || (code % 32 == 0 && code - min > 12 && max - code > 12);
            let reach = if long { 14 } else { 6 };
            let ink = self.colour.mix(if long { 0.9 } else { 0.35 });
            canvas.draw(&PathElement::new(
                [(x, y - reach), (x, y + reach)],
                ink.stroke_width(1),
            ))?;
            if long && code != self.zero_point {
                canvas.draw(&Text::new(
                    code.to_string(),
                    (x, y + 26),
                    text(12, self.colour, HPos::Center),
                ))?;
            }
        }

        let zero = self.at(0.0);
        canvas.draw(&PathElement::new(
            [(zero, y - 30), (zero, y + 38)],
            INK.stroke_width(2),
        ))?;
        let label = format!("0 is code {}", self.zero_point);
        canvas.draw(&Text::new(
            label,
            (zero, y + 48),
            bold(13, INK, HPos::Center),
        ))?;

        Ok(())
    }

    /// Draws each number above the line, with its code; clipped numbers are red.
    fn values(&self, canvas: &Canvas<'_>) -> anyhow::Result<()> {
        let y = self.top + 150;
        let (first, last) = grid_ends(self.result, self.scale, self.zero_point);
        let half = self.scale / 2.0;
        let mut order: Vec<usize> = (0..self.input.values.len()).collect();
        order.sort_by(|&a, &b| self.input.values[a].total_cmp(&self.input.values[b]));
        // Labels that would overlap go up to two rows higher.
        let mut free = [i32::MIN; 3];
        for i in order {
            let value = self.input.values[i];
            let code = self.result.tensor.int_repr()[i];
            let clipped = f64::from(value) < first - half || f64::from(value) > last + half;
            let ink = if clipped { ALARM } else { INK };
            let x = self.at(value.into());

            let label = format!("{value} → {code}");
            let reach = label.chars().count() as i32 * 4 + 6;
            let level = free.iter().position(|&free| x - reach >= free);
            if let Some(level) = level {
                free[level] = x + reach;
                let height = y - 44 - 22 * level as i32;
                canvas.draw(&PathElement::new(
                    [(x, height + 10), (x, y)],
                    ink.mix(0.4).stroke_width(1),
                ))?;
                canvas.draw(&Text::new(label, (x, height), text(14, ink, HPos::Center)))?;
            }

            canvas.draw(&Circle::new((x, y), 5, ink.filled()))?;
        }

        Ok(())
    }

    /// Draws `value - recovered` of each number as a bar, over a band of ± half a step.
    fn errors(&self, canvas: &Canvas<'_>) -> anyhow::Result<()> {
        let y = self.top + 290;
        let reach = 50.0;
        let height = |error: f64| y - (error / self.largest_error * reach).round() as i32;
        let half = self.scale / 2.0;
        let area = [(LEFT, height(half)), (RIGHT, height(-half))];
        canvas.draw(&Rectangle::new(area, PALE.mix(0.5).filled()))?;
        canvas.draw(&PathElement::new(
            [(LEFT, y), (RIGHT, y)],
            FAINT.stroke_width(1),
        ))?;
        let note = format!("error of each number; grey: half a step, ±{half:.4}");
        canvas.draw(&Text::new(
            note,
            (LEFT, y + 68),
            text(13, FAINT, HPos::Left),
        ))?;
        for (&x, recovered) in self
            .input
            .values
            .iter()
            .zip(self.result.tensor.dequantize())
        {
            let error = f64::from(x) - f64::from(recovered);
            let ink = if error.abs() > half * 1.001 {
                ALARM
            } else {
                self.colour
            };

            let x = self.at(x.into());
            let end = height(error);
            canvas.draw(&PathElement::new([(x, y), (x, end)], ink.stroke_width(4)))?;
            canvas.draw(&Circle::new((x, end), 4, ink.filled()))?;
        }

        Ok(())
    }
}
