//! A client of servers that speak OpenAI's API: their models, and answers of a chat as streams.

mod address;
mod answer;
mod error;
mod sse;

pub(crate) use answer::Answer;
pub(crate) use error::ClientError;

use crate::display::escaped;
use address::{base, header, is_this_machine};
use answer::{Wrong, message_of};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{RequestBuilder, Response, Url};
use serde_json::Value;
use sse::Events;
use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// How often ctrl-C is looked for while the server is silent.
const TICK: Duration = Duration::from_millis(50);
const CONNECT: Duration = Duration::from_secs(10);
/// Bytes of an answer that is not a stream.
const LARGEST_BODY: usize = 16 << 20;
/// Characters of the server's words in an error.
const LONGEST_MESSAGE: usize = 500;

/// A server and the key for it. It cannot be printed.
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    key: Option<String>,
    /// How long the server may be silent.
    patience: Duration,
}

/// Whether the user wants to stop.
type Stop<'a> = &'a dyn Fn() -> bool;

impl Client {
    /// A client for an address as OpenAI's clients take it: with `/v1`, or without a path.
    pub(crate) fn new(
        address: &str,
        key: Option<String>,
        patience: Duration,
    ) -> Result<Self, ClientError> {
        let base = base(address)?;
        if let Some(key) = &key {
            header(key)?;
        }

        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("llm-int8/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            // A connection ends with its request: see `run`.
            .pool_max_idle_per_host(0)
            // The key is for this server only, and a redirected POST may lose its body.
            .redirect(reqwest::redirect::Policy::none());
        if is_this_machine(&base) {
            builder = builder.no_proxy();
        }
        Ok(Self {
            http: builder.build().map_err(|cause| no_client(&cause))?,
            base,
            key,
            patience,
        })
    }

    /// The server's host and port, for messages.
    pub(crate) fn host(&self) -> String {
        let host = self.base.host_str().unwrap_or("the server");
        match self.base.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    }

    /// Whether others on the way could read the key.
    pub(crate) fn shows_its_key(&self) -> bool {
        self.key.is_some() && self.base.scheme() == "http" && !is_this_machine(&self.base)
    }

    /// The names of the server's models.
    pub(crate) fn models(&self, stop: Stop<'_>) -> Result<Vec<String>, ClientError> {
        let request = self.http.get(self.url("models"));
        let body = run(async {
            let Some(mut response) = self.send(request, stop).await? else {
                return Ok(None);
            };
            self.body(&mut response, stop).await
        })?;
        let Some(body) = body else {
            return Ok(Vec::new());
        };

        let value: Value = serde_json::from_slice(&body)
            .map_err(|cause| self.malformed(format!("its list of models is not JSON ({cause})")))?;
        let models = value["data"].as_array().ok_or_else(|| {
            self.malformed("its list of models has no `data`; is the address complete?".into())
        })?;
        Ok(models
            .iter()
            .filter_map(|model| Some(model["id"].as_str()?.to_owned()))
            .collect())
    }

    /// Sends a request for a chat completion and passes its text on as it comes. Ends early if
    /// `stop` says so.
    pub(crate) fn chat(
        &self,
        body: &Value,
        stop: Stop<'_>,
        on_text: &mut dyn FnMut(&str) -> std::io::Result<()>,
    ) -> Result<Answer, ClientError> {
        let request = self
            .http
            .post(self.url("chat/completions"))
            .header(CONTENT_TYPE, "application/json")
            .body(body.to_string());
        run(async {
            let mut answer = Answer::new();
            let Some(mut response) = self.send(request, stop).await? else {
                answer.was_stopped = true;
                return Ok(answer);
            };
            match kind(response.headers()).as_deref() {
                None | Some("text/event-stream") => {
                    self.stream(&mut response, &mut answer, stop, on_text)
                        .await?
                }
                Some("application/json") => match self.body(&mut response, stop).await? {
                    Some(body) => self.whole(&body, &mut answer, on_text)?,
                    None => answer.was_stopped = true,
                },
                Some(other) => {
                    let reason = format!("it is {}, not a stream of events", escaped(other));
                    return Err(self.malformed(reason));
                }
            }
            Ok(answer)
        })
    }

    async fn stream(
        &self,
        response: &mut Response,
        answer: &mut Answer,
        stop: Stop<'_>,
        on_text: &mut dyn FnMut(&str) -> std::io::Result<()>,
    ) -> Result<(), ClientError> {
        let mut events = Events::default();
        while !stop() {
            match self.wait(response.chunk(), stop).await? {
                None => break,
                Some(Some(bytes)) => {
                    let ended = events
                        .push(&bytes)
                        .map_err(|cause| self.malformed(cause.to_string()))?;
                    for data in ended {
                        if self.take(&data, answer, on_text)? {
                            return Ok(());
                        }
                    }
                }
                Some(None) => {
                    // What was cut is not read.
                    if let Some(data) = events.finish()
                        && (data == DONE || serde_json::from_str::<Value>(&data).is_ok())
                    {
                        self.take(&data, answer, on_text)?;
                    }
                    return match answer.is_done || answer.finish_reason.is_some() {
                        true => Ok(()),
                        false => Err(ClientError::Ended),
                    };
                }
            }
        }

        answer.was_stopped = true;
        Ok(())
    }

    /// Takes the data of an event and returns whether it is the last.
    fn take(
        &self,
        data: &str,
        answer: &mut Answer,
        on_text: &mut dyn FnMut(&str) -> std::io::Result<()>,
    ) -> Result<bool, ClientError> {
        if data == DONE {
            answer.is_done = true;
            return Ok(true);
        }

        let chunk: Value = serde_json::from_str(data).map_err(|cause| {
            let reason = format!("an event is not JSON ({cause}): {}", self.shown(data));
            self.malformed(reason)
        })?;
        let text = answer.take(&chunk).map_err(|wrong| match wrong {
            Wrong::Failed(message) => ClientError::Failed(self.shown(&message)),
            Wrong::Malformed(reason) => self.malformed(reason),
        })?;
        if !text.is_empty() {
            on_text(&text)?;
        }
        Ok(false)
    }

    /// Takes an answer of a server that does not stream.
    fn whole(
        &self,
        body: &[u8],
        answer: &mut Answer,
        on_text: &mut dyn FnMut(&str) -> std::io::Result<()>,
    ) -> Result<(), ClientError> {
        self.take(&String::from_utf8_lossy(body), answer, on_text)?;
        answer.is_done = true;
        Ok(())
    }

    /// Sends a request; `None` if the user stops it. An answer that is an error becomes one.
    async fn send(
        &self,
        mut request: RequestBuilder,
        stop: Stop<'_>,
    ) -> Result<Option<Response>, ClientError> {
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, header(key)?);
        }
        let Some(mut response) = self.wait(request.send(), stop).await? else {
            return Ok(None);
        };
        if response.status().is_success() {
            return Ok(Some(response));
        }

        let status = response.status().as_u16();
        let retry_after = response.headers().get(RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let location = response.headers().get("location");
        let location = location.and_then(|value| value.to_str().ok().map(str::to_owned));
        // The words are a courtesy: without them the status is told.
        let body = self.body(&mut response, stop).await.ok().flatten();
        let (message, code) = words(&body.unwrap_or_default());
        let message = match location.filter(|_| (300..400).contains(&status)) {
            Some(place) => format!("it names {place}"),
            None => message,
        };
        Err(ClientError::Status {
            status,
            message: self.shown(&message),
            code,
            retry_after,
        })
    }

    /// The bytes of an answer; `None` if the user stops it.
    async fn body(
        &self,
        response: &mut Response,
        stop: Stop<'_>,
    ) -> Result<Option<Vec<u8>>, ClientError> {
        let mut body = Vec::new();
        loop {
            match self.wait(response.chunk(), stop).await? {
                None => return Ok(None),
                Some(None) => return Ok(Some(body)),
                Some(Some(bytes)) => body.extend_from_slice(&bytes),
            }
            if body.len() > LARGEST_BODY {
                let reason = format!("it has more than {} MiB", LARGEST_BODY >> 20);
                return Err(self.malformed(reason));
            }
        }
    }

    /// Waits for the server; `None` if the user stops it.
    async fn wait<T>(
        &self,
        future: impl Future<Output = reqwest::Result<T>>,
        stop: Stop<'_>,
    ) -> Result<Option<T>, ClientError> {
        let mut future = pin!(future);
        let start = Instant::now();
        loop {
            match timeout(TICK, future.as_mut()).await {
                Ok(Ok(value)) => return Ok(Some(value)),
                Ok(Err(cause)) => return Err(self.unreachable(&cause)),
                Err(_) if stop() => return Ok(None),
                Err(_) if start.elapsed() >= self.patience => {
                    return Err(ClientError::Silent {
                        host: self.host(),
                        seconds: self.patience.as_secs(),
                    });
                }
                Err(_) => {}
            }
        }
    }

    fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}/{path}", self.base.path()));
        url
    }

    fn unreachable(&self, cause: &reqwest::Error) -> ClientError {
        let reason = match cause.is_timeout() {
            true => "no connection in time".to_owned(),
            false => self.shown(&innermost(cause)),
        };
        ClientError::Unreachable {
            host: self.host(),
            reason,
        }
    }

    fn malformed(&self, reason: String) -> ClientError {
        ClientError::Malformed {
            host: self.host(),
            reason,
        }
    }

    /// The server's words for a message: short, harmless for a terminal, without the key.
    fn shown(&self, text: &str) -> String {
        let mut text = text.trim().to_owned();
        if let Some(key) = self.key.as_deref().filter(|key| !key.is_empty()) {
            text = text.replace(key, "[key]");
        }
        if let Some((end, _)) = text.char_indices().nth(LONGEST_MESSAGE) {
            text.truncate(end);
            text.push('…');
        }
        escaped(&text)
    }
}

const DONE: &str = "[DONE]";

/// Runs a request to its end. What is left of it goes with the runtime: if the user has stopped an
/// answer, the server must see now that nobody reads it.
fn run<T>(request: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|cause| no_client(&cause))?;
    let result = runtime.block_on(request);
    // A look-up of a name may go on for long.
    runtime.shutdown_background();
    result
}

fn no_client(cause: &dyn std::error::Error) -> ClientError {
    ClientError::Client(innermost(cause))
}

/// The media type of an answer, in lower case.
fn kind(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(text.split(';').next()?.trim().to_ascii_lowercase())
}

/// What the body of an error says, and OpenAI's name of the error.
fn words(body: &[u8]) -> (String, Option<String>) {
    let Ok(value) = serde_json::from_slice::<Value>(body) else {
        // A page of a proxy says less than the status.
        let text = String::from_utf8_lossy(body);
        let is_markup = text.trim_start().starts_with('<');
        return (
            if is_markup {
                String::new()
            } else {
                text.into()
            },
            None,
        );
    };
    let error = value.get("error").or_else(|| value.get("detail"));
    let error = error.unwrap_or(&value);
    let code = error["code"].as_str().map(str::to_owned);
    (message_of(error), code)
}

/// The last cause of an error: the ones before repeat the address.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_errors_are_found_wherever_servers_put_them() {
        for (body, message, code) in [
            (
                r#"{"error": {"message": "No.", "code": "x"}}"#,
                "No.",
                Some("x"),
            ),
            (r#"{"error": "No."}"#, "No.", None),
            (r#"{"detail": "No."}"#, "No.", None),
            (r#"{"message": "No.", "code": 404}"#, "No.", None),
            ("No.", "No.", None),
            ("<html><h1>502</h1></html>", "", None),
            ("", "", None),
        ] {
            let expected = (message.to_owned(), code.map(str::to_owned));
            assert_eq!(words(body.as_bytes()), expected, "{body}");
        }
    }

    #[test]
    fn words_of_a_server_hold_no_key_and_harm_no_terminal() {
        let client = Client::new("http://localhost", Some("sk-1".into()), CONNECT).unwrap();
        assert_eq!(
            client.shown(" Incorrect key sk-1\u{1b}[2J "),
            "Incorrect key [key]\\u{1b}[2J"
        );
        assert_eq!(client.shown(&"ö".repeat(600)).chars().count(), 501);
    }
}
