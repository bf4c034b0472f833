//! Drawing of a tensor with many numbers: their distribution above the grids of codes, and the
//! error of each channel.

use super::picture::{COLOURS, FAINT, INK, PALE, bold, text};
use super::{Input, Quantized};
use llm_int8_affine::{ErrorStatistics, QParams};
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

const WIDTH: i32 = 1200;
const LEFT: i32 = 80;
const RIGHT: i32 = WIDTH - 60;
const BINS: usize = 220;
const MOST_CHANNELS: usize = 1100;

type Canvas<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

pub(super) fn draw(input: &Input, results: &[Quantized]) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let channels = Channels::of(input, results)?;
        let grids = results.iter().filter_map(Grid::of).count() as i32;
        let histogram_top = 90;
        let channels_top = 450 + 34 * grids;
        let height = channels_top + if channels.is_some() { 330 } else { 0 };
        let canvas =
            SVGBackend::with_string(&mut svg, (WIDTH as u32, height as u32)).into_drawing_area();
        canvas.fill(&WHITE)?;
        let name = input.name.as_deref().unwrap_or("numbers");
        canvas.draw(&Text::new(name, (LEFT, 34), bold(24, INK, HPos::Left)))?;
        let facts = format!("{} numbers, shape {:?}", input.values.len(), input.shape);
        canvas.draw(&Text::new(facts, (RIGHT, 34), text(15, FAINT, HPos::Right)))?;
        spread(&canvas, input, results, histogram_top)?;
        if let Some(channels) = channels {
            channels.draw(&canvas, results, channels_top)?;
        }

        canvas.present()?;
    }

    Ok(svg)
}

/// Draws the histogram, and below it the range of codes of each per-tensor scheme.
fn spread(
    canvas: &Canvas<'_>,
    input: &Input,
    results: &[Quantized],
    top: i32,
) -> anyhow::Result<()> {
    let x = input.tensor()?;
    let (min, max) = x.min_max()?;
    let grids: Vec<(usize, Grid)> = results
        .iter()
        .enumerate()
        .filter_map(|(i, result)| Some((i, Grid::of(result)?)))
        .collect();
    let axis = Axis::over(min.into(), max.into(), grids.iter().map(|(_, grid)| grid));

    let bottom = top + 300;
    bars(canvas, x.values(), &axis, bottom)?;

    let zero = axis.at(0.0);
    canvas.draw(&PathElement::new(
        [(zero, top), (zero, bottom + 34 * grids.len() as i32 + 20)],
        INK.stroke_width(1),
    ))?;
    canvas.draw(&Text::new(
        "0",
        (zero, top - 12),
        bold(14, INK, HPos::Center),
    ))?;
    for (x, across) in [(min, HPos::Left), (max, HPos::Right)] {
        canvas.draw(&Text::new(
            format!("{x:.4}"),
            (axis.at(x.into()), top - 12),
            text(13, FAINT, across),
        ))?;
    }

    for (row, (i, grid)) in grids.iter().enumerate() {
        let y = bottom + 40 + 34 * row as i32;
        let colour = COLOURS[i % COLOURS.len()];
        grid.draw(canvas, &axis, y, colour, &results[*i].name())?;
    }

    Ok(())
}

/// Draws the bars of the histogram. Their height is logarithmic, because the few extreme values
/// decide the range.
fn bars(canvas: &Canvas<'_>, values: &[f32], axis: &Axis, bottom: i32) -> anyhow::Result<()> {
    let mut counts = [0u64; BINS];
    for &value in values {
        let bin = (axis.fraction(value.into()) * BINS as f64) as usize;
        counts[bin.min(BINS - 1)] += 1;
    }

    let most = counts.iter().max().copied().unwrap_or(1).max(2) as f64;
    let reach = 280.0;
    let height = |count: f64| bottom - ((count + 1.0).ln() / (most + 1.0).ln() * reach) as i32;

    for power in 0..=most.log10() as u32 {
        let y = height(10f64.powi(power as i32));
        canvas.draw(&PathElement::new(
            [(LEFT, y), (RIGHT, y)],
            PALE.stroke_width(1),
        ))?;
        let label = 10u64.pow(power).to_string();
        canvas.draw(&Text::new(
            label,
            (LEFT - 8, y),
            text(12, FAINT, HPos::Right),
        ))?;
    }

    for (bin, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        let edge = |bin: usize| axis.at(axis.low + axis.width * bin as f64 / BINS as f64);
        let bar = [(edge(bin), height(count as f64)), (edge(bin + 1), bottom)];
        canvas.draw(&Rectangle::new(bar, RGBColor(100, 116, 139).filled()))?;
    }

    Ok(())
}

/// The horizontal axis of the histogram.
struct Axis {
    low: f64,
    width: f64,
}

impl Axis {
    /// An axis from `min` to `max` that also covers the grids.
    fn over<'a>(min: f64, max: f64, grids: impl Iterator<Item = &'a Grid>) -> Self {
        let (low, high) = grids.fold((min, max), |(low, high), grid| {
            (low.min(grid.first), high.max(grid.last))
        });
        Self {
            low,
            width: (high - low).max(f64::MIN_POSITIVE),
        }
    }

    /// Where a number is on the axis, from 0 to 1.
    fn fraction(&self, x: f64) -> f64 {
        (x - self.low) / self.width
    }

    /// The x coordinate of a number.
    fn at(&self, x: f64) -> i32 {
        LEFT + (self.fraction(x) * f64::from(RIGHT - LEFT)).round() as i32
    }
}

/// The numbers that the codes of a per-tensor scheme represent.
struct Grid {
    first: f64,
    last: f64,
    scale: f64,
    zero_point: i32,
}

impl Grid {
    /// `None` for a per-channel scheme, which has many grids.
    fn of(result: &Quantized) -> Option<Self> {
        let QParams::PerTensor { scale, zero_point } = *result.tensor.qparams() else {
            return None;
        };

        let (min, max) = result.tensor.dtype().range();
        Some(Self {
            first: f64::from(min - zero_point) * scale,
            last: f64::from(max - zero_point) * scale,
            scale,
            zero_point,
        })
    }

    /// Draws the range of the grid and a tick for each code.
    fn draw(
        &self,
        canvas: &Canvas<'_>,
        axis: &Axis,
        y: i32,
        colour: RGBColor,
        name: &str,
    ) -> anyhow::Result<()> {
        canvas.draw(&Rectangle::new(
            [(axis.at(self.first), y - 7), (axis.at(self.last), y + 7)],
            colour.mix(0.12).filled(),
        ))?;

        let codes = ((self.last - self.first) / self.scale).round() as i32;
        for code in 0..=codes {
            let x = axis.at(self.first + f64::from(code) * self.scale);
            canvas.draw(&PathElement::new(
                [(x, y - 6), (x, y + 6)],
                colour.mix(0.5).stroke_width(1),
            ))?;
        }

        let label = format!(
            "{name}: step {:.6}, zero is code {}",
            self.scale, self.zero_point
        );
        canvas.draw(&Text::new(
            label,
            (LEFT, y - 16),
            text(13, colour, HPos::Left),
        ))?;

        Ok(())
    }
}

/// RMS errors of the channels for each scheme, sorted by those of the last scheme.
struct Channels {
    axis: usize,
    errors: Vec<Vec<f64>>,
}

impl Channels {
    /// Channels along the axis of a per-channel scheme, else along axis 0; `None` for a vector.
    fn of(input: &Input, results: &[Quantized]) -> anyhow::Result<Option<Self>> {
        let axis = results
            .iter()
            .find_map(|result| match result.tensor.qparams() {
                QParams::PerChannel { axis, .. } => Some(*axis),
                QParams::PerTensor { .. } => None,
            });
        let Some(axis) = axis.or((input.shape.len() > 1).then_some(0)) else {
            return Ok(None);
        };

        let channels = input.tensor()?.channels(axis)?;
        let mut errors = Vec::new();
        for result in results {
            let recovered = result.tensor.dequantize();
            let pick = |all: &[f32], channel| -> Vec<f32> {
                channels
                    .ranges(channel)
                    .flat_map(|range| all[range].iter().copied())
                    .collect()
            };
            let rms = |i| ErrorStatistics::of(&pick(&input.values, i), &pick(&recovered, i)).rms;
            errors.push((0..channels.count()).map(rms).collect::<Vec<f64>>());
        }

        let mut order: Vec<usize> = (0..channels.count()).collect();
        if let Some(last) = errors.last() {
            order.sort_by(|&a, &b| last[a].total_cmp(&last[b]));
        }

        // If there are too many channels, draw an even selection.
        let shown = order.len().min(MOST_CHANNELS);
        let order: Vec<usize> = (0..shown).map(|i| order[i * order.len() / shown]).collect();
        let errors = errors
            .iter()
            .map(|errors| order.iter().map(|&i| errors[i]).collect())
            .collect();
        Ok(Some(Self { axis, errors }))
    }

    fn draw(&self, canvas: &Canvas<'_>, results: &[Quantized], top: i32) -> anyhow::Result<()> {
        let heading = format!(
            "RMS error of each channel (axis {}), in the order of the last scheme's",
            self.axis
        );
        canvas.draw(&Text::new(heading, (LEFT, top), bold(16, INK, HPos::Left)))?;
        let bottom = top + 260;
        let reach = 220.0;
        let most = self
            .errors
            .iter()
            .flatten()
            .copied()
            .fold(f64::MIN_POSITIVE, f64::max);
        for part in 0..=4 {
            let error = most * f64::from(part) / 4.0;
            let y = bottom - (reach * f64::from(part) / 4.0) as i32;
            canvas.draw(&PathElement::new(
                [(LEFT, y), (RIGHT, y)],
                PALE.stroke_width(1),
            ))?;
            canvas.draw(&Text::new(
                format!("{error:.1e}"),
                (LEFT - 8, y),
                text(12, FAINT, HPos::Right),
            ))?;
        }

        for (i, errors) in self.errors.iter().enumerate() {
            let colour = COLOURS[i % COLOURS.len()];
            let last = errors.len().saturating_sub(1).max(1) as f64;
            let point = |(channel, error): (usize, &f64)| {
                let x = LEFT + (channel as f64 / last * f64::from(RIGHT - LEFT)) as i32;
                (x, bottom - (error / most * reach) as i32)
            };
            let line: Vec<_> = errors.iter().enumerate().map(point).collect();
            canvas.draw(&PathElement::new(line, colour.stroke_width(2)))?;
            let x = LEFT + 270 * i as i32;
            canvas.draw(&Rectangle::new(
                [(x, bottom + 24), (x + 24, bottom + 30)],
                colour.filled(),
            ))?;
            let name = results[i].name();
            canvas.draw(&Text::new(
                name,
                (x + 32, bottom + 27),
                text(14, colour, HPos::Left),
            ))?;
        }

        Ok(())
    }
}
