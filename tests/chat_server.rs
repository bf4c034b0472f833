//! `llm-int8 chat --server` with a server that answers in every form that servers have.

use crate::support::fake_server::{Fake, FakeServer};
use crate::support::{llm_int8_with_input, stderr};
use serde_json::{Value, json};
use std::process::Output;
use std::time::Duration;
use tempfile::TempDir;

/// A whole stream, with line ends of all kinds, a comment, an event in two lines, and characters of
/// several bytes.
pub(crate) const STREAM: &str = concat!(
    "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\r\n\r\n",
    ": ping\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"größe \"}}]}\n\n",
    "data: {\"choices\":[{\"delta\":\ndata: {\"content\":\"🙂\"}}]}\r\r",
    "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2,",
    "\"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\ndata: [DONE]\n\n",
);

/// A stream of this text, and its end.
pub(crate) fn stream(text: &str, end: &str) -> Fake {
    let chunk = json!({"choices": [{"delta": {"content": text}}]});
    Fake::stream(&format!("data: {chunk}\n\n{end}"))
}

pub(crate) const DONE: &str =
    "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";

/// Chats with this server; its model is named, so that no list is asked for.
pub(crate) fn chat(server: &FakeServer, more: &[&str], input: &str) -> Output {
    let url = server.url();
    let arguments = ["chat", "--server", &url, "--model", "m"];
    llm_int8_with_input(&[&arguments[..], more].concat(), input)
}

/// Exit code, standard output and standard error of one message with this answer.
pub(crate) fn answer(fake: Fake, more: &[&str]) -> (i32, String, String) {
    let output = chat(&FakeServer::start(vec![fake]), more, "Hi\n");
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    (output.status.code().unwrap(), text, stderr(&output))
}

#[test]
fn a_stream_may_be_cut_at_every_byte() {
    let cuts = 0..=STREAM.len();
    let fakes = cuts.clone().map(|at| Fake::stream(STREAM).cut_at(at));
    let server = FakeServer::start(fakes.collect());
    let output = chat(
        &server,
        &["-q"],
        &"Hi\n/reset\n".repeat(cuts.clone().count()),
    );
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");

    let text = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<&str> = text.lines().collect();
    assert_eq!(answers, vec!["größe 🙂"; cuts.count()]);
    assert_eq!(server.requests().len(), STREAM.len() + 1);
    let last = &server.requests()[STREAM.len()].body["messages"];
    assert_eq!(
        *last,
        json!([{"role": "user", "content": "Hi"}]),
        "after /reset"
    );
}

#[test]
fn a_conversation_is_sent_with_its_settings_and_the_key() {
    let folder = TempDir::new().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, " sk-secret\n").unwrap();
    let models = json!({"data": [{"id": "org/first"}, {"id": "second"}]}).to_string();
    let server = FakeServer::start(vec![
        Fake::new("200 OK", &["Content-Type: application/json"], &models),
        Fake::stream(STREAM),
        stream("And you?", DONE),
    ]);
    let url = format!("{}/llm/v1/", server.url());
    let arguments = [
        "chat",
        "--server",
        &url,
        "--api-key-file",
        key.to_str().unwrap(),
        "--system",
        "Be brief.",
        "-n",
        "7",
        "-t",
        "0.5",
        "--top-p",
        "0.9",
        "--top-k",
        "5",
        "--min-p",
        "0.1",
        "--seed",
        "3",
        "--repetition-penalty",
        "1.5",
        "--stop",
        "x",
        "--stop",
        "y",
        "--ignore-eos",
    ];
    let output = llm_int8_with_input(&arguments, "Hi\n\n/help\nSo?\n/exit\nnot sent\n");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(
        String::from_utf8(output.stdout.clone()).unwrap(),
        "größe 🙂\nAnd you?\n"
    );
    let told = stderr(&output);
    assert!(
        told.starts_with("chatting with org/first on 127.0.0.1:"),
        "{told}"
    );
    assert!(
        told.contains("[5 tokens read, 4 kept from before, 2 written"),
        "{told}"
    );
    assert!(
        told.contains("/reset forgets") && !told.contains("warning"),
        "{told}"
    );

    let requests = server.requests();
    let lines: Vec<&str> = requests
        .iter()
        .map(|request| request.line.as_str())
        .collect();
    let post = "POST /llm/v1/chat/completions HTTP/1.1";
    assert_eq!(lines, ["GET /llm/v1/models HTTP/1.1", post, post]);
    for request in &requests {
        let key = "authorization: bearer sk-secret".to_owned();
        assert!(request.headers.contains(&key), "{request:?}");
    }
    let expected = json!({
        "model": "org/first", "max_tokens": 7, "temperature": 0.5, "top_k": 5, "top_p": 0.9,
        "min_p": 0.1, "seed": 3, "repetition_penalty": 1.5, "stop": ["x", "y"], "ignore_eos": true,
        "messages": [
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "größe 🙂"}, {"role": "user", "content": "So?"},
        ],
        "stream": true, "stream_options": {"include_usage": true},
    });
    assert_eq!(requests[2].body, expected);
}

/// A server may know few fields: none is sent unasked.
#[test]
fn a_request_holds_no_field_that_was_not_asked_for() {
    let server = FakeServer::start(vec![stream("Ay.", DONE)]);
    assert!(chat(&server, &["--greedy"], "Hi\n").status.success());
    let body = &server.requests()[0].body;
    let fields: Vec<&str> = body
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    let expected = [
        "model",
        "temperature",
        "messages",
        "stream",
        "stream_options",
    ];
    assert_eq!(
        (fields, &body["temperature"]),
        (expected.to_vec(), &json!(0.0))
    );
}

#[test]
fn streams_that_are_whole_in_their_own_way_are_replies() {
    let end = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}";
    let (code, text, told) = answer(stream("Ay.", end), &["-q"]);
    assert_eq!((code, text.as_str()), (0, "Ay.\n"));
    assert_eq!(told, "[the stream ended without [DONE]]\n");

    let length =
        "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}]}\n\ndata: [DONE]";
    let (code, _, told) = answer(stream("Ay.", length), &["-q"]);
    assert_eq!(code, 0);
    assert!(told.starts_with("[cut off by --max-new-tokens"), "{told}");

    let whole = json!({"choices": [{"message": {"content": "Ay."}, "finish_reason": "stop"}]});
    let json = ["Content-Type: application/json"];
    let (code, text, _) = answer(Fake::new("200 OK", &json, &whole.to_string()), &[]);
    assert_eq!(
        (code, text.as_str()),
        (0, "Ay.\n"),
        "a server that does not stream"
    );
}

#[test]
fn the_oldest_turns_go_when_the_context_is_full() {
    let full = "This model's maximum context length is 9 tokens. However, you requested 10.";
    let full = || Fake::error("400 Bad Request", &[], full, "context_length_exceeded");
    let server = FakeServer::start(vec![
        stream("One.", DONE),
        stream("Two.", DONE),
        full(),
        full(),
        stream("Three.", DONE),
        full(),
    ]);
    let output = chat(&server, &["-q", "--system", "Be brief."], "A\nB\nC\nD\n");
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8(output.stdout.clone()).unwrap(),
        "One.\nTwo.\nThree.\n"
    );
    let told = stderr(&output);
    assert!(
        told.starts_with("[4 old messages forgotten: the context is full]\nerror: "),
        "{told}"
    );
    let sent: Vec<Value> = server
        .requests()
        .iter()
        .map(|one| one.body["messages"].clone())
        .collect();
    let system = json!({"role": "system", "content": "Be brief."});
    assert_eq!(sent[4], json!([system, {"role": "user", "content": "C"}]));
    assert_eq!(
        *sent.last().unwrap(),
        json!([system, {"role": "user", "content": "D"}])
    );
}

#[test]
fn a_server_that_does_not_know_stream_options_is_asked_without() {
    let unknown = || {
        Fake::error(
            "422 Unprocessable Entity",
            &[],
            "stream_options: extra",
            "x",
        )
    };
    let server = FakeServer::start(vec![unknown(), stream("Ay.", DONE)]);
    assert!(chat(&server, &[], "Hi\nSo?\n").status.success());
    let asked: Vec<bool> = server
        .requests()
        .iter()
        .map(|request| request.body.get("stream_options").is_some())
        .collect();
    assert_eq!(asked, [true, false, false]);
}

#[test]
fn options_of_the_model_are_refused_beside_a_server() {
    for (arguments, message) in [
        (
            &["chat", "tiny-gpt2", "--server", "http://localhost"][..],
            "cannot be used with '--server",
        ),
        (
            &["chat", "--server", "http://localhost", "--threads", "2"],
            "cannot be used with",
        ),
        (
            &[
                "chat",
                "--server",
                "http://localhost",
                "--chat-template",
                "x",
            ],
            "cannot be used with",
        ),
        (
            &["chat", "tiny-gpt2", "--model", "x"],
            "cannot be used with",
        ),
        (&["chat"], "required arguments were not provided"),
    ] {
        let output = llm_int8_with_input(arguments, "Hi\n");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains(message), "{}", stderr(&output));
    }
    let output = llm_int8_with_input(&["chat", "--server", "localhost:8080"], "Hi\n");
    assert!(
        stderr(&output).contains("must begin with http://"),
        "{}",
        stderr(&output)
    );
    let arguments = [
        "chat",
        "--server",
        "http://localhost",
        "--api-key-file",
        "nowhere",
    ];
    let output = llm_int8_with_input(&arguments, "Hi\n");
    assert!(
        stderr(&output).contains("cannot be read from nowhere"),
        "{}",
        stderr(&output)
    );
}

/// Ctrl-C during an answer ends the answer and its connection, not the program.
#[cfg(unix)]
#[test]
fn ctrl_c_stops_an_answer() {
    use crate::support::program;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::process::Command;
    use std::time::Instant;

    let long = "data: {\"choices\":[{\"delta\":{\"content\":\"word\\n\"}}]}\n\n".repeat(1000);
    let slow = Fake::stream(&long).slowly(Duration::from_millis(20));
    let server = FakeServer::start(vec![slow, stream("Ay.", DONE)]);
    let home = TempDir::new().unwrap();
    let url = server.url();
    let arguments = ["chat", "--server", &url, "--model", "m", "-q"];
    let mut child = program(&arguments, home.path()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());

    input.write_all(b"Hi\n").unwrap();
    let mut word = String::new();
    output.read_line(&mut word).unwrap();
    assert_eq!(word, "word\n");
    let kill = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(kill.unwrap().success());

    let mut errors = BufReader::new(child.stderr.take().unwrap());
    let mut told = String::new();
    errors.read_line(&mut told).unwrap();
    assert_eq!(told, "[stopped]\n");
    // The connection goes at once, so that the server computes no more.
    let start = Instant::now();
    while server.broken() == 0 {
        assert!(start.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(10));
    }
    input.write_all(b"So?\n/exit\n").unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert!(
        rest.ends_with("\nAy.\n") && rest.lines().count() < 900,
        "{rest}"
    );
    assert!(child.wait().unwrap().success());
    let messages = &server.requests()[1].body["messages"];
    assert_eq!(
        messages[1]["role"], "assistant",
        "what came until then stays: {messages}"
    );
}
