//! One sequence: its sampler, its stop strings, and why it ended.

use super::constraint::Constraint;
use super::draft::draft;
use super::logprobs::{Distribution, Logprob};
use super::request::Request;
use super::sampler::Sampler;
use super::stop::StopStrings;
use super::text_stream::TextStream;
use super::{FinishReason, Generated, GenerationConfig, Piece, Timing};
use crate::error::{LlmError, Result};
use crate::model::AutoModelForCausalLM;
use llm_int8_decoder::Logits;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// A request that was checked and encoded. It does not borrow the model, so that a request can be
/// refused on another thread than the one that runs it.
#[derive(Debug)]
pub(super) struct Prepared {
    config: Arc<GenerationConfig>,
    prompt: Vec<u32>,
    /// Maximum number of new tokens.
    most: usize,
    has_text: bool,
    logprobs: Option<usize>,
    prompt_logprobs: Option<usize>,
    pub(super) salt: Option<String>,
    constraint: Option<Constraint>,
}

impl Prepared {
    /// Checks a request and encodes its prompt.
    ///
    /// # Errors
    /// [`LlmError::Setting`]; [`LlmError::EmptyPrompt`]; [`LlmError::ContextExceeded`];
    /// [`LlmError::Decoder`] for an id beyond the vocabulary; [`LlmError::NoTokenizer`] and
    /// [`LlmError::Tokenizer`] if text is needed.
    pub(super) fn new(model: &AutoModelForCausalLM, request: Request) -> Result<Self> {
        let config = request.config.unwrap_or_else(|| model.generation_config());
        check(model, &config)?;

        let prompt = model.prompt_ids(request.prompt, &config)?;
        let (prompt, most) = fit(prompt, &config, model.decoder().spec().positions)?;
        model.decoder().check_ids(&prompt)?;
        if request.has_text || !config.stop.is_empty() {
            model.tokenizer()?;
        }

        Ok(Self {
            config: Arc::new(config),
            prompt,
            most,
            has_text: request.has_text,
            logprobs: request.logprobs,
            prompt_logprobs: request.prompt_logprobs,
            salt: request.salt,
            constraint: request.constraint,
        })
    }

    pub(super) fn prompt(&self) -> &[u32] {
        &self.prompt
    }

    /// Whether a kept beginning of the prompt may stand for it.
    pub(super) fn may_reuse(&self) -> bool {
        self.prompt_logprobs.is_none()
    }

    /// The result of a sequence that was cancelled before it ran.
    pub(super) fn into_cancelled(self) -> Generated {
        Generated {
            text: String::new(),
            ids: Vec::new(),
            finish_reason: FinishReason::Interrupted,
            timing: Timing::default(),
            cache_bytes: 0,
            prompt_logprobs: Vec::new(),
        }
    }

    /// The most tokens that the sequence may have.
    pub(super) fn most_tokens(&self) -> usize {
        self.prompt.len().saturating_add(self.most)
    }
}

/// A sequence that is being generated.
#[derive(Debug)]
pub(super) struct Sequence<'m> {
    config: Arc<GenerationConfig>,
    /// Maximum number of new tokens.
    most: usize,
    started: Instant,
    sampler: Sampler,
    constraint: Option<Constraint>,
    stream: Option<TextStream<'m>>,
    stops: Option<StopStrings<'m>>,
    /// The text so far, without what may still become a stop string.
    text: String,
    ids: Vec<u32>,
    vocabulary: usize,
    logprobs: Option<usize>,
    /// How many likely tokens are wanted for each token of the prompt.
    prompt_logprobs: Option<usize>,
    /// Of the tokens of the prompt so far, if they are wanted.
    of_prompt: Vec<Option<Logprob>>,
    finish_reason: Option<FinishReason>,
}

impl<'m> Sequence<'m> {
    /// A sequence before its first token.
    ///
    /// # Errors
    /// [`LlmError::NoTokenizer`] and [`LlmError::Tokenizer`] if text is needed.
    pub(super) fn new(model: &'m AutoModelForCausalLM, prepared: Prepared) -> Result<Self> {
        let Prepared {
            config,
            prompt,
            most,
            has_text,
            logprobs,
            prompt_logprobs,
            constraint,
            ..
        } = prepared;
        let tokenizer = match has_text || !config.stop.is_empty() {
            true => Some(model.tokenizer()?),
            false => None,
        };
        let stops = match tokenizer {
            Some(tokenizer) => StopStrings::new(&config.stop, tokenizer, &prompt)?,
            None => None,
        };

        let is_done = most == 0 && prompt_logprobs.is_none();
        Ok(Self {
            most,
            started: Instant::now(),
            sampler: Sampler::new(Arc::clone(&config), prompt, most),
            constraint,
            stream: tokenizer.filter(|_| has_text).map(TextStream::new),
            stops,
            text: String::new(),
            ids: Vec::new(),
            vocabulary: model.decoder().spec().vocab_size().max(1),
            logprobs,
            prompt_logprobs,
            of_prompt: prompt_logprobs.map(|_| None).into_iter().collect(),
            finish_reason: is_done.then_some(FinishReason::Length),
            config,
        })
    }

    /// Logits in a row.
    pub(super) fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Whether the log-probabilities of the prompt's tokens are wanted.
    pub(super) fn reads_prompt(&self) -> bool {
        self.prompt_logprobs.is_some()
    }

    /// Takes the log-probabilities of the prompt's tokens after those so far from `rows` rows of
    /// logits, and ends the sequence after the last one if it shall have no new tokens.
    pub(super) fn read_prompt(
        &mut self,
        logits: &Logits<'_>,
        rows: Range<usize>,
        is_last: bool,
    ) -> Result<()> {
        if let Some(top) = self.prompt_logprobs {
            for row in rows {
                let Some(id) = self.sampler.seen().get(self.of_prompt.len()).copied() else {
                    break;
                };
                let found = Distribution::of(logits, row, self.config.remove_invalid_values)?;
                self.of_prompt.push(Some(found.logprob(id, top)));
            }
        }

        if is_last && self.most == 0 {
            self.finish_reason = Some(FinishReason::Length);
        }
        Ok(())
    }

    /// Starts the clock of `max_time`.
    pub(super) fn start(&mut self) {
        self.started = Instant::now();
    }

    /// The prompt and the new ids so far.
    pub(super) fn all_ids(&self) -> &[u32] {
        self.sampler.seen()
    }

    /// New ids so far.
    pub(super) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Whether more tokens may come.
    pub(super) fn goes_on(&self) -> bool {
        self.finish_reason.is_none()
    }

    /// Guesses for the next tokens, to compute together with the last id.
    pub(super) fn drafts(&self) -> Vec<u32> {
        // The pass itself gives one token, so there is room for one draft less.
        let room = self.most.saturating_sub(self.ids.len() + 1);
        draft(self.sampler.seen(), self.config.speculate.min(room))
    }

    /// Chooses the next id from a row of logits. The piece that ends the sequence also holds the
    /// text that was held back.
    pub(super) fn next(&mut self, logits: &mut Logits<'_>, row: usize) -> Result<Piece> {
        // The sampler may change the row.
        let repairs = self.config.remove_invalid_values;
        let top = self.logprobs;
        let raw = top.map(|top| Ok::<_, LlmError>((Distribution::of(logits, row, repairs)?, top)));
        let raw = raw.transpose()?;

        let (id, is_complete) = self.choose(logits, row)?;
        self.ids.push(id);

        let mut text = String::new();
        if self.config.eos_token_ids.contains(&id) {
            self.finish_reason = Some(FinishReason::EndOfText);
        } else {
            let is_stopped;
            (text, is_stopped) = self.push(id)?;
            self.finish_reason = match is_complete && !is_stopped {
                true => Some(FinishReason::EndOfText),
                false => self.reason_to_end(is_stopped),
            };
        }

        if self
            .finish_reason
            .is_some_and(|reason| reason != FinishReason::StopString)
        {
            text.push_str(&self.held_back()?);
        }
        self.text.push_str(&text);

        Ok(Piece {
            id,
            text,
            logprob: raw.map(|(raw, top)| raw.logprob(id, top)),
        })
    }

    /// The next id, and whether the constraint says that the text is complete with it.
    fn choose(&mut self, logits: &mut Logits<'_>, row: usize) -> Result<(u32, bool)> {
        let Some(constraint) = &mut self.constraint else {
            return Ok((self.sampler.next(logits, row, None)?, false));
        };

        let mask = constraint.allowed()?;
        let id = self.sampler.next(logits, row, mask.as_ref())?;
        Ok((id, constraint.accept(id)?))
    }

    /// Why the sequence ends after its last id, which is not an end token; `None` if it goes on.
    fn reason_to_end(&self, is_stopped: bool) -> Option<FinishReason> {
        if is_stopped {
            Some(FinishReason::StopString)
        } else if self.ids.len() >= self.most {
            Some(FinishReason::Length)
        } else if self
            .config
            .max_time
            .is_some_and(|most| self.started.elapsed() > most)
        {
            Some(FinishReason::Time)
        } else {
            None
        }
    }

    /// Adds an id. Returns the text that can be shown now, and whether a stop string was found.
    fn push(&mut self, id: u32) -> Result<(String, bool)> {
        let text = match &mut self.stream {
            Some(stream) => stream.push(id)?,
            None => String::new(),
        };
        match &mut self.stops {
            Some(stops) => stops.push(id, text),
            None => Ok((text, false)),
        }
    }

    /// The text held back because it was an incomplete character or might have become a stop
    /// string.
    fn held_back(&mut self) -> Result<String> {
        let Some(stream) = &mut self.stream else {
            return Ok(String::new());
        };

        let text = stream.finish()?;
        match &mut self.stops {
            Some(stops) => stops.finish(text),
            None => Ok(text),
        }
    }

    /// The result. A sequence that has not ended counts as interrupted.
    pub(super) fn into_generated(self, timing: Timing, cache_bytes: u64) -> Generated {
        let finish_reason = self.finish_reason.unwrap_or(FinishReason::Interrupted);
        Generated {
            text: self.text,
            ids: self.ids,
            finish_reason,
            timing,
            cache_bytes,
            prompt_logprobs: self.of_prompt,
        }
    }
}

/// Rejects invalid settings and those that the model does not support.
fn check(model: &AutoModelForCausalLM, config: &GenerationConfig) -> Result<()> {
    config.check()?;
    config.check_vocabulary(model.decoder().spec().vocab_size())?;
    if config.speculate > 0 && !model.decoder().is_batch_invariant() {
        return Err(LlmError::Setting {
            name: "speculate",
            value: config.speculate.to_string(),
            expected: "drafts are exact only if a token does not depend on its batch: this takes outliers per row, \
                       the CPU, and rotary embeddings that do not change with the length of the sequence",
        });
    }

    Ok(())
}

/// The prompt, cut if necessary and allowed, and the maximum number of new tokens.
fn fit(
    mut prompt: Vec<u32>,
    config: &GenerationConfig,
    positions: usize,
) -> Result<(Vec<u32>, usize)> {
    if prompt.is_empty() {
        return Err(LlmError::EmptyPrompt);
    }

    let new = config.new_tokens(prompt.len(), positions)?;
    if prompt.len().saturating_add(new) <= positions {
        return Ok((prompt, new));
    }

    if config.truncate && new < positions {
        prompt.drain(..prompt.len() - prompt.len().min(positions - new));
        return Ok((prompt, new));
    }

    Err(LlmError::ContextExceeded {
        prompt: prompt.len(),
        new,
        available: positions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_cut_only_on_request_and_at_its_beginning() {
        let config = |max_new_tokens, truncate| GenerationConfig {
            max_new_tokens: Some(max_new_tokens),
            truncate,
            ..GenerationConfig::default()
        };

        let prompt = || vec![1, 2, 3, 4, 5, 6];
        assert_eq!(fit(prompt(), &config(2, false), 8).unwrap(), (prompt(), 2));
        assert_eq!(
            fit(prompt(), &config(4, true), 8).unwrap(),
            (vec![3, 4, 5, 6], 4)
        );
        let error = fit(prompt(), &config(4, false), 8).unwrap_err().to_string();
        assert!(
            error.contains("6 tokens and 4 new ones") && error.contains("`truncate`"),
            "{error}"
        );
        assert!(
            fit(prompt(), &config(8, true), 8).is_err(),
            "no room for any prompt"
        );
        assert!(matches!(
            fit(Vec::new(), &config(1, true), 8),
            Err(LlmError::EmptyPrompt)
        ));
    }
}
