//! A fixed list of prompts, several of them at once.

use super::engine::Engine;
use super::events::{Event, SequenceId, Update};
use super::request::Request;
use super::{Generated, GenerationConfig};
use crate::error::{LlmError, Result};
use crate::model::AutoModelForCausalLM;
use std::collections::{BTreeMap, VecDeque};
use std::iter::FusedIterator;

/// The default number of sequences that run at once.
const AT_ONCE: usize = 8;

/// Generates text after several prompts, batched: one read of the weights gives each running
/// sequence a token.
///
/// [`run`](Self::run) returns the results in the order of the prompts. As an iterator it yields the
/// index of a prompt with its result, in the order in which they finish:
///
/// ```
/// use llm_int8::{AutoModelForCausalLM, LoadConfig};
/// let model = AutoModelForCausalLM::from_pretrained("tiny-gpt2", &LoadConfig::default())?;
/// let long = model.generation("And it came").max_new_tokens(9);
/// let short = model.generation("ROMEO:").max_new_tokens(3);
/// let mut ended = Vec::new();
/// for result in model.generate_batch([long, short]) {
///     let (number, generated) = result?;
///     ended.push((number, generated.ids.len()));
/// }
/// assert_eq!(ended, [(1, 3), (0, 9)]);
/// # Ok::<(), llm_int8::LlmError>(())
/// ```
#[derive(Debug)]
#[must_use = "nothing is generated until it is run or iterated over"]
pub struct Batch<'m> {
    model: &'m AutoModelForCausalLM,
    requests: Vec<Request>,
    at_once: usize,
}

impl<'m> Batch<'m> {
    pub(crate) fn new(model: &'m AutoModelForCausalLM, requests: Vec<Request>) -> Self {
        Self {
            model,
            requests,
            at_once: AT_ONCE,
        }
    }

    /// Sets the configuration of the requests that have none of their own.
    pub fn config(mut self, config: GenerationConfig) -> Self {
        for request in self
            .requests
            .iter_mut()
            .filter(|request| request.config.is_none())
        {
            request.config = Some(config.clone());
        }
        self
    }

    /// Runs at most `sequences` sequences at once (default 8). When one ends, the next takes its
    /// place.
    pub fn at_once(mut self, sequences: usize) -> Self {
        self.at_once = sequences;
        self
    }

    /// Runs all prompts and returns the results in their order.
    ///
    /// # Errors
    /// As [`results`](Self::results); the first error stops all prompts.
    pub fn run(self) -> Result<Vec<Generated>> {
        let done: BTreeMap<usize, Generated> = self.results()?.collect::<Result<_>>()?;
        Ok(done.into_values().collect())
    }

    /// The results as they finish, each with the index of its prompt.
    ///
    /// # Errors
    /// [`LlmError::Prompt`] if a prompt cannot be started, with its number and the reason;
    /// [`LlmError::Setting`] if `at_once` is 0.
    pub fn results(self) -> Result<Results<'m>> {
        let mut engine = Engine::new(self.model, self.at_once)?;
        let mut numbers = BTreeMap::new();
        for (number, request) in self.requests.into_iter().enumerate() {
            let id = engine
                .add(request)
                .map_err(|error| of_prompt(number, error))?;
            numbers.insert(id, number);
        }

        Ok(Results::new(Ok(engine), numbers))
    }
}

impl<'m> IntoIterator for Batch<'m> {
    type Item = Result<(usize, Generated)>;
    type IntoIter = Results<'m>;

    /// If a prompt cannot be started, its error is the only item.
    fn into_iter(self) -> Results<'m> {
        self.results()
            .unwrap_or_else(|error| Results::new(Err(Some(error)), BTreeMap::new()))
    }
}

/// The results of a [`Batch`], in the order in which they finish. An error in one sequence does not
/// stop the others; dropping this does.
#[derive(Debug)]
#[must_use = "nothing is generated until it is iterated over"]
pub struct Results<'m> {
    /// Or the error that stopped everything, until it has been returned.
    engine: Result<Engine<'m>, Option<LlmError>>,
    /// The prompt index of each sequence that has not ended.
    numbers: BTreeMap<SequenceId, usize>,
    /// Results of the last step that have not been returned yet.
    ended: VecDeque<Result<(usize, Generated)>>,
}

impl<'m> Results<'m> {
    fn new(
        engine: Result<Engine<'m>, Option<LlmError>>,
        numbers: BTreeMap<SequenceId, usize>,
    ) -> Self {
        Self {
            engine,
            numbers,
            ended: VecDeque::new(),
        }
    }
}

impl Iterator for Results<'_> {
    type Item = Result<(usize, Generated)>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ended.is_empty() {
            let engine = match &mut self.engine {
                Ok(engine) if engine.is_idle() => return None,
                Ok(engine) => engine,
                Err(error) => return error.take().map(Err),
            };

            let numbers = &mut self.numbers;
            let ended = engine.step().filter_map(|event| result_of(event, numbers));
            self.ended.extend(ended);
        }

        self.ended.pop_front()
    }
}

impl FusedIterator for Results<'_> {}

/// The result of a sequence, if this event ends it.
fn result_of(
    event: Event,
    numbers: &mut BTreeMap<SequenceId, usize>,
) -> Option<Result<(usize, Generated)>> {
    let result = match event.update {
        Update::Started { .. } | Update::Piece(_) => return None,
        Update::Finished(generated) => Ok(generated),
        Update::Failed(error) => Err(error),
    };

    let number = numbers.remove(&event.id)?;
    Some(
        result
            .map(|generated| (number, generated))
            .map_err(|error| of_prompt(number, error)),
    )
}

/// Adds the number of the prompt, counted from 1, to an error.
fn of_prompt(number: usize, error: LlmError) -> LlmError {
    LlmError::Prompt {
        number: number + 1,
        source: Box::new(error),
    }
}
