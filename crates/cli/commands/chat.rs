//! `llm-int8 chat`: a conversation, turn by turn.

use super::{check_drafts, load};
use crate::args::ChatArgs;
use crate::display::line;
use crate::interrupt::Interrupt;
use anyhow::Context;
use llm_int8::{
    AutoModelForCausalLM, Chat, ChatInputs, ChatMessage, FinishReason, GenerationConfig, LlmError,
    Reply,
};
use rustyline::error::ReadlineError;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::Path;

/// Maximum number of new tokens per reply, if neither the options nor the model's files set one.
const NEW_TOKENS: usize = 512;

const HELP: &str = "/reset forgets the conversation, /exit or ctrl-D quits, ctrl-C stops a reply";

pub(crate) fn chat(args: &ChatArgs) -> anyhow::Result<()> {
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

    let mut lines = Lines::new()?;
    // After the line editor, which would otherwise replace the handler for ctrl-C.
    let interrupt = Interrupt::watch()?;

    let mut replies = 0;
    let mut failures = 0;
    while let Some(text) = lines.next()? {
        match text.trim() {
            "" => {}
            "/exit" | "/quit" => break,
            "/reset" => chat.reset(),
            "/help" => line(HELP),
            text => match turn(&mut chat, text, &config, &interrupt, args.quiet)? {
                true => replies += 1,
                false => failures += 1,
            },
        }
    }

    // On a terminal the user has seen the errors; a script only has the exit code.
    if !lines.is_terminal() && failures > 0 && replies == 0 {
        anyhow::bail!("no turn got a reply");
    }

    Ok(())
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

/// The user's input: a line editor on a terminal, plain lines otherwise.
enum Lines {
    Terminal(Box<rustyline::DefaultEditor>),
    Plain(std::io::Lines<std::io::StdinLock<'static>>),
}

impl Lines {
    fn new() -> anyhow::Result<Self> {
        if !std::io::stdin().is_terminal() {
            return Ok(Self::Plain(std::io::stdin().lines()));
        }

        line(HELP);
        Ok(Self::Terminal(Box::new(
            rustyline::DefaultEditor::new().context("the terminal cannot be used")?,
        )))
    }

    fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// The next line; `None` at the end of the input.
    fn next(&mut self) -> anyhow::Result<Option<String>> {
        match self {
            Self::Plain(lines) => lines
                .next()
                .transpose()
                .context("cannot read from standard input"),
            Self::Terminal(editor) => loop {
                match editor.readline("> ") {
                    Ok(text) => {
                        editor.add_history_entry(&text)?;
                        return Ok(Some(text));
                    }
                    Err(ReadlineError::Eof) => return Ok(None),
                    // There is no reply to stop.
                    Err(ReadlineError::Interrupted) => line(HELP),
                    Err(error) => return Err(error.into()),
                }
            },
        }
    }
}
