//! An answer as it comes: the chunks of a chat completion, put together.

use serde_json::Value;
use std::time::{Duration, Instant};

/// An answer of a server.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) text: String,
    /// `stop`, `length` and others; `None` if the server has not said one.
    pub(crate) finish_reason: Option<String>,
    pub(crate) usage: Option<Usage>,
    /// Ctrl-C ended it.
    pub(crate) was_stopped: bool,
    /// The last event of a stream came: `[DONE]`.
    pub(crate) is_done: bool,
    asked: Instant,
    first: Option<Instant>,
    last: Option<Instant>,
    pieces: usize,
}

/// Tokens, as the server counts them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Usage {
    pub(crate) prompt: u64,
    /// Those of the prompt that were not computed again.
    pub(crate) cached: u64,
    pub(crate) written: u64,
}

impl Answer {
    /// An empty answer to a request that is sent now.
    pub(super) fn new() -> Self {
        Self {
            text: String::new(),
            finish_reason: None,
            usage: None,
            was_stopped: false,
            is_done: false,
            asked: Instant::now(),
            first: None,
            last: None,
            pieces: 0,
        }
    }

    /// The time from the request to the first text.
    pub(crate) fn to_first(&self) -> Option<Duration> {
        Some(self.first? - self.asked)
    }

    /// Tokens per second after the first; pieces of text if the server does not count tokens.
    pub(crate) fn rate(&self) -> Option<f64> {
        let seconds = (self.last? - self.first?).as_secs_f64();
        let count = self.usage.map_or(self.pieces as u64, |usage| usage.written);
        (count > 1 && seconds > 0.0).then(|| (count - 1) as f64 / seconds)
    }

    /// Adds a chunk of a stream, or a whole answer, and returns the new text.
    ///
    /// # Errors
    /// The server's words if it tells of an error, or what is wrong with the chunk.
    pub(super) fn take(&mut self, chunk: &Value) -> Result<String, Wrong> {
        if let Some(error) = chunk.get("error").filter(|error| !error.is_null()) {
            return Err(Wrong::Failed(message_of(error)));
        }
        if !chunk.is_object() {
            return Err(Wrong::Malformed("a chunk is not a JSON object".into()));
        }

        if let Some(usage) = chunk.get("usage").and_then(usage) {
            self.usage = Some(usage);
        }
        let choice = &chunk["choices"][0];
        if let Some(reason) = choice["finish_reason"].as_str() {
            self.finish_reason = Some(reason.to_owned());
        }

        let said = choice.get("delta").or_else(|| choice.get("message"));
        let text = match said.and_then(|said| said.get("content")) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Null) | None => String::new(),
            Some(_) => return Err(Wrong::Malformed("the content is not a text".into())),
        };
        if !text.is_empty() {
            let now = Instant::now();
            self.first.get_or_insert(now);
            self.last = Some(now);
            self.pieces += 1;
            self.text.push_str(&text);
        }
        Ok(text)
    }
}

/// Why a chunk is none.
#[derive(Debug, PartialEq)]
pub(super) enum Wrong {
    Failed(String),
    Malformed(String),
}

fn usage(value: &Value) -> Option<Usage> {
    Some(Usage {
        prompt: value["prompt_tokens"].as_u64()?,
        cached: value["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap_or(0),
        written: value["completion_tokens"].as_u64()?,
    })
}

/// The words of an error, which most servers give as `{"message": …}`.
pub(super) fn message_of(error: &Value) -> String {
    match error.get("message").unwrap_or(error) {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn chunks_add_up() {
        let mut answer = Answer::new();
        let chunks = [
            json!({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": null}]}),
            json!({"choices": [{"delta": {"content": "Thou "}}], "usage": null}),
            json!({"choices": [{"delta": {"content": "art"}}], "error": null}),
            json!({"choices": [{"delta": {}, "finish_reason": "stop"}]}),
            json!({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2,
                "prompt_tokens_details": {"cached_tokens": 4}}}),
        ];
        let texts: Vec<String> = chunks
            .iter()
            .map(|chunk| answer.take(chunk).unwrap())
            .collect();
        assert_eq!(texts, ["", "Thou ", "art", "", ""]);
        assert_eq!(answer.text, "Thou art");
        assert_eq!(answer.finish_reason.as_deref(), Some("stop"));
        let usage = answer.usage.unwrap();
        assert_eq!((usage.prompt, usage.cached, usage.written), (9, 4, 2));
        assert!(answer.to_first().is_some());
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        let take = |chunk| Answer::new().take(&chunk).unwrap_err();
        let failed = |text: &str| Wrong::Failed(text.into());
        assert_eq!(
            take(json!({"error": {"message": "no memory"}})),
            failed("no memory")
        );
        assert_eq!(take(json!({"error": "no memory"})), failed("no memory"));
        assert_eq!(take(json!({"error": {"code": 7}})), failed("{\"code\":7}"));
        assert!(matches!(take(json!([1])), Wrong::Malformed(_)));
        let number = json!({"choices": [{"delta": {"content": 5}}]});
        assert!(matches!(take(number), Wrong::Malformed(_)));
        // Fields that are missing are no error.
        assert_eq!(Answer::new().take(&json!({})), Ok(String::new()));
    }
}
