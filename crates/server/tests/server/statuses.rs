//! Every status of an error.

use crate::client::{Connection, get, post, request, send};
use crate::start::{CONTEXT, Running, config, model, model_on, wait_until};
use llm_int8::decoder::Placement;
use llm_int8_cuda::testing;
use llm_int8_server::{ApiKeys, ServerConfig};
use serde_json::{Value, json};
use std::sync::mpsc;
use std::time::Duration;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn hello() -> Value {
    json!({ "messages": [{ "role": "user", "content": "Hello" }], "max_tokens": 4 })
}

#[test]
fn bad_requests_are_400_and_name_the_field() {
    let server = Running::usual();
    for body in ["", "{", "[]", "\"x\"", "{\"prompt\": \"\\ud800\"}"] {
        let answer = send(server.address, "POST", COMPLETIONS, &[], body);
        answer.error(400);
        assert_eq!(answer.header("x-should-retry"), Some("false"), "{body}");
    }
    let not_json = [("content-type", "text/plain")];
    let answer = send(
        server.address,
        "POST",
        CHAT,
        &not_json,
        &hello().to_string(),
    );
    assert_eq!(
        answer.status, 200,
        "the type of the body does not matter: {}",
        answer.body
    );

    for (path, body, param) in [
        (CHAT, json!({}), "messages"),
        (
            CHAT,
            json!({ "messages": [{ "role": "user", "content": "a" }], "temperature": 9 }),
            "temperature",
        ),
        (
            COMPLETIONS,
            json!({ "prompt": "a", "suffix": "b" }),
            "suffix",
        ),
        (COMPLETIONS, json!({ "prompt": [1 << 30] }), "prompt"),
        (COMPLETIONS, json!({ "prompt": "a", "n": 100 }), "prompt"),
        (
            COMPLETIONS,
            json!({ "prompt": "a", "logit_bias": { "999999": 1 } }),
            "logit_bias",
        ),
        ("/tokenize", json!({}), "prompt"),
        ("/detokenize", json!({ "tokens": ["x"] }), "tokens"),
        ("/apply-template", json!({ "messages": [] }), "messages"),
    ] {
        let (_, found) = post(server.address, path, &body).error(400);
        assert_eq!(found, param, "{path} {body}");
    }
}

#[test]
fn what_exceeds_the_context_says_by_how_much() {
    let server = Running::usual();
    let ids = vec![5; CONTEXT - 3];
    let answer = post(
        server.address,
        COMPLETIONS,
        &json!({ "prompt": ids, "max_tokens": 4 }),
    );
    assert_eq!(
        answer.error(400),
        (json!("context_length_exceeded"), json!("prompt"))
    );
    assert!(
        answer.body.contains("maximum context length is 512 tokens"),
        "{}",
        answer.body
    );
    assert!(
        answer.body.contains("you requested 513 tokens"),
        "{}",
        answer.body
    );
    let fits = post(
        server.address,
        COMPLETIONS,
        &json!({ "prompt": ids, "max_tokens": 3 }),
    );
    assert_eq!(fits.ok()["usage"]["total_tokens"], CONTEXT);
}

#[test]
fn a_limit_of_memory_is_a_limit_of_the_context() {
    let server = Running::start(ServerConfig {
        cache_bytes: Some(1 << 20),
        ..config()
    });
    let card = get(server.address, "/v1/models").ok();
    let context = card["data"][0]["max_model_len"].as_u64().unwrap();
    assert!((2..512).contains(&context), "{context}");
    let body = json!({ "prompt": [5], "max_tokens": context });
    let answer = post(server.address, COMPLETIONS, &body);
    assert_eq!(answer.error(400).0, "context_length_exceeded");
    let body = json!({ "prompt": [5], "max_tokens": context - 1 });
    post(server.address, COMPLETIONS, &body).ok();
    let body = json!({ "messages": [{ "role": "user", "content": "Hello" }] });
    post(server.address, CHAT, &body).ok();
}

#[test]
fn without_a_key_it_is_401_but_for_the_page_and_the_state() {
    let server = Running::start(ServerConfig {
        api_keys: ApiKeys::new(["secret", "other"]),
        ..config()
    });
    let body = hello().to_string();
    for wrong in [
        &[][..],
        &[("authorization", "Bearer wrong")],
        &[("authorization", "secret")],
    ] {
        let answer = send(server.address, "POST", CHAT, wrong, &body);
        assert_eq!(answer.error(401).0, "invalid_api_key");
        assert_eq!(answer.header("x-should-retry"), Some("false"));
    }
    assert_eq!(get(server.address, "/v1/models").status, 401);
    assert_eq!(get(server.address, "/metrics").status, 401);
    assert_eq!(get(server.address, "/nowhere").status, 401);
    assert_eq!(get(server.address, "/health").status, 200);
    assert_eq!(get(server.address, "/").status, 200);
    for key in ["secret", "other"] {
        let header = format!("Bearer {key}");
        let headers = [("authorization", header.as_str())];
        send(server.address, "POST", CHAT, &headers, &body).ok();
    }
}

#[test]
fn pages_of_other_origins_are_403_unless_allowed() {
    let server = Running::start(ServerConfig {
        allowed_origins: vec!["https://friend.test".into()],
        ..config()
    });
    let body = hello().to_string();
    let from = |origin: &str| send(server.address, "POST", CHAT, &[("origin", origin)], &body);
    assert_eq!(from("https://evil.test").error(403).0, "origin_not_allowed");
    let own = from("http://test");
    own.ok();
    assert_eq!(own.header("access-control-allow-origin"), None);
    let friend = from("https://friend.test");
    friend.ok();
    assert_eq!(
        friend.header("access-control-allow-origin"),
        Some("https://friend.test")
    );
    let asked = send(
        server.address,
        "OPTIONS",
        CHAT,
        &[("origin", "https://friend.test")],
        "",
    );
    assert_eq!(asked.status, 204);
    assert!(
        asked
            .header("access-control-allow-headers")
            .unwrap()
            .contains("authorization")
    );
}

#[test]
fn unknown_paths_models_and_methods_are_404_and_405() {
    let server = Running::usual();
    get(server.address, "/v1/nothing").error(404);
    let (code, param) = get(server.address, "/v1/models/other/one").error(404);
    assert_eq!((code, param), (json!("model_not_found"), json!("model")));
    let mut body = hello();
    body["model"] = json!("gpt-4");
    assert_eq!(
        post(server.address, CHAT, &body).error(404).0,
        "model_not_found"
    );
    get(server.address, CHAT).error(405);
}

#[test]
fn a_body_that_does_not_come_is_408_and_headers_that_do_not_close_the_connection() {
    let server = Running::start(ServerConfig {
        stall: Duration::from_millis(200),
        ..config()
    });
    let mut slow = Connection::open(server.address);
    slow.send(b"POST /v1/completions HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\n{");
    let answer = slow.answer();
    answer.error(408);
    assert_eq!(answer.header("x-should-retry"), None);

    let mut silent = Connection::open(server.address);
    silent.send(b"POST /v1/completions HTTP/1.1\r\nhost:");
    assert!(silent.line().is_none_or(|line| line.contains("408")));
}

#[test]
fn a_body_that_is_too_large_is_413_however_it_is_sent() {
    let server = Running::start(ServerConfig {
        max_body: 1000,
        ..config()
    });
    let long = json!({ "prompt": "x".repeat(3_000_000) }).to_string();
    send(server.address, "POST", COMPLETIONS, &[], &long).error(413);

    let mut waits = Connection::open(server.address);
    waits.send(
        b"POST /v1/completions HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\n\
          content-length: 1000000\r\n\r\n",
    );
    waits.answer().error(413);

    let mut chunked = Connection::open(server.address);
    chunked
        .send(b"POST /v1/completions HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n");
    for _ in 0..100 {
        chunked.send(format!("64\r\n{}\r\n", "x".repeat(100)).as_bytes());
    }
    chunked.send(b"0\r\n\r\n");
    chunked.answer().error(413);

    let fits = json!({ "prompt": "x", "max_tokens": 1 });
    post(server.address, COMPLETIONS, &fits).ok();
}

#[test]
fn while_the_model_is_loaded_it_is_503() {
    let (begin, waits) = mpsc::channel::<()>();
    let server = Running::loading(config(), move || {
        waits.recv().unwrap();
        model()
    });
    let answer = get(server.address, "/health");
    assert_eq!(answer.error(503).0, "loading");
    assert_eq!(answer.json()["status"], "loading");
    let answer = post(server.address, CHAT, &hello());
    assert_eq!(answer.error(503).0, "loading");
    assert!(answer.header("retry-after").is_some() && answer.header("x-should-retry").is_none());
    assert_eq!(get(server.address, "/v1/models").status, 503);
    assert_eq!(get(server.address, "/").status, 200);
    assert_eq!(get(server.address, "/metrics").status, 200);

    begin.send(()).unwrap();
    crate::start::wait_until("it is loaded", || {
        get(server.address, "/health").status == 200
    });
    post(server.address, CHAT, &hello()).ok();
}

#[test]
fn requests_of_one_connection_are_answered_in_their_order() {
    let server = Running::usual();
    let mut connection = Connection::open(server.address);
    let body = json!({ "prompt": "a", "max_tokens": 2 }).to_string();
    let given = [("x-request-id", "mine")];
    let text = request("POST", COMPLETIONS, &given, &body) + &request("GET", "/health", &[], "");
    connection.send(text.as_bytes());
    let first = connection.next_answer().unwrap();
    assert_eq!(first.ok()["object"], "text_completion");
    assert_eq!(first.header("x-request-id"), Some("mine"));
    assert_eq!(connection.next_answer().unwrap().ok()["status"], "ok");
}

#[test]
fn a_failed_pass_is_500_and_the_server_goes_on() {
    let Some(device) = testing::emulated(0, 40 << 20, 0) else {
        return;
    };
    let config = ServerConfig {
        parallel: 60,
        ..config()
    };
    let server = Running::loading(config, || model_on(Placement::on(device)));
    wait_until("the model is loaded", || {
        get(server.address, "/health").status == 200
    });

    // The device has memory for the model, and not for sixty sequences.
    let many = json!({ "prompt": [5], "n": 60, "max_tokens": 2 });
    let answer = post(server.address, COMPLETIONS, &many);
    answer.error(500);
    assert_eq!(answer.json()["error"]["type"], "server_error");
    server.wait_until_idle();
    assert!(server.metric("failed_passes_total") >= 1.0);

    let one = json!({ "prompt": [5], "max_tokens": 2 });
    let answer = post(server.address, COMPLETIONS, &one).ok();
    assert_eq!(answer["usage"]["completion_tokens"], 2);
}
