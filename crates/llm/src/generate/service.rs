//! An engine on a thread of its own, for callers on any thread.

use super::engine::Engine;
use super::events::{SequenceId, ServiceState, Update};
use super::limits::EngineConfig;
use super::request::Request;
use super::sequence::Prepared;
use crate::error::{LlmError, Result};
use crate::guard::caught;
use crate::model::AutoModelForCausalLM;
use std::collections::HashMap;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Takes the updates of one sequence, on the engine's thread: it must not block. `Break` says that
/// nobody wants the rest; the sequence is cancelled and this is not called again.
pub type OnUpdate = Box<dyn FnMut(Update) -> ControlFlow<()> + Send>;

/// Why a [`Service`] did not take a request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// As many requests as allowed run and wait already; try again later.
    #[error("{waiting} requests are waiting already, and no more may")]
    Full {
        /// Requests that wait.
        waiting: usize,
    },
    /// The service is stopping or has stopped.
    #[error("the service takes no more requests: it is stopping")]
    Stopped,
    /// The request cannot be run.
    #[error(transparent)]
    Invalid(#[from] LlmError),
}

/// One thread that owns an [`Engine`] and runs requests of any other thread, on a queue of limited
/// length. Clones share the thread; it stops when the last of them is dropped. While there is
/// nothing to do, the thread sleeps.
///
/// ```
/// use llm_int8::{AutoModelForCausalLM, EngineConfig, LoadConfig, Request, Service, Update};
/// use std::{ops::ControlFlow, sync::{Arc, mpsc}, time::Duration};
/// let model = AutoModelForCausalLM::from_pretrained("tiny-gpt2", &LoadConfig::default())?;
/// let service = Service::start(Arc::new(model), EngineConfig::default(), 64)?;
///
/// let (sender, updates) = mpsc::channel();
/// let send = move |update| match sender.send(update) {
///     Ok(()) => ControlFlow::Continue(()),
///     Err(_) => ControlFlow::Break(()),
/// };
/// let _handle = service.submit(Request::new("ROMEO:"), Box::new(send)).unwrap();
/// for update in updates {
///     match update {
///         Update::Started { .. } => {}
///         Update::Piece(piece) => print!("{}", piece.text),
///         Update::Finished(generated) => assert_eq!(generated.ids.len(), 64),
///         Update::Failed(error) => return Err(error),
///     }
/// }
/// service.stop(Duration::from_secs(5));
/// # Ok::<(), llm_int8::LlmError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Service {
    owner: Arc<Owner>,
}

/// The thread, and what its callers share.
#[derive(Debug)]
struct Owner {
    model: Arc<AutoModelForCausalLM>,
    config: EngineConfig,
    /// Sequences that may run and wait at the same time.
    most: usize,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Cancels a sequence when dropped, if it has not ended.
#[derive(Debug)]
#[must_use = "dropping it cancels the sequence"]
pub struct SequenceHandle {
    is_cancelled: Arc<AtomicBool>,
}

/// A request that the thread has not seen yet.
struct Arrival {
    prepared: Prepared,
    on_update: OnUpdate,
    is_cancelled: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Shared {
    inbox: Mutex<Inbox>,
    /// Told of arrivals and of stopping.
    changed: Condvar,
}

#[derive(Default)]
struct Inbox {
    arrivals: Vec<Arrival>,
    /// Accepted requests that have not ended.
    unfinished: usize,
    /// As of the last pass.
    state: ServiceState,
    /// When everything ends; set once nothing more is taken.
    stops_at: Option<Instant>,
    has_ended: bool,
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("state", &self.state).finish()
    }
}

impl Inbox {
    fn waiting(&self) -> usize {
        self.unfinished.saturating_sub(self.state.running)
    }

    /// Refuses `count` more requests if there is no place for them.
    fn check(&self, count: usize, most: usize) -> Result<(), SubmitError> {
        if self.stops_at.is_some() || self.has_ended {
            Err(SubmitError::Stopped)
        } else if self.unfinished.saturating_add(count) > most {
            Err(SubmitError::Full {
                waiting: self.waiting(),
            })
        } else {
            Ok(())
        }
    }
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Service {
    /// Starts the thread. At most `max_waiting` requests wait while
    /// [`at_once`](EngineConfig::at_once) of them run; further ones are refused.
    ///
    /// # Errors
    /// Those of [`Engine::with_config`]; [`LlmError::Setting`] if the system gives no thread.
    pub fn start(
        model: Arc<AutoModelForCausalLM>,
        config: EngineConfig,
        max_waiting: usize,
    ) -> Result<Self> {
        config.check()?;
        let shared = Arc::new(Shared::default());
        shared.inbox().state.cache_budget = config.cache_bytes;

        let (of_thread, with) = (Arc::clone(&model), config.clone());
        let inbox = Arc::clone(&shared);
        let thread = thread::Builder::new().name("llm-int8 engine".into());
        let thread = thread.spawn(move || Worker::run(&of_thread, with, &inbox));
        let thread = thread.map_err(|cause| LlmError::Setting {
            name: "the engine's thread",
            value: cause.to_string(),
            expected: "the system must be able to start one more thread",
        })?;

        Ok(Self {
            owner: Arc::new(Owner {
                model,
                most: config.at_once.saturating_add(max_waiting),
                config,
                shared,
                thread: Mutex::new(Some(thread)),
            }),
        })
    }

    /// The model.
    pub fn model(&self) -> &AutoModelForCausalLM {
        &self.owner.model
    }

    /// Whether a request gives the same text at any load, with any chunks of its prompt and whether
    /// its beginning was kept: [`Decoder::is_batch_invariant`](llm_int8_decoder::Decoder::is_batch_invariant).
    pub fn is_batch_invariant(&self) -> bool {
        self.owner.model.decoder().is_batch_invariant()
    }

    /// Queues a request. It is checked and encoded here, on the caller's thread; then `on_update`
    /// gets its updates, the last of which is [`Update::Finished`] or [`Update::Failed`]. If it is
    /// dropped without one of them, the engine's thread has crashed.
    ///
    /// # Errors
    /// [`SubmitError::Invalid`] with the errors of [`Engine::add`], [`SubmitError::Full`],
    /// [`SubmitError::Stopped`].
    pub fn submit(
        &self,
        request: Request,
        on_update: OnUpdate,
    ) -> Result<SequenceHandle, SubmitError> {
        let mut handles = self.submit_all(vec![(request, on_update)])?;
        handles.pop().ok_or(SubmitError::Stopped)
    }

    /// Queues several requests, all or none of them. Their order is kept.
    ///
    /// # Errors
    /// As [`submit`](Self::submit). More requests than may run and wait together are always
    /// [`SubmitError::Full`].
    pub fn submit_all(
        &self,
        requests: Vec<(Request, OnUpdate)>,
    ) -> Result<Vec<SequenceHandle>, SubmitError> {
        let owner = &*self.owner;
        let count = requests.len();
        // Before the work of encoding, and again after it.
        owner.shared.inbox().check(count, owner.most)?;

        let decoder = owner.model.decoder();
        let mut arrivals = Vec::with_capacity(count);
        let mut handles = Vec::with_capacity(count);
        for (request, on_update) in requests {
            let prepared = Prepared::new(&owner.model, request)?;
            owner.config.check_size(decoder, &prepared)?;
            let is_cancelled = Arc::new(AtomicBool::new(false));
            handles.push(SequenceHandle {
                is_cancelled: Arc::clone(&is_cancelled),
            });
            arrivals.push(Arrival {
                prepared,
                on_update,
                is_cancelled,
            });
        }

        let mut inbox = owner.shared.inbox();
        inbox.check(count, owner.most)?;
        inbox.unfinished += count;
        inbox.arrivals.append(&mut arrivals);
        drop(inbox);
        owner.shared.changed.notify_all();

        Ok(handles)
    }

    /// What the service is doing, as of its last pass, and what it has done.
    pub fn state(&self) -> ServiceState {
        let inbox = self.owner.shared.inbox();
        ServiceState {
            waiting: inbox.waiting(),
            ..inbox.state.clone()
        }
    }

    /// Takes no more requests, lets those that it has end within `grace`, ends the others as
    /// [`Interrupted`](super::FinishReason::Interrupted), and returns when the thread has ended.
    /// A pass is not interrupted, so this may take one pass longer. Called by `on_update` itself,
    /// this returns at once.
    pub fn stop(&self, grace: Duration) {
        self.owner.stop(grace);
    }
}

impl Owner {
    fn stop(&self, grace: Duration) {
        let mut inbox = self.shared.inbox();
        let ends = Instant::now().checked_add(grace);
        let ends = ends.unwrap_or_else(|| Instant::now() + Duration::from_secs(1 << 30));
        // A second call may only make it shorter.
        inbox.stops_at = Some(inbox.stops_at.map_or(ends, |before| before.min(ends)));
        drop(inbox);
        self.shared.changed.notify_all();

        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let is_own = thread
            .as_ref()
            .is_some_and(|thread| thread.thread().id() == thread::current().id());
        if let Some(thread) = thread.take_if(|_| !is_own) {
            // Its panics are caught and told to the sequences.
            drop(thread.join());
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

impl SequenceHandle {
    /// Ends the sequence after the present pass. Its last update is then [`Update::Finished`] with
    /// [`Interrupted`](super::FinishReason::Interrupted), unless it has ended before.
    pub fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::Release);
    }
}

impl Drop for SequenceHandle {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// A sequence of the engine, and who wants its updates.
struct Live {
    on_update: OnUpdate,
    is_cancelled: Arc<AtomicBool>,
}

impl Live {
    /// Passes an update on. False: nobody wants more.
    fn send(&mut self, update: Update) -> bool {
        matches!(
            caught(|| (self.on_update)(update)),
            Ok(ControlFlow::Continue(()))
        )
    }
}

/// What runs on the thread.
struct Worker<'m> {
    engine: Engine<'m>,
    live: HashMap<SequenceId, Live>,
    shared: &'m Shared,
}

impl<'m> Worker<'m> {
    fn run(model: &'m AutoModelForCausalLM, config: EngineConfig, shared: &'m Shared) {
        // The limits were checked before the thread started.
        if let Ok(engine) = Engine::with_config(model, config) {
            let mut worker = Self {
                engine,
                live: HashMap::new(),
                shared,
            };
            let outcome = caught(|| while worker.turn() {});
            let reason = outcome.err().unwrap_or_default();
            for (_, mut live) in worker.live.drain() {
                let reason = reason.clone();
                live.send(Update::Failed(LlmError::PassFailed { reason }));
            }
        }

        let mut inbox = shared.inbox();
        inbox.has_ended = true;
        inbox.unfinished = 0;
        inbox.state.running = 0;
        let arrivals = std::mem::take(&mut inbox.arrivals);
        drop(inbox);
        arrivals.into_iter().for_each(end);
    }

    /// Takes what has arrived and runs one pass. Sleeps first if there is nothing to do. False: all
    /// is done.
    fn turn(&mut self) -> bool {
        let (arrivals, stops_at) = self.next_arrivals();
        for Arrival {
            prepared,
            on_update,
            is_cancelled,
        } in arrivals
        {
            let id = self.engine.add_prepared(prepared);
            let live = Live {
                on_update,
                is_cancelled,
            };
            self.live.insert(id, live);
        }

        let is_over = stops_at.is_some_and(|at| at <= Instant::now());
        self.cancel(|live| is_over || live.is_cancelled.load(Ordering::Acquire));
        let events: Vec<_> = self.engine.step().collect();
        for event in events {
            let has_ended = matches!(event.update, Update::Finished(_) | Update::Failed(_));
            let Some(live) = self.live.get_mut(&event.id) else {
                continue;
            };
            let is_wanted = live.send(event.update);
            if has_ended || !is_wanted {
                self.live.remove(&event.id);
                self.engine.cancel(event.id);
            }
        }

        self.publish();
        stops_at.is_none() || !self.engine.is_idle()
    }

    /// Waits while there is nothing to do; the requests that have arrived, and when to stop.
    fn next_arrivals(&self) -> (Vec<Arrival>, Option<Instant>) {
        let mut inbox = self.shared.inbox();
        while self.engine.is_idle() && inbox.arrivals.is_empty() && inbox.stops_at.is_none() {
            let woken = self.shared.changed.wait(inbox);
            inbox = woken.unwrap_or_else(PoisonError::into_inner);
        }

        (std::mem::take(&mut inbox.arrivals), inbox.stops_at)
    }

    /// Cancels sequences and tells their receivers.
    fn cancel(&mut self, is_due: impl Fn(&Live) -> bool) {
        let due = self.live.extract_if(|_, live| is_due(live));
        let due: Vec<(SequenceId, Live)> = due.collect();
        for (id, mut live) in due {
            if let Some(generated) = self.engine.cancel(id) {
                live.send(Update::Finished(generated));
            }
        }
    }

    fn publish(&self) {
        let state = self.engine.state();
        let mut inbox = self.shared.inbox();
        inbox.unfinished = state.running + state.waiting + inbox.arrivals.len();
        inbox.state = state;
    }
}

/// Ends a request that never ran.
fn end(arrival: Arrival) {
    let mut live = Live {
        on_update: arrival.on_update,
        is_cancelled: arrival.is_cancelled,
    };
    live.send(Update::Finished(arrival.prepared.into_cancelled()));
}
