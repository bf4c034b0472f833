//! `llm-int8 chat`: a conversation, turn by turn, with a model here or on a server.

mod local;
mod server;

use crate::args::ChatArgs;
use crate::display::line;
use anyhow::Context;
use rustyline::error::ReadlineError;
use std::io::IsTerminal;

const HELP: &str = "/reset forgets the conversation, /exit or ctrl-D quits, ctrl-C stops a reply";

pub(crate) fn chat(args: &ChatArgs) -> anyhow::Result<()> {
    match &args.server.server {
        Some(address) => server::chat(args, address),
        None => local::chat(args),
    }
}

trait Conversation {
    /// Runs one turn and returns whether it got a reply. An error that concerns only this turn is
    /// printed, and the conversation goes on.
    fn turn(&mut self, text: &str) -> anyhow::Result<bool>;

    /// Forgets everything but the system message.
    fn reset(&mut self);
}

/// Runs the turns and commands of the input.
fn converse(conversation: &mut dyn Conversation, mut lines: Lines) -> anyhow::Result<()> {
    let mut replies = 0;
    let mut failures = 0;
    while let Some(text) = lines.next()? {
        match text.trim() {
            "" => {}
            "/exit" | "/quit" => break,
            "/reset" => conversation.reset(),
            "/help" => line(HELP),
            text => match conversation.turn(text)? {
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
