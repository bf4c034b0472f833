//! What a crowd of clients leaves in the heap, counted to the byte. The tests of this file are a
//! process of their own, as the allocator counts for all threads.

#![allow(
    missing_docs,
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    clippy::result_large_err,
    unreachable_pub,
    reason = "tests"
)]

#[path = "server/client.rs"]
mod client;
#[path = "server/start.rs"]
mod start;

use crate::client::{post, request};
use crate::start::{Running, config};
use llm_int8_server::ServerConfig;
use serde_json::json;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::alloc::System;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Panics and warnings of the server.
static MISTAKES: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Warnings;

impl log::Log for Warnings {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn && metadata.target().starts_with("llm_int8")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            MISTAKES.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// Collects panics and warnings from now on.
fn collect_mistakes() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        MISTAKES.lock().unwrap().push(panic.to_string());
        print(panic);
    }));
    log::set_logger(&Warnings).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
}

/// Bytes of the heap in use.
fn in_use() -> i64 {
    let stats = HEAP.stats();
    stats.bytes_allocated as i64 - stats.bytes_deallocated as i64
}

/// Asks for a completion and returns the socket.
fn send(address: SocketAddr, body: &str) -> std::io::Result<TcpStream> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    let headers = [("connection", "close")];
    socket.write_all(request("POST", "/v1/completions", &headers, body).as_bytes())?;
    Ok(socket)
}

/// What one client of the crowd does. A client that hangs up may see its own connection reset.
fn client(address: SocketAddr, number: usize, refused: &AtomicUsize) -> std::io::Result<()> {
    let prompt = "word ".repeat(20 + number % 60);
    let body = |stream: bool| {
        json!({ "prompt": prompt, "max_tokens": 20 + number % 30, "stream": stream, "seed": number,
                "temperature": 0.8 })
        .to_string()
    };
    let mut text = Vec::new();
    match number % 10 {
        // Half hang up: before the answer, in its middle, or while they still send.
        0 | 1 => drop(send(address, &body(false))?),
        2 | 3 => {
            let mut socket = send(address, &body(true))?;
            let mut part = [0; 300];
            socket.read_exact(&mut part)?;
        }
        4 => {
            let mut socket = TcpStream::connect(address)?;
            socket.write_all(
                b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 999\r\n\r\n{\"pro",
            )?;
        }
        5 => {
            send(address, "{\"prompt\": ")?.read_to_end(&mut text)?;
            assert!(text.starts_with(b"HTTP/1.1 400"));
        }
        6 => {
            let long = "x".repeat(200_000);
            send(address, &long)?.read_to_end(&mut text)?;
            assert!(text.starts_with(b"HTTP/1.1 413"));
        }
        // A slow reader.
        7 => {
            let mut socket = send(address, &body(true))?;
            let mut part = [0; 512];
            while socket.read(&mut part)? > 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        _ => {
            let body = body(number.is_multiple_of(2));
            send(address, &body)?.read_to_end(&mut text)?;
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

/// 200 clients at once; returns when nothing of theirs runs or waits.
fn crowd(server: &Running, refused: &AtomicUsize) {
    const CLIENTS: usize = 200;
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let client = move || {
                let _ = client(server.address, number, refused);
            };
            std::thread::Builder::new()
                .stack_size(256 << 10)
                .spawn_scoped(scope, client)
                .unwrap();
        }
    });
    server.wait_until_idle();
}

#[test]
fn a_crowd_of_clients_leaves_nothing_behind() {
    collect_mistakes();
    let server = Running::start(ServerConfig {
        parallel: 4,
        max_queue: 16,
        max_body: 100_000,
        prefix_cache_bytes: 0,
        ..config()
    });
    let refused = AtomicUsize::new(0);
    let after_2000_clients = || {
        (0..10).for_each(|_| crowd(&server, &refused));
        // Connections end a little after their requests.
        let readings = (0..10).map(|_| {
            std::thread::sleep(Duration::from_millis(20));
            in_use()
        });
        readings.min().unwrap()
    };

    // Buffers that are kept for reuse grow now and then; a leak of 100 bytes a client adds 200,000
    // to every round.
    let mut rounds = vec![after_2000_clients()];
    let grows_on = (1..6).all(|last| {
        rounds.push(after_2000_clients());
        rounds[last] > rounds[last - 1] + 100_000
    });
    assert!(!grows_on, "bytes in use, round by round: {rounds:?}");
    assert!(
        refused.load(Ordering::Relaxed) > 0,
        "the queue was never full"
    );
    assert_eq!(server.metric("failed_passes_total"), 0.0);
    let body = json!({ "prompt": "a", "max_tokens": 1 });
    post(server.address, "/v1/completions", &body).ok();
    server.shutdown.begin();
    server.join().unwrap();
    // A failed assertion runs the hook, which locks them.
    let mistakes = std::mem::take(&mut *MISTAKES.lock().unwrap());
    assert_eq!(mistakes, [""; 0]);
}
