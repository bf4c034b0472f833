//! One sequence while it grows: its sampler, its stop strings, and why it ended.

use super::draft::draft;
use super::request::Request;
use super::sampler::Sampler;
use super::stop::StopStrings;
use super::text_stream::TextStream;
use super::{FinishReason, Generated, GenerationConfig, Piece, Timing};
use crate::error::{LlmError, Result};
use crate::model::AutoModelForCausalLM;
use llm_int8_decoder::Logits;
use std::sync::Arc;
use std::time::Instant;

/// A sequence that grows.
#[derive(Debug)]
pub(super) struct Sequence<'m> {
    config: Arc<GenerationConfig>,
    /// New tokens at most.
    most: usize,
    started: Instant,
    sampler: Sampler,
    stream: Option<TextStream<'m>>,
    stops: Option<StopStrings<'m>>,
    /// The text so far, less what may still become a stop string.
    text: String,
    ids: Vec<u32>,
    finish_reason: Option<FinishReason>,
}

impl<'m> Sequence<'m> {
    /// Before its first token.
    ///
    /// # Errors
    /// [`LlmError::Setting`]; [`LlmError::EmptyPrompt`]; [`LlmError::ContextExceeded`];
    /// [`LlmError::Decoder`] for an id beyond the vocabulary; [`LlmError::NoTokenizer`] and
    /// [`LlmError::Tokenizer`] where text is needed.
    pub(super) fn new(model: &'m AutoModelForCausalLM, request: Request) -> Result<Self> {
        let Request {
            prompt,
            config,
            has_text,
        } = request;
        let config = Arc::new(config.unwrap_or_else(|| model.generation_config()));
        check(model, &config)?;

        let prompt = model.prompt_ids(prompt, &config)?;
        let (prompt, most) = fit(prompt, &config, model.decoder().spec().positions)?;
        model.decoder().check_ids(&prompt)?;

        let needs_tokenizer = has_text || !config.stop.is_empty();
        let tokenizer = if needs_tokenizer {
            Some(model.tokenizer()?)
        } else {
            None
        };

        let stops = match tokenizer {
            Some(tokenizer) => StopStrings::new(&config.stop, tokenizer, &prompt)?,
            None => None,
        };

        Ok(Self {
            most,
            started: Instant::now(),
            sampler: Sampler::new(Arc::clone(&config), prompt, most),
            stream: tokenizer.filter(|_| has_text).map(TextStream::new),
            stops,
            text: String::new(),
            ids: Vec::new(),
            finish_reason: (most == 0).then_some(FinishReason::Length),
            config,
        })
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

    /// What may come next, to be computed together with the last id.
    pub(super) fn drafts(&self) -> Vec<u32> {
        // The last token is chosen, but not fed to the model.
        let room = self.most.saturating_sub(self.ids.len() + 1);
        draft(self.sampler.seen(), self.config.speculate.min(room))
    }

    /// Chooses the next id by a row of logits. The piece that ends the sequence holds the text kept
    /// back so far.
    pub(super) fn next(&mut self, logits: &mut Logits<'_>, row: usize) -> Result<Piece> {
        let id = self.sampler.next(logits, row)?;
        self.ids.push(id);

        let mut text = String::new();
        if self.config.eos_token_ids.contains(&id) {
            self.finish_reason = Some(FinishReason::EndOfText);
        } else {
            let is_stopped;
            (text, is_stopped) = self.push(id)?;
            self.finish_reason = self.reason_to_end(is_stopped);
        }

        if self
            .finish_reason
            .is_some_and(|reason| reason != FinishReason::StopString)
        {
            text.push_str(&self.kept_back()?);
        }
        self.text.push_str(&text);

        Ok(Piece { id, text })
    }

    /// Why it ends after the last id, which is no end token.
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

    /// The text that can be shown after one more id, and whether a stop string was met.
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

    /// What was kept back in case it became a character or a stop string.
    fn kept_back(&mut self) -> Result<String> {
        let Some(stream) = &mut self.stream else {
            return Ok(String::new());
        };

        let text = stream.finish()?;
        match &mut self.stops {
            Some(stops) => stops.finish(text),
            None => Ok(text),
        }
    }

    /// What came of it; one that has not ended was interrupted.
    pub(super) fn into_generated(self, timing: Timing, cache_bytes: u64) -> Generated {
        let finish_reason = self.finish_reason.unwrap_or(FinishReason::Interrupted);
        Generated {
            text: self.text,
            ids: self.ids,
            finish_reason,
            timing,
            cache_bytes,
        }
    }
}

/// Refuses settings without sense and those that the model cannot follow.
fn check(model: &AutoModelForCausalLM, config: &GenerationConfig) -> Result<()> {
    config.check()?;
    config.check_vocabulary(model.decoder().spec().vocab_size())?;
    if config.speculate > 0 && !model.decoder().is_batch_invariant() {
        return Err(LlmError::Setting {
            name: "speculate",
            value: config.speculate.to_string(),
            expected: "drafts are exact only where a token does not depend on its batch: look for outliers per row, \
                       on the CPU, and not with rotations that change with the length of the text",
        });
    }

    Ok(())
}

/// The part of the prompt that leaves room for the new tokens, and how many there may be.
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
    fn a_prompt_is_cut_at_its_beginning_only_when_that_is_asked_for() {
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
