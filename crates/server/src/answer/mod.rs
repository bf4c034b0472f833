//! Answers: what the engine says about the sequences of a request, as JSON or as a stream of events.

mod chat;
mod choice;
mod completion;
mod events;
mod logprobs;
mod whole;

pub(crate) use chat::ChatStyle;
pub(crate) use choice::{Choice, Step, Tools};
pub(crate) use completion::{CompletionStyle, Echo};
pub(crate) use events::Events;
pub(crate) use whole::collect;

use crate::metrics::Metrics;
use crate::model::Loaded;
use crate::reply::{ApiError, ApiResult};
use llm_int8::generate::{OnUpdate, Request, SequenceHandle, SubmitError, Update};
use serde_json::{Map, Value, json};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// Sequences that the engine has taken, and the channel on which it tells about them. Dropping this
/// cancels those that run: that is what happens when a client goes.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) updates: UnboundedReceiver<(usize, Update)>,
    pub(crate) handles: Vec<SequenceHandle>,
    pub(crate) began: Instant,
}

impl Submission {
    /// Gives the sequences of a request to the engine, all or none.
    ///
    /// # Errors
    /// 429 if the queue is full, 503 if the server is being shut down, 400 about the field `param`
    /// if a sequence cannot be run.
    pub(crate) fn new(loaded: &Loaded, requests: Vec<Request>, param: &str) -> ApiResult<Self> {
        // The length of what waits here is bounded by the tokens that were asked for.
        let (sender, updates) = unbounded_channel();
        let with_callback = |(index, request): (usize, Request)| {
            let sender = sender.clone();
            let tell: OnUpdate = Box::new(move |update| match sender.send((index, update)) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            });
            (request, tell)
        };
        let requests = requests
            .into_iter()
            .enumerate()
            .map(with_callback)
            .collect();
        let handles = loaded.service.submit_all(requests);
        let handles = handles.map_err(|error| match error {
            SubmitError::Full { waiting } => ApiError::queue_full(waiting),
            SubmitError::Stopped => ApiError::draining(),
            SubmitError::Invalid(error) => invalid(loaded, error, param),
            other => ApiError::internal(other),
        })?;

        Ok(Self {
            updates,
            handles,
            began: Instant::now(),
        })
    }
}

fn invalid(loaded: &Loaded, error: llm_int8::LlmError, param: &str) -> ApiError {
    match error {
        llm_int8::LlmError::CacheExceeded { tokens, .. } => {
            ApiError::context(param, loaded.context, tokens, 0)
        }
        error => ApiError::of_model(error, param),
    }
}

/// What is the same in all parts of an answer.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) loaded: Arc<Loaded>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Head {
    pub(crate) fn new(prefix: &str, loaded: Arc<Loaded>, metrics: Arc<Metrics>) -> Self {
        Self {
            id: format!("{prefix}-{}", random_letters(24)),
            created: crate::model::now(),
            loaded,
            metrics,
        }
    }

    /// An object of this kind with these choices.
    pub(crate) fn object(&self, kind: &str, choices: Vec<Value>) -> Map<String, Value> {
        let mut object = Map::new();
        object.insert("id".into(), json!(self.id));
        object.insert("object".into(), json!(kind));
        object.insert("created".into(), json!(self.created));
        object.insert("model".into(), json!(self.loaded.id));
        object.insert("system_fingerprint".into(), json!(self.loaded.fingerprint));
        object.insert("choices".into(), Value::Array(choices));
        object
    }
}

/// How an endpoint writes its answers.
pub(crate) trait Style: Send + Sync + Unpin + 'static {
    /// Chunks with which a stream begins, before anything is computed.
    fn opening(&self, head: &Head, choices: usize) -> Vec<Map<String, Value>>;

    /// Chunks of a step.
    fn chunks(&self, head: &Head, choice: &Choice, step: &Step) -> Vec<Map<String, Value>>;

    /// The kind of the chunk with the usage.
    fn chunk_kind(&self) -> &'static str;

    /// The whole answer, of steps that [`Choice::all`] has put together.
    fn whole(&self, head: &Head, choices: &[Choice]) -> Map<String, Value>;
}

/// Tokens that a request has used. Choices of one prompt share it, so it counts once.
pub(crate) fn usage(choices: &[Choice], per_prompt: usize) -> Value {
    let prompts = choices.iter().step_by(per_prompt.max(1));
    let (mut prompt, mut cached) = (0, 0);
    for choice in prompts {
        prompt += choice.prompt_tokens;
        cached += choice.cached_tokens;
    }
    let new: usize = choices.iter().map(|choice| choice.new_tokens).sum();
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": { "cached_tokens": cached },
    })
}

/// Random letters and digits, for ids.
pub(crate) fn random_letters(count: usize) -> String {
    use rand::Rng;
    use rand::distr::Alphanumeric;
    let letters = rand::rng().sample_iter(Alphanumeric);
    letters.take(count).map(char::from).collect()
}
