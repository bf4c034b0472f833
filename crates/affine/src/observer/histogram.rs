//! An observer that keeps a histogram and chooses the range with the least quantisation error.

use super::{Observer, ObserverConfig, ObserverKind, min_max::range_text, per_tensor};
use crate::qparams::Grid;
use crate::{QParams, QScheme, QuantizedDtype, Result, TensorRef};
use std::fmt;

/// Bins of the histogram, torch's default.
const BINS: usize = 2048;
/// Parts that a bin is cut into when the histogram is redistributed over a wider range.
const UPSAMPLE: usize = 16;
/// Codes that the search quantises to: torch uses 2^8 for both 8-bit dtypes.
const CODES: f32 = 256.0;
/// The fraction of values that each step of the search clips.
const STEP: f64 = 1e-5;

/// `HistogramObserver`, which observes activations in fbgemm's default qconfig.
///
/// It repeats torch 2.8 in f32, operation by operation, so that it chooses the same range: see
/// `_combine_histograms`, `_non_linear_param_search` and `_compute_quantization_error` there.
///
/// ```
/// use llm_int8_affine::*;
/// let mut observer = HistogramObserver::new(QuantizedDtype::Quint8, QScheme::PerTensorAffine)?;
/// let mut values: Vec<f32> = (0..200_000).map(|i| (i % 200) as f32 / 100.0 - 1.0).collect();
/// values.push(50.0); // one far outlier
/// observer.observe(TensorRef::new(&values, &[values.len()])?)?;
/// let QParams::PerTensor { scale, .. } = observer.qparams()? else { unreachable!() };
/// assert!(scale < 51.0 / 255.0 / 4.0); // clipped for a finer step
/// # Ok::<(), AffineError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct HistogramObserver {
    grid: Grid,
    min: f32,
    max: f32,
    histogram: Vec<f32>,
}

impl HistogramObserver {
    /// torch's defaults for everything else.
    ///
    /// # Errors
    /// [`AffineError::UnsupportedScheme`](crate::AffineError::UnsupportedScheme).
    pub fn new(dtype: QuantizedDtype, scheme: QScheme) -> Result<Self> {
        Self::with_config(&ObserverConfig::new(ObserverKind::Histogram, dtype, scheme))
    }

    pub(super) fn with_config(config: &ObserverConfig) -> Result<Self> {
        let grid = config.grid("HistogramObserver", false)?;
        Ok(Self {
            grid,
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
            histogram: vec![0.0; BINS],
        })
    }

    /// The histogram redistributed over the wider range `min..max` (`_combine_histograms`). `batch`
    /// is the histogram of the new batch.
    fn stretched(&self, min: f32, max: f32, batch: &[f32]) -> Vec<f32> {
        if self.min == self.max {
            // If only one value was seen so far, torch weights it with the number of values of the
            // new batch.
            let total: f32 = batch.iter().sum();
            return count(&[self.min], min, max)
                .into_iter()
                .map(|n| n * total)
                .collect();
        }

        let parts = BINS * UPSAMPLE;
        let middle = 0.5 * ((self.max - self.min) / parts as f32);
        let edges: Vec<f32> = (0..=BINS)
            .map(|i| linspace(min, max, BINS + 1, i))
            .collect();

        let mut wider = vec![0f32; BINS];
        for part in 0..parts {
            let x = linspace(self.min, self.max, parts + 1, part) + middle;
            let bin = edges
                .partition_point(|edge| *edge <= x)
                .saturating_sub(1)
                .min(BINS - 1);
            wider[bin] += self.histogram[part / UPSAMPLE] / UPSAMPLE as f32;
        }

        wider
    }

    /// The range with the least squared error (`_non_linear_param_search`): quantiles are clipped
    /// from either end as long as that does not increase the error.
    fn best_range(&self) -> (f32, f32) {
        let bin_width = (self.max - self.min) / BINS as f32;
        let sums = cumulative(&self.histogram);
        let total = f64::from(self.histogram.iter().map(|&n| f64::from(n)).sum::<f64>() as f32);

        let mut alpha = 0f64;
        let mut beta = 1f64;
        let mut start = 0;
        let mut end = BINS - 1;
        let mut least = f64::INFINITY;
        while alpha < beta {
            let next_alpha = alpha + STEP;
            let next_beta = beta - STEP;

            let mut left = start;
            let mut right = end;
            while left < end && sums[left] < (next_alpha * total) as f32 {
                left += 1;
            }
            while right > start && sums[right] > (next_beta * total) as f32 {
                right -= 1;
            }

            let mut next_start = start;
            let mut next_end = end;
            if left - start > end - right {
                (next_start, alpha) = (left, next_alpha);
            } else {
                (next_end, beta) = (right, next_beta);
            }
            if (next_start, next_end) == (start, end) {
                continue;
            }

            let error = self.error_of(next_start, next_end);
            if error > least {
                break;
            }

            (least, start, end) = (error, next_start, next_end);
        }

        (
            self.min + bin_width * start as f32,
            self.min + bin_width * (end + 1) as f32,
        )
    }

    /// The squared error of quantising all values with the range of the bins `start..=end`
    /// (`_compute_quantization_error`). Values are assumed uniform within a bin.
    fn error_of(&self, start: usize, end: usize) -> f64 {
        let bin_width = (f64::from(self.max) - f64::from(self.min)) / BINS as f64;
        let step = (bin_width * (end - start + 1) as f64 / f64::from(CODES)) as f32;
        if step == 0.0 {
            return 0.0;
        }

        let bin_width = bin_width as f32;
        let half = step / 2.0;
        let code_of = |x: f32| floor_divide(x, step).clamp(0.0, CODES - 1.0);
        let error = |bin: usize, count: f32| {
            let begin = (bin as f32 - start as f32) * bin_width;
            let end = begin + bin_width;
            let (first, last) = (code_of(begin), code_of(end));
            let density = count / bin_width;
            let in_first = integral(begin - (first + 0.5) * step, half, density);
            let between = (last - first - 1.0) * integral(-half, half, density);
            let in_last = integral(-half, end - (last * step + half), density);
            in_first + between + in_last
        };

        self.histogram
            .iter()
            .enumerate()
            .map(|(bin, &count)| f64::from(error(bin, count)))
            .sum()
    }
}

impl Observer for HistogramObserver {
    fn observe(&mut self, x: TensorRef<'_>) -> Result<()> {
        let Ok((min, max)) = x.min_max() else {
            return Ok(());
        };
        let first = self.min > self.max;
        let (min, max) = (self.min.min(min), self.max.max(max));
        let mut histogram = count(x.values(), min, max);

        if !first {
            let same = (min, max) == (self.min, self.max);
            let before = if same {
                self.histogram.clone()
            } else {
                self.stretched(min, max, &histogram)
            };
            histogram
                .iter_mut()
                .zip(before)
                .for_each(|(n, before)| *n += before);
        }

        (self.min, self.max, self.histogram) = (min, max, histogram);

        Ok(())
    }

    fn qparams(&self) -> Result<QParams> {
        let (min, max) = if self.min > self.max {
            (self.min, self.max)
        } else {
            self.best_range()
        };
        per_tensor(&self.grid, min, max)
    }

    fn dtype(&self) -> QuantizedDtype {
        self.grid.dtype
    }
}

impl fmt::Display for HistogramObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HistogramObserver({})", range_text(self.min, self.max))
    }
}

/// `torch.histc`: the number of values in each bin. A range of one point is widened by 1 on both
/// sides.
fn count(values: &[f32], min: f32, max: f32) -> Vec<f32> {
    let (min, max) = if min == max {
        (min - 1.0, max + 1.0)
    } else {
        (min, max)
    };

    let mut histogram = vec![0f32; BINS];
    for x in values {
        let bin = ((x - min) * BINS as f32 / (max - min)) as usize;
        histogram[bin.min(BINS - 1)] += 1.0;
    }

    histogram
}

/// `torch.linspace(start, end, steps)[index]`, computed from the nearer end.
fn linspace(start: f32, end: f32, steps: usize, index: usize) -> f32 {
    let step = (end - start) / (steps - 1) as f32;
    if index < steps / 2 {
        start + step * index as f32
    } else {
        end - step * (steps - index - 1) as f32
    }
}

/// Cumulative sums, accumulated in f64 and rounded to f32.
fn cumulative(histogram: &[f32]) -> Vec<f32> {
    let add = |sum: &mut f64, n: &f32| {
        *sum += f64::from(*n);
        Some(*sum as f32)
    };

    histogram.iter().scan(0f64, add).collect()
}

/// `density · ∫ x² dx` from `begin` to `end`.
fn integral(begin: f32, end: f32, density: f32) -> f32 {
    density * ((end * end * end - begin * begin * begin) / 3.0)
}

/// `torch.div(a, b, rounding_mode="floor")` for a positive divisor: Python's `//`.
fn floor_divide(a: f32, b: f32) -> f32 {
    let rest = a % b;
    let mut quotient = (a - rest) / b;
    if rest < 0.0 {
        quotient -= 1.0;
    }
    let floor = quotient.floor();

    if quotient - floor > 0.5 {
        floor + 1.0
    } else {
        floor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floor_division_is_that_of_python() {
        assert_eq!(floor_divide(7.0, 2.0), 3.0);
        assert_eq!(floor_divide(-7.0, 2.0), -4.0);
        assert_eq!(floor_divide(1.0, 0.1), 9.0); // 0.1f32 is a little more than a tenth
    }

    #[test]
    fn the_largest_value_is_in_the_last_bin() {
        let bins = count(&[0.0, 1.0, 1.0], 0.0, 1.0);
        assert_eq!((bins[0], bins[BINS - 1]), (1.0, 2.0));
    }

    #[test]
    fn stretching_keeps_the_total_count() {
        let mut observer =
            HistogramObserver::new(QuantizedDtype::Quint8, QScheme::PerTensorAffine).unwrap();
        for batch in [[-1.0, 0.5, 1.0], [-3.0, 0.0, 0.25], [0.0, 9.0, 9.0]] {
            observer
                .observe(TensorRef::new(&batch, &[3]).unwrap())
                .unwrap();
        }

        assert_eq!(observer.histogram.iter().sum::<f32>(), 9.0);
        assert_eq!(
            observer.to_string(),
            "HistogramObserver(min_val=-3.0, max_val=9.0)"
        );
    }

    #[test]
    fn a_single_repeated_value_has_a_range() {
        let mut observer =
            HistogramObserver::new(QuantizedDtype::Quint8, QScheme::PerTensorAffine).unwrap();
        for _ in 0..2 {
            observer
                .observe(TensorRef::new(&[2.5], &[1]).unwrap())
                .unwrap();
        }

        let QParams::PerTensor { scale, zero_point } = observer.qparams().unwrap() else {
            unreachable!()
        };
        assert_eq!((scale as f32, zero_point), (2.5 / 255.0, 0));
    }
}
