//! A conversation with a model on a server that speaks OpenAI's API.

use super::{Conversation, Lines, converse};
use crate::args::{ChatArgs, SamplingArgs};
use crate::client::{Answer, Client, ClientError};
use crate::display::{escaped, line, visible};
use crate::interrupt::Interrupt;
use anyhow::Context;
use serde_json::{Map, Value, json};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

pub(super) fn chat(args: &ChatArgs, address: &str) -> anyhow::Result<()> {
    let key = args.server.api_key_file.as_deref().map(key).transpose()?;
    let patience = Duration::from_secs(args.server.timeout.into());
    let client = Client::new(address, key, patience)?;
    if client.shows_its_key() {
        let host = client.host();
        line(&format!("warning: the API key goes to {host} unencrypted"));
    }

    let lines = Lines::new()?;
    // After the line editor, which would otherwise replace the handler for ctrl-C.
    let interrupt = Interrupt::watch()?;
    let model = match &args.server.model {
        Some(name) => name.clone(),
        None => first_model(&client, &interrupt)?,
    };
    let mut conversation = Remote {
        client,
        settings: settings(model, args),
        messages: Vec::new(),
        asks_for_usage: true,
        interrupt,
        is_quiet: args.quiet,
    };
    conversation.messages.extend(
        args.system
            .iter()
            .map(|text| json!({"role": "system", "content": text})),
    );
    converse(&mut conversation, lines)
}

/// The key in a file, without white space around it.
fn key(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("the API key cannot be read from {}", path.display()))?;
    match text.trim() {
        "" => anyhow::bail!("{} holds no API key", path.display()),
        key => Ok(key.to_owned()),
    }
}

fn first_model(client: &Client, interrupt: &Interrupt) -> anyhow::Result<String> {
    let models = client
        .models(&|| interrupt.was_pressed())
        .context("the models of the server are not known")?;
    let Some(name) = models.into_iter().next() else {
        anyhow::bail!("{} lists no model; --model NAME names one", client.host());
    };
    line(&format!(
        "chatting with {} on {}",
        escaped(&name),
        client.host()
    ));
    Ok(name)
}

/// What every request holds besides the messages. Only what the options say: a server may know
/// fewer fields than llm-int8's, whose names and vLLM's are these.
fn settings(model: String, args: &ChatArgs) -> Map<String, Value> {
    let SamplingArgs {
        greedy,
        temperature,
        top_k,
        top_p,
        min_p,
        seed,
        repetition_penalty,
        stop,
        ignore_eos,
        ..
    } = &args.sampling;
    let temperature = if *greedy { Some(0.0) } else { *temperature };
    let fields = [
        ("model", Some(json!(model))),
        ("max_tokens", args.max_new_tokens.map(|n| json!(n))),
        ("temperature", temperature.map(|x| json!(x))),
        ("top_k", top_k.map(|n| json!(n))),
        ("top_p", top_p.map(|x| json!(x))),
        ("min_p", min_p.map(|x| json!(x))),
        ("seed", seed.map(|n| json!(n))),
        ("repetition_penalty", repetition_penalty.map(|x| json!(x))),
        ("stop", (!stop.is_empty()).then(|| json!(stop))),
        ("ignore_eos", ignore_eos.then(|| json!(true))),
    ];
    fields
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect()
}

struct Remote {
    client: Client,
    settings: Map<String, Value>,
    messages: Vec<Value>,
    /// The server knows `stream_options`, as far as is known.
    asks_for_usage: bool,
    interrupt: Interrupt,
    is_quiet: bool,
}

impl Conversation for Remote {
    fn turn(&mut self, text: &str) -> anyhow::Result<bool> {
        self.interrupt.forget();
        let before = self.messages.clone();
        self.messages.push(json!({"role": "user", "content": text}));
        match self.answer() {
            Ok((answer, forgotten)) => {
                match answer.text.is_empty() && answer.was_stopped {
                    // There is nothing to go on from.
                    true => self.messages = before,
                    false => self
                        .messages
                        .push(json!({"role": "assistant", "content": answer.text})),
                }
                report(&answer, forgotten, self.is_quiet);
                Ok(true)
            }
            Err(ClientError::Output(error)) => Err(error.into()),
            Err(error) => {
                self.messages = before;
                line(&format!("error: {error}"));
                Ok(false)
            }
        }
    }

    fn reset(&mut self) {
        self.messages.retain(|message| message["role"] == "system");
    }
}

impl Remote {
    /// The answer to the last message, printed as it comes, and how many old messages were dropped
    /// because the server's context is full.
    fn answer(&mut self) -> Result<(Answer, usize), ClientError> {
        let mut forgotten = 0;
        loop {
            let error = match self.attempt() {
                Ok(answer) => return Ok((answer, forgotten)),
                Err(error) => error,
            };
            let dropped = match error.is_too_long() {
                true => self.forget_oldest(),
                false => 0,
            };
            forgotten += dropped;
            let retries = self.asks_for_usage && error.is_about_stream_options();
            if retries {
                self.asks_for_usage = false;
            }
            if dropped == 0 && !retries {
                return Err(error);
            }
        }
    }

    fn attempt(&self) -> Result<Answer, ClientError> {
        let mut body = self.settings.clone();
        body.insert("messages".into(), json!(self.messages));
        body.insert("stream".into(), json!(true));
        if self.asks_for_usage {
            let options = json!({"include_usage": true});
            body.insert("stream_options".into(), options);
        }

        let mut stdout = std::io::stdout().lock();
        let is_terminal = stdout.is_terminal();
        let mut has_begun = false;
        let answer = self.client.chat(
            &Value::Object(body),
            &|| self.interrupt.was_pressed(),
            &mut |piece| {
                has_begun = true;
                // A terminal obeys what it is sent; a file gets the text as it is.
                match is_terminal {
                    true => stdout.write_all(visible(piece).as_bytes())?,
                    false => stdout.write_all(piece.as_bytes())?,
                }
                stdout.flush()
            },
        );
        if has_begun || answer.is_ok() {
            writeln!(stdout)?;
        }
        answer
    }

    /// Drops the oldest user message and what follows it, up to the next one, and returns how many
    /// messages that are. The last user message is what is being asked now.
    fn forget_oldest(&mut self) -> usize {
        let turns: Vec<usize> = (0..self.messages.len())
            .filter(|index| self.messages[*index]["role"] == "user")
            .collect();
        match turns[..] {
            [first, second, ..] => self.messages.drain(first..second).count(),
            _ => 0,
        }
    }
}

/// Reports on the answer, on standard error.
fn report(answer: &Answer, forgotten: usize, is_quiet: bool) {
    if forgotten > 0 {
        line(&format!(
            "[{forgotten} old messages forgotten: the context is full]"
        ));
    }
    match answer.finish_reason.as_deref() {
        _ if answer.was_stopped => line("[stopped]"),
        Some("length") => {
            line("[cut off by --max-new-tokens, the server's limit or the end of the context]");
        }
        Some("content_filter") => line("[cut off by the server's filter]"),
        Some("tool_calls") => line("[the model called a tool; there are none here]"),
        _ if !answer.is_done => line("[the stream ended without [DONE]]"),
        _ => {}
    }
    if is_quiet {
        return;
    }

    let tokens = answer.usage.map(|usage| {
        format!(
            "{} tokens read, {} kept from before, {} written",
            usage.prompt.saturating_sub(usage.cached),
            usage.cached,
            usage.written
        )
    });
    let unit = if answer.usage.is_some() {
        "tokens"
    } else {
        "pieces"
    };
    let rate = answer.rate().map(|rate| format!("{rate:.1} {unit}/s"));
    let first = answer
        .to_first()
        .map(|time| format!("the first after {:.2} s", time.as_secs_f64()));
    let parts: Vec<String> = [tokens, rate, first].into_iter().flatten().collect();
    if !parts.is_empty() {
        line(&format!("[{}]", parts.join(", ")));
    }
}
