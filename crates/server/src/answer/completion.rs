//! Answers of `/v1/completions`.

use super::chat::set;
use super::{Choice, Head, Step, Style, logprobs, usage};
use llm_int8::generate::Logprob;
use serde_json::{Map, Value, json};

/// A prompt that is repeated in the answer.
#[derive(Debug)]
pub(crate) struct Echo {
    pub(crate) text: String,
    pub(crate) ids: Vec<u32>,
}

#[derive(Debug)]
pub(crate) struct CompletionStyle {
    pub(crate) has_logprobs: bool,
    /// The prompts, if they are to be repeated.
    pub(crate) echo: Option<Vec<Echo>>,
    /// Choices of each prompt.
    pub(crate) per_prompt: usize,
}

const KIND: &str = "text_completion";

impl CompletionStyle {
    fn echo(&self, index: usize) -> Option<&Echo> {
        self.echo.as_ref()?.get(index / self.per_prompt.max(1))
    }

    fn logprobs(&self, head: &Head, choice: &Choice, new: &[Logprob], offset: usize) -> Value {
        let Ok(tokenizer) = head.loaded.tokenizer() else {
            return Value::Null;
        };
        if !self.has_logprobs {
            return Value::Null;
        }

        let echo = self.echo(choice.index).map_or(&[][..], |echo| &echo.ids);
        let known = choice.prompt_logprobs.iter().map(Option::as_ref);
        let known = known.chain(std::iter::repeat(None));
        let prompt = echo.iter().copied().zip(known);
        let all: Vec<_> = prompt
            .chain(new.iter().map(|one| (one.id, Some(one))))
            .collect();
        logprobs::of_completion(tokenizer, &all, offset)
    }

    fn chunk(head: &Head, index: usize, text: &str) -> Map<String, Value> {
        let choice = json!({
            "index": index, "text": text, "logprobs": null, "finish_reason": null,
        });
        head.object(KIND, vec![choice])
    }
}

impl Style for CompletionStyle {
    fn opening(&self, head: &Head, choices: usize) -> Vec<Map<String, Value>> {
        let echo = |index: usize| Some(Self::chunk(head, index, &self.echo(index)?.text));
        (0..choices).filter_map(echo).collect()
    }

    fn chunks(&self, head: &Head, choice: &Choice, step: &Step) -> Vec<Map<String, Value>> {
        let mut chunk = Self::chunk(head, choice.index, &step.text);
        if self.has_logprobs && !step.logprobs.is_empty() {
            let text = &choice.all.text;
            let before = text
                .chars()
                .count()
                .saturating_sub(step.text.chars().count());
            let values = self.logprobs(head, choice, &step.logprobs, before);
            set(&mut chunk, "logprobs", values);
        }
        if let Some(reason) = step.reason {
            set(&mut chunk, "finish_reason", json!(reason));
        }
        vec![chunk]
    }

    fn chunk_kind(&self) -> &'static str {
        KIND
    }

    fn whole(&self, head: &Head, choices: &[Choice]) -> Map<String, Value> {
        let one = |choice: &Choice| {
            let echo = self.echo(choice.index).map_or("", |echo| &echo.text);
            json!({
                "index": choice.index,
                "text": format!("{echo}{}", choice.all.text),
                "logprobs": self.logprobs(head, choice, &choice.all.logprobs, 0),
                "finish_reason": choice.all.reason,
            })
        };
        let mut object = head.object(KIND, choices.iter().map(one).collect());
        object.insert("usage".into(), usage(choices, self.per_prompt));
        object
    }
}
