//! What `llm-int8 chat --server` says of servers that refuse, break off or are silent.

use crate::chat_server::{DONE, STREAM, answer, chat, stream};
use crate::support::fake_server::{Fake, FakeServer};
use crate::support::{llm_int8_with_input, stderr};
use serde_json::json;
use std::time::Duration;
use tempfile::TempDir;

#[test]
fn errors_are_told_with_the_servers_words_and_without_the_key() {
    let folder = TempDir::new().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, "sk-secret").unwrap();
    let key = ["--api-key-file", key.to_str().unwrap()];
    let json = "Content-Type: application/json";
    let cases = [
        (
            Fake::error(
                "401 Unauthorized",
                &[],
                "Incorrect API key: sk-secret.",
                "invalid_api_key",
            ),
            "the server wants another API key (status 401): Incorrect API key: [key].; --api-key-file FILE gives one",
        ),
        (
            Fake::error(
                "404 Not Found",
                &[],
                "The model `m` does not exist.",
                "model_not_found",
            ),
            "the server does not know this model or address (status 404): The model `m` does not exist.",
        ),
        (
            Fake::error(
                "429 Too Many Requests",
                &["Retry-After: 2"],
                "The queue is full.",
                "queue_full",
            ),
            "the server is busy (status 429): The queue is full.; it asks to wait 2 s",
        ),
        (
            Fake::error(
                "503 Service Unavailable",
                &["Retry-After: soon"],
                "Loading.",
                "x",
            ),
            "the server is not ready (status 503): Loading.",
        ),
        (
            Fake::new(
                "502 Bad Gateway",
                &["Content-Type: text/html"],
                "<h1>Bad gateway</h1>",
            ),
            "the server failed (status 502)",
        ),
        (
            Fake::new("400 Bad Request", &[json], "{\"error\": \"no \\u001b[2J\"}"),
            "the server refuses the request (status 400): no \\u{1b}[2J",
        ),
        (
            Fake::new(
                "307 Temporary Redirect",
                &["Location: https://else.where/v1"],
                "",
            ),
            "the server is elsewhere (status 307): it names https://else.where/v1",
        ),
    ];
    for (fake, message) in cases {
        let (code, text, told) = answer(fake, &key);
        let expected = format!("error: {message}\nerror: no turn got a reply\n");
        assert_eq!((code, text.as_str(), told), (1, "", expected));
    }
}

#[test]
fn streams_that_break_are_told_and_what_came_is_shown() {
    let html = Fake::new(
        "200 OK",
        &["Content-Type: text/html; charset=utf-8"],
        "<h1>Hi</h1>",
    );
    let failed = "data: {\"error\":{\"message\":\"no memory\",\"code\":null}}\n\n";
    let cases = [
        (
            stream("Thou", ""),
            "Thou\n",
            "the stream ended before the answer was complete",
        ),
        (
            stream("Thou", "data: {\"choices\":[{\"del"),
            "Thou\n",
            "ended before the answer was complete",
        ),
        (Fake::stream(""), "", "ended before the answer was complete"),
        (
            stream("Thou", failed),
            "Thou\n",
            "the server failed during the answer: no memory",
        ),
        (
            stream("Thou", "data: {oh}\n\n"),
            "Thou\n",
            "cannot be read: an event is not JSON (key must be a string",
        ),
        (
            stream("Thou", "data: [1]\n\n"),
            "Thou\n",
            "cannot be read: a chunk is not a JSON object",
        ),
        (
            html,
            "",
            "cannot be read: it is text/html, not a stream of events",
        ),
    ];
    for (fake, shown, message) in cases {
        let (code, text, told) = answer(fake, &[]);
        assert_eq!((code, text.as_str()), (1, shown), "{told}");
        assert!(told.contains(message), "{told}");
    }

    // A turn that failed is not part of the conversation.
    let server = FakeServer::start(vec![stream("Thou", ""), stream("Ay.", DONE)]);
    let output = chat(&server, &["-q"], "Hi\nSo?\n");
    assert!(output.status.success(), "one of two turns got a reply");
    let messages = &server.requests()[1].body["messages"];
    assert_eq!(*messages, json!([{"role": "user", "content": "So?"}]));
}

#[test]
fn servers_that_are_not_there_or_silent_are_told() {
    let arguments = ["chat", "--server", "http://127.0.0.1:9", "--model", "m"];
    let output = llm_int8_with_input(&arguments, "Hi\nAgain\n");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        stderr(&output)
            .matches("127.0.0.1:9 cannot be reached: ")
            .count(),
        2
    );
    let output = llm_int8_with_input(&arguments[..3], "Hi\n");
    let told = stderr(&output);
    assert!(
        told.starts_with("error: the models of the server are not known: 127.0.0.1:9"),
        "{told}"
    );

    let silent = [stream("Thou", "").hanging(), Fake::stream("").hanging()];
    for fake in silent {
        let (code, _, told) = answer(fake, &["--timeout", "1"]);
        assert!(
            code == 1 && told.contains("has sent nothing for 1 s"),
            "{told}"
        );
    }
    // Slow, but never silent for so long.
    let slow = Fake::stream(STREAM).slowly(Duration::from_millis(150));
    assert_eq!(answer(slow, &["--timeout", "1"]).1, "größe 🙂\n");
}
