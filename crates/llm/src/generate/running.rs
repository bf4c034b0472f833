//! Sequences at work: one pass of the model gives each of them its next tokens.

use super::sequence::Sequence;
use super::{Event, Generated, Piece, SequenceId, Timing, Update};
use crate::error::Result;
use llm_int8_decoder::{Decoder, KvCache, LogitPositions, Logits, SequenceInput};
use std::collections::VecDeque;
use std::time::Instant;

/// Keys and values, and the ids they are of: what one turn of a conversation leaves to the next.
#[derive(Debug)]
pub(crate) struct Context {
    cache: KvCache,
    ids: Vec<u32>,
}

impl Context {
    /// Nothing yet.
    pub(crate) fn new(decoder: &Decoder) -> Self {
        Self {
            cache: decoder.new_cache(),
            ids: Vec::new(),
        }
    }

    /// Keeps what is a beginning of `prompt`, at least one id shorter: the last one is what logits
    /// are for.
    fn reuse(&mut self, prompt: &[u32]) -> usize {
        let same = self
            .ids
            .iter()
            .zip(prompt)
            .take_while(|(a, b)| a == b)
            .count();
        let kept = same.min(prompt.len().saturating_sub(1));
        self.forget(kept);
        kept
    }

    /// Forgets all ids from `kept` on.
    fn forget(&mut self, kept: usize) {
        self.cache.truncate(kept);
        self.ids.truncate(kept);
    }
}

/// A sequence at work.
#[derive(Debug)]
pub(super) struct Running<'m> {
    pub(super) id: SequenceId,
    sequence: Sequence<'m>,
    context: Context,
    /// What the next pass computes: the rest of the prompt, or the last token and drafts after it.
    input: Vec<u32>,
    /// Drafts at the end of `input`.
    drafts: usize,
    timing: Timing,
    /// When the prompt was begun, and from the first new token on, when that came.
    started: Instant,
    has_failed: bool,
}

impl<'m> Running<'m> {
    /// Begins a sequence, of which `context` may hold the beginning already.
    pub(super) fn new(id: SequenceId, mut sequence: Sequence<'m>, mut context: Context) -> Self {
        sequence.start();
        let prompt = sequence.all_ids();
        let reused = context.reuse(prompt);
        let input = prompt[reused..].to_vec();
        let timing = Timing {
            prompt_tokens: input.len(),
            reused_tokens: reused,
            ..Timing::default()
        };

        Self {
            id,
            sequence,
            context,
            input,
            drafts: 0,
            timing,
            started: Instant::now(),
            has_failed: false,
        }
    }

    /// Whether it takes part in the next pass.
    pub(super) fn goes_on(&self) -> bool {
        !self.has_failed && self.sequence.goes_on()
    }

    /// Whether an error ended it.
    pub(super) fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// What came of it, and its keys and values.
    pub(super) fn finish(mut self) -> (Generated, Context) {
        if self.goes_on() {
            self.stop_clock();
        }

        (
            self.sequence
                .into_generated(self.timing, self.context.cache.bytes()),
            self.context,
        )
    }

    fn is_at_prompt(&self) -> bool {
        self.sequence.ids().is_empty()
    }

    /// Adds drafts to what the next pass computes.
    fn add_drafts(&mut self) {
        if !self.is_at_prompt() {
            let drafts = self.sequence.drafts();
            self.drafts = drafts.len();
            self.input.extend_from_slice(&drafts);
        }
    }

    /// Positions of the input whose logits are needed: the last of a prompt; a token and every
    /// draft after it.
    fn positions(&self) -> LogitPositions {
        if self.is_at_prompt() {
            LogitPositions::Last
        } else {
            LogitPositions::All
        }
    }

    fn as_input(&mut self) -> SequenceInput<'_> {
        let logits = self.positions();
        SequenceInput {
            ids: &self.input,
            cache: &mut self.context.cache,
            logits,
        }
    }

    /// Takes the tokens that its rows of a pass's logits give, from row `first` on: one, and one
    /// more for each draft that was right.
    fn take(
        &mut self,
        logits: &mut Logits<'_>,
        first: usize,
        on_piece: &mut dyn FnMut(Piece),
    ) -> Result<()> {
        let is_first = self.is_at_prompt();
        self.context.ids.extend_from_slice(&self.input);
        self.timing.drafted_tokens += self.drafts;
        let (known, known_before) = (
            self.input.len() - self.drafts,
            self.context.ids.len() - self.drafts,
        );

        for i in 0..=self.drafts {
            let piece = self.sequence.next(logits, first + i)?;
            let id = piece.id;
            on_piece(piece);
            if !self.sequence.goes_on() || self.input.get(known + i) != Some(&id) {
                // What follows was computed for a token that did not come.
                self.context.forget(known_before + i);
                self.input.clear();
                self.input.push(id);
                break;
            }

            self.timing.accepted_tokens += 1;
        }

        self.drafts = 0;

        // Only a token that is known tells that a device is done with the prompt.
        if is_first {
            self.timing.prefill = self.started.elapsed();
            self.started = Instant::now();
        }

        if !self.sequence.goes_on() {
            self.stop_clock();
        }

        Ok(())
    }

    fn stop_clock(&mut self) {
        self.timing.decoded_tokens = self.sequence.ids().len().saturating_sub(1);
        if !self.is_at_prompt() {
            self.timing.decode = self.started.elapsed();
        }
    }
}

/// One pass over sequences that all go on, prompts and single tokens side by side. Each adds its
/// pieces to `events`, or the error that ended it alone.
///
/// # Errors
/// [`LlmError::Decoder`](crate::LlmError::Decoder) where the pass fails: none of the sequences can
/// go on.
pub(super) fn pass(
    decoder: &Decoder,
    running: &mut [Running<'_>],
    events: &mut VecDeque<Event>,
) -> Result<()> {
    running.iter_mut().for_each(Running::add_drafts);
    let mut inputs: Vec<SequenceInput<'_>> = running.iter_mut().map(Running::as_input).collect();
    let mut logits = decoder.logits_of(&mut inputs)?;

    let mut row = 0;
    for one in running {
        let (id, rows) = (one.id, one.drafts + 1);
        let mut on_piece = |piece| {
            events.push_back(Event {
                id,
                update: Update::Piece(piece),
            })
        };
        if let Err(error) = one.take(&mut logits, row, &mut on_piece) {
            one.has_failed = true;
            events.push_back(Event {
                id,
                update: Update::Failed(error),
            });
        }

        row += rows;
    }

    Ok(())
}
