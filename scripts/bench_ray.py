#!/usr/bin/env python3
"""Ray beside one process, in tokens per second: what Ray costs, and what a second actor gives. For docs/scaling.md.

    target/python/clean/bin/python scripts/bench_ray.py [--model MODEL] [--rows 256] [--batch 32] [--runs 3]

Needs the wheel and ray[data] (scripts/test_python.sh installs both into target/python/clean) and a quiet machine with
two cores. MODEL is that of scripts/fetch_smollm2.sh by default. Loading is left out and printed beside; a run is timed
from its first batch to the end of its last. Each figure is the median of the runs, in processes of their own.

- overhead: Ray with 1 actor of 2 threads / `generate_batch` with 2 threads
- scaling: 2 actors of 1 thread / twice 1 actor of 1 thread, beside the same ratio for reading memory, which two
  processes share
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORDS = ["Once upon a time", "The capital of France is", "In a distant galaxy", "A recipe for bread:", "Dear Sir,"]
# Bytes that a process reads to measure memory: far more than a last-level cache.
READ = 1 << 30


def rows(count):
    return [{"id": i, "prompt": f"{WORDS[i % len(WORDS)]} {i}"} for i in range(count)]


def alone(args, threads):
    """`generate_batch` in this process, batch after batch as Ray gives them."""
    from llm_int8.ray import Generator

    began = time.perf_counter()
    generator = Generator(args.model, num_threads=threads, max_new_tokens=args.tokens, eos_token_id=[])
    loaded = time.perf_counter()
    tokens = 0
    everything = rows(args.rows)
    for start in range(0, args.rows, args.batch):
        part = everything[start:start + args.batch]
        out = generator({key: [row[key] for row in part] for key in ("id", "prompt")})
        tokens += sum(out["new_tokens"])
    return {"rate": tokens / (time.perf_counter() - loaded), "load": loaded - began}


def on_ray(args, actors, threads):
    import numpy as np
    import ray
    from llm_int8.ray import Generator

    class Timed(Generator):
        def __init__(self, **settings):
            began = time.time()
            super().__init__(**settings)
            self.load = time.time() - began

        def __call__(self, batch):
            began = time.time()
            out = super().__call__(batch)
            count = len(out["text"])
            times = {"began": began, "ended": time.time(), "load": self.load}
            return {**out, **{key: np.full(count, value) for key, value in times.items()}}

    ray.init(num_cpus=actors * threads + 1, object_store_memory=200_000_000, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    data = ray.data.from_items(rows(args.rows), override_num_blocks=args.rows // args.batch)
    data = data.map_batches(
        Timed, compute=ray.data.ActorPoolStrategy(size=actors), num_cpus=threads, batch_size=args.batch,
        fn_constructor_kwargs=dict(model=args.model, max_new_tokens=args.tokens, eos_token_id=[]))
    done = data.take_all()
    assert len(done) == args.rows
    span = max(row["ended"] for row in done) - min(row["began"] for row in done)
    return {"rate": sum(row["new_tokens"] for row in done) / span, "load": max(row["load"] for row in done)}


def read_memory(_, processes):
    """Bytes per second that processes with a thread each read together."""
    code = f"""
import numpy as np, time, sys
memory = np.ones({READ} // 8)
print("ready", flush=True)
sys.stdin.readline()
began = time.time()
for _ in range(5):
    memory.max()
print(began, time.time())
"""
    readers = [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
               for _ in range(processes)]
    [reader.stdout.readline() for reader in readers]
    for reader in readers:
        reader.stdin.write("\n")
        reader.stdin.flush()
    times = [tuple(map(float, reader.stdout.readline().split())) for reader in readers]
    [reader.wait() for reader in readers]
    return {"rate": processes * 5 * READ / (max(end for _, end in times) - min(begin for begin, _ in times)), "load": 0.0}


CASES = {
    "generate_batch, 2 threads": (alone, 2),
    "Ray, 1 actor of 2 threads": (on_ray, 1, 2),
    "Ray, 1 actor of 1 thread": (on_ray, 1, 1),
    "Ray, 2 actors of 1 thread": (on_ray, 2, 1),
    "reading memory, 1 process": (read_memory, 1),
    "reading memory, 2 processes": (read_memory, 2),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--case", choices=CASES, help="one run of one case, as JSON")
    args = parser.parse_args()
    if args.model is None:
        args.model = subprocess.check_output([ROOT / "scripts" / "fetch_smollm2.sh"], text=True).strip()
    if args.case:
        function, *numbers = CASES[args.case]
        print(json.dumps(function(args, *numbers)))
        return

    own = ["--model", args.model, "--rows", args.rows, "--batch", args.batch, "--tokens", args.tokens]
    found = {case: [] for case in CASES}
    for _ in range(args.runs):
        # In turn, so that a slow spell of the machine meets all of them.
        for case in CASES:
            command = [sys.executable, __file__, *map(str, own), "--case", case]
            found[case].append(json.loads(subprocess.check_output(command, text=True).splitlines()[-1]))

    rate = {case: statistics.median(run["rate"] for run in runs) for case, runs in found.items()}
    print(f"{pathlib.Path(args.model).name}, {args.rows} rows of {args.tokens} new tokens, batches of {args.batch}\n")
    print("| | tokens/s | load, s |\n|---|---|---|")
    for case, value in rate.items():
        if "memory" in case:
            print(f"| {case} | {value / 1e9:.1f} GB/s | |")
        else:
            print(f"| {case} | {value:.0f} | {statistics.median(run['load'] for run in found[case]):.1f} |")
    overhead = rate["Ray, 1 actor of 2 threads"] / rate["generate_batch, 2 threads"]
    scaling = rate["Ray, 2 actors of 1 thread"] / (2 * rate["Ray, 1 actor of 1 thread"])
    memory = rate["reading memory, 2 processes"] / (2 * rate["reading memory, 1 process"])
    print(f"\noverhead {overhead:.3f} (aim 0.95), scaling {scaling:.3f} beside {memory:.3f} for reading memory")


if __name__ == "__main__":
    main()
