//! Running sequences: one forward pass gives each of them its next tokens.

use super::sequence::Sequence;
use super::{Event, Generated, Piece, SequenceId, Timing, Update};
use crate::error::Result;
use llm_int8_decoder::{Decoder, KvCache, LogitPositions, Logits, SequenceInput};
use std::collections::VecDeque;
use std::time::Instant;

/// Keys and values, and the ids they belong to. One turn of a conversation leaves this to the next.
#[derive(Debug)]
pub(crate) struct Context {
    cache: KvCache,
    ids: Vec<u32>,
}

impl Context {
    /// An empty context.
    pub(crate) fn new(decoder: &Decoder) -> Self {
        Self {
            cache: decoder.new_cache(),
            ids: Vec::new(),
        }
    }

    /// Keeps the ids that `prompt` starts with and returns their number. At least the last id of
    /// the prompt is left to compute, because its logits are needed.
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

    /// Drops everything past the first `kept` ids.
    fn forget(&mut self, kept: usize) {
        self.cache.truncate(kept);
        self.ids.truncate(kept);
    }
}

/// A running sequence.
#[derive(Debug)]
pub(super) struct Running<'m> {
    pub(super) id: SequenceId,
    sequence: Sequence<'m>,
    context: Context,
    /// The ids of the next pass: the rest of the prompt, or the last token and the drafts after it.
    input: Vec<u32>,
    /// Number of drafts at the end of `input`.
    drafts: usize,
    timing: Timing,
    /// When the prompt was started; after the first new token, when that token came.
    started: Instant,
    has_failed: bool,
}

impl<'m> Running<'m> {
    /// Starts a sequence. `context` may already hold the beginning of its prompt.
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

    /// Whether the sequence takes part in the next pass.
    pub(super) fn goes_on(&self) -> bool {
        !self.has_failed && self.sequence.goes_on()
    }

    /// Whether an error ended the sequence.
    pub(super) fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// The result, and the context for the next turn.
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

    /// The positions of the input whose logits are needed: the last one of a prompt; otherwise all,
    /// the last token and every draft.
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

    /// Chooses tokens from this sequence's rows of a pass's logits, which begin at row `first`: one
    /// token, and one more for each draft that was right.
    fn take(
        &mut self,
        logits: &mut Logits<'_>,
        first: usize,
        on_piece: &mut dyn FnMut(Piece),
    ) -> Result<()> {
        let is_first = self.is_at_prompt();
        self.context.ids.extend_from_slice(&self.input);
        self.timing.drafted_tokens += self.drafts;
        let known = self.input.len() - self.drafts;
        let known_before = self.context.ids.len() - self.drafts;

        for i in 0..=self.drafts {
            let piece = self.sequence.next(logits, first + i)?;
            let id = piece.id;
            on_piece(piece);
            if !self.sequence.goes_on() || self.input.get(known + i) != Some(&id) {
                // The rest was computed for a draft that was not chosen.
                self.context.forget(known_before + i);
                self.input.clear();
                self.input.push(id);
                break;
            }

            self.timing.accepted_tokens += 1;
        }

        self.drafts = 0;

        // Read the clock only now: launches are asynchronous, and only a chosen token proves that
        // the device has finished the prompt.
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

/// Runs one forward pass over sequences that have not ended; prompts and single tokens can be
/// mixed. Pieces are added to `events`, and so is an error that ends only one sequence.
///
/// # Errors
/// [`LlmError::Decoder`](crate::LlmError::Decoder) if the pass fails. Then none of the sequences
/// can go on.
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
        let id = one.id;
        let rows = one.drafts + 1;
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
