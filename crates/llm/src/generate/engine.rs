//! Continuous batching: sequences come and go, and every forward pass gives each running one its
//! next tokens.

use super::Generated;
use super::events::{Event, SequenceId, ServiceState, Update};
use super::limits::EngineConfig;
use super::prefix::{PrefixCache, Wanted};
use super::request::Request;
use super::running::{Context, Running, common, pass};
use super::schedule::shares;
use super::sequence::{Prepared, Sequence};
use crate::error::{LlmError, Result};
use crate::model::AutoModelForCausalLM;
use std::collections::VecDeque;

/// Tokens of a prompt for which a sequence waits while another computes them. For fewer, it would
/// start later than it has to and save little.
const LEAST_AWAITED: usize = 32;

/// A sequence that waits for a free slot.
#[derive(Debug)]
struct Waiting {
    id: SequenceId,
    prepared: Prepared,
    /// Bytes that its cache may grow to.
    bytes: u64,
}

/// Runs any number of requests on one model, a limited number of them at a time, batched: one read
/// of the weights gives each running sequence a token. Every sequence has its own settings, and
/// requests can be added or cancelled between steps. Prompts are computed in chunks, beside the
/// tokens of the sequences that run already.
///
/// Where [`is_batch_invariant`](llm_int8_decoder::Decoder::is_batch_invariant) holds (on the CPU,
/// with outliers per row), every sequence gives exactly what it gives alone, whatever else runs,
/// however its prompt is cut, and whether its beginning was kept. Elsewhere a sequence's numbers
/// may differ in their last bits, and with outliers per batch also by the outliers of the others.
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
///     for event in engine.step() {
///         match event.update {
///             Update::Started { prompt_tokens, .. } => assert!(prompt_tokens > 0),
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
    config: EngineConfig,
    added: u64,
    waiting: VecDeque<Waiting>,
    running: Vec<Running<'m>>,
    kept: PrefixCache,
    /// Counts of what has been done.
    done: ServiceState,
    /// Events that have not been returned yet.
    events: VecDeque<Event>,
}

impl<'m> Engine<'m> {
    /// An engine without requests that runs at most `at_once` sequences at a time, with no limit of
    /// memory, and keeps no prefixes.
    ///
    /// # Errors
    /// [`LlmError::Setting`] where `at_once` is 0.
    pub fn new(model: &'m AutoModelForCausalLM, at_once: usize) -> Result<Self> {
        let config = EngineConfig {
            at_once,
            ..EngineConfig::default()
        };
        Self::with_config(model, config)
    }

    /// An engine without requests.
    ///
    /// # Errors
    /// [`LlmError::Setting`] where `at_once` or `prefill_tokens` is 0.
    pub fn with_config(model: &'m AutoModelForCausalLM, config: EngineConfig) -> Result<Self> {
        config.check()?;
        let config = config.for_decoder(model.decoder());
        Ok(Self {
            model,
            added: 0,
            waiting: VecDeque::new(),
            running: Vec::new(),
            kept: PrefixCache::new(config.prefix_cache_bytes),
            done: ServiceState::default(),
            events: VecDeque::new(),
            config,
        })
    }

    /// Adds a request. It starts in a later [`step`](Self::step), as soon as a slot is free.
    ///
    /// # Errors
    /// As [`Generation::run`](super::Generation::run), if the request cannot be started;
    /// [`LlmError::CacheExceeded`] if it could not even start alone. The other sequences are not
    /// affected.
    pub fn add(&mut self, request: impl Into<Request>) -> Result<SequenceId> {
        let prepared = Prepared::new(self.model, request.into())?;
        self.config.check_size(self.model.decoder(), &prepared)?;
        Ok(self.add_prepared(prepared))
    }

    /// Adds a request that was checked, its size too.
    pub(super) fn add_prepared(&mut self, prepared: Prepared) -> SequenceId {
        let id = SequenceId(self.added);
        self.added += 1;
        let bytes = self.model.decoder().cache_bytes(prepared.most_tokens());
        self.waiting.push_back(Waiting {
            id,
            prepared,
            bytes,
        });
        id
    }

    /// Ends a sequence, whether it runs or waits, and returns what it generated; `None` if there is
    /// no such sequence (any more). The other sequences are not affected.
    pub fn cancel(&mut self, id: SequenceId) -> Option<Generated> {
        if let Some(place) = self.running.iter().position(|running| running.id == id) {
            let ended = self.running.remove(place);
            return Some(self.finish(ended));
        }

        let place = self.waiting.iter().position(|waiting| waiting.id == id)?;
        Some(self.waiting.remove(place)?.prepared.into_cancelled())
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

    /// What the engine is doing, and what it has done.
    pub fn state(&self) -> ServiceState {
        ServiceState {
            running: self.running.len(),
            waiting: self.waiting.len(),
            cache_bytes: self.reserved() + self.kept.bytes(),
            cache_budget: self.config.cache_bytes,
            kept_prefixes: self.kept.len(),
            kept_bytes: self.kept.bytes(),
            ..self.done.clone()
        }
    }

    /// One forward pass: starts waiting sequences while there are free slots and memory, computes a
    /// chunk of the prompts, and gives every sequence after its prompt its next token, or several if
    /// drafts were accepted. A sequence ends in the step that gives its last token. Without
    /// sequences nothing is computed.
    ///
    /// If the pass fails or panics, the sequences that took part end with [`LlmError::PassFailed`];
    /// the others go on in the next step.
    pub fn step(&mut self) -> impl Iterator<Item = Event> {
        self.begin_waiting();
        // Requests for 0 new tokens end before the first pass.
        self.retire();

        if !self.running.is_empty() {
            self.plan();
            self.done.passes += 1;
            let before: usize = self.running.iter().map(Running::new_tokens).sum();
            let outcome = pass(self.model.decoder(), &mut self.running, &mut self.events);
            match outcome {
                Ok(()) => {
                    let after: usize = self.running.iter().map(Running::new_tokens).sum();
                    self.done.generated_tokens += (after - before) as u64;
                }
                Err(error) => self.drop_planned(&error),
            }
            self.retire();
        }

        self.events.drain(..)
    }

    /// Shares the prompt tokens of the next pass.
    fn plan(&mut self) {
        let rests: Vec<usize> = self
            .running
            .iter()
            .filter_map(Running::prompt_rest)
            .collect();
        let mut shares = shares(&rests, self.config.prefill_tokens).into_iter();
        for one in &mut self.running {
            let is_prompt = one.prompt_rest().is_some();
            one.plan(if is_prompt {
                shares.next().unwrap_or(0)
            } else {
                1
            });
        }
    }

    /// Ends the sequences of a failed pass. Their caches may hold anything, so they are dropped.
    fn drop_planned(&mut self, error: &LlmError) {
        self.done.failed_passes += 1;
        let reason = match error {
            LlmError::PassFailed { reason } => reason.clone(),
            error => error.to_string(),
        };

        for failed in self.running.extract_if(.., |one| one.is_planned()) {
            let reason = reason.clone();
            self.events.push_back(Event {
                id: failed.id,
                update: Update::Failed(LlmError::PassFailed { reason }),
            });
        }
    }

    /// Bytes that the caches of running sequences may grow to.
    fn reserved(&self) -> u64 {
        let bytes = self.running.iter().map(|one| one.reserved);
        bytes.fold(0, u64::saturating_add)
    }

    /// Starts waiting sequences, as many as there are free slots and as their caches fit into what
    /// is left. If one does not fit, those behind it wait too, so that it gets its turn. One whose
    /// prompt is being computed by another sequence waits for that, and its slot and memory are
    /// held for it.
    fn begin_waiting(&mut self) {
        let budget = self.config.cache_bytes.unwrap_or(u64::MAX);
        let mut held = 0;
        let mut held_bytes = 0;
        while self.running.len() + held < self.config.at_once
            && let Some(next) = self.waiting.get(held)
        {
            let room = budget.saturating_sub(self.reserved().saturating_add(held_bytes));
            if next.bytes > room {
                break;
            }
            if self.is_being_computed(next) {
                held += 1;
                held_bytes += next.bytes;
            } else if let Some(next) = self.waiting.remove(held) {
                self.begin(next, room);
            }
        }
    }

    /// Whether a running sequence is computing at least half of what a waiting one would otherwise
    /// compute of its prompt.
    fn is_being_computed(&self, waiting: &Waiting) -> bool {
        let Some(wanted) = self.wanted(waiting) else {
            return false;
        };
        let running = || self.running.iter();
        let computed = running().map(|one| one.computed(wanted)).max();
        let common = running().map(|one| one.common(wanted)).max();

        let kept = self.kept.common(wanted);
        let gain = common.unwrap_or(0).saturating_sub(kept);
        common > computed && gain >= LEAST_AWAITED && 2 * gain >= wanted.prompt.len() - kept
    }

    /// What a sequence looks for among the prefixes; `None` if it has to compute all of its prompt.
    fn wanted<'w>(&self, waiting: &'w Waiting) -> Option<Wanted<'w>> {
        let looks = self.kept.is_on() && waiting.prepared.may_reuse();
        looks.then(|| Wanted {
            salt: &waiting.prepared.salt,
            prompt: waiting.prepared.prompt(),
            bytes: waiting.bytes,
        })
    }

    /// The longest beginning of a prompt that is known: a copy of what a running sequence has
    /// computed, or a kept prefix. Kept prefixes are dropped until the new sequence fits into `room`
    /// bytes with the others.
    fn known(&mut self, wanted: Wanted<'_>, room: u64) -> Option<Context> {
        let running = self.running.iter();
        let best = running
            .map(|one| (one, one.computed(wanted)))
            .max_by_key(|(_, same)| *same);
        if let Some((one, same)) = best
            && same > self.kept.common(wanted)
        {
            self.kept.fit(room.saturating_sub(wanted.bytes));
            if let Ok(copy) = one.beginning(same) {
                return Some(copy);
            }
        }

        let others = &self.waiting;
        self.kept.take(wanted, room, |ids| {
            let mut same_salt = others
                .iter()
                .filter(|other| other.prepared.salt == *wanted.salt);
            same_salt.any(|other| 2 * common(ids, other.prepared.prompt()) >= ids.len())
        })
    }

    /// Starts a sequence, with the known beginning of its prompt if there is one.
    fn begin(&mut self, waiting: Waiting, room: u64) {
        let wanted = self.wanted(&waiting);
        let looks = wanted.is_some();
        let found = match wanted {
            Some(wanted) => self.known(wanted, room),
            None => {
                self.kept.fit(room.saturating_sub(waiting.bytes));
                None
            }
        };
        let Waiting {
            id,
            prepared,
            bytes,
        } = waiting;
        let salt = prepared.salt.clone();

        let sequence = match Sequence::new(self.model, prepared) {
            Ok(sequence) => sequence,
            Err(error) => {
                let update = Update::Failed(error);
                return self.events.push_back(Event { id, update });
            }
        };
        let context = found.unwrap_or_else(|| Context::new(self.model.decoder()));
        let mut running = Running::new(id, sequence, context);
        running.salt = salt;
        running.reserved = bytes;

        let timing = running.timing();
        let prompt_tokens = timing.prompt_tokens + timing.reused_tokens;
        let reused_tokens = timing.reused_tokens;
        self.done.prompt_tokens += prompt_tokens as u64;
        if looks {
            self.done.prefix_queries += prompt_tokens as u64;
            self.done.prefix_hits += reused_tokens as u64;
        }

        self.events.push_back(Event {
            id,
            update: Update::Started {
                prompt_tokens,
                reused_tokens,
            },
        });
        self.running.push(running);
    }

    /// Removes the sequences that have ended.
    fn retire(&mut self) {
        let ended: Vec<Running<'_>> = self
            .running
            .extract_if(.., |running| !running.goes_on())
            .collect();
        // A failed one already has its event.
        for ended in ended.into_iter().filter(|ended| !ended.has_failed()) {
            let id = ended.id;
            let update = Update::Finished(self.finish(ended));
            self.events.push_back(Event { id, update });
        }
    }

    /// The result of a sequence that ran. What it computed is kept if there is room.
    fn finish(&mut self, mut ended: Running<'m>) -> Generated {
        let salt = ended.salt.take();
        let (generated, context) = ended.finish();
        if self.kept.is_on() {
            self.kept.store(salt, context);
        }
        generated
    }
}
