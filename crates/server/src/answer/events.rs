//! An answer as server-sent events.

use super::{Choice, Head, Style, Submission, usage};
use crate::reply::ApiError;
use bytes::Bytes;
use http_body::{Body, Frame};
use serde_json::{Map, Value};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// The body of a stream. It is dropped when the client goes, and with it the [`Submission`].
#[derive(Debug)]
pub(crate) struct Events<S> {
    head: Head,
    style: S,
    choices: Vec<Choice>,
    submission: Submission,
    /// The chunk with the usage comes at the end.
    includes_usage: bool,
    /// Choices of each prompt.
    per_prompt: usize,
    period: Duration,
    ping: Pin<Box<Sleep>>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Begins,
    Runs,
    Ended,
}

/// Events are gathered up to about this many bytes.
const FRAME: usize = 16 << 10;

impl<S: Style> Events<S> {
    pub(crate) fn new(
        head: Head,
        style: S,
        choices: Vec<Choice>,
        submission: Submission,
        includes_usage: bool,
        per_prompt: usize,
        period: Duration,
    ) -> Self {
        Self {
            head,
            style,
            choices,
            submission,
            includes_usage,
            per_prompt,
            period,
            ping: Box::pin(tokio::time::sleep(period)),
            state: State::Begins,
        }
    }

    /// Writes a chunk. With the usage asked for, all others say that they have none.
    fn write(&self, mut chunk: Map<String, Value>, out: &mut String) {
        if self.includes_usage {
            chunk.entry("usage").or_insert(Value::Null);
        }
        event(&Value::Object(chunk), out);
    }

    fn take(&mut self, index: usize, update: llm_int8::generate::Update, out: &mut String) {
        let Some(choice) = self.choices.get_mut(index) else {
            return;
        };
        let was_open = !choice.has_ended();
        let step = match choice.take(update, self.submission.began, &self.head.metrics) {
            Ok(step) => step,
            Err(error) => return self.fail(&error, out),
        };
        if step.is_empty() {
            return;
        }
        if let Some(handle) = self.submission.handles.get(index)
            && was_open
            && choice.has_ended()
        {
            handle.cancel();
        }

        if let Some(choice) = self.choices.get(index) {
            for chunk in self.style.chunks(&self.head, choice, &step) {
                self.write(chunk, out);
            }
        }
        if self.choices.iter().all(Choice::has_ended) {
            self.end(out);
        }
    }

    fn end(&mut self, out: &mut String) {
        if self.includes_usage {
            let mut chunk = self.head.object(self.style.chunk_kind(), Vec::new());
            chunk.insert("usage".into(), usage(&self.choices, self.per_prompt));
            event(&Value::Object(chunk), out);
        }
        out.push_str("data: [DONE]\n\n");
        self.state = State::Ended;
    }

    /// An error in the middle of a stream, on which clients raise it.
    fn fail(&mut self, error: &ApiError, out: &mut String) {
        event(&error.body(), out);
        out.push_str("data: [DONE]\n\n");
        self.state = State::Ended;
    }
}

fn event(value: &Value, out: &mut String) {
    out.push_str("data: ");
    out.push_str(&value.to_string());
    out.push_str("\n\n");
}

impl<S: Style> Body for Events<S> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        let mut out = String::new();
        if this.state == State::Begins {
            this.state = State::Runs;
            for chunk in this.style.opening(&this.head, this.choices.len()) {
                this.write(chunk, &mut out);
            }
        }

        while this.state == State::Runs && out.len() < FRAME {
            match this.submission.updates.poll_recv(context) {
                Poll::Ready(Some((index, update))) => this.take(index, update, &mut out),
                Poll::Ready(None) => {
                    let error = ApiError::internal("the engine's thread has ended");
                    this.fail(&error, &mut out);
                }
                Poll::Pending => break,
            }
        }

        if out.is_empty() && this.state == State::Ended {
            return Poll::Ready(None);
        }
        if out.is_empty() && this.ping.as_mut().poll(context).is_ready() {
            out.push_str(": ping\n\n");
        }
        if out.is_empty() {
            return Poll::Pending;
        }

        this.ping.as_mut().reset(Instant::now() + this.period);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(out)))))
    }
}
