//! Divergence, agreement and likelihood of a rule, summed up over a text.

use super::{ComparedRule, RuleResult};
use rayon::prelude::*;
use std::time::Duration;

/// Turns rows of `width` logits into logarithms of probabilities.
pub(super) fn log_softmax(logits: &mut [f32], width: usize) {
    logits.par_chunks_mut(width.max(1)).for_each(|row| {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|x| f64::from((x - largest).exp())).sum();
        let log_sum = largest + sum.ln() as f32;
        row.iter_mut().for_each(|x| *x -= log_sum);
    });
}

/// The sums of one rule.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    positions: u64,
    nll: f64,
    kl: f64,
    kl_squared: f64,
    /// The largest divergence and its position in the text.
    worst: (f64, usize),
    agreeing: u64,
    pub(super) outliers: u64,
    pub(super) activations: u64,
    pub(super) duration: Duration,
}

/// One position.
struct Position {
    nll: f64,
    kl: f64,
    agrees: bool,
}

impl Position {
    /// Compares logarithms of probabilities with those of the baseline.
    fn of(baseline: &[f32], logs: &[f32], id: u32) -> Self {
        let terms = baseline.iter().zip(logs);
        let kl = terms
            .map(|(p, q)| f64::from(p.exp() * (p - q)))
            .sum::<f64>();
        Self {
            nll: -f64::from(logs.get(id as usize).copied().unwrap_or(f32::NAN)),
            // Rounding may make the divergence of equal distributions slightly negative.
            kl: kl.max(0.0),
            agrees: largest(baseline) == largest(logs),
        }
    }
}

/// The index of the largest value; the first, if there are several.
fn largest(values: &[f32]) -> usize {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = i;
        }
    }
    best
}

impl Tally {
    /// Adds positions from `first` on. `ids` are the tokens that follow them; `baseline` and `logs` are
    /// logarithms of probabilities `[ids.len(), vocabulary]`. Returns false if they are not finite.
    pub(super) fn add(
        &mut self,
        baseline: &[f32],
        logs: &[f32],
        ids: &[u32],
        first: usize,
    ) -> bool {
        let width = (logs.len() / ids.len().max(1)).max(1);
        let positions: Vec<Position> = baseline
            .par_chunks(width)
            .zip(logs.par_chunks(width))
            .zip(ids)
            .map(|((baseline, logs), id)| Position::of(baseline, logs, *id))
            .collect();

        for (i, position) in positions.iter().enumerate() {
            self.positions += 1;
            self.nll += position.nll;
            self.kl += position.kl;
            self.kl_squared += position.kl * position.kl;
            self.agreeing += u64::from(position.agrees);
            if position.kl > self.worst.0 {
                self.worst = (position.kl, first + i);
            }
        }
        self.nll.is_finite() && self.kl.is_finite()
    }

    pub(super) fn result(&self, rule: ComparedRule, bytes: u64) -> RuleResult {
        let n = self.positions.max(1) as f64;
        let kl = self.kl / n;
        let variance = (self.kl_squared / n - kl * kl).max(0.0);
        RuleResult {
            rule,
            bytes,
            perplexity: (self.nll / n).exp(),
            kl,
            kl_standard_error: (variance / n).sqrt(),
            worst_kl: self.worst.0,
            worst_position: self.worst.1,
            agreement: self.agreeing as f64 / n,
            outlier_share: match rule {
                ComparedRule::Float | ComparedRule::FloatActivations | ComparedRule::Cache(_) => {
                    1.0
                }
                _ => self.outliers as f64 / self.activations.max(1) as f64,
            },
            duration: self.duration,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logs(rows: &[[f32; 3]]) -> Vec<f32> {
        let mut logs: Vec<f32> = rows.iter().flatten().map(|p| p.ln() + 2.5).collect();
        log_softmax(&mut logs, 3);
        logs
    }

    #[test]
    fn divergence_agreement_and_perplexity_are_those_of_the_distributions() {
        let baseline = logs(&[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]);
        let other = logs(&[[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]]);
        let mut tally = Tally::default();
        assert!(tally.add(&baseline, &other, &[0, 1], 7));

        let found = tally.result(ComparedRule::Float, 5);
        let kl = 0.25 * 2f64.ln(); // 0.5 ln 2 - 0.25 ln 2
        assert!((found.kl - kl / 2.0).abs() < 1e-6, "{found:?}");
        assert!((found.kl_standard_error - kl / 2.0 / 2f64.sqrt()).abs() < 1e-6);
        assert!((found.worst_kl - kl).abs() < 1e-6 && found.worst_position == 7);
        assert_eq!(found.agreement, 0.5);
        assert!((found.perplexity - 5f64.sqrt()).abs() < 1e-5); // 1 / sqrt(0.25 · 0.8)
    }

    #[test]
    fn a_rule_does_not_diverge_from_itself_and_nan_is_noticed() {
        let mut tally = Tally::default();
        let baseline = logs(&[[0.5, 0.25, 0.25]]);
        assert!(tally.add(&baseline, &baseline, &[2], 0));
        let found = tally.result(ComparedRule::Float, 0);
        assert_eq!((found.kl, found.agreement), (0.0, 1.0));
        assert!(!tally.add(&baseline, &[f32::NAN; 3], &[2], 0));
    }
}
