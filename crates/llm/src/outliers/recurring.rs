//! Features of the residual stream that are outliers in layer after layer.

use super::count::Counter;

/// A feature of the residual stream that is an outlier in two inputs or more.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RecurringFeature {
    /// Its column.
    pub feature: usize,
    /// Inputs in which it is an outlier in some row.
    pub inputs: usize,
    /// Share of all rows of all inputs that read the stream in which it is an outlier, 0 to 1.
    pub row_share: f64,
    /// Its largest magnitude.
    pub largest: f32,
}

/// Which features of the residual stream are outliers in several layers.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RecurringFeatures {
    /// Inputs of 8-bit layers that read the stream.
    pub inputs: usize,
    /// The features, those in the most rows first.
    pub features: Vec<RecurringFeature>,
}

impl RecurringFeatures {
    /// Whether a feature is one of those that the LLM.int8() paper calls emergent (Dettmers et al.
    /// 2022, section 4): an outlier in at least a quarter of the layers, and in at least 6 % of
    /// the rows. The inputs stand for the paper's layers.
    pub fn is_emergent(&self, feature: &RecurringFeature) -> bool {
        4 * feature.inputs >= self.inputs && feature.row_share >= 0.06
    }

    /// The features for which [`is_emergent`](Self::is_emergent) holds.
    pub fn emergent(&self) -> impl Iterator<Item = &RecurringFeature> {
        self.features
            .iter()
            .filter(|feature| self.is_emergent(feature))
    }

    /// The features of these inputs, which read the stream and are equally wide.
    pub(super) fn of(inputs: &[&Counter]) -> Self {
        let width = inputs.first().map_or(0, |input| input.maxima.len());
        let rows: usize = inputs.iter().map(|input| input.rows).sum();
        let found = (0..width).map(|feature| {
            let counts = || inputs.iter().map(|input| input.outlier_rows[feature]);
            let outliers: u64 = counts().map(u64::from).sum();
            RecurringFeature {
                feature,
                inputs: counts().filter(|count| *count > 0).count(),
                row_share: outliers as f64 / rows.max(1) as f64,
                largest: (inputs.iter())
                    .map(|input| input.maxima[feature])
                    .fold(0.0, f32::max),
            }
        });

        let mut features: Vec<_> = found.filter(|feature| feature.inputs >= 2).collect();
        features.sort_by(|a, b| {
            (b.row_share.total_cmp(&a.row_share))
                .then(b.inputs.cmp(&a.inputs))
                .then(a.feature.cmp(&b.feature))
        });
        Self {
            inputs: inputs.len(),
            features,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Ladders;
    use super::*;
    use llm_int8_nn::Isa;
    use llm_int8_nn::linear::OutlierRule;

    #[test]
    fn a_feature_recurs_if_two_inputs_have_it() {
        let rule = OutlierRule::batch(6.0);
        let rows: [[f32; 6]; 3] = [
            // Two rows of three features each.
            [9.0, 0.0, 7.0, -8.0, 6.0, 0.0],
            [6.5, 0.0, 0.0, 6.0, 0.0, 0.0],
            [0.0, 0.0, 40.0, 0.0, 0.0, 0.0],
        ];
        let counters: Vec<Counter> = rows
            .iter()
            .map(|values| {
                let mut counter = Counter::new(Isa::detect(), &Ladders::new(rule), rule, 3);
                counter.window(values, 0);
                counter
            })
            .collect();

        let all = RecurringFeatures::of(&counters.iter().collect::<Vec<_>>());
        assert_eq!(all.inputs, 3);
        let expected = [(0, 2, 4.0 / 6.0, 9.0), (2, 2, 2.0 / 6.0, 40.0)];
        let found = (all.features.iter()).map(|f| (f.feature, f.inputs, f.row_share, f.largest));
        assert!(found.eq(expected), "{all:?}");
        assert!(all.emergent().count() == 2);

        let rare = RecurringFeature {
            row_share: 0.05,
            ..all.features[0]
        };
        let local = RecurringFeature {
            inputs: 0,
            ..all.features[0]
        };
        assert!(!all.is_emergent(&rare) && !all.is_emergent(&local));
        assert_eq!(RecurringFeatures::of(&[]), RecurringFeatures::default());
    }
}
