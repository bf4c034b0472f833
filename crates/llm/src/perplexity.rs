//! Perplexity: how well a model foresees a text (`exp` of the mean negative log-likelihood of its
//! tokens).

use crate::error::{LlmError, Result};
use crate::model::AutoModelForCausalLM;
use llm_int8_decoder::{LogitPositions, SequenceInput};
use std::ops::ControlFlow;

/// How a text is cut into windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerplexityOptions {
    /// Tokens the model sees at once.
    pub window: usize,
    /// Tokens from the start of a window to that of the next, at most `window`. Where windows
    /// overlap, only tokens that no window before held are scored.
    pub stride: usize,
}

impl Default for PerplexityOptions {
    /// Windows of 512 tokens without overlap.
    fn default() -> Self {
        Self {
            window: 512,
            stride: 512,
        }
    }
}

/// What a model made of a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Perplexity {
    /// Mean of `-ln p(token | tokens before it in its window)`, in nats.
    pub mean_nll: f64,
    /// `exp(mean_nll)`.
    pub perplexity: f64,
    /// Tokens scored.
    pub tokens: usize,
}

/// A window, and the first of its tokens that is scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window {
    start: usize,
    end: usize,
    first_scored: usize,
}

/// The windows over a text of `tokens` tokens. The first token of a window is never scored: nothing
/// predicts it.
fn windows(tokens: usize, options: PerplexityOptions) -> Vec<Window> {
    let (mut found, mut start, mut seen) = (Vec::new(), 0, 0);
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

        (seen, start) = (end, start + options.stride);
    }

    found
}

impl AutoModelForCausalLM {
    /// The perplexity of token ids. `observe` gets tokens scored and to score after each window,
    /// and may end it.
    ///
    /// ```
    /// use llm_int8::{AutoModelForCausalLM, LoadConfig, PerplexityOptions};
    /// use std::ops::ControlFlow;
    /// let model = AutoModelForCausalLM::from_pretrained("tiny-gpt2", &LoadConfig::default())?;
    /// let ids = model.tokenizer()?.encode("And it came to pass, that the king of the land said unto him")?;
    /// let found = model.perplexity(&ids, PerplexityOptions::default(), &mut |_, _| ControlFlow::Continue(()))?;
    /// assert_eq!(found.tokens, ids.len() - 1);
    /// assert!(found.perplexity < 200.0, "{found:?}"); // of a vocabulary of 4096
    /// # Ok::<(), llm_int8::LlmError>(())
    /// ```
    ///
    /// # Errors
    /// [`LlmError::Setting`] for windows the model has no positions for or strides that leave gaps,
    /// and for fewer than two tokens; [`LlmError::Interrupted`]; [`LlmError::BadLogits`].
    pub fn perplexity(
        &self,
        ids: &[u32],
        options: PerplexityOptions,
        observe: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Perplexity> {
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
                "it must be 2 or more, and at most the model's positions",
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
        let total: usize = windows
            .iter()
            .map(|window| window.end - window.first_scored)
            .sum();
        if total == 0 {
            return refuse(
                "the number of tokens",
                ids.len(),
                "two or more are needed to score one",
            );
        }

        let (mut nll, mut done) = (0f64, 0);
        for window in windows {
            nll += self.window_nll(ids, window)?;
            done += window.end - window.first_scored;
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

    fn window_nll(&self, ids: &[u32], window: Window) -> Result<f64> {
        // The last token is foreseen and foresees nothing, but bitsandbytes' outlier columns are
        // those of the whole window.
        let decoder = self.decoder();
        let mut cache = decoder.new_cache();
        let (ids_of_window, logits) = (&ids[window.start..window.end], LogitPositions::All);
        let input = SequenceInput {
            ids: ids_of_window,
            cache: &mut cache,
            logits,
        };
        let logits = decoder.forward(&mut [input])?;
        let rows = logits.chunks(decoder.spec().vocab_size());
        let mut sum = 0f64;
        let scored = &ids[window.first_scored..window.end];
        for (row, id) in rows
            .skip(window.first_scored - 1 - window.start)
            .zip(scored)
        {
            sum += nll(row, *id).ok_or(LlmError::BadLogits)?;
        }

        Ok(sum)
    }
}

/// `ln Σ exp(logits) - logits[id]`; none for logits that are not finite.
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
    fn likelihoods_are_those_of_softmax() {
        let logits = [1f32.ln(), 2f32.ln(), 5f32.ln()];
        assert!((nll(&logits, 1).unwrap() + (2f64 / 8.0).ln()).abs() < 1e-6);
        assert!(nll(&[1e30, -1e30], 0).unwrap().abs() < 1e-9);
        assert!(nll(&[f32::NAN, 0.0], 0).is_none() && nll(&[0.0], 5).is_none());
    }
}
