//! From a prompt to text, token by token, with drafts, or several prompts at once.

mod batch;
mod config;
mod config_file;
mod draft;
mod filters;
#[cfg(test)]
mod golden;
mod processors;
mod sampler;
mod sequence;
mod settings;
mod stop;
mod text_stream;

pub use config::GenerationConfig;

pub(crate) use batch::generate_batch;
pub(crate) use sequence::Output;

use crate::error::{LlmError, Result};
use llm_int8_nn::models::{Decoder, KvCache, LogitPositions, Logits, SequenceInput};
use sequence::Sequence;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Why generating ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model said so with one of its end tokens.
    EndOfText,
    /// A stop string appeared.
    StopString,
    /// The requested number of tokens was generated.
    Length,
    /// `max_time` is over.
    Time,
    /// The caller had enough.
    Interrupted,
}

/// How long it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timing {
    /// Tokens of the prompt that were computed.
    pub prompt_tokens: usize,
    /// Tokens of the prompt whose keys and values were there from before.
    pub reused_tokens: usize,
    /// Time until the first new token.
    pub prefill: Duration,
    /// New tokens after the first.
    pub decoded_tokens: usize,
    /// Time for those.
    pub decode: Duration,
    /// Tokens drafted; 0 unless [`GenerationConfig::speculate`] is set.
    pub drafted_tokens: usize,
    /// Drafted tokens that the model would have chosen too.
    pub accepted_tokens: usize,
}

impl Timing {
    /// Prompt tokens a second.
    pub fn prefill_rate(&self) -> f64 {
        self.prompt_tokens as f64 / self.prefill.as_secs_f64().max(1e-9)
    }

    /// New tokens a second, the first not counted; none where there was only one.
    pub fn decode_rate(&self) -> Option<f64> {
        (self.decoded_tokens > 0).then(|| self.decoded_tokens as f64 / self.decode.as_secs_f64().max(1e-9))
    }

    /// The share of drafted tokens that were accepted; none where none were drafted.
    pub fn acceptance_rate(&self) -> Option<f64> {
        (self.drafted_tokens > 0).then(|| self.accepted_tokens as f64 / self.drafted_tokens as f64)
    }
}

/// What was generated.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The new text; empty if generation was started from ids.
    pub text: String,
    /// The new ids, an end token included.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// How long it took.
    pub timing: Timing,
    /// Bytes of keys and values at the end.
    pub cache_bytes: u64,
}

/// Keys and values, and the ids they are of: what one call of [`generate`] leaves to the next.
#[derive(Debug)]
pub(crate) struct Context {
    cache: KvCache,
    ids: Vec<u32>,
}

impl Context {
    /// Nothing yet.
    pub(crate) fn new(decoder: &Decoder) -> Self {
        Self { cache: decoder.new_cache(), ids: Vec::new() }
    }

    /// Keeps what is a beginning of `prompt`, at least one id shorter: the last one is what logits are for.
    fn reuse(&mut self, prompt: &[u32]) -> usize {
        let same = self.ids.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let kept = same.min(prompt.len().saturating_sub(1));
        self.forget(kept);
        kept
    }

    /// Forgets all ids from `kept` on.
    fn forget(&mut self, kept: usize) {
        self.cache.truncate(kept);
        self.ids.truncate(kept);
    }

    fn feed<'a>(
        &mut self,
        decoder: &'a Decoder,
        input: &[u32],
        logits: LogitPositions,
    ) -> Result<Logits<'a>> {
        match decoder.logits_of(&mut [SequenceInput { ids: input, cache: &mut self.cache, logits }]) {
            Ok(logits) => {
                self.ids.extend_from_slice(input);
                Ok(logits)
            }
            Err(error) => {
                // Some layers may have added the input to the cache and others not.
                *self = Self::new(decoder);
                Err(error.into())
            }
        }
    }
}

/// Generates after `prompt`; `on_piece` gets each new id and the text it completes, and may end it.
pub(crate) fn generate(
    decoder: &Decoder,
    output: Output<'_>,
    context: &mut Context,
    prompt: &[u32],
    config: &GenerationConfig,
    on_piece: &mut dyn FnMut(u32, &str) -> ControlFlow<()>,
) -> Result<Generated> {
    config.check()?;
    config.check_vocabulary(decoder.spec().vocab_size())?;
    if config.speculate > 0 && !decoder.is_batch_invariant() {
        return Err(LlmError::Setting {
            name: "speculate",
            value: config.speculate.to_string(),
            expected: "drafts are exact only where a token does not depend on its batch: look for outliers per row, \
                       on the CPU, and not with rotations that change with the length of the text",
        });
    }
    let (prompt, most) = fit(prompt, config, decoder.spec().positions)?;
    let mut sequence = Sequence::new(config, output, prompt, most)?;
    let reused = context.reuse(prompt);
    let fed = prompt.len() - reused;
    let mut timing = Timing { prompt_tokens: fed, reused_tokens: reused, ..Timing::default() };
    let mut input = prompt[reused..].to_vec();
    let mut started = Instant::now();
    while sequence.goes_on() {
        let is_first = sequence.ids().is_empty();
        let drafts = if is_first { Vec::new() } else { sequence.drafts() };
        input.extend_from_slice(&drafts);
        let positions = if is_first { LogitPositions::Last } else { LogitPositions::All };
        let mut logits = context.feed(decoder, &input, positions)?;
        timing.drafted_tokens += drafts.len();
        let rejected = context.ids.len() - drafts.len();
        for i in 0..logits.rows() {
            let id = sequence.next(&mut logits, i, on_piece)?;
            input = vec![id];
            if !sequence.goes_on() || drafts.get(i) != Some(&id) {
                // What follows was computed for a token that did not come.
                context.forget(rejected + i);
                break;
            }
            timing.accepted_tokens += 1;
        }
        // Only a token that is known tells that a device is done with the prompt.
        if is_first {
            timing.prefill = started.elapsed();
            started = Instant::now();
        }
    }
    timing.decoded_tokens = sequence.ids().len().saturating_sub(1);
    timing.decode = started.elapsed();
    sequence.finish(timing, context.cache.bytes(), on_piece)
}

/// The part of the prompt that leaves room for the new tokens, and how many there may be.
fn fit<'a>(prompt: &'a [u32], config: &GenerationConfig, positions: usize) -> Result<(&'a [u32], usize)> {
    if prompt.is_empty() {
        return Err(LlmError::EmptyPrompt);
    }
    let new = config.new_tokens(prompt.len(), positions)?;
    if prompt.len().saturating_add(new) <= positions {
        return Ok((prompt, new));
    }
    if config.truncate && new < positions {
        return Ok((&prompt[prompt.len() - prompt.len().min(positions - new)..], new));
    }
    Err(LlmError::ContextExceeded { prompt: prompt.len(), new, available: positions })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_cut_at_its_beginning_only_when_that_is_asked_for() {
        let config = |max_new_tokens, truncate| GenerationConfig {
            max_new_tokens: Some(max_new_tokens),
            truncate,
            ..GenerationConfig::default()
        };
        let prompt = [1, 2, 3, 4, 5, 6];
        assert_eq!(fit(&prompt, &config(2, false), 8).unwrap(), (&prompt[..], 2));
        assert_eq!(fit(&prompt, &config(4, true), 8).unwrap(), (&prompt[2..], 4));
        let error = fit(&prompt, &config(4, false), 8).unwrap_err().to_string();
        assert!(error.contains("6 tokens and 4 new ones") && error.contains("`truncate`"), "{error}");
        assert!(fit(&prompt, &config(8, true), 8).is_err(), "no room for any prompt");
        assert!(matches!(fit(&[], &config(1, true), 8), Err(LlmError::EmptyPrompt)));
    }
}
