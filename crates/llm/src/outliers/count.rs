//! Counts the outliers of one input at many thresholds.

use super::{Ladders, Largest, StepCounts};
use half::f16;
use half::slice::HalfFloatSliceExt;
use llm_int8_nn::Isa;
use llm_int8_nn::linear::{OutlierRule, row_rms, smallest_outlier};

/// The counts of one kind of threshold at every step of its ladder.
#[derive(Debug, Clone)]
struct Steps {
    thresholds: Vec<f32>,
    /// `reached[n]`: values that pass the first `n` steps and no more. A value that passes a step
    /// passes all before it.
    reached: Vec<u64>,
    /// For each feature the most steps that one of its values passed.
    columns: Vec<u8>,
    /// The same for the rows of the present window.
    window: Vec<u8>,
    /// Values in the columns that have an outlier in their window, for each step.
    pooled: Vec<u64>,
    /// The smallest outlier of each step in the present row, as bits.
    limits: Vec<u16>,
}

impl Steps {
    fn new(thresholds: &[f32], features: usize) -> Self {
        Self {
            thresholds: thresholds.to_vec(),
            reached: vec![0; thresholds.len() + 1],
            columns: vec![0; features],
            window: vec![0; features],
            pooled: vec![0; thresholds.len()],
            limits: vec![0; thresholds.len()],
        }
    }

    /// Begins a row in which thresholds are in units of `unit`.
    fn begin_row(&mut self, unit: f32) {
        for (limit, threshold) in self.limits.iter_mut().zip(&self.thresholds) {
            *limit = smallest_outlier(threshold * unit).to_bits();
        }
    }

    /// Counts a value of the row, whose magnitude has these bits. Returns the steps it passed.
    fn count(&mut self, feature: usize, magnitude: u16) -> usize {
        // As in the kernels: NaN is no outlier, so that it shows elsewhere.
        let passed = match magnitude <= f16::INFINITY.to_bits() {
            true => self.limits.partition_point(|limit| *limit <= magnitude),
            false => 0,
        };
        self.reached[passed] += 1;
        let most = &mut self.window[feature];
        *most = (*most).max(passed as u8);
        passed
    }

    fn end_window(&mut self, rows: usize) {
        for (step, pooled) in self.pooled.iter_mut().enumerate() {
            *pooled += passed(&self.window, step) * rows as u64;
        }
        for (most, window) in self.columns.iter_mut().zip(&mut self.window) {
            *most = (*most).max(std::mem::take(window));
        }
    }

    fn counts(&self) -> StepCounts {
        let steps = 0..self.thresholds.len();
        StepCounts {
            values: (steps.clone())
                .map(|step| self.reached[step + 1..].iter().sum())
                .collect(),
            columns: steps.map(|step| passed(&self.columns, step)).collect(),
            pooled_values: self.pooled.clone(),
        }
    }
}

/// How many features passed a step.
fn passed(most: &[u8], step: usize) -> u64 {
    most.iter()
        .filter(|most| usize::from(**most) > step)
        .count() as u64
}

/// The outliers of an input: counts at every step of both ladders, and what each feature does under
/// the model's own rule.
#[derive(Debug, Clone)]
pub(super) struct Counter {
    isa: Isa,
    absolute: Steps,
    rms: Steps,
    /// Which ladder and which of its steps is the model's rule; none: the rule finds no outliers.
    own: Option<(bool, usize)>,
    pub(super) rows: usize,
    /// Rows in which each feature is an outlier by the model's rule.
    pub(super) outlier_rows: Vec<u32>,
    /// The largest magnitude of each feature.
    pub(super) maxima: Vec<f32>,
    pub(super) largest: Option<Largest>,
    row16: Vec<f16>,
}

impl Counter {
    pub(super) fn new(isa: Isa, ladders: &Ladders, rule: OutlierRule, features: usize) -> Self {
        let position = |steps: &[f32], limit| steps.iter().position(|step| *step == limit);
        let own = match rule {
            _ if rule.finds_none() => None,
            OutlierRule::Absolute { threshold, .. } => {
                position(&ladders.absolute, threshold).map(|step| (false, step))
            }
            OutlierRule::RowRms { factor } => {
                position(&ladders.rms, factor).map(|step| (true, step))
            }
        };

        Self {
            isa,
            absolute: Steps::new(&ladders.absolute, features),
            rms: Steps::new(&ladders.rms, features),
            own,
            rows: 0,
            outlier_rows: vec![0; features],
            maxima: vec![0.0; features],
            largest: None,
            row16: vec![f16::ZERO; features],
        }
    }

    /// Counts the rows of a window, `values` `[rows, features]`, whose first token is at `position`
    /// of the text.
    pub(super) fn window(&mut self, values: &[f32], position: usize) {
        let features = self.maxima.len().max(1);
        let rows = values.len() / features;
        for (row, values) in values.chunks_exact(features).enumerate() {
            self.row(values, position + row);
        }
        self.absolute.end_window(rows);
        self.rms.end_window(rows);
        self.rows += rows;
    }

    fn row(&mut self, values: &[f32], position: usize) {
        let mut row16 = std::mem::take(&mut self.row16);
        row16.convert_from_f32_slice(values);
        self.absolute.begin_row(1.0);
        self.rms.begin_row(row_rms(self.isa, &row16));

        for (feature, (value, rounded)) in values.iter().zip(&row16).enumerate() {
            let magnitude = rounded.to_bits() & !(1 << 15);
            let absolute = self.absolute.count(feature, magnitude);
            let rms = self.rms.count(feature, magnitude);
            if let Some((is_rms, step)) = self.own {
                let passed = if is_rms { rms } else { absolute };
                self.outlier_rows[feature] += u32::from(passed > step);
            }

            if value.abs() > self.maxima[feature] {
                self.maxima[feature] = value.abs();
                self.note(*value, feature, position);
            }
        }
        self.row16 = row16;
    }

    fn note(&mut self, value: f32, feature: usize, position: usize) {
        let is_larger = |largest: &Largest| value.abs() > largest.value.abs();
        if self.largest.as_ref().is_none_or(is_larger) {
            self.largest = Some(Largest {
                value,
                feature,
                position,
            });
        }
    }

    pub(super) fn absolute(&self) -> StepCounts {
        self.absolute.counts()
    }

    pub(super) fn rms(&self) -> StepCounts {
        self.rms.counts()
    }

    /// Values that are outliers by the model's rule.
    pub(super) fn outlier_values(&self) -> u64 {
        self.outlier_rows.iter().map(|rows| u64::from(*rows)).sum()
    }

    /// Features that are outliers by the model's rule in some row.
    pub(super) fn outlier_columns(&self) -> usize {
        self.outlier_rows.iter().filter(|rows| **rows > 0).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ladders() -> Ladders {
        Ladders {
            absolute: vec![1.0, 6.0, 20.0],
            rms: vec![1.0, 1.5],
        }
    }

    fn counter(rule: OutlierRule) -> Counter {
        Counter::new(Isa::detect(), &ladders(), rule, 4)
    }

    /// Two windows of two rows; each row's root mean square is in the comment.
    const FIRST: [f32; 8] = [
        8.0, 0.0, 0.0, 0.0, // 4
        1.0, 1.0, -1.0, 1.0, // 1
    ];
    const SECOND: [f32; 8] = [
        0.0, -30.0, 6.0, 0.5, // 15.3
        0.0, 0.0, 0.0, 0.0, // 0
    ];

    #[test]
    fn values_and_columns_are_counted_at_every_step() {
        let mut counter = counter(OutlierRule::batch(6.0));
        counter.window(&FIRST, 0);
        counter.window(&SECOND, 2);

        let absolute = counter.absolute();
        assert_eq!(absolute.values, [7, 3, 1]);
        assert_eq!(absolute.columns, [4, 3, 1]);
        // In the first window 4, 1 and 0 columns for two rows, in the second 2, 2 and 1.
        assert_eq!(absolute.pooled_values, [12, 6, 2]);

        // 8 is twice its row's root mean square, 30 almost, the ones are exactly 1.
        let rms = counter.rms();
        assert_eq!((rms.values, rms.columns), (vec![6, 2], vec![4, 2]));

        assert_eq!(counter.outlier_rows, [1, 1, 1, 0]);
        assert_eq!(
            (counter.outlier_values(), counter.outlier_columns()),
            (3, 3)
        );
        assert_eq!(counter.maxima, [8.0, 30.0, 6.0, 1.0]);
        assert_eq!(counter.rows, 4);
        let expected = Largest {
            value: -30.0,
            feature: 1,
            position: 2,
        };
        assert_eq!(counter.largest, Some(expected));
    }

    #[test]
    fn the_rule_decides_which_features_are_outliers() {
        for (rule, rows) in [
            (OutlierRule::row_rms(1.5), [1, 1, 0, 0]),
            (OutlierRule::row_rms(0.0), [0; 4]),
            (OutlierRule::row(1.0), [2, 2, 2, 1]),
        ] {
            let mut counter = counter(rule);
            counter.window(&FIRST, 0);
            counter.window(&SECOND, 2);
            assert_eq!(counter.outlier_rows, rows, "{rule:?}");
        }
    }

    #[test]
    fn nan_is_no_outlier_and_infinity_is_one() {
        let mut counter = counter(OutlierRule::batch(6.0));
        counter.window(&[f32::NAN, f32::INFINITY, 70_000.0, 0.0], 5);
        assert_eq!(counter.absolute().values, [2, 2, 2]);
        assert_eq!(counter.outlier_rows, [0, 1, 1, 0]);
        assert_eq!(counter.largest.unwrap().feature, 1);
    }
}
