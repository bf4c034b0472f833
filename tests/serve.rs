//! `llm-int8 serve` as a program: how it starts and ends, and what a crowd of clients leaves behind.

use crate::support::failure;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A server of the built-in model. It is killed when this is dropped.
struct Server {
    child: Child,
    address: String,
    /// Lines on standard error so far.
    said: Vec<String>,
    stderr: BufReader<std::process::ChildStderr>,
}

impl Server {
    /// Starts the program and waits until it answers.
    fn start(options: &[&str]) -> Self {
        let program = std::env::var_os("LLM_INT8_TEST_PROGRAM");
        let program = program.unwrap_or_else(|| env!("CARGO_BIN_EXE_llm-int8").into());
        let mut child = Command::new(program)
            .args(["serve", "tiny-gpt2", "--offline", "--port", "0"])
            .args(options)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = Vec::new();
        let mut address = None;
        let address = loop {
            let mut line = String::new();
            assert!(
                stderr.read_line(&mut line).unwrap() > 0,
                "it ended: {said:?}"
            );
            said.push(line.clone());
            if let Some((_, rest)) = line.split_once("listening on http://") {
                address = rest.split(',').next().map(str::to_owned);
            }
            if line.starts_with("loaded in ") {
                break address.unwrap();
            }
        };
        let server = Self {
            child,
            address,
            said,
            stderr,
        };
        assert_eq!(server.status("GET", "/health", ""), 200);
        server
    }

    fn connect(&self) -> std::io::Result<TcpStream> {
        let socket = TcpStream::connect(&self.address)?;
        socket.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(socket)
    }

    /// Sends a request and returns the socket.
    fn send(&self, method: &str, path: &str, body: &str) -> std::io::Result<TcpStream> {
        let mut socket = self.connect()?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        socket.write_all(head.as_bytes())?;
        socket.write_all(body.as_bytes())?;
        Ok(socket)
    }

    /// The whole answer, headers included.
    fn ask(&self, method: &str, path: &str, body: &str) -> String {
        let mut answer = Vec::new();
        let mut socket = self.send(method, path, body).unwrap();
        socket.read_to_end(&mut answer).unwrap();
        String::from_utf8(answer).unwrap()
    }

    fn status(&self, method: &str, path: &str, body: &str) -> u16 {
        let answer = self.ask(method, path, body);
        answer.split(' ').nth(1).unwrap().parse().unwrap()
    }

    fn metric(&self, name: &str) -> f64 {
        let text = self.ask("GET", "/metrics", "");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("llm_int8:{name} ")));
        line.unwrap_or_else(|| panic!("{name} is not in\n{text}"))
            .parse()
            .unwrap()
    }

    fn wait_until(&self, what: &str, is_so: impl Fn() -> bool) {
        let ends = Instant::now() + Duration::from_secs(60);
        while !is_so() {
            assert!(Instant::now() < ends, "waited a minute until {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_until_idle(&self) {
        self.wait_until("the engine is idle", || {
            self.metric("num_requests_running") + self.metric("num_requests_waiting") == 0.0
        });
    }

    /// Sends SIGTERM and waits for the end; returns also what was said meanwhile.
    #[cfg(unix)]
    fn terminate(mut self) -> (ExitStatus, String) {
        let id = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &id])
                .status()
                .unwrap()
                .success()
        );
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).unwrap();
        let status = self.child.wait().unwrap();
        (status, self.said.concat() + &rest)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(unix)]
#[test]
fn the_program_serves_until_it_is_told_to_end() {
    let server = Server::start(&["--grace", "5", "--model-name", "mine"]);
    let card = server.ask("GET", "/v1/models", "");
    assert!(
        card.contains("\"id\":\"mine\"") && card.contains("\"reproducible\":true"),
        "{card}"
    );
    let body = json!({ "prompt": "In the beginning", "max_tokens": 4 }).to_string();
    let answer = server.ask("POST", "/v1/completions", &body);
    let text = crate::support::llm_int8(&[
        "run",
        "tiny-gpt2",
        "-p",
        "In the beginning",
        "-n",
        "4",
        "--outliers",
        "row",
        "-q",
    ]);
    let text = crate::support::stdout(&text);
    let value: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(value["choices"][0]["text"], text.trim_end_matches('\n'));

    let (status, said) = server.terminate();
    assert!(status.success(), "{said}");
    assert!(
        said.contains("loaded in") && !said.contains("warning"),
        "{said}"
    );
}

#[test]
fn wrong_options_end_it_before_a_model_is_loaded() {
    let keys = tempfile::NamedTempFile::new().unwrap();
    let path = keys.path().display().to_string();
    let (code, said) = failure(&["serve", "/nowhere", "--api-key-file", &path]);
    assert!(code == 1 && said.contains("one per line"), "{said}");
    let (code, said) = failure(&[
        "serve",
        "/nowhere",
        "--allow-origin",
        "example.org",
        "--port",
        "0",
    ]);
    assert!(code == 2 && said.contains("https://example.org"), "{said}");
    for option in [
        ["--parallel", "0"],
        ["--max-body", "0"],
        ["--port", "70000"],
        ["--host", "x"],
    ] {
        let (code, said) = failure(&["serve", "/nowhere", option[0], option[1]]);
        assert!(code == 2 && said.contains(option[0]), "{said}");
    }
    let (code, said) = failure(&["serve", "/nowhere", "--port", "0"]);
    assert!(code != 0 && said.contains("/nowhere"), "{said}");
}

/// Resident memory of a process in bytes.
#[cfg(target_os = "linux")]
fn resident(id: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib * 1024.0
}

/// What one of 200 clients does. Errors of its socket are its own business.
fn client(server: &Server, number: usize, refused: &AtomicUsize) -> std::io::Result<()> {
    let prompt = "word ".repeat(20 + number % 60);
    let body = |stream: bool| {
        json!({ "prompt": prompt, "max_tokens": 20 + number % 30, "stream": stream, "seed": number,
                "temperature": 0.8 })
        .to_string()
    };
    let mut text = Vec::new();
    match number % 10 {
        // Half hang up: before the answer, in its middle, or while they still send.
        0 | 1 => drop(server.send("POST", "/v1/completions", &body(false))?),
        2 | 3 => {
            let mut socket = server.send("POST", "/v1/completions", &body(true))?;
            let mut part = [0; 300];
            socket.read_exact(&mut part)?;
        }
        4 => {
            let mut socket = server.connect()?;
            socket.write_all(
                b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 999\r\n\r\n{\"pro",
            )?;
        }
        5 => {
            server
                .send("POST", "/v1/completions", "{\"prompt\": ")?
                .read_to_end(&mut text)?;
            assert!(text.starts_with(b"HTTP/1.1 400"));
        }
        6 => {
            let long = "x".repeat(200_000);
            server
                .send("POST", "/v1/completions", &long)?
                .read_to_end(&mut text)?;
            assert!(text.starts_with(b"HTTP/1.1 413"));
        }
        // A slow reader.
        7 => {
            let mut socket = server.send("POST", "/v1/completions", &body(true))?;
            let mut part = [0; 512];
            while socket.read(&mut part)? > 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        _ => {
            server
                .send("POST", "/v1/completions", &body(number.is_multiple_of(2)))?
                .read_to_end(&mut text)?;
            if text.starts_with(b"HTTP/1.1 429") {
                refused.fetch_add(1, Ordering::Relaxed);
            } else {
                let text = String::from_utf8_lossy(&text);
                assert!(text.starts_with("HTTP/1.1 200"), "{text}");
            }
        }
    }
    Ok(())
}

#[cfg(target_os = "linux")]
#[test]
fn a_crowd_of_clients_leaves_nothing_behind() {
    const CLIENTS: usize = 200;
    let options = [
        "--parallel",
        "4",
        "--max-queue",
        "16",
        "--max-body",
        "100000",
        "--prefix-cache",
        "0",
    ];
    let server = Server::start(&options);
    let refused = AtomicUsize::new(0);
    let crowd = || {
        std::thread::scope(|scope| {
            for number in 0..CLIENTS {
                let (server, refused) = (&server, &refused);
                let client = move || {
                    // A client that hangs up may see its own connection reset.
                    let _ = client(server, number, refused);
                };
                std::thread::Builder::new()
                    .stack_size(256 << 10)
                    .spawn_scoped(scope, client)
                    .unwrap();
            }
        });
        server.wait_until_idle();
    };

    // What the allocator keeps goes up and down by some percent from crowd to crowd.
    let median_of_crowds = |count: usize| {
        let mut found: Vec<f64> = (0..count)
            .map(|_| {
                crowd();
                resident(server.child.id())
            })
            .collect();
        found.sort_by(f64::total_cmp);
        found[count / 2]
    };
    median_of_crowds(8);
    // What the allocator keeps settles after some crowds; a leak adds to every one.
    let mut warm = median_of_crowds(9);
    for _ in 0..3 {
        let before = std::mem::replace(&mut warm, median_of_crowds(9));
        if warm < before * 1.05 {
            break;
        }
    }
    let after = median_of_crowds(9);
    assert!(
        after < warm * 1.05,
        "resident memory grew from {warm} to {after} bytes"
    );
    assert!(
        refused.load(Ordering::Relaxed) > 0,
        "the queue was never full"
    );
    assert_eq!(server.metric("failed_passes_total"), 0.0);
    assert_eq!(
        server.status(
            "POST",
            "/v1/completions",
            "{\"prompt\": \"a\", \"max_tokens\": 1}"
        ),
        200
    );
    let (status, said) = server.terminate();
    assert!(
        status.success() && !said.contains("panicked") && !said.contains("warning"),
        "{said}"
    );
}
