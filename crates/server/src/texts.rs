//! `/tokenize`, `/detokenize` and `/apply-template`.

use crate::app::App;
use crate::body;
use crate::fields::{Fields, token_id};
use crate::generate::{blocking, check_model, conversation_ids};
use crate::reply::{ApiError, ApiResult, ok};
use crate::request::Conversation;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, Response};
use serde_json::json;
use std::sync::Arc;

/// `POST /tokenize`: `prompt` as vLLM has it, `content` as llama.cpp has it, or `messages`.
pub(crate) async fn tokenize(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> ApiResult<Response<Body>> {
    let object = body::object(&app, request).await?;
    let loaded = app.ready()?;
    let body = blocking(move || {
        let fields = Fields::of(&object);
        check_model(&loaded, fields.text("model")?)?;
        let ids = if fields.get("messages").is_some() {
            conversation_ids(&loaded, &Conversation::read(&fields)?.0)?
        } else {
            // llama.cpp adds special tokens on request, vLLM unless told not to.
            let (name, default) = match fields.get("content") {
                Some(_) => ("content", false),
                None => ("prompt", true),
            };
            fields.required(name)?;
            let text = fields.text(name)?.unwrap_or_default();
            let added = fields
                .flag("add_special_tokens")?
                .or(fields.flag("add_special")?);
            let tokenizer = loaded
                .tokenizer()
                .map_err(|e| ApiError::of_model(e, name))?;
            let ids = match added.unwrap_or(default) {
                true => tokenizer.encode(text),
                false => tokenizer.encode_templated(text),
            };
            ids.map_err(|error| ApiError::of_model(error, name))?
        };

        Ok(json!({ "tokens": ids, "count": ids.len(), "max_model_len": loaded.context }))
    });
    Ok(ok(&body.await?))
}

/// `POST /detokenize`: the text of `tokens`, as `prompt` (vLLM) and `content` (llama.cpp).
pub(crate) async fn detokenize(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> ApiResult<Response<Body>> {
    let object = body::object(&app, request).await?;
    let loaded = app.ready()?;
    let body = blocking(move || {
        let fields = Fields::of(&object);
        check_model(&loaded, fields.text("model")?)?;
        fields.required("tokens")?;
        let list = fields.list("tokens")?.unwrap_or_default();
        let ids: Option<Vec<u32>> = list.iter().map(token_id).collect();
        let ids = ids.ok_or_else(|| fields.error("tokens", "expected token ids"))?;
        let of_model = |error| ApiError::of_model(error, "tokens");
        let tokenizer = loaded.tokenizer().map_err(of_model)?;
        if let Some(id) = ids.iter().find(|id| tokenizer.token(**id).is_none()) {
            let message = format!("the vocabulary has no token {id}");
            return Err(fields.error("tokens", message));
        }
        let text = tokenizer.decode_all(&ids).map_err(of_model)?;
        Ok(json!({ "prompt": text, "content": text }))
    });
    Ok(ok(&body.await?))
}

/// `POST /apply-template`: the prompt that the chat template makes of `messages`.
pub(crate) async fn apply_template(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> ApiResult<Response<Body>> {
    let object = body::object(&app, request).await?;
    let loaded = app.ready()?;
    let body = blocking(move || {
        let (conversation, _) = Conversation::read(&Fields::of(&object))?;
        let text = loaded.template.render(&conversation);
        let text = text.map_err(|error| ApiError::of_model(error, "messages"))?;
        Ok(json!({ "prompt": text }))
    });
    Ok(ok(&body.await?))
}
