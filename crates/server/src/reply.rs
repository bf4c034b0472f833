//! JSON bodies: errors as OpenAI's clients read them, and what goes with them in the headers.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use axum::http::{Response, StatusCode};
use axum::response::IntoResponse;
use llm_int8::LlmError;
use llm_int8::decoder::DecoderError;
use serde_json::{Value, json};

/// openai-python and openai-node do not repeat a request whose answer says `false`.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Why a request is not answered: status and `{"error": {"message", "type", "param", "code"}}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) kind: &'static str,
    pub(crate) message: String,
    /// The field that is wrong.
    pub(crate) param: Option<String>,
    pub(crate) code: Option<&'static str>,
    /// Seconds after which the request may succeed.
    pub(crate) retry_after: Option<u32>,
}

pub(crate) type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            message: message.into(),
            param: None,
            code: None,
            retry_after: None,
        }
    }

    /// A mistake of the client; `param` is the field that is wrong.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            param: Some(param.into()),
            ..Self::bad_request(message)
        }
    }

    /// A request that cannot be read.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::client(StatusCode::BAD_REQUEST, message)
    }

    /// Another mistake of the client.
    pub(crate) fn client(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, "invalid_request_error", message)
    }

    /// The prompt and the new tokens are more than the model has positions. litellm looks for the
    /// first sentence of the message, LangChain for the code in it.
    pub(crate) fn context(param: &str, available: usize, prompt: usize, new: usize) -> Self {
        let message = format!(
            "This model's maximum context length is {available} tokens. However, you requested {} tokens \
             ({prompt} in the {param}, {new} in the completion). Please reduce the length of the {param} \
             or completion (context_length_exceeded).",
            prompt.saturating_add(new)
        );
        Self::invalid(param, message).with_code("context_length_exceeded")
    }

    /// The queue is full.
    pub(crate) fn queue_full(waiting: usize) -> Self {
        let message = format!("{waiting} requests are waiting, as many as may; try again later");
        Self {
            code: Some("queue_full"),
            retry_after: Some(1),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
        }
    }

    /// The model is being loaded.
    pub(crate) fn loading() -> Self {
        Self::unavailable("the model is being loaded; try again later", "loading", 5)
    }

    /// The server is being shut down.
    pub(crate) fn draining() -> Self {
        Self::unavailable("the server is being shut down", "draining", 30)
    }

    fn unavailable(message: &str, code: &'static str, seconds: u32) -> Self {
        Self {
            code: Some(code),
            retry_after: Some(seconds),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable_error",
                message,
            )
        }
    }

    /// A mistake of the server. What happened goes to the log and not to the client.
    pub(crate) fn internal(cause: impl std::fmt::Display) -> Self {
        log::error!("a request failed: {cause}");
        let message = "the server failed to answer this request; its log says more";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// An error of the library, for a request whose prompt came in the field `param`.
    pub(crate) fn of_model(error: LlmError, param: &str) -> Self {
        match error {
            LlmError::ContextExceeded {
                prompt,
                new,
                available,
            } => Self::context(param, available, prompt, new),
            LlmError::EmptyPrompt
            | LlmError::Tokenizer { .. }
            | LlmError::NoTokenizer { .. }
            | LlmError::NoChatTemplate { .. }
            | LlmError::ChatTemplate { .. } => Self::invalid(param, error.to_string()),
            LlmError::Setting { name, .. } => Self::invalid(name, error.to_string()),
            LlmError::Decoder(DecoderError::Input { .. }) => {
                Self::invalid(param, error.to_string())
            }
            other => Self::internal(other),
        }
    }

    pub(crate) fn with_code(self, code: &'static str) -> Self {
        Self {
            code: Some(code),
            ..self
        }
    }

    /// The body, which is also an event in the middle of a stream.
    pub(crate) fn body(&self) -> Value {
        json!({
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        let mut response = json_response(self.status, &self.body());
        let headers = response.headers_mut();
        let may_retry = self.status == StatusCode::TOO_MANY_REQUESTS
            || self.status == StatusCode::REQUEST_TIMEOUT;
        if self.status.is_client_error() && !may_retry {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert("www-authenticate", HeaderValue::from_static("Bearer"));
        }

        response
    }
}

/// A JSON body with a status.
pub(crate) fn json_response(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// A JSON body with status 200.
pub(crate) fn ok(body: &Value) -> Response<Body> {
    json_response(StatusCode::OK, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_that_may_pass_are_tried_again() {
        for (error, status, retry) in [
            (ApiError::invalid("n", "wrong"), 400, Some("false")),
            (ApiError::queue_full(64), 429, None),
            (ApiError::loading(), 503, None),
            (ApiError::internal("test"), 500, None),
        ] {
            let seconds = error.retry_after;
            let response = error.into_response();
            assert_eq!(response.status(), status);
            let said = response.headers().get(SHOULD_RETRY);
            assert_eq!(said.map(|value| value.to_str().unwrap()), retry);
            assert_eq!(
                response.headers().contains_key(RETRY_AFTER),
                seconds.is_some()
            );
        }
    }

    #[test]
    fn a_context_error_has_what_litellm_and_langchain_look_for() {
        let error = ApiError::context("messages", 512, 500, 20);
        assert!(
            error.message.starts_with(
                "This model's maximum context length is 512 tokens. However, you requested 520 tokens"
            ),
            "{}",
            error.message
        );
        assert_eq!(error.body()["error"]["code"], "context_length_exceeded");
        assert_eq!(error.body()["error"]["param"], "messages");
    }

    #[test]
    fn a_failure_of_the_server_tells_the_client_no_details() {
        let error = ApiError::of_model(LlmError::BadLogits, "prompt");
        assert_eq!((error.status.as_u16(), error.kind), (500, "server_error"));
        assert!(!error.message.contains("NaN"), "{}", error.message);
    }
}
