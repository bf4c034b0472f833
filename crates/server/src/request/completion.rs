//! `POST /v1/completions`.

use super::sampling::token_ids;
use super::{Common, ResponseFormat, Sampling};
use crate::fields::Fields;
use crate::reply::ApiResult;
use serde_json::{Map, Value};

/// A prompt as text or as ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CompletionPrompt {
    Text(String),
    Ids(Vec<u32>),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CompletionRequest {
    pub(crate) common: Common,
    pub(crate) prompts: Vec<CompletionPrompt>,
    pub(crate) max_tokens: usize,
    /// Log-probabilities with this many alternatives.
    pub(crate) logprobs: Option<usize>,
    /// Whether the answer begins with the prompt.
    pub(crate) echo: bool,
    pub(crate) format: ResponseFormat,
}

/// New tokens if the request does not say, as OpenAI has it.
const NEW_TOKENS: usize = 16;

impl CompletionRequest {
    /// Reads a request.
    ///
    /// # Errors
    /// One of status 400 that names the field.
    pub(crate) fn read(object: &Map<String, Value>) -> ApiResult<Self> {
        let fields = Fields::of(object);
        fields.refuse(&[("suffix", "the model does not fill in text")])?;
        let common = Common::read(&fields, Sampling::read(&fields)?)?;
        let best_of = fields.count("best_of", 1..=usize::MAX)?;
        if best_of.is_some_and(|best_of| best_of != common.choices) {
            return Err(fields.error("best_of", "not supported unless it equals `n`"));
        }

        Ok(Self {
            prompts: prompts(&fields)?,
            max_tokens: fields
                .count("max_tokens", 0..=usize::MAX)?
                .unwrap_or(NEW_TOKENS),
            logprobs: fields.count("logprobs", 0..=20)?,
            echo: fields.flag("echo")?.unwrap_or(false),
            format: ResponseFormat::read(&fields)?,
            common,
        })
    }
}

fn prompts(fields: &Fields<'_>) -> ApiResult<Vec<CompletionPrompt>> {
    let expected =
        "expected a string, a list of strings, a list of token ids, or a list of such lists";
    let list = match fields.required("prompt")? {
        Value::String(text) => return Ok(vec![CompletionPrompt::Text(text.clone())]),
        Value::Array(list) if !list.is_empty() => list,
        Value::Array(_) => return Err(fields.error("prompt", "the list is empty")),
        _ => return Err(fields.error("prompt", expected)),
    };
    if let Some(ids) = token_ids(list) {
        return Ok(vec![CompletionPrompt::Ids(ids)]);
    }

    let one = |value: &Value| match value {
        Value::String(text) => Some(CompletionPrompt::Text(text.clone())),
        Value::Array(ids) => token_ids(ids).map(CompletionPrompt::Ids),
        _ => None,
    };
    let prompts = list.iter().map(one).collect::<Option<_>>();
    prompts.ok_or_else(|| fields.error("prompt", expected))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> ApiResult<CompletionRequest> {
        CompletionRequest::read(value.as_object().unwrap())
    }

    #[test]
    fn prompts_are_texts_ids_or_lists_of_them() {
        let text = |text: &str| CompletionPrompt::Text(text.into());
        for (given, expected) in [
            (json!("a"), vec![text("a")]),
            (json!(["a", "b"]), vec![text("a"), text("b")]),
            (json!([1, 2]), vec![CompletionPrompt::Ids(vec![1, 2])]),
            (
                json!([[1], [2, 3]]),
                vec![
                    CompletionPrompt::Ids(vec![1]),
                    CompletionPrompt::Ids(vec![2, 3]),
                ],
            ),
        ] {
            assert_eq!(read(json!({ "prompt": given })).unwrap().prompts, expected);
        }
        for wrong in [
            json!([]),
            json!([1, "a"]),
            json!([[-1]]),
            json!({}),
            Value::Null,
        ] {
            let error = read(json!({ "prompt": wrong })).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("prompt"), "{wrong}");
        }
    }

    #[test]
    fn fields_that_would_change_the_answer_are_refused() {
        for (name, value) in [
            ("suffix", json!("x")),
            ("best_of", json!(2)),
            ("logprobs", json!(21)),
        ] {
            let error = read(json!({ "prompt": "a", name: value })).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(name));
        }
        let request = read(json!({ "prompt": "a", "suffix": null, "best_of": 2, "n": 2 })).unwrap();
        assert_eq!((request.common.choices, request.max_tokens), (2, 16));
    }
}
