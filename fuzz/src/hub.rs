//! A hub on the loopback interface whose answers are chosen by bytes.

use crate::{Choices, json, safetensors};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Result, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

const NAMES: [&str; 18] = [
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "generation_config.json",
    "model-1.safetensors",
    "model-2.safetensors",
    "tokenizer_config.json",
    "tokenizer.4.0.0.json",
    "additional_chat_templates/x.jinja",
    "additional_chat_templates/../../x.jinja",
    "../../x",
    "/etc/passwd",
    "vocab.json",
    "README.md",
    "merges.txt",
];

/// The server. Its thread runs as long as the process.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    script: Arc<Mutex<Vec<u8>>>,
}

impl Server {
    /// Starts it.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let script = Arc::new(Mutex::new(Vec::new()));
        let own = script.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Clients that hang up are part of the game.
                let _ = serve(stream, &own);
            }
        });

        Self { address, script }
    }

    /// Its address.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Answers the next requests as these bytes say.
    pub fn obey(&self, script: &[u8]) {
        *self.script.lock().expect("a lock") = script.to_vec();
    }
}

/// Reads one request and answers it.
fn serve(mut stream: TcpStream, script: &Mutex<Vec<u8>>) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let is_head = words.next() == Some("HEAD");
    let path = words.next().unwrap_or_default().to_owned();
    let mut range = None;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? <= 2 {
            break;
        }
        let lower = header.to_ascii_lowercase();
        if let Some(start) = lower.strip_prefix("range: bytes=") {
            range = start.split('-').next().and_then(|start| start.parse().ok());
        }
    }

    let mut script = script.lock().expect("a lock");
    let mut from = Choices::new(&script);
    let answer = match path.starts_with("/api/") {
        true => listing(&mut from),
        false => file(&mut from, &path, is_head, range),
    };
    let rest = from.rest().to_vec();
    *script = rest;
    drop(script);
    stream.write_all(&answer)
}

fn status(from: &mut Choices<'_>) -> u16 {
    from.pick(&[
        200, 404, 401, 403, 416, 429, 500, 503, 206, 302, 204, 304, 405, 999,
    ])
}

/// An answer with a length that is mostly right.
fn answer(from: &mut Choices<'_>, status: u16, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = match from.rarely() {
        true => from.number(),
        false => body.len() as u64,
    };
    let mut out = format!(
        "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    )
    .into_bytes();
    out.extend(body);
    if from.rarely() {
        out.truncate(usize::from(from.byte()));
    }
    out
}

/// Headers with values by grammar.
fn odd_headers(from: &mut Choices<'_>) -> String {
    const HEADERS: [&str; 14] = [
        "ETag",
        "X-Linked-Etag",
        "X-Linked-Size",
        "X-Repo-Commit",
        "Content-Range",
        "Content-Encoding",
        "Location",
        "Retry-After",
        "X-Error-Code",
        "Content-Type",
        "Accept-Ranges",
        "X-Error-Message",
        "Link",
        "Transfer-Encoding",
    ];
    const VALUES: [&str; 28] = [
        "\"abc\"",
        "W/\"abc\"",
        "\"\"",
        "abc",
        "../../x",
        "\"../../x\"",
        "0",
        "1",
        "18446744073709551615",
        "-1",
        COMMIT,
        "bytes 0-9/10",
        "bytes 5-9/*",
        "bytes */10",
        "bytes 18446744073709551615-0/1",
        "gzip",
        "identity",
        "br",
        "deflate",
        "/x",
        "http://127.0.0.1:1/x",
        "file:///etc/passwd",
        "http://[",
        "RepoNotFound",
        "EntryNotFound",
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "application/json",
        "chunked",
    ];
    let mut headers = String::new();
    for _ in 0..from.below(4) {
        let name = from.one(&HEADERS);
        let value = match from.rarely() {
            true => from.text().replace(['\r', '\n'], " "),
            false => from.one(&VALUES).to_owned(),
        };
        headers += &format!("{name}: {value}\r\n");
    }
    headers
}

fn listing(from: &mut Choices<'_>) -> Vec<u8> {
    let style = from.byte();
    if style == 255 {
        return from.bytes(64).to_vec();
    }
    let status = if style < 200 { 200 } else { status(from) };
    let mut names: Vec<&str> = NAMES[..2].to_vec();
    let chosen = from.short();
    names.extend(
        NAMES
            .iter()
            .enumerate()
            .filter(|(place, _)| chosen & 1 << (place % 16) != 0)
            .map(|(_, name)| *name),
    );
    if chosen & 3 == 3 {
        names.drain(..2);
    }
    let siblings: Vec<Value> = names
        .iter()
        .map(|name| json!({ "rfilename": name }))
        .collect();
    let mut body = json!({ "id": "org/model", "sha": COMMIT, "siblings": siblings });
    if from.below(4) == 0 {
        let bytes = from.bytes(24);
        json::change(
            &mut body,
            &mut Choices::new(bytes),
            &["sha", "siblings", "rfilename", "size", "gated"],
            &NAMES,
        );
    }
    let mut body = body.to_string().into_bytes();
    if from.rarely() {
        body = from.bytes(32).to_vec();
    }
    let headers = if from.below(4) == 0 {
        odd_headers(from)
    } else {
        String::new()
    };
    answer(from, status, &headers, &body)
}

fn content(from: &mut Choices<'_>, path: &str) -> Vec<u8> {
    let kind = from.byte();
    if kind == 255 {
        return from.bytes(48).to_vec();
    }
    match path.rsplit('/').next().unwrap_or_default() {
        name if name.ends_with(".safetensors") => {
            safetensors::file(&mut Choices::new(from.bytes(24)))
        }
        name if name.ends_with(".index.json") => {
            let files = [
                "model-1.safetensors",
                "model-2.safetensors",
                "pytorch_model.bin",
            ];
            safetensors::index(&mut Choices::new(from.bytes(16)), &files)
        }
        "tokenizer_config.json" => {
            br#"{"fast_tokenizer_files": ["tokenizer.4.0.0.json", "tokenizer.json"]}"#.to_vec()
        }
        name if name.ends_with(".json") => br#"{"model_type": "gpt2", "a": [1, "}"]}"#.to_vec(),
        _ => b"<!DOCTYPE html>"[..usize::from(kind) % 16].to_vec(),
    }
}

fn file(from: &mut Choices<'_>, path: &str, is_head: bool, range: Option<u64>) -> Vec<u8> {
    let style = from.byte();
    if style == 255 {
        return from.bytes(64).to_vec();
    }
    let body = content(from, path);
    let mut headers = format!("X-Repo-Commit: {COMMIT}\r\n");
    if style & 1 == 0 {
        headers += "ETag: \"abc\"\r\n";
    }
    if from.below(4) == 0 {
        headers += &odd_headers(from);
    }
    if style > 200 {
        let status = status(from);
        return answer(from, status, &headers, &body);
    }
    if is_head {
        let mut whole = answer(from, 200, &headers, &body);
        whole.truncate(whole.len().saturating_sub(body.len()));
        return whole;
    }
    let start = range.map_or(0, |start| {
        usize::try_from(start).unwrap_or(usize::MAX).min(body.len())
    });
    match range {
        Some(_) if style & 2 == 0 && start < body.len() => {
            headers += &format!(
                "Content-Range: bytes {start}-{}/{}\r\n",
                body.len() - 1,
                body.len()
            );
            answer(from, 206, &headers, &body[start..])
        }
        _ => answer(from, 200, &headers, &body),
    }
}
