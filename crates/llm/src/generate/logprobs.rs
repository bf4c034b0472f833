//! Log-probabilities of tokens under the model's own logits.

use crate::error::{LlmError, Result};
use llm_int8_decoder::{Logits, largest};

/// The log-probability of a token, before penalties, masks and temperature.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprob {
    /// The token.
    pub id: u32,
    /// Its log-probability (natural logarithm).
    pub logprob: f32,
    /// The most likely tokens with theirs, the most likely first; as many as were requested.
    pub top: Vec<(u32, f32)>,
}

/// A copy of one row of logits.
pub(super) struct Distribution {
    logits: Vec<f32>,
    /// The logarithm of the sum of their exponentials.
    log_total: f64,
}

impl Distribution {
    /// The distribution of a row. `repairs`: NaN counts as 0 and infinities as the largest finite
    /// numbers, as with `remove_invalid_values`.
    ///
    /// # Errors
    /// [`LlmError::BadLogits`] if a logit is not finite; those of [`Logits::row`].
    pub(super) fn of(logits: &Logits<'_>, row: usize, repairs: bool) -> Result<Self> {
        let mut logits = logits.row(row)?;
        if repairs {
            logits
                .iter_mut()
                .for_each(|x| *x = super::processors::valid(*x));
        }
        if logits.iter().any(|x| !x.is_finite()) {
            return Err(LlmError::BadLogits);
        }

        // In f64 and in the order of the ids, so that the result is the same everywhere.
        let most = logits.iter().copied().fold(f32::MIN, f32::max);
        let above = |x: &f32| (f64::from(*x) - f64::from(most)).exp();
        let log_total = f64::from(most) + logits.iter().map(above).sum::<f64>().ln();

        Ok(Self { logits, log_total })
    }

    /// The log-probability of `id`, with those of the `top` most likely tokens.
    pub(super) fn logprob(&self, id: u32, top: usize) -> Logprob {
        let of = |logit: f32| (f64::from(logit) - self.log_total) as f32;
        let most_likely = match top {
            0 => Vec::new(),
            top => largest(&self.logits, top),
        };
        let logit = self.logits.get(id as usize).copied();

        Logprob {
            id,
            logprob: of(logit.unwrap_or(f32::MIN)),
            top: most_likely
                .into_iter()
                .map(|(id, logit)| (id, of(logit)))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_add_up_to_one_at_any_scale() {
        for shift in [-3e4, 0.0, 3e4] {
            let row: Vec<f32> = (0..50)
                .map(|i| (i * 37 % 50) as f32 / 8.0 + shift)
                .collect();
            let logits = Logits::from_vec(row.clone(), 50);
            let all = Distribution::of(&logits, 0, false).unwrap();
            let total: f64 = (0..50)
                .map(|id| f64::from(all.logprob(id, 0).logprob).exp())
                .sum();
            assert!((total - 1.0).abs() < 1e-3, "{shift}: {total}");

            let found = all.logprob(7, 3);
            let most = largest(&row, 3);
            assert_eq!(found.top.len(), 3);
            assert!(found.top.iter().zip(&most).all(|(a, b)| a.0 == b.0));
            assert!(found.top[0].1 > found.top[1].1 && found.top[0].1 < 0.0);
        }
    }

    #[test]
    fn log_softmax_is_that_of_a_hand_computed_row() {
        let logits = Logits::from_vec([0.5f32, 0.25, 0.25].map(f32::ln).to_vec(), 3);
        let all = Distribution::of(&logits, 0, false).unwrap();
        assert!((all.logprob(0, 0).logprob + std::f32::consts::LN_2).abs() < 1e-6);
        assert!((all.logprob(2, 0).logprob + 2.0 * std::f32::consts::LN_2).abs() < 1e-6);
    }

    #[test]
    fn bad_logits_are_an_error_or_repaired() {
        let logits = Logits::from_vec(vec![f32::NAN, 1.0], 2);
        assert!(matches!(
            Distribution::of(&logits, 0, false),
            Err(LlmError::BadLogits)
        ));
        let repaired = Distribution::of(&logits, 0, true).unwrap();
        assert!(repaired.logprob(0, 2).logprob < repaired.logprob(1, 0).logprob);
    }
}
