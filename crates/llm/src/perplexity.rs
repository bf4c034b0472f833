//! Perplexity: how well a model predicts a text, `exp` of the mean negative log-likelihood of its
//! tokens.

use crate::error::{LlmError, Result};
use crate::model::AutoModelForCausalLM;
use llm_int8_decoder::{LogitPositions, SequenceInput};
use std::ops::{ControlFlow, Range};

/// How a text is cut into windows, each of which is one forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerplexityOptions {
    /// Tokens per window.
    pub window: usize,
    /// Tokens from the start of one window to the start of the next; at most `window`. Where
    /// windows overlap, a token is scored only in the first window that holds it.
    pub stride: usize,
}

impl Default for PerplexityOptions {
    /// Windows of 512 tokens that do not overlap.
    fn default() -> Self {
        Self {
            window: 512,
            stride: 512,
        }
    }
}

/// How well a model predicted a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Perplexity {
    /// Mean of `-ln p(token | tokens before it in its window)`, in nats.
    pub mean_nll: f64,
    /// `exp(mean_nll)`.
    pub perplexity: f64,
    /// Number of tokens scored.
    pub tokens: usize,
}

/// A window, and the first of its tokens that is scored; all are positions in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) start: usize,
    pub(crate) end: usize,
    first_scored: usize,
}

impl Window {
    /// The positions of the tokens that are scored.
    pub(crate) fn scored(&self) -> Range<usize> {
        self.first_scored..self.end
    }

    /// The row of the window's logits that predicts the first of them.
    pub(crate) fn first_row(&self) -> usize {
        self.first_scored - 1 - self.start
    }
}

/// The windows over a text of `tokens` tokens. The first token of a window is never scored, because
/// nothing in the window predicts it.
fn windows(tokens: usize, options: PerplexityOptions) -> Vec<Window> {
    let mut found = Vec::new();
    let mut start = 0;
    let mut seen = 0;

    while seen < tokens {
        let end = (start + options.window).min(tokens);
        let first_scored = seen.max(start + 1);
        if first_scored < end {
            found.push(Window {
                start,
                end,
                first_scored,
            });
        }

        seen = end;
        start += options.stride;
    }

    found
}

impl AutoModelForCausalLM {
    /// The perplexity of token ids. After each window `observe` gets the number of tokens scored so
    /// far and in total, and may stop the evaluation.
    ///
    /// ```
    /// use llm_int8::{AutoModelForCausalLM, LoadConfig, PerplexityOptions};
    /// use std::ops::ControlFlow;
    /// let model = AutoModelForCausalLM::from_pretrained("tiny-gpt2", &LoadConfig::default())?;
    /// let ids = model.tokenizer()?.encode("And it came to pass, that the king of the land said unto him")?;
    /// let found = model.perplexity(&ids, PerplexityOptions::default(), &mut |_, _| ControlFlow::Continue(()))?;
    /// assert_eq!(found.tokens, ids.len() - 1);
    /// assert!(found.perplexity < 200.0, "{found:?}"); // random guessing would be 4096
    /// # Ok::<(), llm_int8::LlmError>(())
    /// ```
    ///
    /// # Errors
    /// [`LlmError::Setting`] for a window longer than the model's positions, for a stride that is 0
    /// or longer than the window, and for fewer than two tokens; [`LlmError::Interrupted`];
    /// [`LlmError::BadLogits`].
    pub fn perplexity(
        &self,
        ids: &[u32],
        options: PerplexityOptions,
        observe: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Perplexity> {
        let windows = self.checked_windows(ids, options)?;
        let total: usize = windows.iter().map(|window| window.scored().len()).sum();

        let mut nll = 0f64;
        let mut done = 0;
        for window in windows {
            nll += self.window_nll(ids, window)?;
            done += window.scored().len();
            if observe(done, total).is_break() {
                return Err(LlmError::Interrupted);
            }
        }

        let mean_nll = nll / total as f64;
        Ok(Perplexity {
            mean_nll,
            perplexity: mean_nll.exp(),
            tokens: total,
        })
    }

    /// The windows over a text, of which at least one has a token to score.
    pub(crate) fn checked_windows(
        &self,
        ids: &[u32],
        options: PerplexityOptions,
    ) -> Result<Vec<Window>> {
        let refuse = |name, value: usize, expected| {
            Err(LlmError::Setting {
                name,
                value: value.to_string(),
                expected,
            })
        };
        if options.window < 2 || options.window > self.decoder().spec().positions {
            return refuse(
                "window",
                options.window,
                "it must be at least 2 and at most the number of the model's positions",
            );
        }

        if options.stride == 0 || options.stride > options.window {
            return refuse(
                "stride",
                options.stride,
                "it must be between 1 and the window",
            );
        }

        let windows = windows(ids.len(), options);
        if windows.is_empty() {
            return refuse(
                "the number of tokens",
                ids.len(),
                "two or more are needed to score one",
            );
        }

        Ok(windows)
    }

    fn window_nll(&self, ids: &[u32], window: Window) -> Result<f64> {
        // The last token predicts nothing that is scored, but it is part of the pass: bitsandbytes
        // finds outlier columns over the whole window.
        let decoder = self.decoder();
        let mut cache = decoder.new_cache();
        let logits = decoder.forward(&mut [SequenceInput {
            ids: &ids[window.start..window.end],
            cache: &mut cache,
            logits: LogitPositions::All,
        }])?;

        // The logits of a position predict the token after it.
        let rows = logits
            .chunks(decoder.spec().vocab_size())
            .skip(window.first_row());
        let scored = &ids[window.scored()];

        let mut sum = 0f64;
        for (row, id) in rows.zip(scored) {
            sum += nll(row, *id).ok_or(LlmError::BadLogits)?;
        }

        Ok(sum)
    }
}

/// The negative log-likelihood `ln Σ exp(logits) - logits[id]`; `None` if the logits are not
/// finite.
fn nll(logits: &[f32], id: u32) -> Option<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .map(|logit| f64::from((logit - largest).exp()))
        .sum();
    let nll = sum.ln() + f64::from(largest) - f64::from(*logits.get(id as usize)?);
    nll.is_finite().then_some(nll)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(tokens: usize, window: usize, stride: usize) -> Vec<(usize, usize, usize)> {
        let windows = windows(tokens, PerplexityOptions { window, stride });
        windows
            .iter()
            .map(|w| (w.start, w.first_scored, w.end))
            .collect()
    }

    #[test]
    fn windows_score_every_token_once() {
        assert_eq!(cut(8, 4, 4), [(0, 1, 4), (4, 5, 8)]);
        assert_eq!(
            cut(9, 4, 4),
            [(0, 1, 4), (4, 5, 8)],
            "a window of one token scores nothing"
        );

        assert_eq!(cut(8, 4, 2), [(0, 1, 4), (2, 4, 6), (4, 6, 8)]);
        assert_eq!(cut(7, 4, 2), [(0, 1, 4), (2, 4, 6), (4, 6, 7)]);
        assert_eq!(cut(3, 4, 2), [(0, 1, 3)]);
        assert!(cut(1, 4, 4).is_empty());
    }

    #[test]
    fn nll_is_that_of_softmax() {
        let logits = [1f32.ln(), 2f32.ln(), 5f32.ln()];
        assert!((nll(&logits, 1).unwrap() + (2f64 / 8.0).ln()).abs() < 1e-6);
        assert!(nll(&[1e30, -1e30], 0).unwrap().abs() < 1e-9);
        assert!(nll(&[f32::NAN, 0.0], 0).is_none() && nll(&[0.0], 5).is_none());
    }
}
