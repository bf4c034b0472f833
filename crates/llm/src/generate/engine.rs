//! Continuous batching: sequences come and go, and every forward pass gives each running one its
//! next tokens.

use super::request::Request;
use super::running::{Context, Running, pass};
use super::sequence::Sequence;
use super::{Generated, Piece, Timing};
use crate::error::{LlmError, Result};
use crate::model::AutoModelForCausalLM;
use std::collections::VecDeque;

/// Maximum prompt tokens per pass. A longer prompt gets a pass without other new prompts.
const PREFILL_TOKENS: usize = 512;

/// Identifies a sequence of an [`Engine`]. Ids are not reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(u64);

impl SequenceId {
    /// The id of a sequence that runs alone.
    pub(super) const ALONE: Self = Self(0);
}

/// Something that happened to a sequence.
#[derive(Debug)]
pub struct Event {
    /// The sequence.
    pub id: SequenceId,
    /// What happened.
    pub update: Update,
}

/// What can happen to a sequence.
#[derive(Debug)]
pub enum Update {
    /// A new token.
    Piece(Piece),
    /// The sequence has ended; this is its last event.
    Finished(Generated),
    /// An error has ended this sequence, and only this one; this is its last event.
    Failed(LlmError),
}

/// A sequence that waits for a free slot.
#[derive(Debug)]
struct Waiting<'m> {
    id: SequenceId,
    sequence: Sequence<'m>,
}

/// Runs any number of requests on one model, a limited number of them at a time, batched: one read
/// of the weights gives each running sequence a token. Every sequence has its own settings, and
/// requests can be added or cancelled between steps.
///
/// On the CPU and with outliers per row, every sequence gives exactly what it gives alone.
///
/// ```
/// use llm_int8::generate::Update;
/// use llm_int8::{AutoModelForCausalLM, LoadConfig};
/// let model = AutoModelForCausalLM::from_pretrained("tiny-gpt2", &LoadConfig::default())?;
/// let mut engine = model.engine(8)?;
/// let first = engine.add("And it came")?;
/// let second = engine.add(model.generation("ROMEO:").max_new_tokens(4).temperature(0.7))?;
/// let mut pieces = 0;
/// while !engine.is_idle() {
///     for event in engine.step()? {
///         match event.update {
///             Update::Piece(_) => pieces += 1,
///             Update::Finished(generated) if event.id == second => assert_eq!(generated.ids.len(), 4),
///             Update::Finished(_) => assert_eq!(event.id, first),
///             Update::Failed(error) => return Err(error),
///         }
///     }
/// }
/// assert!(pieces > 4);
/// # Ok::<(), llm_int8::LlmError>(())
/// ```
#[derive(Debug)]
pub struct Engine<'m> {
    model: &'m AutoModelForCausalLM,
    at_once: usize,
    added: u64,
    waiting: VecDeque<Waiting<'m>>,
    running: Vec<Running<'m>>,
    /// Events that have not been returned yet.
    events: VecDeque<Event>,
}

impl<'m> Engine<'m> {
    /// An engine without requests.
    ///
    /// # Errors
    /// [`LlmError::Setting`] where `at_once` is 0.
    pub fn new(model: &'m AutoModelForCausalLM, at_once: usize) -> Result<Self> {
        if at_once == 0 {
            return Err(LlmError::Setting {
                name: "the number of sequences that run at once",
                value: at_once.to_string(),
                expected: "it must be 1 or more",
            });
        }

        Ok(Self {
            model,
            at_once,
            added: 0,
            waiting: VecDeque::new(),
            running: Vec::new(),
            events: VecDeque::new(),
        })
    }

    /// Adds a request. It starts in a later [`step`](Self::step), as soon as a slot is free.
    ///
    /// # Errors
    /// As [`Generation::run`](super::Generation::run), if the request cannot be started. The other
    /// sequences are not affected.
    pub fn add(&mut self, request: impl Into<Request>) -> Result<SequenceId> {
        let sequence = Sequence::new(self.model, request.into())?;
        let id = SequenceId(self.added);
        self.added += 1;
        self.waiting.push_back(Waiting { id, sequence });
        Ok(id)
    }

    /// Ends a sequence, whether it runs or waits, and returns what it generated; `None` if there is
    /// no such sequence (any more). The other sequences are not affected.
    pub fn cancel(&mut self, id: SequenceId) -> Option<Generated> {
        if let Some(place) = self.running.iter().position(|running| running.id == id) {
            return Some(self.running.remove(place).finish().0);
        }

        let place = self.waiting.iter().position(|waiting| waiting.id == id)?;
        let Waiting { sequence, .. } = self.waiting.remove(place)?;

        Some(sequence.into_generated(Timing::default(), 0))
    }

    /// Whether a sequence runs or waits.
    pub fn contains(&self, id: SequenceId) -> bool {
        self.running.iter().any(|running| running.id == id)
            || self.waiting.iter().any(|waiting| waiting.id == id)
    }

    /// The number of running sequences.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// The number of sequences that wait for a free slot.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether no sequence runs or waits.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// One forward pass: starts waiting sequences while there are free slots, and gives every
    /// running one its next token, or several if drafts were accepted. A sequence ends in the step
    /// that gives its last token. Without sequences nothing is computed.
    ///
    /// # Errors
    /// [`LlmError::Decoder`] if the pass fails. The running sequences are then gone (see
    /// [`contains`](Self::contains)); the waiting ones start in the next step.
    pub fn step(&mut self) -> Result<impl Iterator<Item = Event>> {
        self.begin_waiting();
        // Requests for 0 new tokens end before the first pass.
        self.retire();

        if !self.running.is_empty() {
            let done = pass(self.model.decoder(), &mut self.running, &mut self.events);
            if let Err(error) = done {
                self.running.clear();
                return Err(error);
            }

            self.retire();
        }

        Ok(self.events.drain(..))
    }

    /// Starts waiting sequences, as many as there are free slots and as their prompts fit into one
    /// pass.
    fn begin_waiting(&mut self) {
        let mut tokens = 0;
        while self.running.len() < self.at_once
            && let Some(Waiting { id, sequence }) = self.waiting.pop_front()
        {
            let prompt = sequence.all_ids().len();
            if tokens > 0 && tokens + prompt > PREFILL_TOKENS {
                self.waiting.push_front(Waiting { id, sequence });
                break;
            }

            tokens += prompt;
            self.running.push(Running::new(
                id,
                sequence,
                Context::new(self.model.decoder()),
            ));
        }
    }

    /// Removes the sequences that have ended.
    fn retire(&mut self) {
        for ended in self.running.extract_if(.., |running| !running.goes_on()) {
            // A failed one already has its event.
            if !ended.has_failed() {
                self.events.push_back(Event {
                    id: ended.id,
                    update: Update::Finished(ended.finish().0),
                });
            }
        }
    }
}
