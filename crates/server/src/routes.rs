//! Which path is answered by what, and what all answers have in common.

use crate::app::App;
use crate::generate::{chat, check_model, completions};
use crate::reply::{ApiError, ApiResult, json_response, ok};
use crate::texts::{apply_template, detokenize, tokenize};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY,
    CONTENT_TYPE, HOST, HeaderName, HeaderValue, ORIGIN, REFERRER_POLICY, VARY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, Method, Response, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde_json::json;
use std::sync::Arc;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest id of a client that is taken over.
const LONGEST_ID: usize = 128;

/// Everything the server answers. Each path of `/v1` also exists without it, as in llama.cpp.
pub(crate) fn router(app: Arc<App>) -> Router {
    let mut router = Router::new()
        .route("/", get(page))
        .route("/health", get(health))
        .route("/metrics", get(metrics));
    for prefix in ["", "/v1"] {
        router = router
            .route(&format!("{prefix}/models"), get(models))
            .route(&format!("{prefix}/models/{{*id}}"), get(model))
            .route(&format!("{prefix}/chat/completions"), post(chat))
            .route(&format!("{prefix}/completions"), post(completions))
            .route(&format!("{prefix}/tokenize"), post(tokenize))
            .route(&format!("{prefix}/detokenize"), post(detokenize))
            .route(&format!("{prefix}/apply-template"), post(apply_template));
    }

    router
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(Arc::clone(&app), admit))
        .layer(from_fn_with_state(Arc::clone(&app), label))
        .with_state(app)
}

/// Gives each answer an id, and counts it.
async fn label(State(app): State<Arc<App>>, request: Request, next: Next) -> Response<Body> {
    let given = request
        .headers()
        .get(REQUEST_ID)
        .filter(|id| id.len() <= LONGEST_ID)
        .cloned();
    let made = || HeaderValue::from_str(&format!("req_{}", crate::answer::random_letters(24))).ok();
    let mut response = next.run(request).await;
    if let Some(id) = given.or_else(made) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    app.metrics.answered(response.status().as_u16());
    response
}

/// Lets in pages of the server itself and of allowed origins, and requests with a key.
async fn admit(State(app): State<Arc<App>>, request: Request, next: Next) -> Response<Body> {
    let origin = request.headers().get(ORIGIN).cloned();
    let is_own = origin
        .as_ref()
        .is_none_or(|origin| is_same_origin(origin, request.headers()));
    let is_allowed = origin.as_ref().is_some_and(|origin| {
        let origin = origin.as_bytes();
        app.config
            .allowed_origins
            .iter()
            .any(|one| one.as_bytes() == origin)
    });
    if !is_own && !is_allowed {
        let message = "pages of this origin may not use the server";
        let error = ApiError::client(StatusCode::FORBIDDEN, message);
        return error.with_code("origin_not_allowed").into_response();
    }

    let mut response = if request.method() == Method::OPTIONS && is_allowed {
        StatusCode::NO_CONTENT.into_response()
    } else if needs_key(&request) && !has_key(&app, request.headers()) {
        let message = "an API key is needed, as in `Authorization: Bearer KEY`";
        let error = ApiError::client(StatusCode::UNAUTHORIZED, message);
        error.with_code("invalid_api_key").into_response()
    } else {
        next.run(request).await
    };

    if let Some(origin) = origin.filter(|_| is_allowed) {
        let headers = response.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let names = HeaderValue::from_static("authorization, content-type, x-request-id");
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names);
        let methods = HeaderValue::from_static("GET, POST, OPTIONS");
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
        let exposed = HeaderValue::from_static("x-request-id, retry-after, x-should-retry");
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        headers.append(VARY, HeaderValue::from_static("origin"));
    }
    response
}

/// Whether a page comes from this server: its origin names the host that the request names.
fn is_same_origin(origin: &HeaderValue, headers: &HeaderMap) -> bool {
    let host = |value: &HeaderValue| value.to_str().ok().map(str::to_ascii_lowercase);
    let of_page = host(origin);
    let of_page = of_page
        .as_deref()
        .and_then(|origin| origin.split_once("://"));
    // A page cannot set these headers.
    let forwarded = HeaderName::from_static("x-forwarded-host");
    let mut asked = [headers.get(HOST), headers.get(forwarded)]
        .into_iter()
        .flatten();
    of_page.is_some_and(|(_, page)| asked.any(|asked| host(asked).as_deref() == Some(page)))
}

/// The page and the state of the server are free.
fn needs_key(request: &Request) -> bool {
    !matches!(request.uri().path(), "/" | "/health")
}

fn has_key(app: &App, headers: &HeaderMap) -> bool {
    let keys = &app.config.api_keys;
    keys.is_empty() || keys.admit(headers.get(AUTHORIZATION).map(HeaderValue::as_bytes))
}

/// `GET /`: the chat page.
async fn page() -> Response<Body> {
    let mut response = Response::new(Body::from(include_str!("page/chat.html")));
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, "frame-ancestors 'none'"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-cache"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// `GET /health`: 503 while the model is loaded and while the server is being shut down.
async fn health(State(app): State<Arc<App>>) -> Response<Body> {
    let error = match app.ready() {
        Ok(_) => return ok(&json!({ "status": "ok" })),
        Err(error) => error,
    };
    let mut body = error.body();
    body["status"] = json!(error.code);
    let mut response = error.clone().into_response();
    *response.body_mut() = json_response(error.status, &body).into_body();
    response
}

/// `GET /metrics`.
async fn metrics(State(app): State<Arc<App>>) -> Response<Body> {
    let state = app.model().map(|loaded| loaded.service.state());
    let mut response = Response::new(Body::from(app.metrics.text(state.as_ref())));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// `GET /v1/models`.
async fn models(State(app): State<Arc<App>>) -> ApiResult<Response<Body>> {
    let loaded = app.ready()?;
    Ok(ok(&json!({ "object": "list", "data": [loaded.card()] })))
}

/// `GET /v1/models/{id}`.
async fn model(State(app): State<Arc<App>>, Path(id): Path<String>) -> ApiResult<Response<Body>> {
    let loaded = app.ready()?;
    check_model(&loaded, Some(&id))?;
    Ok(ok(&loaded.card()))
}

async fn not_found(request: Request) -> ApiError {
    let message = format!("there is no {}", request.uri().path());
    ApiError::client(StatusCode::NOT_FOUND, message)
}

async fn method_not_allowed(request: Request) -> ApiError {
    let message = format!(
        "{} does not answer {}",
        request.uri().path(),
        request.method()
    );
    ApiError::client(StatusCode::METHOD_NOT_ALLOWED, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_of_the_host_that_it_asks() {
        let is_same = |origin: &'static str, host: &'static str| {
            let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static(host))]);
            is_same_origin(&HeaderValue::from_static(origin), &headers)
        };
        assert!(is_same("http://127.0.0.1:8080", "127.0.0.1:8080"));
        assert!(is_same("https://Example.org", "example.org"));
        assert!(!is_same("http://127.0.0.1:3000", "127.0.0.1:8080"));
        assert!(!is_same("http://example.org.evil.test", "example.org"));
        assert!(!is_same("null", "example.org"));
    }
}
