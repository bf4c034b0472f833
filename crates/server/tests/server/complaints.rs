//! One test for each of twelve complaints about other servers (docs/server.md lists them).

use crate::client::{Connection, get, post, send};
use crate::endpoints::{chunks, text, with};
use crate::shutdown::long;
use crate::start::{CONTEXT, Running, config, model, wait_until};
use llm_int8_server::ServerConfig;
use serde_json::{Value, json};

const COMPLETIONS: &str = "/v1/completions";

fn one_at_a_time() -> Running {
    Running::start(ServerConfig {
        parallel: 1,
        max_queue: 40,
        ..config()
    })
}

/// 1: clients go, and the work goes on (llama.cpp #24496, #13262, #11720, #15232).
#[test]
fn work_for_clients_that_have_gone_stops_in_the_queue_and_in_the_middle() {
    let server = one_at_a_time();
    for stream in [true, false] {
        let busy = Connection::post(server.address, COMPLETIONS, &long(stream));
        wait_until("it runs", || server.metric("num_requests_running") > 0.0);
        let waits = Connection::post(
            server.address,
            COMPLETIONS,
            &json!({ "prompt": vec![5; 400], "stream": stream }),
        );
        wait_until("it waits", || server.metric("num_requests_waiting") >= 24.0);
        let before = server.metric("prompt_tokens_total");
        drop(waits);
        wait_until("its client is missed", || {
            server.metric("num_requests_waiting") < 24.0
        });
        drop(busy);
        server.wait_until_idle();
        let computed = server.metric("prompt_tokens_total") - before;
        assert!(
            computed < 400.0,
            "the prompt of a client that had gone was computed"
        );
    }
    let whole = 2.0 * 24.0 * 450.0;
    assert!(server.metric("generation_tokens_total") < whole / 2.0);
}

/// 2: a client that leaves panics the engine (mistral.rs #1203).
#[test]
fn a_client_that_leaves_harms_nobody() {
    let server = Running::usual();
    for _ in 0..20 {
        let mut stream = Connection::post(server.address, COMPLETIONS, &long(true));
        stream.wait_for("data: ");
    }
    server.wait_until_idle();
    post(
        server.address,
        COMPLETIONS,
        &json!({ "prompt": "a", "max_tokens": 2 }),
    )
    .ok();
    assert_eq!(server.metric("failed_passes_total"), 0.0);
}

/// 3: two requests at once, or the second one, crash (mistral.rs #256, #1376).
#[test]
fn several_requests_at_once_and_one_after_another_are_answered() {
    let server = Running::usual();
    let ask = || {
        post(
            server.address,
            COMPLETIONS,
            &json!({ "prompt": "a", "max_tokens": 9 }),
        )
        .ok()
    };
    let first = ask()["choices"][0]["text"].clone();
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        for one in all {
            assert_eq!(one.join().unwrap()["choices"][0]["text"], first);
        }
    });
    assert_eq!(ask()["choices"][0]["text"], first);
}

/// 4: a request that is too big gets no answer (mistral.rs #1174).
#[test]
fn a_request_that_is_too_big_gets_an_answer() {
    let server = Running::usual();
    let body = json!({ "prompt": "x".repeat(5 << 20) }).to_string();
    send(server.address, "POST", COMPLETIONS, &[], &body).error(413);
    let body = json!({ "prompt": "word ".repeat(100_000) });
    assert_eq!(
        post(server.address, COMPLETIONS, &body).error(400).0,
        "context_length_exceeded"
    );
}

/// 5: overflow is sometimes 500, sometimes 400 (llama.cpp #19774), or is cut silently (Ollama
/// #3839, #6026).
#[test]
fn nothing_is_cut_silently() {
    let server = Running::usual();
    for (prompt, new) in [
        (CONTEXT, 0),
        (CONTEXT - 1, 1),
        (CONTEXT, 1),
        (CONTEXT + 1, 0),
        (4000, 4000),
        (1, usize::MAX >> 12),
    ] {
        let body = json!({ "prompt": vec![7; prompt], "max_tokens": new, "ignore_eos": true });
        let answer = post(server.address, COMPLETIONS, &body);
        if prompt.saturating_add(new) <= CONTEXT {
            assert_eq!(answer.ok()["usage"]["prompt_tokens"], prompt);
        } else {
            assert_eq!(
                answer.error(400).0,
                "context_length_exceeded",
                "{prompt} {new}"
            );
        }
    }
    let long = json!({ "messages": [{ "role": "user", "content": "word ".repeat(2000) }] });
    let answer = post(server.address, "/v1/chat/completions", &long);
    assert_eq!(
        answer.error(400),
        (json!("context_length_exceeded"), json!("messages"))
    );
}

/// 6: a shared cache answers from an unrelated conversation (llama.cpp #27148), or exhausts memory
/// (mistral.rs #1470, #167).
#[test]
fn kept_prefixes_are_those_of_the_same_prompt_and_salt_and_bounded() {
    let budget = 4 << 20;
    let server = Running::start(ServerConfig {
        prefix_cache_bytes: budget,
        ..config()
    });
    let model = model().unwrap();
    let ask = |prompt: &str, salt: Option<&str>| {
        let body = json!({ "prompt": prompt, "max_tokens": 8, "cache_salt": salt });
        let answer = post(server.address, COMPLETIONS, &body).ok();
        let alone = model.generation(prompt).max_new_tokens(8).run().unwrap();
        assert_eq!(answer["choices"][0]["text"], alone.text, "{prompt}");
        answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
    };
    let first = "And it came to pass in those days that the king of Israel";
    assert_eq!(ask(first, None), 0);
    assert!(ask(&format!("{first} said unto him"), None) > 5);
    assert_eq!(ask(first, Some("tenant")), 0, "another salt shares nothing");
    assert!(ask(first, Some("tenant")) > 5);
    assert_eq!(ask("Unrelated words about Verona and Mantua", None), 0);
    for i in 0..40 {
        ask(&format!("{i} is a number. {first}"), None);
        assert!(server.metric("prefix_cache_bytes") <= budget as f64);
    }
}

/// 7: the queue is unbounded (vLLM #2901, #18826).
#[test]
fn a_full_queue_refuses_at_once() {
    let server = Running::start(ServerConfig {
        parallel: 1,
        max_queue: 3,
        ..config()
    });
    let body = json!({ "prompt": ["a", "b", "c", "d"], "max_tokens": 500, "ignore_eos": true });
    let busy = Connection::post(server.address, COMPLETIONS, &body);
    wait_until("the queue is full", || {
        server.metric("num_requests_waiting") >= 3.0
    });
    let answer = post(
        server.address,
        COMPLETIONS,
        &json!({ "prompt": "a", "max_tokens": 1 }),
    );
    assert_eq!(answer.error(429).0, "queue_full");
    assert!(answer.header("retry-after").is_some() && answer.header("x-should-retry").is_none());
    drop(busy);
    server.wait_until_idle();
    post(
        server.address,
        COMPLETIONS,
        &json!({ "prompt": "a", "max_tokens": 1 }),
    )
    .ok();
}

/// 8: the seed is ignored, or the text depends on the slots (llama.cpp #7381, #7052).
#[test]
fn a_seed_decides_the_text() {
    let server = Running::usual();
    let ask = |seed: Value| {
        let body =
            json!({ "prompt": "ROMEO:", "max_tokens": 20, "temperature": 1.2, "seed": seed });
        post(server.address, COMPLETIONS, &body).ok()["choices"][0]["text"].clone()
    };
    let first = ask(json!(1));
    std::thread::scope(|scope| {
        let all: Vec<_> = (1..=8)
            .map(|seed| scope.spawn(move || (seed, ask(json!(seed)))))
            .collect();
        for one in all {
            let (seed, text) = one.join().unwrap();
            assert_eq!(text == first, seed == 1);
        }
    });
    assert_ne!(
        ask(Value::Null),
        ask(Value::Null),
        "without a seed one is drawn"
    );
}

/// 9: there is no finish_reason (vLLM #27572, vllm-mlx #628).
#[test]
fn every_choice_ends_with_a_reason_and_no_chunk_before_has_one() {
    let server = Running::usual();
    let chat = json!({ "messages": [{ "role": "user", "content": "Hi" }], "max_tokens": 4, "stream": true, "n": 2 });
    let completion =
        json!({ "prompt": "a", "max_tokens": 30, "stream": true, "n": 2, "stop": ["e"] });
    for (path, body, reason) in [
        ("/v1/chat/completions", chat, "length"),
        (COMPLETIONS, completion, "stop"),
    ] {
        let chunks = chunks(&post(server.address, path, &body).events());
        for index in 0..2 {
            let own: Vec<&Value> = chunks
                .iter()
                .map(|chunk| &chunk["choices"][0])
                .filter(|choice| choice["index"] == index)
                .collect();
            let (last, before) = own.split_last().unwrap();
            assert_eq!(last["finish_reason"], reason);
            for choice in before {
                assert_eq!(
                    choice.get("finish_reason"),
                    Some(&Value::Null),
                    "null, not absent"
                );
            }
        }
    }
}

/// 10: the usage is missing, or comes unasked (vLLM #6371, #36379; kubeai #283).
#[test]
fn a_stream_has_the_usage_if_asked_and_an_answer_always() {
    let server = Running::usual();
    let body = json!({ "messages": [{ "role": "user", "content": "Hi" }], "max_tokens": 4 });
    let whole = post(server.address, "/v1/chat/completions", &body).ok()["usage"].clone();
    let stream = |more: Value| {
        let body = with(&body, more);
        chunks(&post(server.address, "/v1/chat/completions", &body).events())
    };
    let unasked = stream(json!({ "stream": true }));
    assert!(unasked.iter().all(|chunk| chunk.get("usage").is_none()));
    let asked = stream(json!({ "stream": true, "stream_options": { "include_usage": true } }));
    let (last, before) = asked.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["total_tokens"], whole["total_tokens"]);
    assert!(
        before
            .iter()
            .all(|chunk| chunk.get("usage") == Some(&Value::Null))
    );
}

/// 11: split UTF-8 (llama.cpp #28926), tool calls lost in streams (mlx-serve #287).
#[test]
fn characters_of_several_tokens_and_calls_arrive_whole() {
    let server = Running::usual();
    let wanted = "字é🙂 und Straße";
    let body = json!({
        "messages": [{ "role": "user", "content": "Hi" }], "stream": true, "max_tokens": 100,
        "response_format": { "type": "json_schema", "json_schema": { "schema": { "const": wanted } } },
    });
    let chunks = chunks(&post(server.address, "/v1/chat/completions", &body).events());
    let found = text(&chunks, "/choices/0/delta/content");
    assert!(!found.contains('\u{fffd}'), "{found}");
    assert_eq!(serde_json::from_str::<Value>(&found).unwrap(), wanted);
    assert!(chunks.len() > 5, "it was streamed");
}

/// 12: a shutdown hangs on an open stream (hyper #2787): `shutdown.rs` has more of these.
#[test]
fn a_shutdown_ends_streams() {
    let server = Running::start(ServerConfig {
        grace: std::time::Duration::ZERO,
        ..config()
    });
    let mut stream = Connection::post(server.address, COMPLETIONS, &long(true));
    stream.wait_for("data: ");
    assert_eq!(get(server.address, "/health").status, 200);
    server.shutdown.begin();
    stream.wait_for("\"code\":\"draining\"");
    server.join().unwrap();
}

/// Comments keep a stream open while nothing else comes, also while it waits.
#[test]
fn a_silent_stream_has_pings() {
    let server = Running::start(ServerConfig {
        parallel: 1,
        ping: std::time::Duration::from_millis(20),
        ..config()
    });
    let _busy = Connection::post(server.address, COMPLETIONS, &long(true));
    wait_until("it runs", || server.metric("num_requests_running") > 0.0);
    let mut waits = Connection::post(
        server.address,
        COMPLETIONS,
        &json!({ "prompt": "a", "stream": true }),
    );
    waits.wait_for(": ping");
}
