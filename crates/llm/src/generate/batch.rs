//! Several prompts at once: the weights are read once for a token of each.

use super::sequence::{Output, Sequence};
use super::{Generated, GenerationConfig, Timing, fit};
use crate::error::{LlmError, Result};
use llm_int8_nn::models::{Decoder, KvCache, LogitPositions, SequenceInput};
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Tokens of prompts computed together; a longer prompt is computed by itself.
const PREFILL_TOKENS: usize = 512;

/// A prompt that waits: its number, ids, and how many tokens it may get.
struct Waiting<'a> {
    number: usize,
    prompt: &'a [u32],
    most: usize,
}

/// A prompt at work.
struct Running<'a> {
    number: usize,
    sequence: Sequence<'a>,
    cache: KvCache,
    prompt_tokens: usize,
    prefill: Duration,
    started: Instant,
}

/// Generates after every prompt, at most `at_once` at a time: when one is done, the next takes its place.
/// `on_done` gets each result with the number of its prompt and may end it all.
pub(crate) fn generate_batch(
    decoder: &Decoder,
    output: Output<'_>,
    prompts: &[Vec<u32>],
    config: &GenerationConfig,
    at_once: usize,
    on_done: &mut dyn FnMut(usize, &Generated) -> ControlFlow<()>,
) -> Result<Vec<Generated>> {
    config.check()?;
    config.check_vocabulary(decoder.spec().vocab_size())?;
    let refuse =
        |name, value: usize, expected| Err(LlmError::Setting { name, value: value.to_string(), expected });
    if config.speculate > 0 {
        return refuse("speculate", config.speculate, "drafts are for one prompt at a time");
    }
    if at_once == 0 {
        return refuse("the number of prompts at once", 0, "it must be 1 or more");
    }
    let mut waiting = VecDeque::new();
    for (i, prompt) in prompts.iter().enumerate() {
        let (prompt, most) = fit(prompt, config, decoder.spec().positions)
            .map_err(|source| LlmError::Prompt { number: i + 1, source: Box::new(source) })?;
        waiting.push_back(Waiting { number: i, prompt, most });
    }
    let mut done: Vec<Option<Generated>> = prompts.iter().map(|_| None).collect();
    let mut running: Vec<Running<'_>> = Vec::new();
    let mut is_ended = false;
    while !is_ended && (!running.is_empty() || !waiting.is_empty()) {
        while running.len() < at_once && !waiting.is_empty() {
            let admitted = admit(&mut waiting, at_once - running.len());
            running.extend(prefill(decoder, output, config, admitted)?);
        }
        step(decoder, &mut running)?;
        let (ended, others): (Vec<_>, Vec<_>) =
            running.into_iter().partition(|text| !text.sequence.goes_on());
        running = others;
        for text in ended {
            let (number, result) = (text.number, text.finish()?);
            is_ended |= on_done(number, &result).is_break();
            done[number] = Some(result);
        }
    }
    if is_ended { Err(LlmError::Interrupted) } else { Ok(done.into_iter().flatten().collect()) }
}

/// The next prompts that are computed together.
fn admit<'a>(waiting: &mut VecDeque<Waiting<'a>>, most: usize) -> Vec<Waiting<'a>> {
    let (mut admitted, mut tokens) = (Vec::new(), 0);
    while let Some(Waiting { prompt, .. }) = waiting.front() {
        if admitted.len() == most || (tokens > 0 && tokens + prompt.len() > PREFILL_TOKENS) {
            break;
        }
        tokens += prompt.len();
        admitted.extend(waiting.pop_front());
    }
    admitted
}

/// Computes prompts and chooses the first token of each.
fn prefill<'a>(
    decoder: &Decoder,
    output: Output<'a>,
    config: &'a GenerationConfig,
    admitted: Vec<Waiting<'_>>,
) -> Result<Vec<Running<'a>>> {
    let started = Instant::now();
    let mut caches: Vec<KvCache> = admitted.iter().map(|_| decoder.new_cache()).collect();
    let inputs = admitted.iter().zip(&mut caches).map(|(waiting, cache)| last(waiting.prompt, cache));
    let mut logits = decoder.logits_of(&mut inputs.collect::<Vec<_>>())?;
    let mut running = Vec::new();
    for (row, (waiting, cache)) in admitted.into_iter().zip(caches).enumerate() {
        let Waiting { number, prompt, most } = waiting;
        let mut sequence = Sequence::new(config, output, prompt, most)?;
        if sequence.goes_on() {
            sequence.next(&mut logits, row, &mut |_, _| ControlFlow::Continue(()))?;
        }
        // The first token is what a device is waited for.
        let prefill = started.elapsed();
        let (prompt_tokens, started) = (prompt.len(), Instant::now());
        running.push(Running { number, sequence, cache, prompt_tokens, prefill, started });
    }
    Ok(running)
}

/// New tokens of which the last one's logits are needed.
fn last<'a>(ids: &'a [u32], cache: &'a mut KvCache) -> SequenceInput<'a> {
    SequenceInput { ids, cache, logits: LogitPositions::Last }
}

/// One more token of each text that goes on.
fn step(decoder: &Decoder, running: &mut [Running<'_>]) -> Result<()> {
    let mut active: Vec<&mut Running<'_>> =
        running.iter_mut().filter(|text| text.sequence.goes_on()).collect();
    if active.is_empty() {
        return Ok(());
    }
    let ids: Vec<Vec<u32>> =
        active.iter().map(|text| text.sequence.ids().last().copied().into_iter().collect()).collect();
    let inputs = active.iter_mut().zip(&ids).map(|(text, ids)| last(ids, &mut text.cache));
    let mut logits = decoder.logits_of(&mut inputs.collect::<Vec<_>>())?;
    for (row, text) in active.into_iter().enumerate() {
        text.sequence.next(&mut logits, row, &mut |_, _| ControlFlow::Continue(()))?;
    }
    Ok(())
}

impl Running<'_> {
    fn finish(self) -> Result<Generated> {
        let timing = Timing {
            prompt_tokens: self.prompt_tokens,
            prefill: self.prefill,
            decoded_tokens: self.sequence.ids().len().saturating_sub(1),
            decode: self.started.elapsed(),
            ..Timing::default()
        };
        self.sequence.finish(timing, self.cache.bytes(), &mut |_, _| ControlFlow::Continue(()))
    }
}
