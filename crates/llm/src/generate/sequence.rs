//! One text while it grows: its sampler, its stop strings, and why it ended.

use super::draft::draft;
use super::sampler::Sampler;
use super::stop::StopStrings;
use super::text_stream::TextStream;
use super::{FinishReason, Generated, GenerationConfig, Timing};
use crate::error::Result;
use crate::tokenizer::Tokenizer;
use llm_int8_nn::models::Logits;
use std::ops::ControlFlow;
use std::time::Instant;

/// A text that grows.
pub(super) struct Sequence<'a> {
    config: &'a GenerationConfig,
    /// New tokens at most.
    most: usize,
    started: Instant,
    sampler: Sampler<'a>,
    stream: Option<TextStream<'a>>,
    stops: Option<StopStrings<'a>>,
    /// The text so far, less what may still become a stop string.
    text: String,
    ids: Vec<u32>,
    finish_reason: Option<FinishReason>,
}

/// What turns ids into text: nothing, stop strings alone, or all of it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Output<'a> {
    /// Ids; the tokenizer is for stop strings, where there are some.
    Ids(Option<&'a Tokenizer>),
    /// Ids and their text.
    Text(&'a Tokenizer),
}

/// What gets each new id and the text it completes, and may end it.
pub(super) type OnPiece<'a> = dyn FnMut(u32, &str) -> ControlFlow<()> + 'a;

impl<'a> Sequence<'a> {
    /// After a prompt that leaves room for `most` new tokens.
    pub(super) fn new(
        config: &'a GenerationConfig,
        output: Output<'a>,
        prompt: &[u32],
        most: usize,
    ) -> Result<Self> {
        let (tokenizer, stream) = match output {
            Output::Ids(tokenizer) => (tokenizer, None),
            Output::Text(tokenizer) => (Some(tokenizer), Some(TextStream::new(tokenizer))),
        };
        let stops = match tokenizer {
            Some(tokenizer) => StopStrings::new(&config.stop, tokenizer, prompt)?,
            None => None,
        };
        Ok(Self {
            config,
            most,
            started: Instant::now(),
            sampler: Sampler::new(config, prompt, most),
            stream,
            stops,
            text: String::new(),
            ids: Vec::new(),
            finish_reason: (most == 0).then_some(FinishReason::Length),
        })
    }

    /// New ids so far.
    pub(super) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Whether it wants more.
    pub(super) fn goes_on(&self) -> bool {
        self.finish_reason.is_none()
    }

    /// What may come next, to be computed together with the last id.
    pub(super) fn drafts(&self) -> Vec<u32> {
        // The last token is chosen, but not fed to the model.
        let room = self.most.saturating_sub(self.ids.len() + 1);
        draft(self.sampler.seen(), self.config.speculate.min(room))
    }

    /// Chooses the next id by a row of logits.
    pub(super) fn next(
        &mut self,
        logits: &mut Logits<'_>,
        row: usize,
        on_piece: &mut OnPiece<'_>,
    ) -> Result<u32> {
        let id = self.sampler.next(logits, row)?;
        self.ids.push(id);
        if self.config.eos_token_ids.contains(&id) {
            self.finish_reason = Some(FinishReason::EndOfText);
            return Ok(id);
        }

        let (piece, stopped) = self.push(id)?;
        let flow = on_piece(id, &piece);
        if stopped {
            self.finish_reason = Some(FinishReason::StopString);
        } else if flow.is_break() {
            self.finish_reason = Some(FinishReason::Interrupted);
        } else if self.ids.len() >= self.most {
            self.finish_reason = Some(FinishReason::Length);
        } else if self.config.max_time.is_some_and(|most| self.started.elapsed() > most) {
            self.finish_reason = Some(FinishReason::Time);
        }
        Ok(id)
    }

    /// The text that can be shown after one more id, and whether a stop string was met.
    fn push(&mut self, id: u32) -> Result<(String, bool)> {
        let mut piece = match &mut self.stream {
            Some(stream) => stream.push(id)?,
            None => String::new(),
        };
        let mut stopped = false;
        if let Some(stops) = &mut self.stops {
            (piece, stopped) = stops.push(id, piece)?;
        }
        self.text.push_str(&piece);
        Ok((piece, stopped))
    }

    /// The result, with what was held back.
    pub(super) fn finish(
        mut self,
        timing: Timing,
        cache_bytes: u64,
        on_piece: &mut OnPiece<'_>,
    ) -> Result<Generated> {
        let finish_reason = self.finish_reason.unwrap_or(FinishReason::Length);
        if let (true, Some(stream)) = (finish_reason != FinishReason::StopString, &mut self.stream) {
            let mut rest = stream.finish()?;
            if let Some(stops) = &mut self.stops {
                rest = stops.finish(rest)?;
            }
            self.text.push_str(&rest);
            if let (false, Some(&last)) = (rest.is_empty(), self.ids.last()) {
                // Whether the caller wants more no longer matters.
                let _ = on_piece(last, &rest);
            }
        }
        Ok(Generated { text: self.text, ids: self.ids, finish_reason, timing, cache_bytes })
    }
}
