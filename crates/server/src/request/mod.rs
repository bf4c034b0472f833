//! What clients may ask for: bodies become requests of the engine, or an error that names a field.

mod chat;
mod completion;
mod format;
mod messages;
mod sampling;
mod tools;

pub(crate) use chat::{ChatRequest, Conversation};
pub(crate) use completion::{CompletionPrompt, CompletionRequest};
pub(crate) use format::ResponseFormat;
pub(crate) use sampling::Sampling;
pub(crate) use tools::ToolChoice;

use crate::fields::Fields;
use crate::reply::ApiResult;

/// What both endpoints have in common.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Common {
    pub(crate) sampling: Sampling,
    /// The name of the model; `None`: whichever there is.
    pub(crate) model: Option<String>,
    /// Choices for each prompt.
    pub(crate) choices: usize,
    pub(crate) streams: bool,
    /// Whether a stream ends with the usage.
    pub(crate) includes_usage: bool,
    pub(crate) cache_salt: Option<String>,
}

/// Upper bound of `n`, that of OpenAI.
const MOST_CHOICES: usize = 128;

impl Common {
    fn read(fields: &Fields<'_>, sampling: Sampling) -> ApiResult<Self> {
        let streams = fields.flag("stream")?.unwrap_or(false);
        let includes_usage = match fields.object("stream_options")? {
            None => false,
            Some(_) if !streams => {
                let message = "it has no meaning without `stream`";
                return Err(fields.error("stream_options", message));
            }
            Some(options) => Fields::inside(options, "stream_options.")
                .flag("include_usage")?
                .unwrap_or(false),
        };

        Ok(Self {
            sampling,
            model: fields.text("model")?.map(str::to_owned),
            choices: fields.count("n", 1..=MOST_CHOICES)?.unwrap_or(1),
            streams,
            includes_usage,
            cache_salt: fields.text("cache_salt")?.map(str::to_owned),
        })
    }
}
