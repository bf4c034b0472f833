//! The promise: the same request gives the same text at any load.

use crate::client::{Connection, post};
use crate::endpoints::{chunks, text};
use crate::start::{Running, config, model};
use llm_int8::GenerationConfig;
use llm_int8_server::ServerConfig;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};

const REQUESTS: usize = 64;
const CLIENTS: usize = 12;

/// Beginnings that many prompts share, so that kept prefixes are used.
const BEGINNINGS: [&str; 4] = [
    "And it came to pass in those days that",
    "ROMEO:\nIs the day so young? JULIET:\nBut new struck nine. ROMEO:",
    "In the beginning God created the heaven and the earth.",
    "",
];
const ENDS: [&str; 4] = [
    " the king said",
    " Ay me!",
    " and the earth was without form",
    "x",
];

#[derive(Debug)]
struct Ask {
    body: Value,
    expected: String,
}

/// 64 prompts with settings and seeds of their own, and what each gives alone.
fn asks() -> Vec<Ask> {
    let model = model().unwrap();
    let one = |i: usize| {
        let prompt = format!("{}{}", BEGINNINGS[i % 4], ENDS[i / 4 % 4]);
        let (temperature, seed, tokens) = ([0.0, 0.7, 1.3][i % 3], (i * 7919) as u64, 8 + i % 40);
        let generation = model.generation(prompt.as_str()).temperature(temperature);
        let alone = generation.seed(seed).max_new_tokens(tokens).run().unwrap();
        let body = json!({
            "prompt": prompt, "temperature": temperature, "seed": seed, "max_tokens": tokens,
            "stream": i.is_multiple_of(2),
        });
        Ask {
            body,
            expected: alone.text,
        }
    };
    (0..REQUESTS).map(one).collect()
}

/// The order in which requests are sent: a permutation that depends on `round`.
fn order(round: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..REQUESTS).collect();
    let mut state = 0x2545_f491_4f6c_dd1d_u64.wrapping_mul(round as u64 + 1);
    for last in (1..REQUESTS).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        order.swap(last, (state % (last as u64 + 1)) as usize);
    }
    order
}

/// Sends a request and compares its text, or leaves in the middle of the stream.
fn ask(server: &Running, ask: &Ask, leaves: bool) {
    if leaves {
        let mut body = ask.body.clone();
        body["stream"] = json!(true);
        let mut connection = Connection::post(server.address, "/v1/completions", &body);
        connection.wait_for("data: ");
        return;
    }

    let answer = post(server.address, "/v1/completions", &ask.body);
    let found = if ask.body["stream"] == true {
        text(&chunks(&answer.events()), "/choices/0/text")
    } else {
        answer.ok()["choices"][0]["text"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(found, ask.expected, "{}", ask.body);
}

#[test]
fn texts_are_those_of_each_request_alone_at_any_load() {
    let asks = asks();
    let mut hits = Vec::new();
    for (round, (parallel, prefix_cache_bytes)) in [
        (1, 0),
        (2, 0),
        (8, 0),
        (1, 64 << 20),
        (2, 64 << 20),
        (8, 2 << 20),
    ]
    .into_iter()
    .enumerate()
    {
        let server = Running::start(ServerConfig {
            parallel,
            prefix_cache_bytes,
            ..config()
        });
        let (order, next) = (order(round), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    while let Some(place) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                        ask(&server, &asks[*place], (place + round) % 3 == 0);
                    }
                });
            }
        });
        server.wait_until_idle();
        assert_eq!(server.metric("failed_passes_total"), 0.0);
        hits.push(server.metric("prefix_cache_hits_total"));
    }

    assert!(
        hits[..3].iter().all(|hits| *hits == 0.0),
        "no prefixes are kept: {hits:?}"
    );
    assert!(
        hits[3..].iter().all(|hits| *hits > 0.0),
        "prefixes are reused: {hits:?}"
    );
}

#[test]
fn a_default_request_is_greedy_like_the_program() {
    let model = model().unwrap();
    let defaults = model.generation_config();
    assert_eq!(defaults.do_sample, GenerationConfig::default().do_sample);
    let server = Running::usual();
    let body = json!({ "prompt": "ROMEO:", "max_tokens": 20 });
    let answer = post(server.address, "/v1/completions", &body).ok();
    let alone = model.generation("ROMEO:").max_new_tokens(20).run().unwrap();
    assert_eq!(answer["choices"][0]["text"], alone.text);
}
