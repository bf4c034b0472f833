//! One sequence of a request: what the engine told about it, as text, calls and a reason.

use super::random_letters;
use crate::metrics::Metrics;
use crate::reply::{ApiError, ApiResult};
use crate::tools::{Found, ToolCall, ToolFormat, ToolParser};
use llm_int8::FinishReason;
use llm_int8::generate::{Logprob, Update};
use std::collections::HashMap;
use std::time::Instant;

/// What is new about a choice.
#[derive(Debug, Clone, Default)]
pub(crate) struct Step {
    pub(crate) text: String,
    /// Calls with their ids and places.
    pub(crate) calls: Vec<(usize, String, ToolCall)>,
    pub(crate) logprobs: Vec<Logprob>,
    pub(crate) reason: Option<&'static str>,
}

impl Step {
    pub(crate) fn is_empty(&self) -> bool {
        self.text.is_empty()
            && self.calls.is_empty()
            && self.logprobs.is_empty()
            && self.reason.is_none()
    }
}

/// The state of a choice.
#[derive(Debug)]
pub(crate) struct Choice {
    pub(crate) index: usize,
    pub(crate) prompt_tokens: usize,
    pub(crate) cached_tokens: usize,
    pub(crate) new_tokens: usize,
    /// All steps together.
    pub(crate) all: Step,
    pub(crate) prompt_logprobs: Vec<Option<Logprob>>,
    tools: Option<Tools>,
    last_token: Option<Instant>,
}

/// How calls are found.
#[derive(Debug)]
pub(crate) struct Tools {
    pub(crate) format: ToolFormat,
    pub(crate) parser: ToolParser,
    /// Special tokens that text leaves out, with their texts.
    pub(crate) marks: HashMap<u32, &'static str>,
    /// Whether one call ends the choice.
    pub(crate) is_single: bool,
}

impl Choice {
    pub(crate) fn new(index: usize, tools: Option<Tools>) -> Self {
        Self {
            index,
            prompt_tokens: 0,
            cached_tokens: 0,
            new_tokens: 0,
            all: Step::default(),
            prompt_logprobs: Vec::new(),
            tools,
            last_token: None,
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.all.reason.is_some()
    }

    /// Takes an update.
    ///
    /// # Errors
    /// 500 if the sequence failed, 503 if the server ended it.
    pub(crate) fn take(
        &mut self,
        update: Update,
        began: Instant,
        metrics: &Metrics,
    ) -> ApiResult<Step> {
        let mut step = Step::default();
        match update {
            // After a single call nothing more is wanted.
            _ if self.has_ended() => return Ok(step),
            Update::Started {
                prompt_tokens,
                reused_tokens,
            } => {
                self.prompt_tokens = prompt_tokens;
                self.cached_tokens = reused_tokens;
            }
            Update::Piece(piece) => {
                self.count_token(began, metrics);
                step.logprobs.extend(piece.logprob);
                let mark = self.tools.as_ref().and_then(|t| t.marks.get(&piece.id));
                let text = format!("{}{}", piece.text, mark.copied().unwrap_or_default());
                let found = match &mut self.tools {
                    Some(tools) => tools.parser.push(&text),
                    None => vec![Found::Text(text)],
                };
                self.add(found, &mut step);
                if self
                    .tools
                    .as_ref()
                    .is_some_and(|t| t.is_single && t.parser.calls() > 0)
                {
                    step.reason = Some("tool_calls");
                }
            }
            Update::Finished(generated) => {
                let rest = self.tools.as_mut().map(|tools| tools.parser.finish());
                self.add(rest.unwrap_or_default(), &mut step);
                self.new_tokens = generated.ids.len();
                self.prompt_logprobs = generated.prompt_logprobs;
                step.reason = Some(self.reason(generated.finish_reason, &step)?);
            }
            Update::Failed(error) => return Err(ApiError::internal(error)),
        }

        if let Some(reason) = step.reason {
            metrics.finished(reason, began.elapsed());
        }
        self.remember(&step);
        Ok(step)
    }

    fn count_token(&mut self, began: Instant, metrics: &Metrics) {
        self.new_tokens += 1;
        let now = Instant::now();
        match self.last_token.replace(now) {
            None => metrics.first_token(now - began),
            Some(before) => metrics.next_token(now - before),
        }
    }

    fn add(&self, found: Vec<Found>, step: &mut Step) {
        let first = self.all.calls.len();
        for one in found {
            match one {
                Found::Text(text) => step.text.push_str(&text),
                Found::Call(call) => {
                    let place = first + step.calls.len();
                    let is_one_too_many =
                        self.tools.as_ref().is_some_and(|t| t.is_single) && place > 0;
                    if !is_one_too_many {
                        step.calls.push((place, self.call_id(), call));
                    }
                }
            }
        }
    }

    /// An id for a call. Mistral's templates take nine letters and nothing else.
    fn call_id(&self) -> String {
        match self.tools.as_ref().map(|tools| tools.format) {
            Some(ToolFormat::Mistral) => random_letters(9),
            _ => format!("call_{}", random_letters(24)),
        }
    }

    fn reason(&self, reason: FinishReason, step: &Step) -> ApiResult<&'static str> {
        let has_calls = !self.all.calls.is_empty() || !step.calls.is_empty();
        match reason {
            FinishReason::EndOfText | FinishReason::StopString if has_calls => Ok("tool_calls"),
            FinishReason::EndOfText | FinishReason::StopString => Ok("stop"),
            FinishReason::Length | FinishReason::Time => Ok("length"),
            FinishReason::Interrupted => Err(ApiError::draining()),
        }
    }

    fn remember(&mut self, step: &Step) {
        self.all.text.push_str(&step.text);
        self.all.calls.extend_from_slice(&step.calls);
        self.all.logprobs.extend_from_slice(&step.logprobs);
        self.all.reason = step.reason.or(self.all.reason);
    }
}
