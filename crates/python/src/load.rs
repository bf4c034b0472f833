//! Loading on a thread of its own, while the caller's thread shows progress and looks for signals.

use crate::error::of_llm;
use crate::runtime::PERIOD;
use llm_int8::decoder::LoadEvent;
use llm_int8::hub::{Progress, ProgressEvent};
use llm_int8::{AutoModelForCausalLM, LlmError, LoadConfig};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;

/// Progress: what, how many since the last time, and of how many.
struct Step {
    what: String,
    advance: u64,
    total: Option<u64>,
}

enum Message<T> {
    Step(Step),
    /// The end; none if it was cancelled or crashed.
    Done(Option<Result<T, LlmError>>),
}

/// Where the loading thread reports to. It unwinds out of the work once nobody waits for it: neither
/// downloads nor loading can be told to stop otherwise.
struct Reporter<T> {
    sender: Sender<Message<T>>,
    is_cancelled: Arc<AtomicBool>,
}

/// What the loading thread unwinds with.
struct Cancelled;

impl<T> Reporter<T> {
    fn step(&self, what: &str, advance: u64, total: Option<u64>) {
        if self.is_cancelled.load(Ordering::Relaxed) {
            // Unlike a panic, this prints nothing.
            resume_unwind(Box::new(Cancelled));
        }
        let step = Step {
            what: what.to_owned(),
            advance,
            total,
        };
        // The receiver is gone if the caller was interrupted; the next step ends the work.
        let _ = self.sender.send(Message::Step(step));
    }
}

impl<T: Send> Progress for Reporter<T> {
    fn event(&self, event: &ProgressEvent<'_>) {
        match event {
            ProgressEvent::Start {
                file,
                total,
                resumed_from,
            } => self.step(file, *resumed_from, *total),
            ProgressEvent::Advance { file, bytes } => self.step(file, *bytes, None),
            _ => self.step("", 0, None),
        }
    }
}

/// Loads a model. `progress` is called as `progress(what, advance, total)`: bytes of a file, or modules
/// (`what` is "modules").
pub(crate) fn model(
    py: Python<'_>,
    name: String,
    config: LoadConfig,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<AutoModelForCausalLM> {
    run(py, progress, move |reporter| {
        let on_module = &mut |event: LoadEvent<'_>| {
            reporter.step("modules", 1, Some(event.total as u64));
        };
        AutoModelForCausalLM::from_pretrained_with(&name, &config, reporter, on_module)
    })
}

/// [`model`] without its weights.
pub(crate) fn plan(
    py: Python<'_>,
    name: String,
    config: LoadConfig,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<llm_int8::ModelPlan> {
    run(py, progress, move |reporter| {
        AutoModelForCausalLM::plan(&name, &config, reporter)
    })
}

/// Runs `work` on a thread and waits for it. If a signal handler or `progress` raises, the thread is
/// told to stop at its next step and not waited for.
fn run<T: Send + 'static>(
    py: Python<'_>,
    progress: Option<&Bound<'_, PyAny>>,
    work: impl FnOnce(&Reporter<T>) -> Result<T, LlmError> + Send + 'static,
) -> PyResult<T>
where
    Reporter<T>: Progress,
{
    let (sender, receiver) = channel();
    let is_cancelled = Arc::new(AtomicBool::new(false));
    let reporter = Reporter {
        sender,
        is_cancelled: Arc::clone(&is_cancelled),
    };

    let thread = thread::Builder::new().name("llm-int8 loading".into());
    let spawned = thread.spawn(move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| work(&reporter)));
        // Nobody listens after an interruption.
        let _ = reporter.sender.send(Message::Done(outcome.ok()));
    });
    spawned.map_err(|cause| PyRuntimeError::new_err(format!("no thread can start: {cause}")))?;

    let outcome = wait(py, progress, receiver);
    is_cancelled.store(true, Ordering::Relaxed);
    outcome
}

fn wait<T: Send>(
    py: Python<'_>,
    progress: Option<&Bound<'_, PyAny>>,
    receiver: Receiver<Message<T>>,
) -> PyResult<T> {
    let mut receiver = receiver;
    loop {
        let received;
        (received, receiver) = py.detach(move || (receiver.recv_timeout(PERIOD), receiver));
        match received {
            Ok(Message::Step(step)) => {
                if let (Some(progress), false) = (progress, step.what.is_empty()) {
                    progress.call1((step.what, step.advance, step.total))?;
                }
            }
            Ok(Message::Done(Some(outcome))) => return outcome.map_err(of_llm),
            Ok(Message::Done(None)) | Err(RecvTimeoutError::Disconnected) => {
                let text = "the thread that loads the model has crashed";
                return Err(PyRuntimeError::new_err(text));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        py.check_signals()?;
    }
}
