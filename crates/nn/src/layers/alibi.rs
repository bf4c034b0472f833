//! ALiBi, attention with linear biases (Press et al. 2021): one slope for each head instead of
//! position embeddings.

use half::bf16;

/// The slopes of the bias `slope · key position`, which is added to attention scores. It differs
/// from the paper's `slope · distance` by a constant for all keys of a query, to which softmax is
/// invariant.
#[derive(Debug, Clone, PartialEq)]
pub struct Alibi {
    slopes: Vec<f32>,
    /// Falcon rounds the bias to bf16 and scales it like the scores, by this factor.
    rounded: Option<f32>,
}

impl Alibi {
    /// Bloom's slopes: the powers of `2^(-8 / n)`, where `n` is the largest power of two up to
    /// `heads`; the remaining heads take every other power of `2^(-4 / n)`.
    ///
    /// ```
    /// use llm_int8_nn::layers::Alibi;
    /// assert_eq!(Alibi::bloom(4).bias(0, 3), 0.75); // 2^-2 · 3
    /// assert_eq!(Alibi::bloom(5).bias(4, 1), 0.5);
    /// ```
    pub fn bloom(heads: usize) -> Self {
        let whole = 1usize << heads.max(1).ilog2();
        let base = |n: usize| 2f64.powf(-8.0 / n as f64) as f32;
        let slopes = (1..=whole).map(|i| base(whole).powi(i as i32));
        let rest = (0..heads - whole).map(|i| base(2 * whole).powi(2 * i as i32 + 1));
        Self {
            slopes: slopes.chain(rest).collect(),
            rounded: None,
        }
    }

    /// Falcon's: Bloom's slopes, with biases rounded to bf16 and multiplied by `factor` like the
    /// scores.
    pub fn falcon(heads: usize, factor: f32) -> Self {
        Self {
            rounded: Some(factor),
            ..Self::bloom(heads)
        }
    }

    /// MPT's slopes: `2^(-max · i / n)`, where `n` is the smallest power of two that is at least
    /// `heads`. Unless `heads` is a power of two, those with even `i` come first.
    pub fn mpt(heads: usize, max: f64) -> Self {
        let whole = heads.max(1).next_power_of_two();
        let all: Vec<f32> = (1..=whole)
            .map(|i| 2f32.powf(-(i as f32 * (max / whole as f64) as f32)))
            .collect();
        let slopes = if whole == heads {
            all
        } else {
            let odd = all.iter().skip(1).step_by(2);
            odd.chain(all.iter().step_by(2))
                .copied()
                .take(heads)
                .collect()
        };

        Self {
            slopes,
            rounded: None,
        }
    }

    /// One slope for each head.
    pub fn slopes(&self) -> &[f32] {
        &self.slopes
    }

    /// The factor by which Falcon scales its rounded biases; `None` for other models.
    pub fn rounded(&self) -> Option<f32> {
        self.rounded
    }

    /// The bias of a head's score for the key at `position`.
    pub fn bias(&self, head: usize, position: usize) -> f32 {
        match self.rounded {
            None => self.slopes[head] * position as f32,
            Some(factor) => {
                let bias =
                    bf16::from_f32(bf16::from_f32(self.slopes[head]).to_f32() * position as f32);
                bias.to_f32() * factor
            }
        }
    }
}
