#!/usr/bin/env python3
"""Measures `llm-int8 serve` beside `llm-int8 bench --batch-sizes` on the same model; prints a Markdown table.

    cargo build --release
    python3 scripts/bench_server.py MODEL [--clients 1,2,4,8,16] [--rounds 3] [--json raw.json]

Every client streams a completion of its own prompt of 128 tokens. The server's rate is that of the tokens it counts
(`/metrics`) from when all clients have their first token until there are 128 more for each. `bench` decodes
as many sequences, 128 tokens each after a prompt of 128, without a server. They take turns, with the same outlier rule
(row, the server's default). Time to first token: a prompt of 128, alone and while as many clients decode. Clients run
on the same cores, so those that only keep the server busy sleep until 64 KiB have arrived.
"""

import argparse
import json
import pathlib
import random
import re
import socket
import statistics
import subprocess
import sys
import threading
import time

PROGRAM = pathlib.Path(__file__).resolve().parent.parent / "target/release/llm-int8"
PROMPT, MEASURED = 128, 128
POLL = 0.1  # seconds between two looks at the server's metrics, which cost it time
VOCABULARY = range(100, 200)


class Stream(threading.Thread):
    """A client that notes when it began and when its first token arrived, unless it is to sleep meanwhile."""

    refused = []  # answers that are no streams, of all clients

    def __init__(self, port, prompt, tokens, sleeps):
        super().__init__(daemon=True)
        self.port, self.begun, self.first, self.sleeps = port, None, None, sleeps
        self.body = json.dumps(
            {"prompt": prompt, "max_tokens": tokens, "stream": True, "temperature": 0, "ignore_eos": True}
        )

    def run(self):
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(self.body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            if self.sleeps:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1 << 16)
            self.begun = time.perf_counter()
            connection.sendall((head + self.body).encode())
            while data := connection.recv(1 << 16):
                if data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 200"):
                    self.refused.append(data.decode())
                if self.first is None and b"data: {" in data:
                    self.first = time.perf_counter()


class Server:
    """`llm-int8 serve`, ended on leaving."""

    def __init__(self, arguments, parallel):
        command = [PROGRAM, "serve", *arguments, "--port", "0", "--parallel", str(parallel), "--prefix-cache", "0"]
        self.process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
        self.port, is_loaded, said = None, False, ""
        for line in self.process.stderr:
            if found := re.search(r"http://[^ ]*:(\d+)", line):
                self.port = int(found[1])
            if is_loaded := line.startswith("loaded in"):
                break
            said = line
        if not is_loaded:
            sys.exit(f"the server did not start: {said}")
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        self.stream(1, sleeps=False).join()
        if Stream.refused:
            self.process.terminate()
            sys.exit(f"the server refused a completion: {Stream.refused[0]}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def metrics(self, *names):
        """The time, and the values of these metrics."""
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = b""
            while data := connection.recv(1 << 16):
                answer += data
        found = [re.search(rf"^llm_int8:{name} (\S+)", answer.decode(), re.MULTILINE) for name in names]
        return time.perf_counter(), *(float(one[1]) for one in found)

    def stream(self, tokens, sleeps=True):
        prompt = [random.choice(VOCABULARY) for _ in range(PROMPT)]
        client = Stream(self.port, prompt, tokens, sleeps)
        client.start()
        return client


def busy(server, count, tokens):
    """`count` clients that all have their first token."""
    first_tokens = "time_to_first_token_seconds_count"
    _, before = server.metrics(first_tokens)
    clients = [server.stream(tokens) for _ in range(count)]
    while server.metrics(first_tokens)[1] < before + count:
        time.sleep(0.02)
    return clients


def spare(count):
    """Tokens that a client needs beside those measured: it decodes while the prompts of later ones are computed."""
    return 128 + 4 * count


def rate(server, count):
    """Tokens per second of `count` clients that all decode."""
    clients = busy(server, count, MEASURED + spare(count))
    begin, before = server.metrics("generation_tokens_total")
    end = after = 0
    while after - before < MEASURED * count:
        time.sleep(POLL)
        end, after, running = server.metrics("generation_tokens_total", "num_requests_running")
        assert running == count, "a client ended too soon"
    for client in clients:
        client.join()
    return (after - before) / (end - begin)


def first_token(server, count):
    """Milliseconds to the first token of one more client while `count` clients decode."""
    clients = busy(server, count, spare(count))
    late = server.stream(1, sleeps=False)
    late.join()
    assert server.metrics("num_requests_running")[1] >= count, "the others ended too soon"
    for client in clients:
        client.join()
    return 1000 * (late.first - late.begun)


def bench(arguments, counts):
    """Tokens per second of `llm-int8 bench` for each number of sequences."""
    sizes = ",".join(map(str, counts))
    options = ["--outliers", "row", "--batch-sizes", sizes, "--contexts", PROMPT, "-n", MEASURED, "--runs", 1]
    command = [PROGRAM, "bench", *arguments, *options, "--prompts", 16, "--json"]
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    return {row["batch"]: row["tokens_per_second"] for row in json.loads(done.stdout)["decode"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--clients", default="1,2,4,8,16", help="numbers of clients (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which medians are taken (default 3)")
    parser.add_argument("--json", help="write raw results to this file")
    parser.add_argument("options", nargs="*", help="further options of both programs, after --")
    args = parser.parse_args()
    counts = [int(count) for count in args.clients.split(",")]
    arguments = [args.model, *args.options]

    rounds = []
    for number in range(args.rounds):
        alone = bench(arguments, counts)
        with Server(arguments, max(counts) + 1) as server:
            rounds.append(
                {
                    "bench": alone,
                    "server": {count: rate(server, count) for count in counts},
                    "first token": {count: first_token(server, count) for count in [0, *counts]},
                }
            )
        print(f"round {number + 1}: {rounds[-1]}", file=sys.stderr)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps({"command": sys.argv, "rounds": rounds}, indent=1))

    def median(kind, count):
        return statistics.median(one[kind][count] for one in rounds)

    print("| clients | server, tokens/s | `bench`, tokens/s | ratio | first token beside so many clients, ms |")
    print("|---:|---:|---:|---:|---:|")
    print(f"| 0 | | | | {median('first token', 0):.0f} |")
    for count in counts:
        ours, theirs = median("server", count), median("bench", count)
        ratio = statistics.median(one["server"][count] / one["bench"][count] for one in rounds)
        print(f"| {count} | {ours:.0f} | {theirs:.0f} | {ratio:.2f} | {median('first token', count):.0f} |")


if __name__ == "__main__":
    main()
