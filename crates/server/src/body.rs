//! Reading a request's body as a JSON object. axum's own extractor answers in plain text.

use crate::app::App;
use crate::fields::kind;
use crate::reply::{ApiError, ApiResult};
use axum::body::Body;
use axum::http::header::CONTENT_LENGTH;
use axum::http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Map, Value};
use std::time::Duration;

/// Bytes of a body that is too large which are read and dropped, so that a client which sends all
/// of it first gets an answer instead of a closed connection.
const DRAINED: usize = 64 << 20;
/// How long that may take.
const DRAINING: Duration = Duration::from_secs(10);

/// Reads the body.
///
/// # Errors
/// 400 if it is no JSON object, 408 if the client stalls, 413 if it is too large.
pub(crate) async fn object(app: &App, request: Request<Body>) -> ApiResult<Map<String, Value>> {
    let limit = app.config.max_body;
    let expects = request.headers().contains_key("expect");
    let announced = announced(request.headers());
    let mut body = request.into_body();
    if announced.is_some_and(|length| length > limit as u64) {
        // A client that waits for 100 Continue has sent nothing yet.
        if !expects {
            drain(&mut body).await;
        }
        return Err(too_large(limit));
    }

    let mut bytes = Vec::new();
    while let Some(part) = next(app, &mut body).await? {
        if bytes.len().saturating_add(part.len()) > limit {
            drain(&mut body).await;
            return Err(too_large(limit));
        }
        bytes.extend_from_slice(&part);
    }

    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => {
            let message = format!("the body must be a JSON object, but it is {}", kind(&other));
            Err(ApiError::bad_request(message))
        }
        Err(cause) => Err(ApiError::bad_request(format!(
            "the body is not JSON: {cause}"
        ))),
    }
}

fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

async fn next(app: &App, body: &mut Body) -> ApiResult<Option<bytes::Bytes>> {
    loop {
        let frame = tokio::time::timeout(app.config.stall, body.frame()).await;
        let frame = frame.map_err(|_| {
            let message = "the body did not arrive in time";
            ApiError::client(StatusCode::REQUEST_TIMEOUT, message)
        })?;
        match frame {
            None => return Ok(None),
            Some(Err(cause)) => {
                let message = format!("the body cannot be read: {cause}");
                return Err(ApiError::bad_request(message));
            }
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

async fn drain(body: &mut Body) {
    let rest = async {
        let mut read = 0;
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, bytes::Bytes::len);
            if read > DRAINED {
                break;
            }
        }
    };
    // A client that is slower than this may see its connection closed.
    let _ = tokio::time::timeout(DRAINING, rest).await;
}

fn too_large(limit: usize) -> ApiError {
    let message = format!("the body is larger than {limit} bytes, the most that is taken");
    ApiError::client(StatusCode::PAYLOAD_TOO_LARGE, message)
}
