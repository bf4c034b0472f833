//! `/v1/chat/completions` and `/v1/completions`.

use crate::answer::{
    ChatStyle, Choice, CompletionStyle, Echo, Events, Head, Style, Submission, Tools, collect,
};
use crate::app::App;
use crate::body;
use crate::model::Loaded;
use crate::reply::{ApiError, ApiResult, ok};
use crate::request::{
    ChatRequest, Common, CompletionPrompt, CompletionRequest, ResponseFormat, ToolChoice,
};
use crate::tools::ToolParser;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use axum::http::{Response, StatusCode};
use llm_int8::generate::{Request, TokenConstraint};
use llm_int8::{GenerationConfig, Prompt};
use std::sync::Arc;

type HttpRequest = axum::http::Request<Body>;

/// `POST /v1/chat/completions`.
pub(crate) async fn chat(
    State(app): State<Arc<App>>,
    request: HttpRequest,
) -> ApiResult<Response<Body>> {
    let object = body::object(&app, request).await?;
    let loaded = app.ready()?;
    let request = ChatRequest::read(&object)?;
    drop(object);
    check_common(&app, &loaded, &request.common, 1, "n")?;
    let common = request.common.clone();
    let style = ChatStyle {
        has_logprobs: request.logprobs.is_some(),
    };
    let for_work = Arc::clone(&loaded);
    let (choices, submission) = blocking(move || begin_chat(&for_work, &request)).await?;

    let per_prompt = choices.len();
    let head = Head::new("chatcmpl", loaded, Arc::clone(&app.metrics));
    answer(&app, head, style, choices, submission, &common, per_prompt).await
}

/// `POST /v1/completions`.
pub(crate) async fn completions(
    State(app): State<Arc<App>>,
    request: HttpRequest,
) -> ApiResult<Response<Body>> {
    let object = body::object(&app, request).await?;
    let loaded = app.ready()?;
    let request = CompletionRequest::read(&object)?;
    drop(object);
    check_common(
        &app,
        &loaded,
        &request.common,
        request.prompts.len(),
        "prompt",
    )?;
    let common = request.common.clone();
    if request.echo && request.logprobs.is_some() && common.streams {
        let message = "`echo`: with `logprobs` it cannot be streamed";
        return Err(ApiError::invalid("echo", message));
    }

    let for_work = Arc::clone(&loaded);
    let begun = blocking(move || begin_completion(&for_work, &request)).await?;
    let (style, choices, submission) = begun;
    let per_prompt = common.choices;
    let head = Head::new("cmpl", loaded, Arc::clone(&app.metrics));
    answer(&app, head, style, choices, submission, &common, per_prompt).await
}

/// Work that takes longer than a thread of the network should.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> ApiResult<T> + Send + 'static,
) -> ApiResult<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|cause| Err(ApiError::internal(cause)))
}

/// Refuses what cannot be asked of this server.
fn check_common(
    app: &App,
    loaded: &Loaded,
    common: &Common,
    prompts: usize,
    param: &str,
) -> ApiResult<()> {
    check_model(loaded, common.model.as_deref())?;
    let sequences = prompts.saturating_mul(common.choices);
    let most = app.config.parallel.saturating_add(app.config.max_queue);
    if sequences > most {
        let message = format!(
            "`{param}`: the request asks for {sequences} texts, but the server takes {most} at once"
        );
        return Err(ApiError::invalid(param, message));
    }

    app.check_queue(loaded)
}

/// Refuses the name of another model.
pub(crate) fn check_model(loaded: &Loaded, name: Option<&str>) -> ApiResult<()> {
    match name {
        Some(name) if !name.is_empty() && name != loaded.id && name != loaded.model.name() => {
            let message = format!(
                "the model `{name}` does not exist; there is `{}`",
                loaded.id
            );
            let error = ApiError::client(StatusCode::NOT_FOUND, message);
            let param = Some("model".to_owned());
            Err(ApiError { param, ..error }.with_code("model_not_found"))
        }
        _ => Ok(()),
    }
}

/// Sends an answer, whole or as a stream.
async fn answer<S: Style>(
    app: &App,
    head: Head,
    style: S,
    choices: Vec<Choice>,
    submission: Submission,
    common: &Common,
    per_prompt: usize,
) -> ApiResult<Response<Body>> {
    if !common.streams {
        return Ok(ok(&collect(&head, &style, choices, submission).await?));
    }

    let usage = common.includes_usage;
    let period = app.config.ping;
    let events = Events::new(head, style, choices, submission, usage, per_prompt, period);
    let mut response = Response::new(Body::new(events));
    let headers = response.headers_mut();
    let stream = HeaderValue::from_static("text/event-stream; charset=utf-8");
    headers.insert(CONTENT_TYPE, stream);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would gather the events otherwise.
    let buffering = HeaderName::from_static("x-accel-buffering");
    headers.insert(buffering, HeaderValue::from_static("no"));
    Ok(response)
}

/// Encodes a conversation and gives it to the engine.
fn begin_chat(loaded: &Loaded, request: &ChatRequest) -> ApiResult<(Vec<Choice>, Submission)> {
    let conversation = &request.conversation;
    let format = loaded.template.format();
    if format.is_none() && !conversation.tools.is_empty() {
        let message = "`tools`: the model's chat template does not show tools to it";
        return Err(ApiError::invalid("tools", message));
    }

    let ids = conversation_ids(loaded, conversation)?;
    let files = loaded.model.generation_config();
    let room = loaded.context.saturating_sub(ids.len());
    let most = request
        .max_tokens
        .or(files.max_new_tokens.map(|most| most.min(room)));
    let new = most.unwrap_or(room).max(1);
    check_context(loaded, "messages", ids.len(), new)?;

    let sequences = Sequences {
        loaded,
        common: &request.common,
        logprobs: request.logprobs,
        drawn: rand::random(),
        new,
    };
    let requests = (0..request.common.choices)
        .map(|choice| {
            let constraint = chat_constraint(loaded, request)?;
            Ok(sequences.request(ids.clone(), choice, constraint))
        })
        .collect::<ApiResult<_>>()?;

    let choices = (0..request.common.choices)
        .map(|index| Choice::new(index, tools(loaded, request)))
        .collect();
    Ok((choices, Submission::new(loaded, requests, "messages")?))
}

/// The token ids of a conversation.
pub(crate) fn conversation_ids(
    loaded: &Loaded,
    conversation: &crate::request::Conversation,
) -> ApiResult<Vec<u32>> {
    let of_model = |error| ApiError::of_model(error, "messages");
    let text = loaded.template.render(conversation).map_err(of_model)?;
    let ids = loaded
        .tokenizer()
        .and_then(|tokenizer| tokenizer.encode_templated(&text));
    let ids = ids.map_err(of_model)?;
    if ids.is_empty() {
        let message = "`messages`: the chat template makes an empty prompt of them";
        return Err(ApiError::invalid("messages", message));
    }
    Ok(ids)
}

fn check_context(loaded: &Loaded, param: &str, prompt: usize, new: usize) -> ApiResult<()> {
    if prompt.saturating_add(new) > loaded.context {
        return Err(ApiError::context(param, loaded.context, prompt, new));
    }
    Ok(())
}

/// How calls are found in a choice.
fn tools(loaded: &Loaded, request: &ChatRequest) -> Option<Tools> {
    let tools = &request.conversation.tools;
    let format = loaded.template.format().filter(|_| !tools.is_empty())?;
    let marks = loaded
        .tokenizer()
        .map(|tokenizer| loaded.template.special_marks(tokenizer));
    let marks = marks.unwrap_or_default().into_iter();
    let names = tools.iter().map(|tool| tool.name.clone()).collect();
    Some(Tools {
        format,
        parser: ToolParser::new(format, names),
        marks: marks.map(|(mark, id)| (id, mark)).collect(),
        is_single: !request.parallel_calls,
    })
}

/// What the sequences of a request have in common.
struct Sequences<'a> {
    loaded: &'a Loaded,
    common: &'a Common,
    logprobs: Option<usize>,
    /// The seed of a request that has none.
    drawn: u64,
    new: usize,
}

impl Sequences<'_> {
    fn request(
        &self,
        ids: Vec<u32>,
        choice: usize,
        constraint: Option<Box<dyn TokenConstraint>>,
    ) -> Request {
        let sampling = &self.common.sampling;
        let seed = sampling.seed(self.drawn, choice);
        let config = GenerationConfig {
            max_new_tokens: Some(self.new),
            truncate: false,
            ..sampling.over(self.loaded.model.generation_config(), seed)
        };
        let mut request = Request::new(Prompt::Ids(ids)).config(config);
        if let Some(top) = self.logprobs {
            request = request.logprobs(top);
        }
        if let Some(salt) = &self.common.cache_salt {
            request = request.cache_salt(salt.clone());
        }
        if let Some(constraint) = constraint {
            request = request.constraint(constraint);
        }
        request
    }
}

/// Encodes prompts and gives them to the engine.
fn begin_completion(
    loaded: &Loaded,
    request: &CompletionRequest,
) -> ApiResult<(CompletionStyle, Vec<Choice>, Submission)> {
    let prompts: Vec<Echo> = request
        .prompts
        .iter()
        .map(|prompt| encode(loaded, prompt, request.echo))
        .collect::<ApiResult<_>>()?;

    let sequences = Sequences {
        loaded,
        common: &request.common,
        logprobs: request.logprobs,
        drawn: rand::random(),
        new: request.max_tokens,
    };
    let (mut requests, mut choices) = (Vec::new(), Vec::new());
    for prompt in &prompts {
        check_context(loaded, "prompt", prompt.ids.len(), request.max_tokens)?;
        for choice in 0..request.common.choices {
            let constraint = json_constraint(loaded, &request.format)?;
            let mut one = sequences.request(prompt.ids.clone(), choice, constraint);
            if let (true, Some(top)) = (request.echo, request.logprobs) {
                one = one.prompt_logprobs(top);
            }
            choices.push(Choice::new(requests.len(), None));
            requests.push(one);
        }
    }

    let submission = Submission::new(loaded, requests, "prompt")?;
    let style = CompletionStyle {
        has_logprobs: request.logprobs.is_some(),
        echo: request.echo.then_some(prompts),
        per_prompt: request.common.choices,
    };
    Ok((style, choices, submission))
}

/// The ids of a prompt, and its text if it is to be repeated.
fn encode(loaded: &Loaded, prompt: &CompletionPrompt, echo: bool) -> ApiResult<Echo> {
    let of_model = |error| ApiError::of_model(error, "prompt");
    let tokenizer = loaded.tokenizer().map_err(of_model)?;
    let (text, ids) = match prompt {
        CompletionPrompt::Text(text) => (text.clone(), tokenizer.encode(text).map_err(of_model)?),
        CompletionPrompt::Ids(ids) if echo => {
            (tokenizer.decode_all(ids).map_err(of_model)?, ids.clone())
        }
        CompletionPrompt::Ids(ids) => (String::new(), ids.clone()),
    };
    let bos = loaded.model.generation_config().bos_token_id;
    let ids = match (ids.is_empty(), bos) {
        (true, Some(bos)) => vec![bos],
        (true, None) => return Err(of_model(llm_int8::LlmError::EmptyPrompt)),
        (false, _) => ids,
    };

    let vocabulary = loaded.model.decoder().spec().vocab_size();
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
        let message = format!("`prompt`: the vocabulary of {vocabulary} tokens has no token {id}");
        return Err(ApiError::invalid("prompt", message));
    }
    Ok(Echo { text, ids })
}

#[cfg(feature = "grammar")]
fn chat_constraint(
    loaded: &Loaded,
    request: &ChatRequest,
) -> ApiResult<Option<Box<dyn TokenConstraint>>> {
    use crate::grammar::Shape;
    let tools = &request.conversation.tools;
    let Some(format) = loaded.template.format().filter(|_| !tools.is_empty()) else {
        return json_constraint(loaded, &request.format);
    };
    let shape = match &request.tool_choice {
        ToolChoice::Required => Shape::Calls {
            format,
            tools: tools.iter().collect(),
            many: request.parallel_calls,
        },
        ToolChoice::Named(name) => Shape::Calls {
            format,
            tools: tools.iter().filter(|tool| tool.name == *name).collect(),
            many: false,
        },
        _ if tools.iter().any(|tool| tool.is_strict) => Shape::StrictCalls { format, tools },
        _ => return Ok(None),
    };
    constraint(loaded, &shape, "tools").map(Some)
}

#[cfg(feature = "grammar")]
fn json_constraint(
    loaded: &Loaded,
    format: &ResponseFormat,
) -> ApiResult<Option<Box<dyn TokenConstraint>>> {
    match format {
        ResponseFormat::Text => Ok(None),
        ResponseFormat::Json(schema) => {
            let shape = crate::grammar::Shape::Json(schema);
            constraint(loaded, &shape, "response_format").map(Some)
        }
    }
}

#[cfg(feature = "grammar")]
fn constraint(
    loaded: &Loaded,
    shape: &crate::grammar::Shape<'_>,
    param: &str,
) -> ApiResult<Box<dyn TokenConstraint>> {
    let grammars = loaded.grammars().map_err(ApiError::internal)?;
    grammars.constraint(shape).map_err(|reason| {
        let message = format!("`{param}`: the schema cannot be used: {reason}");
        ApiError::invalid(param, message)
    })
}

#[cfg(not(feature = "grammar"))]
fn chat_constraint(
    loaded: &Loaded,
    request: &ChatRequest,
) -> ApiResult<Option<Box<dyn TokenConstraint>>> {
    let is_free = matches!(request.tool_choice, ToolChoice::None | ToolChoice::Auto);
    if !is_free || request.conversation.tools.iter().any(|tool| tool.is_strict) {
        let message = "`tools`: strict and required tools need the feature `grammar`, which this \
                       server was built without";
        return Err(ApiError::invalid("tools", message));
    }
    json_constraint(loaded, &request.format)
}

#[cfg(not(feature = "grammar"))]
fn json_constraint(
    _: &Loaded,
    format: &ResponseFormat,
) -> ApiResult<Option<Box<dyn TokenConstraint>>> {
    if *format == ResponseFormat::Text {
        return Ok(None);
    }
    let message = "`response_format`: JSON needs the feature `grammar`, which this server was built \
                   without";
    Err(ApiError::invalid("response_format", message))
}
