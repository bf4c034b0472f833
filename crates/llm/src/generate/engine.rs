//! Continuous batching: sequences come and go, and every pass of the model gives each of them its
//! next tokens.

use super::request::Request;
use super::running::{Context, Running, pass};
use super::sequence::Sequence;
use super::{Generated, Piece, Timing};
use crate::error::{LlmError, Result};
use crate::model::AutoModelForCausalLM;
use std::collections::VecDeque;

/// Tokens of prompts that one pass takes in; a longer prompt comes in by itself.
const PREFILL_TOKENS: usize = 512;

/// Names a sequence of an [`Engine`], which gives each number once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(u64);

impl SequenceId {
    /// Of a sequence that has no others beside it.
    pub(super) const ALONE: Self = Self(0);
}

/// Something that happened to a sequence.
#[derive(Debug)]
pub struct Event {
    /// Which one.
    pub id: SequenceId,
    /// What happened.
    pub update: Update,
}

/// What can happen to a sequence.
#[derive(Debug)]
pub enum Update {
    /// A new token.
    Piece(Piece),
    /// It has ended; nothing more comes.
    Finished(Generated),
    /// An error has ended this sequence alone; nothing more comes.
    Failed(LlmError),
}

/// A sequence that waits for a place.
#[derive(Debug)]
struct Waiting<'m> {
    id: SequenceId,
    sequence: Sequence<'m>,
}

/// Runs any number of requests over one model, a limited number of them at a time: the weights are
/// read once for a token of each. Every sequence has its own settings, and requests may be added or
/// cancelled between steps.
///
/// With outliers per row on the CPU every sequence gives exactly what it gives alone.
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
    /// What happened and was not told yet.
    events: VecDeque<Event>,
}

impl<'m> Engine<'m> {
    /// Without requests.
    ///
    /// # Errors
    /// [`LlmError::Setting`] where `at_once` is 0.
    pub fn new(model: &'m AutoModelForCausalLM, at_once: usize) -> Result<Self> {
        if at_once == 0 {
            return Err(LlmError::Setting {
                name: "the number of sequences at once",
                value: at_once.to_string(),
                expected: "it must be 1 or more",
            });
        }

        let (waiting, running, events) = (VecDeque::new(), Vec::new(), VecDeque::new());
        Ok(Self {
            model,
            at_once,
            added: 0,
            waiting,
            running,
            events,
        })
    }

    /// Adds a request, which begins in a later [`step`](Self::step), when there is a place for it.
    ///
    /// # Errors
    /// As [`Generation::run`](super::Generation::run), where the request cannot be begun; the
    /// others go on.
    pub fn add(&mut self, request: impl Into<Request>) -> Result<SequenceId> {
        let sequence = Sequence::new(self.model, request.into())?;
        let id = SequenceId(self.added);
        self.added += 1;
        self.waiting.push_back(Waiting { id, sequence });
        Ok(id)
    }

    /// Ends a sequence, whether it runs or waits, and gives what came of it; none where it is not
    /// (or no longer) here. Others are not changed.
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

    /// Sequences that run.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that wait for a place.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether there is nothing to do: no sequence runs or waits.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// One pass of the model: begins sequences as far as there are places, and gives every running
    /// one its next token, or several where drafts were right. A sequence ends in the step that
    /// gives its last token. Without sequences nothing is computed.
    ///
    /// # Errors
    /// [`LlmError::Decoder`] where the pass fails. The sequences that ran are gone then (see
    /// [`contains`](Self::contains)), those that wait begin in the next step.
    pub fn step(&mut self) -> Result<impl Iterator<Item = Event>> {
        self.begin_waiting();
        // Those that ask for no token have ended before they begin.
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

    /// Begins the sequences that wait, as many as there are places and as their prompts fit into
    /// one pass.
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

    /// Takes out the sequences that have ended.
    fn retire(&mut self) {
        for ended in self.running.extract_if(.., |running| !running.goes_on()) {
            // An error was told where it came up.
            if !ended.has_failed() {
                let (id, update) = (ended.id, Update::Finished(ended.finish().0));
                self.events.push_back(Event { id, update });
            }
        }
    }
}
