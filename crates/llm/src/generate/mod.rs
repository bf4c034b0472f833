//! From a prompt to text, token by token.

mod config;
mod sampler;
mod stop;

pub use config::GenerationConfig;

use crate::error::{LlmError, Result};
use crate::tokenizer::{TextStream, Tokenizer};
use candle_core::{Device, Tensor};
use llm_int8_nn::models::{Decoder, KvCache, LogitPositions};
use sampler::Sampler;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};
use stop::StopStrings;

/// Why generating ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model said so with one of its end tokens.
    EndOfText,
    /// A stop string appeared.
    StopString,
    /// All tokens asked for are there.
    Length,
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
}

/// What was generated.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The new text; empty without a tokenizer.
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
#[derive(Debug, Clone)]
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
    fn reuse(&mut self, prompt: &[u32]) -> Result<usize> {
        let same = self.ids.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let kept = same.min(prompt.len().saturating_sub(1));
        self.cache.truncate(kept)?;
        self.ids.truncate(kept);
        Ok(kept)
    }

    fn feed(&mut self, decoder: &Decoder, input: &[u32]) -> Result<Vec<f32>> {
        let tensor = Tensor::new(input, &Device::Cpu)?.unsqueeze(0)?;
        match decoder.forward(&tensor, &mut self.cache, LogitPositions::Last) {
            Ok(logits) => {
                self.ids.extend_from_slice(input);
                Ok(logits.flatten_all()?.to_vec1()?)
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
    tokenizer: Option<&Tokenizer>,
    context: &mut Context,
    prompt: &[u32],
    config: &GenerationConfig,
    on_piece: &mut dyn FnMut(u32, &str) -> ControlFlow<()>,
) -> Result<Generated> {
    config.check()?;
    let prompt = fit(prompt, config, decoder.spec().positions)?;
    let mut sampler = Sampler::new(config, prompt);
    let mut output = Output {
        stream: tokenizer.map(TextStream::new),
        stops: StopStrings::new(&config.stop),
        text: String::new(),
    };
    let mut ids = Vec::new();
    let reused = context.reuse(prompt)?;
    let fed = prompt.len() - reused;
    let mut timing = Timing { prompt_tokens: fed, reused_tokens: reused, ..Timing::default() };
    let mut input = prompt[reused..].to_vec();
    let mut finish_reason = FinishReason::Length;
    let mut started = Instant::now();
    while ids.len() < config.max_new_tokens {
        let id = sampler.next(context.feed(decoder, &input)?)?;
        if ids.is_empty() {
            timing.prefill = started.elapsed();
            started = Instant::now();
        }
        ids.push(id);
        if config.eos_token_ids.contains(&id) {
            finish_reason = FinishReason::EndOfText;
            break;
        }
        let (piece, stopped) = output.push(id)?;
        let flow = on_piece(id, &piece);
        if stopped {
            finish_reason = FinishReason::StopString;
            break;
        }
        if flow.is_break() {
            finish_reason = FinishReason::Interrupted;
            break;
        }
        input = vec![id];
    }
    timing.decoded_tokens = ids.len().saturating_sub(1);
    timing.decode = started.elapsed();
    if finish_reason != FinishReason::StopString {
        let rest = output.finish()?;
        if let (false, Some(&last)) = (rest.is_empty(), ids.last()) {
            // Text that was held back; whether the caller wants more no longer matters.
            let _ = on_piece(last, &rest);
        }
    }
    Ok(Generated { text: output.text, ids, finish_reason, timing, cache_bytes: context.cache.bytes() })
}

/// The part of the prompt that leaves room for the new tokens.
fn fit<'a>(prompt: &'a [u32], config: &GenerationConfig, positions: usize) -> Result<&'a [u32]> {
    if prompt.is_empty() {
        return Err(LlmError::EmptyPrompt);
    }
    let new = config.max_new_tokens;
    if prompt.len().saturating_add(new) <= positions {
        return Ok(prompt);
    }
    if config.truncate && new < positions {
        return Ok(&prompt[prompt.len() - prompt.len().min(positions - new)..]);
    }
    Err(LlmError::ContextExceeded { prompt: prompt.len(), new, available: positions })
}

/// The text so far, less what may still become a stop string.
struct Output<'a> {
    stream: Option<TextStream<'a>>,
    stops: StopStrings,
    text: String,
}

impl Output<'_> {
    /// The text that can be shown after one more id, and whether a stop string was met.
    fn push(&mut self, id: u32) -> Result<(String, bool)> {
        let Some(stream) = &mut self.stream else { return Ok((String::new(), false)) };
        let (piece, stopped) = self.stops.push(&stream.push(id)?);
        self.text.push_str(&piece);
        Ok((piece, stopped))
    }

    /// What was held back.
    fn finish(&mut self) -> Result<String> {
        let Some(stream) = &mut self.stream else { return Ok(String::new()) };
        let (mut rest, stopped) = self.stops.push(&stream.finish()?);
        if !stopped {
            rest.push_str(&self.stops.finish());
        }
        self.text.push_str(&rest);
        Ok(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_cut_at_its_beginning_only_when_that_is_asked_for() {
        let config = |max_new_tokens, truncate| GenerationConfig {
            max_new_tokens,
            truncate,
            ..GenerationConfig::default()
        };
        let prompt = [1, 2, 3, 4, 5, 6];
        assert_eq!(fit(&prompt, &config(2, false), 8).unwrap(), prompt);
        assert_eq!(fit(&prompt, &config(4, true), 8).unwrap(), [3, 4, 5, 6]);
        let error = fit(&prompt, &config(4, false), 8).unwrap_err().to_string();
        assert!(error.contains("6 tokens and 4 new ones") && error.contains("--truncate"), "{error}");
        assert!(fit(&prompt, &config(8, true), 8).is_err(), "no room for any prompt");
        assert!(matches!(fit(&[], &config(1, true), 8), Err(LlmError::EmptyPrompt)));
    }
}
