//! Generation after one prompt: the builder, and the iterator over its pieces.

use super::request::{Prompt, Request};
use super::running::{Context, Running, pass};
use super::sequence::{Prepared, Sequence};
use super::{Event, FinishReason, Generated, GenerationConfig, Piece, SequenceId, Update};
use crate::error::{LlmError, Result};
use crate::model::AutoModelForCausalLM;
use std::collections::VecDeque;
use std::iter::FusedIterator;

/// Generates text after a prompt, with the settings of the model's files and what is set here.
///
/// [`run`](Self::run) returns everything at the end. As an iterator it yields each token as soon as
/// it is computed:
///
/// ```
/// use llm_int8::{AutoModelForCausalLM, LoadConfig};
/// let model = AutoModelForCausalLM::from_pretrained("tiny-gpt2", &LoadConfig::default())?;
/// let mut text = String::new();
/// for piece in model.generation("ROMEO:").max_new_tokens(20) {
///     text.push_str(&piece?.text);
/// }
/// assert_eq!(text, model.generation("ROMEO:").max_new_tokens(20).run()?.text);
/// # Ok::<(), llm_int8::LlmError>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is generated until it is run or iterated over"]
pub struct Generation<'m> {
    model: &'m AutoModelForCausalLM,
    prompt: Prompt,
    config: GenerationConfig,
    has_text: bool,
}

impl<'m> Generation<'m> {
    pub(crate) fn new(model: &'m AutoModelForCausalLM, prompt: Prompt) -> Self {
        Self {
            model,
            prompt,
            config: model.generation_config(),
            has_text: true,
        }
    }

    /// Replaces all settings.
    pub fn config(mut self, config: GenerationConfig) -> Self {
        self.config = config;
        self
    }

    /// Generates at most `tokens` new tokens.
    pub fn max_new_tokens(mut self, tokens: usize) -> Self {
        self.config.max_new_tokens = Some(tokens);
        self
    }

    /// Samples, with logits divided by `temperature`. 0 means greedy decoding: always the most
    /// likely token.
    pub fn temperature(mut self, temperature: f64) -> Self {
        self.config.do_sample = temperature != 0.0;
        if self.config.do_sample {
            self.config.temperature = temperature;
        }

        self
    }

    /// Sets the random seed; the same seed gives the same text.
    pub fn seed(mut self, seed: u64) -> Self {
        self.config.seed = seed;
        self
    }

    /// Adds a stop string: it ends generation and is not part of the text.
    pub fn stop(mut self, text: impl Into<String>) -> Self {
        self.config.stop.push(text.into());
        self
    }

    /// Produces only ids, no text. This needs a tokenizer only if there are stop strings.
    pub fn ids_only(mut self) -> Self {
        self.has_text = false;
        self
    }

    /// Generates everything.
    ///
    /// # Errors
    /// [`LlmError::Setting`] for an invalid setting; [`LlmError::EmptyPrompt`];
    /// [`LlmError::ContextExceeded`] if the prompt leaves no room for the new tokens;
    /// [`LlmError::NoTokenizer`] and [`LlmError::Tokenizer`]; [`LlmError::Decoder`] for ids beyond
    /// the vocabulary; [`LlmError::BadLogits`] if the model's numbers overflow.
    pub fn run(self) -> Result<Generated> {
        let mut pieces = self.pieces()?;
        for piece in &mut pieces {
            piece?;
        }

        pieces.finish()
    }

    /// Generates piece by piece. Afterwards [`Pieces::finish`] returns the whole result:
    ///
    /// ```
    /// use llm_int8::{AutoModelForCausalLM, FinishReason, LoadConfig};
    /// let model = AutoModelForCausalLM::from_pretrained("tiny-gpt2", &LoadConfig::default())?;
    /// let mut pieces = model.generation("ROMEO:").max_new_tokens(8).pieces()?;
    /// let ids: Vec<u32> = pieces.by_ref().map(|piece| Ok(piece?.id)).collect::<llm_int8::Result<_>>()?;
    /// let generated = pieces.finish()?;
    /// assert_eq!((generated.ids, generated.finish_reason), (ids, FinishReason::Length));
    /// # Ok::<(), llm_int8::LlmError>(())
    /// ```
    ///
    /// # Errors
    /// As [`run`](Self::run), if generation cannot start.
    pub fn pieces(self) -> Result<Pieces<'m>> {
        let context = Context::new(self.model.decoder());
        self.pieces_in(context)
    }

    /// [`pieces`](Self::pieces), with a context that may already hold the beginning of the prompt.
    pub(crate) fn pieces_in(self, context: Context) -> Result<Pieces<'m>> {
        let model = self.model;
        let sequence = Sequence::new(model, Prepared::new(model, self.into_request())?)?;
        let running = Running::new(SequenceId::ALONE, sequence, context);
        Ok(Pieces::new(model, State::Begun(Box::new(running))))
    }

    pub(super) fn into_request(self) -> Request {
        let request = Request::new(self.prompt).config(self.config);
        match self.has_text {
            true => request,
            false => request.ids_only(),
        }
    }
}

impl<'m> IntoIterator for Generation<'m> {
    type Item = Result<Piece>;
    type IntoIter = Pieces<'m>;

    /// If generation cannot start, the error is the only item.
    fn into_iter(self) -> Pieces<'m> {
        let model = self.model;
        self.pieces()
            .unwrap_or_else(|error| Pieces::new(model, State::Failed(Some(error))))
    }
}

/// The pieces of a [`Generation`], one for each new id, computed on demand. Dropping this stops
/// generation.
#[derive(Debug)]
#[must_use = "nothing is generated until it is iterated over"]
pub struct Pieces<'m> {
    model: &'m AutoModelForCausalLM,
    state: State<'m>,
    /// Events of the last pass that have not been returned yet.
    events: VecDeque<Event>,
    /// Ids that were returned.
    returned_ids: usize,
    /// Bytes of text that were returned.
    returned_bytes: usize,
}

#[derive(Debug)]
enum State<'m> {
    /// Running or ended.
    Begun(Box<Running<'m>>),
    /// The error, until it has been returned.
    Failed(Option<LlmError>),
}

impl<'m> Pieces<'m> {
    fn new(model: &'m AutoModelForCausalLM, state: State<'m>) -> Self {
        Self {
            model,
            state,
            events: VecDeque::new(),
            returned_ids: 0,
            returned_bytes: 0,
        }
    }

    /// Stops generation and returns the result of the pieces so far. The reason is
    /// [`FinishReason::Interrupted`] if the sequence had not ended by itself.
    ///
    /// # Errors
    /// The error that kept generation from starting; [`LlmError::Interrupted`] if the iterator has
    /// already returned the error that stopped it.
    pub fn finish(self) -> Result<Generated> {
        Ok(self.finish_in_context()?.0)
    }

    /// [`finish`](Self::finish), with the context for the next turn.
    pub(crate) fn finish_in_context(self) -> Result<(Generated, Context)> {
        let running = match self.state {
            State::Begun(running) => *running,
            State::Failed(error) => return Err(error.unwrap_or(LlmError::Interrupted)),
        };
        let (mut generated, context) = running.finish();
        if self.returned_ids < generated.ids.len() {
            // Drop accepted drafts that the caller did not take.
            generated.finish_reason = FinishReason::Interrupted;
            generated.ids.truncate(self.returned_ids);
            generated.text.truncate(self.returned_bytes);
            generated.timing.decoded_tokens = self.returned_ids.saturating_sub(1);
        }

        Ok((generated, context))
    }

    fn fail(&mut self, error: LlmError) -> Option<Result<Piece>> {
        self.state = State::Failed(None);
        Some(Err(error))
    }
}

impl Iterator for Pieces<'_> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Result<Piece>> {
        loop {
            match self.events.pop_front().map(|event| event.update) {
                Some(Update::Piece(piece)) => {
                    self.returned_ids += 1;
                    self.returned_bytes += piece.text.len();
                    return Some(Ok(piece));
                }
                Some(Update::Failed(error)) => return self.fail(error),
                Some(Update::Started { .. } | Update::Finished(_)) | None => {}
            }

            let done = match &mut self.state {
                State::Begun(running) if running.goes_on() => {
                    // All of the prompt in one pass: with outliers per batch, the result depends on
                    // what is computed together.
                    running.plan(usize::MAX);
                    let alone = std::slice::from_mut(running.as_mut());
                    pass(self.model.decoder(), alone, &mut self.events)
                }
                State::Begun(_) => return None,
                State::Failed(error) => return error.take().map(Err),
            };
            if let Err(error) = done {
                return self.fail(error);
            }
        }
    }
}

impl FusedIterator for Pieces<'_> {}
