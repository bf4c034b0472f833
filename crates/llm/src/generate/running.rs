//! Running sequences: one forward pass gives each of them its next tokens.

use super::prefix::{Salt, Wanted};
use super::sequence::Sequence;
use super::{Event, Generated, Piece, SequenceId, Timing, Update};
use crate::error::{LlmError, Result};
use crate::guard::caught;
use llm_int8_decoder::{Decoder, KvCache, LogitPositions, Logits, SequenceInput};
use std::collections::VecDeque;
use std::ops::Range;
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

    /// The ids whose keys and values it has.
    pub(super) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Bytes of the cache.
    pub(super) fn bytes(&self) -> u64 {
        self.cache.bytes()
    }

    /// A copy of the first `kept` ids and their keys and values.
    pub(super) fn prefix(&self, kept: usize) -> Result<Self> {
        Ok(Self {
            cache: self.cache.prefix(kept)?,
            ids: self.ids[..kept.min(self.ids.len())].to_vec(),
        })
    }

    /// Keeps the ids that `prompt` starts with and returns their number. At least the last id of
    /// the prompt is left to compute, because its logits are needed.
    fn reuse(&mut self, prompt: &[u32]) -> usize {
        let kept = common(&self.ids, prompt).min(prompt.len().saturating_sub(1));
        self.forget(kept);
        kept
    }

    /// Drops everything past the first `kept` ids.
    fn forget(&mut self, kept: usize) {
        self.cache.truncate(kept);
        self.ids.truncate(kept);
    }
}

/// How many ids two sequences have in common at their beginning.
pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Bytes of logits that a chunk of a prompt may have, if all of them are wanted.
const MOST_LOGITS: usize = 64 << 20;

/// A running sequence.
#[derive(Debug)]
pub(super) struct Running<'m> {
    pub(super) id: SequenceId,
    /// Who may share what it computes.
    pub(super) salt: Salt,
    /// Bytes that its cache may grow to, if an engine counts them.
    pub(super) reserved: u64,
    sequence: Sequence<'m>,
    /// Of the sequence's ids so far, those that are computed.
    context: Context,
    /// The ids of the next pass: a chunk of the prompt, or the last token and the drafts after it.
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
        let reused_tokens = context.reuse(prompt);
        let timing = Timing {
            prompt_tokens: prompt.len() - reused_tokens,
            reused_tokens,
            ..Timing::default()
        };

        Self {
            id,
            salt: None,
            reserved: 0,
            sequence,
            context,
            input: Vec::new(),
            drafts: 0,
            timing,
            started: Instant::now(),
            has_failed: false,
        }
    }

    /// How many ids another prompt has in common with this sequence at its beginning, whether they
    /// are computed yet or not.
    pub(super) fn common(&self, wanted: Wanted<'_>) -> usize {
        wanted.common(&self.salt, self.sequence.all_ids())
    }

    /// How many ids of another prompt this sequence has computed, of its beginning.
    pub(super) fn computed(&self, wanted: Wanted<'_>) -> usize {
        wanted.common(&self.salt, self.context.ids())
    }

    /// A copy of the first `count` ids and their keys and values.
    pub(super) fn beginning(&self, count: usize) -> Result<Context> {
        self.context.prefix(count)
    }

    /// Tokens of the prompt that are computed and those that were reused.
    pub(super) fn timing(&self) -> &Timing {
        &self.timing
    }

    /// New tokens so far.
    pub(super) fn new_tokens(&self) -> usize {
        self.sequence.ids().len()
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

    /// Ids that are known and not computed: the rest of the prompt, or the last token.
    fn rest(&self) -> usize {
        self.sequence.all_ids().len() - self.context.ids.len()
    }

    /// Tokens of the prompt that the next pass can compute; none after the prompt.
    pub(super) fn prompt_rest(&self) -> Option<usize> {
        let most = match self.sequence.reads_prompt() {
            true => (MOST_LOGITS / size_of::<f32>() / self.sequence.vocabulary()).max(1),
            false => usize::MAX,
        };
        self.is_at_prompt().then(|| self.rest().min(most))
    }

    /// Sets what the next pass computes: at most `share` tokens of the prompt, or the last token
    /// with drafts after it.
    pub(super) fn plan(&mut self, share: usize) {
        let done = self.context.ids.len();
        let count = self.rest().min(share);
        self.input.clear();
        self.input
            .extend_from_slice(&self.sequence.all_ids()[done..done + count]);

        self.drafts = 0;
        if !self.is_at_prompt() {
            let drafts = self.sequence.drafts();
            self.drafts = drafts.len();
            self.input.extend_from_slice(&drafts);
        }
    }

    /// Whether the sequence has a part in the next pass.
    pub(super) fn is_planned(&self) -> bool {
        !self.input.is_empty()
    }

    /// The positions of the input whose logits are needed: the last one of a prompt, or all if the
    /// prompt's log-probabilities are wanted; otherwise all, the last token and every draft.
    fn positions(&self) -> LogitPositions {
        if !self.is_at_prompt() || self.sequence.reads_prompt() {
            LogitPositions::All
        } else if self.input.len() == self.rest() {
            LogitPositions::Last
        } else {
            LogitPositions::None
        }
    }

    /// Rows of logits of the next pass.
    fn rows(&self) -> usize {
        match self.positions() {
            LogitPositions::All => self.input.len(),
            LogitPositions::Last => 1,
            LogitPositions::None => 0,
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

    /// Takes this sequence's rows of a pass's logits. After the last chunk of the prompt, and after
    /// that in each pass, chooses a token, and one more for each draft that was right.
    fn take(
        &mut self,
        logits: &mut Logits<'_>,
        rows: Range<usize>,
        on_piece: &mut dyn FnMut(Piece),
    ) -> Result<()> {
        let is_prompt = self.is_at_prompt();
        self.context.ids.extend_from_slice(&self.input);
        if is_prompt {
            let is_last = self.rest() == 0;
            self.sequence.read_prompt(logits, rows.clone(), is_last)?;
            if !is_last {
                return Ok(());
            }
        }

        if self.sequence.goes_on() {
            self.choose(logits, rows.end - 1 - self.drafts, on_piece)?;
        }

        // Read the clock only now: launches are asynchronous, and only a chosen token proves that
        // the device has finished the prompt.
        if is_prompt {
            self.timing.prefill = self.started.elapsed();
            self.started = Instant::now();
        }

        if !self.sequence.goes_on() {
            self.stop_clock();
        }

        Ok(())
    }

    /// Chooses tokens: the first from row `first` of the logits.
    fn choose(
        &mut self,
        logits: &mut Logits<'_>,
        first: usize,
        on_piece: &mut dyn FnMut(Piece),
    ) -> Result<()> {
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
                break;
            }

            self.timing.accepted_tokens += 1;
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

/// Runs one forward pass over the sequences that are [planned](Running::plan); chunks of prompts and
/// single tokens can be mixed. Pieces are added to `events`, and so is an error that ends only one
/// sequence.
///
/// # Errors
/// [`LlmError::Decoder`] if the pass fails, [`LlmError::PassFailed`] if it panics. Then none of the
/// sequences that took part can go on.
pub(super) fn pass(
    decoder: &Decoder,
    running: &mut [Running<'_>],
    events: &mut VecDeque<Event>,
) -> Result<()> {
    let planned = running.iter_mut().filter(|one| one.is_planned());
    let mut inputs: Vec<SequenceInput<'_>> = planned.map(Running::as_input).collect();
    let logits = caught(|| {
        #[cfg(test)]
        super::tests::failures::panic_if_due();
        decoder.logits_of(&mut inputs)
    });
    let failed = |reason| LlmError::PassFailed { reason };
    let mut logits = logits.map_err(failed)??;

    let mut row = 0;
    for one in running.iter_mut().filter(|one| one.is_planned()) {
        let id = one.id;
        let rows = row..row + one.rows();
        row = rows.end;
        let mut on_piece = |piece| {
            events.push_back(Event {
                id,
                update: Update::Piece(piece),
            })
        };

        let taken = caught(|| one.take(&mut logits, rows, &mut on_piece));
        if let Err(error) = taken.map_err(failed).flatten() {
            one.has_failed = true;
            events.push_back(Event {
                id,
                update: Update::Failed(error),
            });
        }
    }

    Ok(())
}
