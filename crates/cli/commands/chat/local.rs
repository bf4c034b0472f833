//! A conversation with a model that this program runs.

use super::super::{check_drafts, load};
use super::{Conversation, Lines, converse};
use crate::args::ChatArgs;
use crate::display::line;
use crate::interrupt::Interrupt;
use anyhow::Context;
use llm_int8::{
    AutoModelForCausalLM, Chat, ChatInputs, ChatMessage, FinishReason, GenerationConfig, LlmError,
    Reply,
};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

/// Maximum number of new tokens per reply, if neither the options nor the model's files set one.
const NEW_TOKENS: usize = 512;

pub(super) fn chat(args: &ChatArgs) -> anyhow::Result<()> {
    check_drafts(args.sampling.speculate, &args.model)?;
    // Read the small files before the model, to fail early.
    let template = match &args.chat_template {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            Some(text)
        }
        None => None,
    };
    let inputs = ChatInputs {
        tools: json_objects(args.tools.as_deref())?,
        documents: json_objects(args.documents.as_deref())?,
        ..ChatInputs::default()
    };

    let model = load(&args.model, &args.adapter)?;
    let chat = match template {
        Some(text) => Chat::with_template(&model, model.chat_template_of(&text)?),
        None => Chat::new(&model)?,
    };
    let mut chat = chat.with_inputs(inputs);
    args.system
        .iter()
        .for_each(|text| chat.push(ChatMessage::system(text)));
    let config = generation(&model, args);

    let lines = Lines::new()?;
    // After the line editor, which would otherwise replace the handler for ctrl-C.
    let interrupt = Interrupt::watch()?;
    let mut conversation = Local {
        chat,
        config,
        interrupt,
        is_quiet: args.quiet,
    };
    converse(&mut conversation, lines)
}

struct Local<'a> {
    chat: Chat<'a>,
    config: GenerationConfig,
    interrupt: Interrupt,
    is_quiet: bool,
}

impl Conversation for Local<'_> {
    fn turn(&mut self, text: &str) -> anyhow::Result<bool> {
        let Self { chat, config, .. } = self;
        turn(chat, text, config, &self.interrupt, self.is_quiet)
    }

    fn reset(&mut self) {
        self.chat.reset();
    }
}

/// The model's own settings, overridden by the options.
fn generation(model: &AutoModelForCausalLM, args: &ChatArgs) -> GenerationConfig {
    let mut config = args.sampling.over(model.generation_config());
    config.max_new_tokens = args.max_new_tokens.or(config.max_new_tokens);
    if config.max_new_tokens.is_none() && config.max_length.is_none() {
        config.max_new_tokens = Some(NEW_TOKENS);
    }

    config
}

/// Reads a JSON file with a list of objects.
fn json_objects(path: Option<&Path>) -> anyhow::Result<Option<Vec<serde_json::Value>>> {
    let Some(path) = path else { return Ok(None) };
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let list: Vec<serde_json::Value> = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not a JSON list", path.display()))?;
    if list.iter().any(|one| !one.is_object()) {
        anyhow::bail!(
            "{} contains something that is not a JSON object",
            path.display()
        );
    }

    Ok(Some(list))
}

/// Runs one turn and returns whether it got a reply. An error that concerns only this turn is
/// printed, and the conversation goes on.
fn turn(
    chat: &mut Chat<'_>,
    text: &str,
    config: &GenerationConfig,
    interrupt: &Interrupt,
    is_quiet: bool,
) -> anyhow::Result<bool> {
    interrupt.forget();
    let mut stdout = std::io::stdout().lock();
    let mut failed = None;
    let reply = chat.reply(text, config, &mut |piece| {
        let written = stdout
            .write_all(piece.as_bytes())
            .and_then(|()| stdout.flush());
        failed = written.err();
        if failed.is_some() || interrupt.was_pressed() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });

    if let Some(error) = failed {
        return Err(error.into());
    }

    match reply {
        Ok(reply) => {
            writeln!(stdout)?;
            report(&reply, is_quiet);
            Ok(true)
        }
        Err(error @ (LlmError::TurnTooLong { .. } | LlmError::ChatTemplate { .. })) => {
            line(&format!("error: {error}"));
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// Reports on the reply, on standard error.
fn report(reply: &Reply, is_quiet: bool) {
    let timing = &reply.generated.timing;
    if reply.forgotten > 0 {
        line(&format!(
            "[{} old messages forgotten: the context is full]",
            reply.forgotten
        ));
    }

    match reply.generated.finish_reason {
        FinishReason::Interrupted => line("[stopped]"),
        FinishReason::Time => line("[cut off by max_time in the model's generation_config.json]"),
        FinishReason::Length => line("[cut off by --max-new-tokens or the end of the context]"),
        _ => {}
    }

    if !is_quiet {
        let rate = timing
            .decode_rate()
            .map_or(String::new(), |rate| format!(", {rate:.1} tokens/s"));
        line(&format!(
            "[{} tokens read, {} kept from before, {} written{rate}]",
            timing.prompt_tokens,
            timing.reused_tokens,
            reply.generated.ids.len()
        ));
    }
}
