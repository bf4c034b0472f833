//! A server on the loopback interface that answers as it is told, once for each connection.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// An answer: its pieces, each sent by itself after a pause.
#[derive(Clone, Debug)]
pub(crate) struct Fake {
    pieces: Vec<Vec<u8>>,
    pause: Duration,
    /// Keeps the connection open after the last piece.
    hangs: bool,
}

impl Fake {
    /// An answer with a status line such as `200 OK`, headers and a body.
    pub(crate) fn new(status: &str, headers: &[&str], body: &str) -> Self {
        let mut head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
        for header in headers {
            head += header;
            head += "\r\n";
        }
        Self {
            pieces: vec![format!("{head}\r\n{body}").into_bytes()],
            pause: Duration::ZERO,
            hangs: false,
        }
    }

    /// A stream of events.
    pub(crate) fn stream(body: &str) -> Self {
        Self::new("200 OK", &["Content-Type: text/event-stream"], body)
    }

    /// An error in OpenAI's form.
    pub(crate) fn error(status: &str, headers: &[&str], message: &str, code: &str) -> Self {
        let body = json!({"error": {"message": message, "type": "x", "param": null, "code": code}});
        let headers = [&["Content-Type: application/json"], headers].concat();
        Self::new(status, &headers, &body.to_string())
    }

    /// Cuts the body at this byte.
    pub(crate) fn cut_at(mut self, at: usize) -> Self {
        let whole = self.pieces.concat();
        let head = whole
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap()
            + 4;
        let (first, second) = whole.split_at((head + at).min(whole.len()));
        self.pieces = vec![first.to_vec(), second.to_vec()];
        self
    }

    /// Sends every line by itself, after a pause.
    pub(crate) fn slowly(mut self, pause: Duration) -> Self {
        let whole = self.pieces.concat();
        self.pieces = whole
            .split_inclusive(|byte| *byte == b'\n')
            .map(<[u8]>::to_vec)
            .collect();
        self.pause = pause;
        self
    }

    /// Keeps the connection open and sends no more.
    pub(crate) fn hanging(mut self) -> Self {
        self.hangs = true;
        self
    }

    fn send(&self, stream: &mut TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        for (index, piece) in self.pieces.iter().enumerate() {
            if index > 0 {
                thread::sleep(self.pause);
            }
            stream.write_all(piece)?;
            stream.flush()?;
        }
        if self.hangs {
            // Until the client goes.
            stream.read_to_end(&mut Vec::new())?;
        }
        Ok(())
    }
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) line: String,
    /// In lower case.
    pub(crate) headers: Vec<String>,
    pub(crate) body: Value,
}

/// What a server has seen.
#[derive(Debug, Default)]
struct Seen {
    requests: Vec<Request>,
    /// Answers that could not be sent to their end.
    broken: usize,
}

pub(crate) struct FakeServer {
    port: u16,
    seen: Arc<Mutex<Seen>>,
}

impl FakeServer {
    /// A server that gives these answers, in this order; the last one again and again.
    pub(crate) fn start(answers: Vec<Fake>) -> Self {
        let answers = Mutex::new(answers.into_iter().peekable());
        Self::answering(move |_| {
            let mut answers = answers.lock().unwrap();
            let answer = answers.peek().unwrap().clone();
            if answers.len() > 1 {
                answers.next();
            }
            answer
        })
    }

    /// A server whose answers depend on the request.
    pub(crate) fn answering(answer: impl Fn(&Request) -> Fake + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (shared, answer) = (seen.clone(), Arc::new(answer));
        // Ends with the tests. Browsers open connections that they may never use.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let (shared, answer) = (shared.clone(), answer.clone());
                thread::spawn(move || {
                    let Some(request) = request(&stream) else {
                        return;
                    };
                    let answer = answer(&request);
                    shared.lock().unwrap().requests.push(request);
                    if answer.send(&mut stream).is_err() {
                        shared.lock().unwrap().broken += 1;
                    }
                });
            }
        });
        Self { port, seen }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.seen.lock().unwrap().requests.clone()
    }

    pub(crate) fn broken(&self) -> usize {
        self.seen.lock().unwrap().broken
    }
}

/// Reads a request; `None` if the client closed the connection first.
fn request(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut next = || {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        Some(line.trim_end().to_owned())
    };
    let line = next().filter(|line| !line.is_empty())?;
    let mut headers = Vec::new();
    loop {
        match next()? {
            header if header.is_empty() => break,
            header => headers.push(header.to_lowercase()),
        }
    }
    let length = headers
        .iter()
        .find_map(|header| header.strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    Some(Request {
        line,
        headers,
        body: serde_json::from_slice(&body).unwrap_or(Value::Null),
    })
}
