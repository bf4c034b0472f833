//! Conversations: several turns over one KV cache.

mod jinja;
mod template;

pub use template::{ChatInputs, ChatMessage, ChatTemplate};

use crate::error::{LlmError, Result};
use crate::generate::{Context, Generated, GenerationConfig};
use crate::model::AutoModelForCausalLM;
use std::ops::ControlFlow;

/// A conversation with a model. It keeps the KV cache between turns, so a turn costs only its own
/// tokens.
#[derive(Debug)]
pub struct Chat<'a> {
    model: &'a AutoModelForCausalLM,
    template: ChatTemplate,
    messages: Vec<ChatMessage>,
    inputs: ChatInputs,
    context: Context,
}

/// A reply of the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// Its text, timings, and why it ended.
    pub generated: Generated,
    /// How many old messages were dropped to make room for it.
    pub forgotten: usize,
}

impl<'a> Chat<'a> {
    /// An empty conversation with the model's own chat template.
    ///
    /// # Errors
    /// [`LlmError::NoChatTemplate`] and [`LlmError::NoTokenizer`] if the model has none,
    /// [`LlmError::ChatTemplate`] if the template does not parse.
    pub fn new(model: &'a AutoModelForCausalLM) -> Result<Self> {
        Ok(Self::with_template(model, model.chat_template()?))
    }

    /// An empty conversation with another template.
    pub fn with_template(model: &'a AutoModelForCausalLM, template: ChatTemplate) -> Self {
        let inputs = ChatInputs {
            add_generation_prompt: true,
            ..ChatInputs::default()
        };
        Self {
            model,
            template,
            messages: Vec::new(),
            inputs,
            context: Context::new(model.decoder()),
        }
    }

    /// Gives the template tools, documents or further variables, in every turn.
    /// `add_generation_prompt` is always on.
    pub fn with_inputs(mut self, inputs: ChatInputs) -> Self {
        self.inputs = ChatInputs {
            add_generation_prompt: true,
            ..inputs
        };
        self
    }

    /// The messages so far.
    pub fn messages(&self) -> &[ChatMessage] {
        &self.messages
    }

    /// Drops all messages but system messages.
    pub fn reset(&mut self) {
        self.messages.retain(|message| message.role == "system");
    }

    /// Adds a message without asking for a reply.
    pub fn push(&mut self, message: ChatMessage) {
        self.messages.push(message);
    }

    /// Adds a user message and generates the model's reply. `on_text` gets the text piece by piece
    /// and may stop the generation; what was generated until then stays in the conversation. After
    /// an error the conversation is as it was before.
    ///
    /// If the conversation leaves too little of the context for a reply, the oldest turns are
    /// dropped. A reply never gets longer than the context has room for.
    ///
    /// # Errors
    /// [`LlmError::ChatTemplate`]; [`LlmError::TurnTooLong`] if this turn alone fills the context;
    /// the errors of [`Generation::run`](crate::Generation::run).
    pub fn reply(
        &mut self,
        text: &str,
        config: &GenerationConfig,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Reply> {
        let before = self.messages.clone();
        self.messages.push(ChatMessage::user(text));

        let result = self.answer(config, on_text);
        if result.is_err() {
            self.messages = before;
        }

        result
    }

    /// Generates the reply to the last message and adds it to the conversation.
    fn answer(
        &mut self,
        config: &GenerationConfig,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Reply> {
        let available = self.model.decoder().spec().positions;
        // Reserve room for the reply, but at most half of a small context.
        let room = config.new_tokens(1, available)?.min(available / 2);
        let (ids, forgotten) = self.fitting_ids(room, available)?;

        let new = config
            .new_tokens(ids.len(), available)?
            .min(available - ids.len());
        let config = GenerationConfig {
            max_new_tokens: Some(new),
            ..config.clone()
        };

        let generated = self.generate(ids, config, on_text)?;
        self.messages
            .push(ChatMessage::assistant(generated.text.clone()));

        Ok(Reply {
            generated,
            forgotten,
        })
    }

    /// Generates after the ids of the conversation. The context may already hold their beginning:
    /// only the rest is computed.
    fn generate(
        &mut self,
        ids: Vec<u32>,
        config: GenerationConfig,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated> {
        // If the generation fails, an empty context is left behind.
        let context = std::mem::replace(&mut self.context, Context::new(self.model.decoder()));
        let mut pieces = self
            .model
            .generation(ids)
            .config(config)
            .pieces_in(context)?;

        for piece in &mut pieces {
            let text = piece?.text;
            if !text.is_empty() && on_text(&text).is_break() {
                break;
            }
        }

        let (generated, context) = pieces.finish_in_context()?;
        self.context = context;
        Ok(generated)
    }

    /// The ids of the conversation and how many messages were dropped, so that `room` of the
    /// `available` positions stay free for a reply. If only the last turn is left, less than `room`
    /// will do.
    fn fitting_ids(&mut self, room: usize, available: usize) -> Result<(Vec<u32>, usize)> {
        let mut forgotten = 0;
        loop {
            let text = self
                .template
                .apply_with(&template::to_json(&self.messages)?, &self.inputs)?;
            let ids = self.model.tokenizer()?.encode_templated(&text)?;
            if ids.len() + room <= available {
                return Ok((ids, forgotten));
            }

            // Drop the oldest user message and what follows it, up to the next one. The last user
            // message is what is being asked now.
            let turns: Vec<usize> = (0..self.messages.len())
                .filter(|index| self.messages[*index].role == "user")
                .collect();
            match turns[..] {
                [first, second, ..] => forgotten += self.messages.drain(first..second).count(),
                _ if ids.len() < available => return Ok((ids, forgotten)),
                _ => {
                    return Err(LlmError::TurnTooLong {
                        tokens: ids.len(),
                        available,
                    });
                }
            }
        }
    }
}
