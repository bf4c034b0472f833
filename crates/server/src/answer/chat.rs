//! Answers of `/v1/chat/completions`.

use super::{Choice, Head, Step, Style, logprobs, usage};
use crate::tools::ToolCall;
use serde_json::{Map, Value, json};

#[derive(Debug)]
pub(crate) struct ChatStyle {
    pub(crate) has_logprobs: bool,
}

const CHUNK: &str = "chat.completion.chunk";

impl ChatStyle {
    fn logprobs(&self, head: &Head, step: &Step) -> Value {
        match head.loaded.tokenizer() {
            Ok(tokenizer) if self.has_logprobs => logprobs::of_chat(tokenizer, &step.logprobs),
            _ => Value::Null,
        }
    }

    fn chunk(head: &Head, index: usize, delta: Value) -> Map<String, Value> {
        let choice = json!({
            "index": index, "delta": delta, "logprobs": null, "finish_reason": null,
        });
        head.object(CHUNK, vec![choice])
    }
}

impl Style for ChatStyle {
    fn opening(&self, head: &Head, choices: usize) -> Vec<Map<String, Value>> {
        let role = || json!({ "role": "assistant", "content": "" });
        (0..choices)
            .map(|index| Self::chunk(head, index, role()))
            .collect()
    }

    fn chunks(&self, head: &Head, choice: &Choice, step: &Step) -> Vec<Map<String, Value>> {
        let mut chunks = Vec::new();
        if !step.text.is_empty() || (self.has_logprobs && !step.logprobs.is_empty()) {
            let mut chunk = Self::chunk(head, choice.index, json!({ "content": step.text }));
            if self.has_logprobs {
                set(&mut chunk, "logprobs", self.logprobs(head, step));
            }
            chunks.push(chunk);
        }
        for (place, id, call) in &step.calls {
            let mut call = call_object(id, call);
            call["index"] = json!(place);
            let delta = json!({ "tool_calls": [call] });
            chunks.push(Self::chunk(head, choice.index, delta));
        }
        if let Some(reason) = step.reason {
            let mut chunk = Self::chunk(head, choice.index, json!({}));
            set(&mut chunk, "finish_reason", json!(reason));
            chunks.push(chunk);
        }

        chunks
    }

    fn chunk_kind(&self) -> &'static str {
        CHUNK
    }

    fn whole(&self, head: &Head, choices: &[Choice]) -> Map<String, Value> {
        let one = |choice: &Choice| {
            let all = &choice.all;
            let mut message = json!({ "role": "assistant", "content": all.text, "refusal": null });
            if !all.calls.is_empty() {
                let calls = all.calls.iter().map(|(_, id, call)| call_object(id, call));
                message["tool_calls"] = calls.collect();
                if all.text.is_empty() {
                    message["content"] = Value::Null;
                }
            }
            json!({
                "index": choice.index,
                "message": message,
                "logprobs": self.logprobs(head, all),
                "finish_reason": all.reason,
            })
        };
        let mut object = head.object("chat.completion", choices.iter().map(one).collect());
        // All choices follow one prompt.
        object.insert("usage".into(), usage(choices, choices.len()));
        object
    }
}

fn call_object(id: &str, call: &ToolCall) -> Value {
    json!({
        "id": id,
        "type": "function",
        "function": { "name": call.name, "arguments": call.arguments },
    })
}

/// Sets a field of a chunk's only choice.
pub(super) fn set(chunk: &mut Map<String, Value>, name: &str, value: Value) {
    if let Some(choice) = chunk
        .get_mut("choices")
        .and_then(|choices| choices.get_mut(0))
    {
        choice[name] = value;
    }
}
