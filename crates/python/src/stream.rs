//! Text piece by piece: a Python iterator over a thread that generates.

use crate::error::of_llm;
use crate::generated::Generated;
use crate::runtime::PERIOD;
use llm_int8::{AutoModelForCausalLM, GenerationConfig, LlmError, Prompt};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// The text of a generation as it appears, piece by piece. One more token than was taken is computed
/// ahead; to drop the iterator, or `close()`, ends the generation.
#[pyclass(frozen, module = "llm_int8")]
pub(crate) struct Stream(Mutex<State>);

struct State {
    /// None once everything was taken, or after `close()`.
    receiver: Option<Receiver<Message>>,
    generated: Option<Py<Generated>>,
}

enum Message {
    Text(String),
    Failed(LlmError),
    Done(Box<llm_int8::Generated>),
}

/// Starts to generate.
///
/// # Errors
/// Those of the settings and the prompt come with the first piece; `RuntimeError` if no thread can
/// start.
pub(crate) fn start(
    model: Arc<AutoModelForCausalLM>,
    prompt: Prompt,
    config: GenerationConfig,
) -> PyResult<Stream> {
    let (sender, receiver) = sync_channel(0);
    let thread = thread::Builder::new().name("llm-int8 stream".into());
    thread
        .spawn(move || generate(&model, prompt, config, &sender))
        .map_err(|cause| PyRuntimeError::new_err(format!("no thread can start: {cause}")))?;

    Ok(Stream(Mutex::new(State {
        receiver: Some(receiver),
        generated: None,
    })))
}

/// Generates until the end or until nobody listens.
fn generate(
    model: &AutoModelForCausalLM,
    prompt: Prompt,
    config: GenerationConfig,
    sender: &SyncSender<Message>,
) {
    let last = match pieces(model, prompt, config, sender) {
        Ok(generated) => Message::Done(Box::new(generated)),
        Err(error) => Message::Failed(error),
    };
    // Nobody listens any more: the stream was dropped.
    let _ = sender.send(last);
}

fn pieces(
    model: &AutoModelForCausalLM,
    prompt: Prompt,
    config: GenerationConfig,
    sender: &SyncSender<Message>,
) -> llm_int8::Result<llm_int8::Generated> {
    let mut pieces = model.generation(prompt).config(config).pieces()?;
    for piece in &mut pieces {
        let text = piece?.text;
        if !text.is_empty() && sender.send(Message::Text(text)).is_err() {
            break;
        }
    }
    pieces.finish()
}

#[pymethods]
impl Stream {
    fn __iter__(this: Py<Self>) -> Py<Self> {
        this
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<String>> {
        loop {
            let received = py.detach(|| {
                let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                let receiver = state.receiver.as_ref();
                receiver.map(|receiver| receiver.recv_timeout(PERIOD))
            });
            let ended = match received {
                None => return Ok(None),
                Some(Ok(Message::Text(text))) => return Ok(Some(text)),
                Some(Err(RecvTimeoutError::Timeout)) => {
                    py.check_signals()?;
                    continue;
                }
                Some(Ok(Message::Done(generated))) => {
                    Ok(Some(Py::new(py, Generated::from(*generated))?))
                }
                Some(Ok(Message::Failed(error))) => Err(of_llm(error)),
                Some(Err(RecvTimeoutError::Disconnected)) => {
                    Err(PyRuntimeError::new_err("the generating thread has crashed"))
                }
            };

            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.receiver = None;
            state.generated = ended?;
            return Ok(None);
        }
    }

    /// The whole result, once the stream has ended by itself; None before.
    #[getter]
    fn generated(&self, py: Python<'_>) -> Option<Py<Generated>> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.generated.as_ref().map(|one| one.clone_ref(py))
    }

    /// Ends the generation.
    fn close(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.receiver = None;
    }
}
