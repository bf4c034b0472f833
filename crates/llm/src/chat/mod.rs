//! Conversations: several turns over one cache of keys and values.

mod jinja;
mod template;

pub use template::{ChatInputs, ChatMessage, ChatTemplate};

use crate::error::{LlmError, Result};
use crate::generate::{Context, Generated, GenerationConfig};
use crate::model::AutoModelForCausalLM;
use std::ops::ControlFlow;

/// A conversation with a model. What was said before is not computed again: a turn costs its own
/// tokens.
#[derive(Debug)]
pub struct Chat<'a> {
    model: &'a AutoModelForCausalLM,
    template: ChatTemplate,
    messages: Vec<ChatMessage>,
    inputs: ChatInputs,
    context: Context,
}

/// A reply.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// Text, times and why it ended.
    pub generated: Generated,
    /// Old messages that were forgotten to make room.
    pub forgotten: usize,
}

impl<'a> Chat<'a> {
    /// A conversation that begins with nothing, by the model's own template.
    ///
    /// # Errors
    /// [`LlmError::NoChatTemplate`], [`LlmError::ChatTemplate`], [`LlmError::NoTokenizer`].
    pub fn new(model: &'a AutoModelForCausalLM) -> Result<Self> {
        Ok(Self::with_template(model, model.chat_template()?))
    }

    /// A conversation by another template.
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

    /// The same conversation with tools, documents or further variables for the template, in every
    /// turn. It always writes up to where the model goes on.
    pub fn with_inputs(mut self, inputs: ChatInputs) -> Self {
        self.inputs = ChatInputs {
            add_generation_prompt: true,
            ..inputs
        };
        self
    }

    /// What was said so far.
    pub fn messages(&self) -> &[ChatMessage] {
        &self.messages
    }

    /// Forgets everything but a system message.
    pub fn reset(&mut self) {
        self.messages.retain(|message| message.role == "system");
    }

    /// Adds a message without asking for a reply.
    pub fn push(&mut self, message: ChatMessage) {
        self.messages.push(message);
    }

    /// The model's reply to what a person says; `on_text` gets its pieces and may end it. A reply
    /// that was ended is part of the conversation as far as it went; after an error the
    /// conversation is as before.
    ///
    /// Where the conversation leaves too little room for a reply, the oldest turns are forgotten; a
    /// reply is never longer than what room there is.
    ///
    /// # Errors
    /// [`LlmError::ChatTemplate`]; [`LlmError::TurnTooLong`] where this turn alone leaves no room;
    /// what [`Generation::run`](crate::Generation::run) gives.
    pub fn reply(
        &mut self,
        text: &str,
        config: &GenerationConfig,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Reply> {
        let before = self.messages.clone();
        self.messages.push(ChatMessage::user(text));
        let result = self.go_on(config, on_text);
        if result.is_err() {
            self.messages = before;
        }
        result
    }

    fn go_on(
        &mut self,
        config: &GenerationConfig,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Reply> {
        let available = self.model.decoder().spec().positions;
        // Half of a small context at most is kept free for a reply.
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

    /// Text after the ids of the conversation, of which the context may hold the beginning already.
    fn generate(
        &mut self,
        ids: Vec<u32>,
        config: GenerationConfig,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated> {
        // After an error nothing is kept.
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

    /// Ids of the conversation, at best with so much room for a reply, and how many messages had to
    /// go for it.
    fn fitting_ids(&mut self, room: usize, available: usize) -> Result<(Vec<u32>, usize)> {
        let mut forgotten = 0;
        loop {
            let text = self
                .template
                .apply_with(&template::values(&self.messages)?, &self.inputs)?;
            let ids = self.model.tokenizer()?.encode_templated(&text)?;
            if ids.len() + room <= available {
                return Ok((ids, forgotten));
            }

            // The oldest person's turn up to the next one goes; the last one is what is asked now.
            let turns: Vec<usize> = (0..self.messages.len())
                .filter(|place| self.messages[*place].role == "user")
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
