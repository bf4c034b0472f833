//! Log-probabilities in OpenAI's two forms.

use llm_int8::Tokenizer;
use llm_int8::generate::Logprob;
use serde_json::{Map, Value, json};

/// What stands for a probability of 0, as JSON has no infinity; vLLM's number.
const LEAST: f32 = -9999.0;

fn number(logprob: f32) -> f32 {
    if logprob.is_nan() {
        LEAST
    } else {
        logprob.max(LEAST)
    }
}

/// The form of chats: `{"token", "logprob", "bytes", "top_logprobs"}` for each token.
pub(super) fn of_chat(tokenizer: &Tokenizer, all: &[Logprob]) -> Value {
    let one = |id: u32, logprob: f32| {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        json!({
            "token": String::from_utf8_lossy(&bytes),
            "logprob": number(logprob),
            "bytes": bytes,
        })
    };
    let content: Vec<Value> = all
        .iter()
        .map(|token| {
            let mut entry = one(token.id, token.logprob);
            let top = token.top.iter().map(|(id, logprob)| one(*id, *logprob));
            entry["top_logprobs"] = top.collect();
            entry
        })
        .collect();

    json!({ "content": content, "refusal": null })
}

/// The form of completions: lists of tokens, of their log-probabilities and of the most likely
/// tokens, and where each token begins. `offset` is where the first does, in characters.
pub(super) fn of_completion(
    tokenizer: &Tokenizer,
    all: &[(u32, Option<&Logprob>)],
    mut offset: usize,
) -> Value {
    let mut tokens = Vec::new();
    let mut logprobs = Vec::new();
    let mut tops = Vec::new();
    let mut offsets = Vec::new();
    for (id, logprob) in all {
        let token = name(tokenizer, *id);
        offsets.push(offset);
        offset += token.chars().count();
        logprobs.push(logprob.map(|one| number(one.logprob)));
        tops.push(logprob.map(|one| top(tokenizer, one)));
        tokens.push(token);
    }

    json!({
        "tokens": tokens,
        "token_logprobs": logprobs,
        "top_logprobs": tops,
        "text_offset": offsets,
    })
}

/// The most likely tokens, and the one that was chosen.
fn top(tokenizer: &Tokenizer, logprob: &Logprob) -> Map<String, Value> {
    let all = logprob.top.iter().copied();
    let all = all.chain([(logprob.id, logprob.logprob)]);
    all.map(|(id, value)| (name(tokenizer, id), json!(number(value))))
        .collect()
}

/// A token as text; one that is only a part of a character by its bytes, as OpenAI writes it.
fn name(tokenizer: &Tokenizer, id: u32) -> String {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    String::from_utf8(bytes).unwrap_or_else(|error| {
        let digits = error.as_bytes().iter().map(|byte| format!("\\x{byte:02x}"));
        format!("bytes:{}", digits.collect::<String>())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use llm_int8::hub::{HubConfig, NoProgress};

    #[test]
    fn parts_of_characters_are_bytes() {
        let hub = HubConfig::default();
        let tokenizer = Tokenizer::from_pretrained("tiny-gpt2", &hub, &NoProgress).unwrap();
        let ids = tokenizer.encode("字").unwrap();
        assert!(ids.len() > 1, "the vocabulary has this character");
        let token = |id| Logprob {
            id,
            logprob: f32::NEG_INFINITY,
            top: vec![(id, -0.5)],
        };
        let all: Vec<Logprob> = ids.iter().map(|id| token(*id)).collect();

        let chat = of_chat(&tokenizer, &all);
        let bytes: Vec<u64> = chat["content"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|one| one["bytes"].as_array().unwrap())
            .map(|byte| byte.as_u64().unwrap())
            .collect();
        assert_eq!(bytes, "字".bytes().map(u64::from).collect::<Vec<_>>());
        assert_eq!(chat["content"][0]["logprob"], -9999.0);

        let pairs: Vec<_> = all.iter().map(|one| (one.id, Some(one))).collect();
        let completion = of_completion(&tokenizer, &pairs, 3);
        assert!(
            completion["tokens"][0]
                .as_str()
                .unwrap()
                .starts_with("bytes:\\x")
        );
        assert_eq!(completion["text_offset"][0], 3);
    }
}
