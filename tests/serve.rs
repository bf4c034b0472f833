//! `llm-int8 serve` as a program: how it starts and how it ends.

use crate::support::failure;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

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
    let options = ["--grace", "5", "--model-name", "mine", "--max-body", "1000"];
    let server = Server::start(&options);
    let card = server.ask("GET", "/v1/models", "");
    assert!(
        card.contains("\"id\":\"mine\"") && card.contains("\"reproducible\":true"),
        "{card}"
    );
    let body = json!({ "prompt": "In the beginning", "max_tokens": 4 }).to_string();
    let answer = server.ask("POST", "/v1/completions", &body);
    let long = "x".repeat(2000);
    assert_eq!(server.status("POST", "/v1/completions", &long), 413);
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
