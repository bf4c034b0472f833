//! The end of a server, which always comes.

use crate::client::{Connection, get, post, request};
use crate::start::{Running, config, model};
use llm_int8::LlmError;
use llm_int8_server::{RunError, Server, ServerConfig};
use serde_json::{Value, json};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Many long texts: far more work than a moment.
pub(crate) fn long(stream: bool) -> Value {
    json!({ "prompt": vec!["a"; 24], "max_tokens": 450, "ignore_eos": true, "stream": stream })
}

fn with_grace(seconds: f64) -> Running {
    Running::start(ServerConfig {
        parallel: 1,
        grace: Duration::from_secs_f64(seconds),
        ..config()
    })
}

#[test]
fn an_open_stream_ends_by_the_grace() {
    let server = with_grace(0.5);
    let mut stream = Connection::post(server.address, "/v1/completions", &long(true));
    stream.wait_for("data: ");
    let began = Instant::now();
    server.shutdown.begin();
    let mut last = Vec::new();
    while let Some(line) = stream.line() {
        if line.starts_with("data: ") {
            last.push(line);
        }
    }
    server.join().unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(last.pop().unwrap(), "data: [DONE]");
    assert!(last.pop().unwrap().contains("\"code\":\"draining\""));
}

#[test]
fn a_running_request_may_end_and_new_ones_are_refused() {
    let server = with_grace(30.0);
    let body = json!({ "prompt": vec!["a"; 8], "max_tokens": 450, "ignore_eos": true });
    let running = Connection::post(server.address, "/v1/completions", &body);
    crate::start::wait_until("it runs", || server.metric("num_requests_running") > 0.0);
    server.shutdown.begin();
    crate::start::wait_until("it drains", || get(server.address, "/health").status == 503);
    assert_eq!(get(server.address, "/health").json()["status"], "draining");
    let refused = post(server.address, "/v1/completions", &json!({ "prompt": "a" }));
    assert_eq!(refused.error(503).0, "draining");
    assert!(refused.header("retry-after").is_some());
    let answer = running.answer().ok();
    assert_eq!(answer["usage"]["completion_tokens"], 8 * 450);
    server.join().unwrap();
}

#[test]
fn idle_connections_and_half_requests_keep_no_server() {
    let server = with_grace(30.0);
    let mut idle = Connection::open(server.address);
    idle.send(request("GET", "/health", &[], "").as_bytes());
    assert_eq!(idle.next_answer().unwrap().status, 200);
    let _untouched = Connection::open(server.address);
    let mut half = Connection::open(server.address);
    half.send(b"POST /v1/completions HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\n{");
    std::thread::sleep(Duration::from_millis(100));

    let began = Instant::now();
    server.shutdown.begin();
    server.join().unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    assert!(idle.line().is_none(), "it is closed");
}

#[test]
fn a_client_that_does_not_read_keeps_no_server() {
    let server = with_grace(0.5);
    let mut body = long(true);
    // About 10 MB, more than sockets hold.
    body["logprobs"] = json!(20);
    let stream = Connection::post(server.address, "/v1/completions", &body);
    crate::start::wait_until("it runs", || server.metric("num_requests_running") > 0.0);
    let began = Instant::now();
    server.shutdown.begin();
    server.join().unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    drop(stream);
}

#[test]
fn a_second_call_does_not_wait() {
    let server = with_grace(600.0);
    let stream = Connection::post(server.address, "/v1/completions", &long(true));
    crate::start::wait_until("it runs", || server.metric("num_requests_running") > 0.0);
    server.shutdown.begin();
    std::thread::sleep(Duration::from_millis(50));
    let began = Instant::now();
    server.shutdown.begin();
    server.join().unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    drop(stream);
}

#[test]
fn a_server_ends_while_its_model_is_loaded() {
    let (_keep, waits) = mpsc::channel::<()>();
    let server = Running::loading(config(), move || {
        let _ = waits.recv();
        model()
    });
    assert_eq!(get(server.address, "/health").status, 503);
    server.shutdown.begin();
    server.join().unwrap();
}

#[test]
fn what_keeps_a_model_from_loading_ends_the_server() {
    let server = Server::bind(config()).unwrap();
    let outcome = server.run(|| Err(LlmError::EmptyPrompt));
    assert!(matches!(
        outcome,
        Err(RunError::Load(LlmError::EmptyPrompt))
    ));

    let server = Server::bind(ServerConfig {
        chat_template: Some("{% for %}".into()),
        ..config()
    });
    let error = server.unwrap().run(model).unwrap_err().to_string();
    assert!(error.contains("chat template"), "{error}");

    let taken = Server::bind(config()).unwrap();
    let again = Server::bind(ServerConfig {
        address: taken.address(),
        ..config()
    });
    let error = again.unwrap_err().to_string();
    assert!(error.contains(&taken.address().to_string()), "{error}");
}
