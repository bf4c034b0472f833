//! Takes tool calls out of a stream of text. What may become a call is held back; what turns out
//! to be none is text again, so nothing that a model wrote is lost.

use super::json::{Beginning, beginning, call};
use super::{ToolCall, ToolFormat};
use serde_json::Value;

/// What a stream of text contains, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    Text(String),
    Call(ToolCall),
}

/// The state of a stream.
#[derive(Debug)]
pub(crate) struct ToolParser {
    format: ToolFormat,
    /// Names of the tools offered, which tell a call of Llama from other JSON.
    names: Vec<String>,
    state: State,
    /// Text whose meaning is not known yet.
    held: String,
    calls: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but white space so far.
    Start,
    /// Text, in which a call may begin.
    Text,
    /// After the mark of a call; it is not in `held`.
    Call,
    /// Nothing more is a call.
    Rest,
}

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const PYTHON: &str = "<|python_tag|>";
const CALLS: &str = "[TOOL_CALLS]";
const ARGUMENTS: &str = "[ARGS]";
const CALL_ID: &str = "[CALL_ID]";

impl ToolParser {
    pub(crate) fn new(format: ToolFormat, names: Vec<String>) -> Self {
        Self {
            format,
            names,
            state: State::Start,
            held: String::new(),
            calls: 0,
        }
    }

    /// Calls found so far.
    pub(crate) fn calls(&self) -> usize {
        self.calls
    }

    /// Adds text and returns what is now known about it.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Found> {
        let mut found = Vec::new();
        self.held.push_str(text);
        while self.advance(false, &mut found) {}
        found
    }

    /// What was held back, at the end of the stream.
    pub(crate) fn finish(&mut self) -> Vec<Found> {
        let mut found = Vec::new();
        while self.advance(true, &mut found) {}
        let mut rest = std::mem::take(&mut self.held);
        if self.state == State::Call {
            rest.insert_str(0, self.mark());
        }
        // White space around calls belongs to them.
        if self.calls == 0 || !rest.trim().is_empty() {
            text(rest, &mut found);
        }

        found
    }

    /// What begins a call.
    fn mark(&self) -> &'static str {
        match self.format {
            ToolFormat::Hermes => OPEN,
            ToolFormat::Llama => "",
            ToolFormat::Mistral => CALLS,
        }
    }

    /// One step; false if nothing more can be said about what is held.
    fn advance(&mut self, is_end: bool, found: &mut Vec<Found>) -> bool {
        match (self.state, self.format) {
            (State::Rest, _) => {
                text(std::mem::take(&mut self.held), found);
                false
            }
            (State::Start | State::Text, ToolFormat::Llama) => self.begin_json(),
            (State::Start | State::Text, _) => self.look_for_mark(found),
            (State::Call, ToolFormat::Hermes) => self.hermes(is_end, found),
            (State::Call, ToolFormat::Llama) => self.llama(found),
            (State::Call, ToolFormat::Mistral) => self.mistral(found),
        }
    }

    /// Gives out text up to a mark, or up to what may become one.
    fn look_for_mark(&mut self, found: &mut Vec<Found>) -> bool {
        let mark = self.mark();
        if let Some(place) = self.held.find(mark) {
            let rest = self.held.split_off(place + mark.len());
            self.held.truncate(place);
            let before = std::mem::replace(&mut self.held, rest);
            let before = before.trim_end();
            if !before.is_empty() {
                text(before.to_owned(), found);
            }
            self.state = State::Call;
            return true;
        }

        let known = self.held.len() - open_end(&self.held, mark);
        let rest = self.held.split_off(known);
        let mut sure = std::mem::replace(&mut self.held, rest);
        // Line breaks between calls are no text.
        if self.calls > 0 && self.state == State::Start {
            sure = sure.trim_start().to_owned();
        }
        if !sure.is_empty() {
            self.state = State::Text;
            text(sure, found);
        }
        false
    }

    /// A call begun, or what was held is text.
    fn call_or_text(&mut self, call: Option<ToolCall>, whole: String, found: &mut Vec<Found>) {
        match call {
            Some(call) => {
                self.calls += 1;
                found.push(Found::Call(call));
            }
            None => text(whole, found),
        }
    }

    fn hermes(&mut self, is_end: bool, found: &mut Vec<Found>) -> bool {
        let end = match self.held.find(CLOSE) {
            Some(end) => end,
            // The end mark may be missing if the model ended here.
            None if is_end => self.held.len(),
            None => return false,
        };
        let rest = self.held.split_off(end);
        let inside = std::mem::replace(&mut self.held, rest);
        let is_closed = self.held.starts_with(CLOSE);
        self.held.drain(..if is_closed { CLOSE.len() } else { 0 });

        let value = serde_json::from_str::<Value>(inside.trim()).ok();
        let close = if is_closed { CLOSE } else { "" };
        let whole = format!("{OPEN}{inside}{close}");
        self.call_or_text(value.as_ref().and_then(call), whole, found);
        self.state = State::Start;
        true
    }

    /// A reply of Llama is either calls or text, which its beginning tells.
    fn begin_json(&mut self) -> bool {
        let start = self.held.trim_start();
        if let Some(rest) = start.strip_prefix(PYTHON) {
            self.held = rest.to_owned();
            self.state = State::Call;
            true
        } else if start.starts_with('{') {
            self.state = State::Call;
            true
        } else if PYTHON.starts_with(start) {
            // Also nothing but white space.
            false
        } else {
            self.state = State::Rest;
            true
        }
    }

    fn llama(&mut self, found: &mut Vec<Found>) -> bool {
        let separators = |c: char| c.is_whitespace() || (self.calls > 0 && matches!(c, ';' | ','));
        let start = self.held.trim_start_matches(separators);
        match beginning(start) {
            Beginning::Open => false,
            Beginning::Whole(value, len) => {
                let known = call(&value).filter(|call| self.names.contains(&call.name));
                if let Some(call) = known {
                    let rest = start.get(len..).unwrap_or_default().to_owned();
                    self.held = rest;
                    self.calls += 1;
                    found.push(Found::Call(call));
                } else {
                    self.state = State::Rest;
                }
                true
            }
            Beginning::Not => {
                self.state = State::Rest;
                true
            }
        }
    }

    fn mistral(&mut self, found: &mut Vec<Found>) -> bool {
        let start = self.held.trim_start();
        if start.is_empty() {
            return false;
        }
        if start.starts_with('[') {
            return self.mistral_list(found);
        }

        let Some((head, body)) = start.split_once(ARGUMENTS) else {
            return false;
        };
        let (name, _id) = head.split_once(CALL_ID).unwrap_or((head, ""));
        match beginning(body) {
            Beginning::Open => false,
            Beginning::Whole(value, len) if value.is_object() => {
                let call = ToolCall {
                    name: name.trim().to_owned(),
                    arguments: value.to_string(),
                };
                let rest = body.get(len..).unwrap_or_default().to_owned();
                self.call_or_text(Some(call), String::new(), found);
                self.held = rest;
                self.state = State::Start;
                true
            }
            Beginning::Whole(..) | Beginning::Not => self.no_calls(),
        }
    }

    fn mistral_list(&mut self, found: &mut Vec<Found>) -> bool {
        let start = self.held.trim_start();
        match beginning(start) {
            Beginning::Open => false,
            Beginning::Whole(Value::Array(list), len) => {
                let Some(calls) = list.iter().map(call).collect::<Option<Vec<_>>>() else {
                    return self.no_calls();
                };
                self.held = start.get(len..).unwrap_or_default().to_owned();
                self.calls += calls.len();
                found.extend(calls.into_iter().map(Found::Call));
                self.state = State::Start;
                true
            }
            Beginning::Whole(..) | Beginning::Not => self.no_calls(),
        }
    }

    /// What follows the mark is no call: all of it is text.
    fn no_calls(&mut self) -> bool {
        let mark = self.mark();
        self.held.insert_str(0, mark);
        self.state = State::Rest;
        true
    }
}

fn text(text: String, found: &mut Vec<Found>) {
    if text.is_empty() {
        return;
    }
    match found.last_mut() {
        Some(Found::Text(before)) => before.push_str(&text),
        _ => found.push(Found::Text(text)),
    }
}

/// Bytes at the end of `text` that may become white space and a mark.
fn open_end(text: &str, mark: &str) -> usize {
    let ends = (1..mark.len()).filter(|len| mark.is_char_boundary(*len));
    let part = ends
        .filter(|len| text.ends_with(&mark[..*len]))
        .max()
        .unwrap_or(0);
    let before = &text[..text.len() - part];
    part + before.len() - before.trim_end().len()
}

#[cfg(test)]
#[path = "parser_tests.rs"]
mod tests;
