//! A hub on the loopback interface that misbehaves on request.

use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What goes wrong with one request for a body.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Close the connection after `n` bytes of the body.
    DropAfter(usize),
    /// Send `n` bytes of the body, then nothing, and keep the connection open.
    StallAfter(usize),
    /// Answer with a status and an optional `Retry-After`.
    Status(u16, Option<&'static str>),
    /// Send other bytes of the same length.
    WrongBytes,
    /// Answer a range request with the whole file.
    NoRanges,
    /// Answer a range request without `Content-Range`.
    NoContentRange,
    /// Answer a range request with another range.
    WrongRange,
    /// Send in pieces of `n` bytes, so slowly that two downloaders meet.
    Slow(usize),
    /// Answer with this JSON instead of the listing.
    Listing(String),
    /// Redirect to this path.
    Redirect(&'static str),
}

/// One received request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
}

/// How a mirror differs from the hub.
#[derive(Debug, Clone, Default)]
pub struct Mirror {
    /// The path on its host under which it serves the hub's URLs.
    pub prefix: &'static str,
    /// It sends no `X-Repo-Commit`.
    pub hides_commit: bool,
    /// It compresses JSON files, requested or not, and sends this `Content-Encoding`.
    pub encoding: Option<&'static str>,
    /// It redirects bodies to this path on the same host.
    pub redirects_to: Option<&'static str>,
    /// Its redirects carry no `X-Linked-*` headers.
    pub is_terse: bool,
    /// It answers HEAD with this status.
    pub head_status: Option<u16>,
    /// It delays the answer to the first HEAD by this time.
    pub slow_head: Duration,
}

#[derive(Default)]
struct State {
    mirror: Mirror,
    /// Name → content and etag.
    files: BTreeMap<String, (Vec<u8>, String)>,
    faults: BTreeMap<String, VecDeque<Fault>>,
    api_faults: VecDeque<Fault>,
    log: Vec<Request>,
    /// The server that bodies are redirected to.
    cdn: Option<SocketAddr>,
}

/// The server. It runs until the test process ends.
#[derive(Clone)]
pub struct FakeHub {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl FakeHub {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hub = Self {
            address: listener.local_addr().unwrap(),
            state: Arc::default(),
        };
        let server = hub.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = server.clone();
                // Errors are ignored: clients that disconnect early are part of the tests.
                std::thread::spawn(move || drop(server.serve(stream)));
            }
        });

        hub
    }

    pub fn endpoint(&self) -> String {
        format!(
            "http://{}{}",
            self.address,
            self.state.lock().unwrap().mirror.prefix
        )
    }

    pub fn is_mirror(&self, mirror: Mirror) {
        self.state.lock().unwrap().mirror = mirror;
    }

    /// Adds a file whose etag is its SHA-256, as for large files on the hub. Returns the etag.
    pub fn add(&self, name: &str, content: &[u8]) -> String {
        let etag: String = Sha256::digest(content)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        self.add_with_etag(name, content, &etag);
        etag
    }

    /// Adds a file. Its etag is sent in quotes unless it contains some; an empty one is not sent.
    pub fn add_with_etag(&self, name: &str, content: &[u8], etag: &str) {
        self.state
            .lock()
            .unwrap()
            .files
            .insert(name.into(), (content.to_vec(), etag.into()));
    }

    /// Makes the next requests for the body of this file fail, with one fault each.
    pub fn faults(&self, name: &str, faults: impl IntoIterator<Item = Fault>) {
        self.state
            .lock()
            .unwrap()
            .faults
            .entry(name.into())
            .or_default()
            .extend(faults);
    }

    /// Makes the next requests for the listing fail, with one fault each.
    pub fn api_faults(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state.lock().unwrap().api_faults.extend(faults);
    }

    /// Redirects bodies to another server.
    pub fn redirect_bodies_to(&self, other: &Self) {
        self.state.lock().unwrap().cdn = Some(other.address);
    }

    pub fn log(&self) -> Vec<Request> {
        self.state.lock().unwrap().log.clone()
    }

    /// The ranges of the requests for a file's body, in order; `None` for a request without one.
    pub fn ranges(&self, name: &str) -> Vec<Option<String>> {
        let bodies = self
            .log()
            .into_iter()
            .filter(|r| r.method == "GET" && r.path.ends_with(&format!("/{name}")));
        bodies.map(|request| request.range).collect()
    }

    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        loop {
            let Some(request) = read_request(&mut reader)? else {
                return Ok(());
            };
            self.state.lock().unwrap().log.push(request.clone());
            if !self.answer(&request, &mut stream)? {
                return Ok(());
            }
        }
    }

    /// Answers a request. Returns whether to keep the connection.
    fn answer(&self, request: &Request, stream: &mut TcpStream) -> std::io::Result<bool> {
        let prefix = self.state.lock().unwrap().mirror.prefix;
        let path = request.path.split('?').next().unwrap_or_default();

        // Targets of redirects are outside the prefix.
        if let Some(name) = path.strip_prefix("/signed/") {
            return self.body(request, name, stream);
        }

        let Some(path) = path.strip_prefix(prefix) else {
            return status(stream, 404, "");
        };

        // A renamed repository, with relative redirects as from the real hub.
        if let Some(rest) = path.strip_prefix("/api/models/old") {
            return redirect(stream, &format!("/api/models/org/model{rest}"));
        }

        if let Some(rest) = path.strip_prefix("/old/") {
            return redirect(stream, &format!("/org/model/{rest}"));
        }

        if let Some(rest) = path.strip_prefix("/api/models/") {
            return self.listing(rest, stream);
        }

        match path
            .strip_prefix("/org/model/resolve/")
            .and_then(|rest| rest.split_once('/'))
        {
            Some((_, name)) => self.file(request, name, stream),
            None => status(stream, 404, ""),
        }
    }

    fn listing(&self, rest: &str, stream: &mut TcpStream) -> std::io::Result<bool> {
        let fault = self.state.lock().unwrap().api_faults.pop_front();
        match fault {
            Some(Fault::Status(code, retry_after)) => {
                let extra =
                    retry_after.map_or(String::new(), |value| format!("Retry-After: {value}\r\n"));
                return status(stream, code, &extra);
            }
            Some(Fault::Listing(text)) => return json(stream, &text),
            Some(Fault::Redirect(path)) => return redirect(stream, path),
            _ => {}
        }

        let (repo, revision) = rest.split_once("/revision/").unwrap_or((rest, "main"));
        match repo {
            "org/model" => {}
            "org/gated" => return status(stream, 403, "X-Error-Code: GatedRepo\r\n"),
            "org/private" => return status(stream, 401, ""),
            _ => return status(stream, 404, "X-Error-Code: RepoNotFound\r\n"),
        }

        if !["main", "v1", COMMIT].contains(&revision) {
            return status(stream, 404, "X-Error-Code: RevisionNotFound\r\n");
        }

        let names: Vec<String> = self.state.lock().unwrap().files.keys().cloned().collect();
        let siblings: Vec<String> = names
            .iter()
            .map(|name| format!("{{\"rfilename\": {name:?}}}"))
            .collect();
        let body = format!(
            "{{\"id\": \"org/model\", \"sha\": \"{COMMIT}\", \"siblings\": [{}]}}",
            siblings.join(",")
        );
        json(stream, &body)
    }

    fn file(&self, request: &Request, name: &str, stream: &mut TcpStream) -> std::io::Result<bool> {
        let (found, cdn, mirror) = {
            let state = self.state.lock().unwrap();
            (
                state.files.get(name).cloned(),
                state.cdn,
                state.mirror.clone(),
            )
        };

        let Some((content, etag)) = found else {
            return status(stream, 404, "X-Error-Code: EntryNotFound\r\n");
        };
        let location = match (cdn, mirror.redirects_to) {
            (Some(cdn), _) => format!("http://{cdn}/signed/{name}"),
            (None, Some(path)) => format!("{path}/{name}"),
            (None, None) => return self.body(request, name, stream),
        };

        let linked = match mirror.is_terse {
            true => String::new(),
            false => format!(
                "X-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {}\r\n",
                content.len()
            ),
        };

        let commit = if mirror.hides_commit { "" } else { COMMIT_LINE };
        status(
            stream,
            302,
            &format!("Location: {location}\r\n{linked}{commit}"),
        )
    }

    /// Answers a request for a file's body, or for its headers.
    fn body(&self, request: &Request, name: &str, stream: &mut TcpStream) -> std::io::Result<bool> {
        let (found, mirror) = {
            let mut state = self.state.lock().unwrap();
            let mirror = state.mirror.clone();
            if request.method == "HEAD" {
                state.mirror.slow_head = Duration::ZERO;
            }
            (state.files.get(name).cloned(), mirror)
        };

        let Some((content, etag)) = found else {
            return status(stream, 404, "");
        };

        let encoding = mirror.encoding.filter(|_| name.ends_with(".json"));
        let content = if encoding.is_some() {
            gzip(&content)
        } else {
            content
        };

        let mut headers = encoding.map_or(String::new(), |name| {
            format!("Content-Encoding: {name}\r\n")
        });

        headers.push_str(if mirror.hides_commit { "" } else { COMMIT_LINE });
        match etag.as_str() {
            "" => {}
            quoted if quoted.contains('"') => headers.push_str(&format!("ETag: {quoted}\r\n")),
            etag => headers.push_str(&format!("ETag: \"{etag}\"\r\n")),
        }

        if request.method == "HEAD" {
            std::thread::sleep(mirror.slow_head);
            if let Some(code) = mirror.head_status {
                return status(stream, code, "");
            }

            write!(
                stream,
                "HTTP/1.1 200 OK\r\n{headers}Content-Length: {}\r\n\r\n",
                content.len()
            )?;
            return Ok(true);
        }

        let fault = self
            .state
            .lock()
            .unwrap()
            .faults
            .get_mut(name)
            .and_then(VecDeque::pop_front);

        send_body(request, &content, fault, &headers, stream)
    }
}

const COMMIT_LINE: &str = "X-Repo-Commit: 0123456789abcdef0123456789abcdef01234567\r\n";

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// First and last byte of a request's range, as far as it names them.
fn requested_range(request: &Request) -> (Option<usize>, Option<usize>) {
    let range = request.range.as_deref();
    let start = range.and_then(|range| {
        range
            .strip_prefix("bytes=")?
            .split('-')
            .next()?
            .parse()
            .ok()
    });

    let last = range.and_then(|range| range.rsplit('-').next()?.parse().ok());
    (start, last)
}

fn send_body(
    request: &Request,
    content: &[u8],
    fault: Option<Fault>,
    headers: &str,
    stream: &mut TcpStream,
) -> std::io::Result<bool> {
    const PARTIAL: &str = "206 Partial Content";
    let length = content.len();
    let (start, last) = requested_range(request);
    let (head, body) = match (start, &fault) {
        (_, Some(Fault::Status(code, retry_after))) => {
            let extra =
                retry_after.map_or(String::new(), |value| format!("Retry-After: {value}\r\n"));
            return status(stream, *code, &extra);
        }
        (None, _) | (Some(_), Some(Fault::NoRanges)) => ("200 OK".to_owned(), content),
        (Some(start), _) if start >= length => return status(stream, 416, ""),
        (Some(start), Some(Fault::NoContentRange)) => (PARTIAL.to_owned(), &content[start..]),
        (Some(_), Some(Fault::WrongRange)) => {
            let last = length - 1;
            let head = format!("{PARTIAL}\r\nContent-Range: bytes 0-{last}/{length}");
            (head, content)
        }
        (Some(start), _) => {
            let last = last.map_or(length - 1, |last| last.min(length - 1));
            let head = format!("{PARTIAL}\r\nContent-Range: bytes {start}-{last}/{length}");
            (head, &content[start..=last])
        }
    };

    write!(
        stream,
        "HTTP/1.1 {head}\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    )?;
    write_body(body, fault, stream)
}

/// Writes a body with its fault. Returns whether to keep the connection.
fn write_body(body: &[u8], fault: Option<Fault>, stream: &mut TcpStream) -> std::io::Result<bool> {
    match fault {
        Some(Fault::DropAfter(count)) => {
            stream.write_all(&body[..count.min(body.len())])?;
            stream.flush()?;
            Ok(false)
        }
        Some(Fault::StallAfter(count)) => {
            stream.write_all(&body[..count.min(body.len())])?;
            stream.flush()?;
            std::thread::sleep(Duration::from_secs(3));
            Ok(false)
        }
        Some(Fault::WrongBytes) => {
            let wrong: Vec<u8> = body.iter().map(|byte| byte ^ 1).collect();
            stream.write_all(&wrong)?;
            Ok(true)
        }
        Some(Fault::Slow(piece)) => {
            for piece in body.chunks(piece) {
                stream.write_all(piece)?;
                stream.flush()?;
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(true)
        }
        _ => {
            stream.write_all(body)?;
            Ok(true)
        }
    }
}

fn json(stream: &mut TcpStream, body: &str) -> std::io::Result<bool> {
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;

    Ok(true)
}

fn status(stream: &mut TcpStream, code: u16, extra: &str) -> std::io::Result<bool> {
    write!(
        stream,
        "HTTP/1.1 {code} Status\r\n{extra}Content-Length: 0\r\n\r\n"
    )?;
    Ok(true)
}

fn redirect(stream: &mut TcpStream, location: &str) -> std::io::Result<bool> {
    write!(
        stream,
        "HTTP/1.1 307 Temporary Redirect\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
    )?;
    Ok(true)
}

fn read_request(reader: &mut impl BufRead) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }

    let mut parts = line.split_whitespace();
    let mut request = Request {
        method: parts.next().unwrap_or_default().into(),
        path: parts.next().unwrap_or_default().into(),
        range: None,
        authorization: None,
    };

    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            return Ok(Some(request));
        };

        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value.trim().into()),
            "authorization" => request.authorization = Some(value.trim().into()),
            _ => {}
        }
    }
}
