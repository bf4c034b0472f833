#!/usr/bin/env python3
"""Benchmarks llm-int8 on an NVIDIA GPU against torch (eager and compiled) and bitsandbytes; prints Markdown tables.

    python3 scripts/bench_gpu.py [--quick] [--json raw.json [--resume]] [--only ours,torch,…] [--dry-run]

Needs our program built with CUDA, torch, transformers, accelerate and numpy (Python 3.11). bitsandbytes is left out if
it is not installed, and a peer that fails does not stop the others. Each of our rows runs in a process of its own;
consecutive rows of peers share one, because importing torch takes 5 to 10 s. The --json file is written after each
process, and --resume measures only what such a file lacks. Exit status 75: a row is incomplete; the last lines say why.

The model is a random gpt2-large in float16 with outlier columns, made in a temporary folder or in --model. Each number
is the median of --runs runs, of those that start within 5 s, after one that is not counted:

- load: the model alone, from the page cache, without starting Python or initialising the GPU;
- decode: greedy, 128 new tokens after a prompt of 128, the first not counted; tokens of all sequences of the batch
  together. Peers leave their tokens on the GPU. Compiled: mode="reduce-overhead", a static cache of 256 positions, each
  batch size alone;
- prompt (prefill): one sequence up to its first new token, with an empty cache, not compiled;
- linear: one linear layer without bias, f16 in and out for the peers. Calls rotate through up to 64 copies of the
  weights (512 MiB at most), so that weights come from device memory, not from L2. Ours and bitsandbytes are measured
  twice: without outliers, and with 5 outlier columns. torch: the faster of single calls and a CUDA graph; bitsandbytes
  cannot be captured in a graph, as it synchronises. Our time includes quantising the activations; "torch int8" is
  torch._int_mm (int8 to int32) alone, without quantising or scaling, and only for more than 16 rows;
- copy: 1 GiB on the device, counting bytes read and bytes written.

--device cpu --tiny rehearses everything without a GPU, on a model of two layers; those numbers mean nothing.
"""

import argparse
import contextlib
import datetime
import faulthandler
import functools
import gc
import importlib.metadata
import importlib.util
import inspect
import itertools
import json
import math
import os
import pathlib
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time

SCRIPT = pathlib.Path(__file__).resolve()
DEVICE = "cuda:0"
CONTEXT = 128  # prompt length when decoding
POSITIONS = 1088  # of the model: room for a prompt of 1024 and a new token
BATCHES, PROMPTS, NEW_TOKENS = [1, 8, 32], [128, 512, 1024], 128
GPT2_LARGE = [(3840, 1280), (1280, 1280), (5120, 1280), (1280, 5120)]  # (N, K)
SHAPES = [*GPT2_LARGE, (4096, 4096), (11008, 4096), (4096, 11008), (8192, 28672)]
ROWS = [1, 8, 64, 512, 4096]  # M
OUTLIER_COLUMNS, OUTLIER = 5, 8.0  # how many, and their value
THRESHOLD = 6.0  # above which bitsandbytes takes an activation for an outlier
ROTATED = 512 << 20  # bytes of weights to rotate through: several times L2
MOST_COPIES = 64  # of one layer
COPIED = 1 << 30  # bytes that the copy benchmark copies
SLOW = 5  # seconds after which no further run of a measurement starts
SAMPLE = 30_000  # microseconds of work between the two events of a sample
GRACE = 10  # extra seconds for a row of peers to finish its current measurement
STARTING = 30  # seconds for a process of peers to start
SHORTEST = 2  # nothing more is started with fewer seconds left
MAKING = 300  # seconds for making the model
INCOMPLETE = 75  # exit status if a row of --only is incomplete
MODEL = ["torch", "transformers", "accelerate"]
PEERS = {  # each row's title and the Python modules it needs
    "ours": ("llm-int8", []),
    "ours-no-graph": ("llm-int8, no CUDA graph", []),
    "ours-no-overlap": ("llm-int8, no overlap", []),
    "linear-ours": ("llm-int8", []),
    "linear-ours-no-overlap": ("llm-int8, no overlap", []),
    "copy": ("copy on the card", ["torch"]),
    "torch": ("torch f16", MODEL),
    "linear-torch": ("torch f16", ["torch"]),
    "linear-torch-int8": ("torch int8", ["torch"]),
    "bitsandbytes": ("bitsandbytes", [*MODEL, "bitsandbytes"]),
    "linear-bitsandbytes": ("bitsandbytes", ["torch", "bitsandbytes"]),
    "torch-compiled": ("torch f16, compiled", MODEL),
}


def use(device, tiny):
    """Sets the device, and with `tiny` the small sizes of a rehearsal on a CPU."""
    global DEVICE, CONTEXT, ROTATED, COPIED, SAMPLE
    DEVICE = device
    if tiny:
        CONTEXT, ROTATED, COPIED, SAMPLE = 16, 1 << 16, 1 << 20, 1000


# What runs in a process of its own: bench_gpu.py --step NAME JSON


def make_model(folder, tiny):
    import make_random_gpt2

    make_random_gpt2.POSITIONS = POSITIONS
    size = "gpt2-large"
    if tiny:
        size, make_random_gpt2.VOCAB = "tiny", 512
        make_random_gpt2.SIZES[size] = (2, 64, 2)

    sys.argv = ["make_random_gpt2.py", "--size", size, "--dtype", "F16", "-o", folder]
    make_random_gpt2.main()


class Row:
    """A row being measured: its results so far, those of earlier rows, and its deadline."""

    def __init__(self, reports, name, seconds):
        self.reports, self.name, self.report = reports, name, {}
        self.started, self.end = time.monotonic(), time.monotonic() + seconds
        reports[name] = self.report
        self.show()

    def show(self):
        """Prints all results so far, so that a kill loses only the rest."""
        print("\n" + json.dumps(self.reports), flush=True)

    def failed(self, what, error):
        self.report.setdefault("errors", {})[what] = f"{type(error).__name__}: {error}"[:300]

    def add(self, kind, sizes, work):
        """Adds the result of work() to the report's list `kind`, or records why it failed."""
        if time.monotonic() >= self.end:
            self.report["left_out"] = self.report.get("left_out", 0) + 1
            return

        try:
            self.report.setdefault(kind, []).append(sizes | work())
        except Exception as error:  # too little memory for one size must not lose the others
            self.failed(f"{kind} {sizes}", error)

        self.show()

    def repeat(self, work, runs):
        """The results of several runs of work(), after one that is not counted."""
        work()
        results, end = [], min(self.end, time.monotonic() + SLOW)
        while not results or (len(results) < runs and time.monotonic() < end):
            results.append(work())
        return results


def synchronize():
    import torch

    if DEVICE.startswith("cuda"):
        torch.cuda.synchronize()


def run_model(row, model, batches, prompts, new_tokens, runs):
    import torch
    import transformers

    def now():
        synchronize()
        return time.perf_counter()

    def ids(batch, length):
        return torch.randint(network.config.vocab_size, (batch, length), device=DEVICE)

    def advance(tokens, past, position):
        options = {"cache_position": position} if takes_position else {}
        output = network(input_ids=tokens, past_key_values=past, use_cache=True, logits_to_keep=1, **options)
        return output.logits[:, -1].argmax(-1, keepdim=True)

    def replay(tokens, past, position):
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(tokens, past, position).clone()  # the next replay overwrites the graph's output

    def decode(prompt, past, step):
        token = advance(prompt, past, torch.arange(CONTEXT, device=DEVICE))
        positions = [torch.tensor([CONTEXT + i], device=DEVICE) for i in range(new_tokens - 1)]
        started = now()
        for position in positions:
            token = step(token, past, position)
        return len(prompt) * len(positions) / (now() - started)

    def rate(work):
        samples = row.repeat(work, runs)
        return {"tokens_per_second": statistics.median(samples), "samples": samples}

    def decode_rate(batch):
        prompt, new_cache = ids(batch, CONTEXT), lambda: transformers.DynamicCache(config=network.config)
        if not compiled:
            return rate(lambda: decode(prompt, new_cache(), advance))
        # One cache for all runs: the graph refers to its addresses.
        past = transformers.StaticCache(config=network.config, max_cache_len=CONTEXT + NEW_TOKENS)
        torch._dynamo.utils.counters.clear()
        found = rate(lambda: past.reset() or decode(prompt, past, replay))
        return found | {"skipped_graphs": torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]}

    def prefill(tokens):
        prompt, position = ids(1, tokens), torch.arange(tokens, device=DEVICE)
        past, started = transformers.DynamicCache(config=network.config), now()
        advance(prompt, past, position)
        return tokens / (now() - started)

    torch.manual_seed(0)
    torch.zeros(1, device=DEVICE)
    options = {"dtype": torch.float16, "attn_implementation": "sdpa", "device_map": DEVICE}
    if row.name == "bitsandbytes":
        options["quantization_config"] = transformers.BitsAndBytesConfig(load_in_8bit=True)
    started = now()
    network = transformers.GPT2LMHeadModel.from_pretrained(model, **options).eval()
    row.report |= {"load": {"seconds": now() - started}, "memory": {"model_bytes": network.get_memory_footprint()}}

    # Before version 5, transformers has to be told its position in the cache.
    takes_position = "cache_position" in inspect.signature(network.forward).parameters
    compiled = row.name == "torch-compiled" and torch.compile(advance, mode="reduce-overhead", dynamic=False)
    with torch.no_grad():
        for batch in batches:
            row.add("decode", {"context": CONTEXT, "batch": batch}, lambda: decode_rate(batch))
        for tokens in [] if compiled else prompts:
            row.add("prefill", {"tokens": tokens}, lambda: rate(lambda: prefill(tokens)))


def microseconds(row, calls, runs):
    """Microseconds of one call, for each of several runs; a run rotates through the calls."""
    import torch

    def sample_on_cpu(rounds):
        started = time.perf_counter()
        for _ in range(rounds):
            for call in calls:
                call()
        return (time.perf_counter() - started) * 1e6 / (rounds * len(calls))

    def sample_by_events(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(rounds):
            for call in calls:
                call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e3 / (rounds * len(calls))

    sample = sample_by_events if DEVICE.startswith("cuda") else sample_on_cpu
    sample(1)
    rounds = min(1000, max(1, round(SAMPLE / (sample(1) * len(calls)))))
    return row.repeat(lambda: sample(rounds), runs)


def bitsandbytes_layer(weight):
    import bitsandbytes

    options = {"bias": False, "has_fp16_weights": False, "threshold": THRESHOLD, "device": "meta"}
    layer = bitsandbytes.nn.Linear8bitLt(*reversed(weight.shape), **options)
    layer.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    return layer.to(DEVICE).eval()  # moving it quantises it


def linear(row, shapes, rows, runs):
    import torch

    def copies(out_features, in_features, size):
        return range(min(MOST_COPIES, max(2, math.ceil(ROTATED / (out_features * in_features * size)))))

    @functools.lru_cache(maxsize=1)
    def layers(*shape):
        if row.name == "linear-torch-int8":
            weight = torch.randint(-127, 128, shape, device=DEVICE, dtype=torch.int8)
            return [functools.partial(torch._int_mm, mat2=weight.clone().t()) for _ in copies(*shape, 1)]
        weight = torch.randn(*shape, device=DEVICE, dtype=torch.float16) * shape[1] ** -0.5
        if row.name == "linear-bitsandbytes":
            weight = weight.cpu()
            return [bitsandbytes_layer(weight) for _ in copies(*shape, 1)]
        return [functools.partial(torch.nn.functional.linear, weight=weight.clone()) for _ in copies(*shape, 2)]

    def activations(count, in_features, outlier_columns):
        if row.name == "linear-torch-int8":
            return torch.randint(-127, 128, (count, in_features), device=DEVICE, dtype=torch.int8)
        x = torch.randn(count, in_features, device=DEVICE, dtype=torch.float16).clamp_(-4, 4)
        if outlier_columns:
            x[:, torch.arange(outlier_columns) * in_features // outlier_columns] = OUTLIER
        return x

    def measure(out_features, in_features, count, outlier_columns):
        x = activations(count, in_features, outlier_columns)
        calls = [functools.partial(layer, x) for layer in layers(out_features, in_features)]
        samples = {"one_by_one": microseconds(row, calls, runs)}

        if row.name.startswith("linear-torch") and DEVICE.startswith("cuda"):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for call in calls:
                    call()
            samples["in_a_graph"] = [time / len(calls) for time in microseconds(row, [graph.replay], runs)]

        found = {way: statistics.median(times) for way, times in samples.items()}
        return {"microseconds": min(found.values()), "samples": samples} | found

    torch.manual_seed(0)
    has_outliers = row.name == "linear-bitsandbytes"

    with torch.no_grad():
        for (out_features, in_features), count in itertools.product(shapes, rows):
            if row.name == "linear-torch-int8" and count <= 16:
                continue  # torch._int_mm does not accept them
            for columns in [0, OUTLIER_COLUMNS] if has_outliers else [None]:
                sizes = {"out_features": out_features, "in_features": in_features, "rows": count}
                sizes |= {"outlier_columns": columns} if has_outliers else {}
                row.add("linear", sizes, lambda: measure(out_features, in_features, count, columns))


def copy(row, runs):
    import torch

    source = torch.randint(256, (COPIED,), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    samples = [2e6 * COPIED / time for time in microseconds(row, [lambda: target.copy_(source)], runs)]
    row.report |= {"bytes_per_second": statistics.median(samples), "samples": samples}


def peers(rows, limit, seconds):
    """Measures rows of peers one after another, with `limit` seconds for each and `seconds` for all."""
    import torch

    reports, end = {}, time.monotonic() + seconds
    for name, options in rows:
        own = min(limit, end - time.monotonic())
        if own <= 0:
            return

        # A call that hangs ends the process; the caller then starts another for the remaining rows.
        faulthandler.dump_traceback_later(own + GRACE, exit=True)
        row = Row(reports, name, own)
        work = copy if name == "copy" else linear if name.startswith("linear") else run_model

        try:
            work(row, **options)
        except Exception as error:
            row.failed("all", error)

        row.report["wall_seconds"] = round(time.monotonic() - row.started, 1)
        row.show()
        gc.collect()
        synchronize()  # fails after an illegal access, which ends the process
        if DEVICE.startswith("cuda"):
            torch.cuda.empty_cache()

    faulthandler.cancel_dump_traceback_later()


def step(name, options):
    options = json.loads(options)
    use(options.pop("device"), options["tiny"])
    if name == "make-model":
        make_model(**options)
    else:
        peers(options["rows"], options["limit"], options["seconds"])


# Measuring


def own_step(args, name, **options):
    options |= {"device": args.device, "tiny": args.tiny}
    return [sys.executable, str(SCRIPT), "--step", name, json.dumps(options)]


def is_ours(name):
    return "ours" in name


def together(names):
    """The first row and those after it that share its process."""
    alone = lambda name: is_ours(name) or name == "torch-compiled"
    return names[:1] if alone(names[0]) else list(itertools.takewhile(lambda name: not alone(name), names))


def our_command(args, name, model):
    numbers = lambda values: ",".join(map(str, values))
    program, device = [str(args.binary.absolute()), "bench"], ["--device", args.device, "--json"]
    device += ["--no-cuda-graph"] if name.endswith("-no-graph") else []
    device += ["--no-cuda-overlap"] if name.endswith("-no-overlap") else []
    if name.startswith("linear"):
        shapes = ",".join(f"{out_features}x{in_features}" for out_features, in_features in args.shapes)
        return [*program, "-", "--linear", shapes, "--rows", numbers(args.rows), "--runs", str(args.runs), *device]

    sizes = ["--contexts", CONTEXT, "--prompts", numbers(args.prompts), "--batch-sizes", numbers(args.batches)]
    sizes += ["--max-new-tokens", args.new_tokens, "--runs", args.runs]
    return [*program, model, *device, *map(str, sizes)]


def command(args, names, model, left):
    """The command that measures these rows in one process, and its time limit in seconds."""
    if is_ours(names[0]):
        return our_command(args, names[0], model), min(args.limit, left)

    def options(name):
        sizes = {"model": model, "batches": args.batches, "prompts": args.prompts, "new_tokens": args.new_tokens}
        sizes = {"shapes": args.shapes, "rows": args.rows} if name.startswith("linear") else sizes
        return ({} if name == "copy" else sizes) | {"runs": args.runs}

    rows = [[name, options(name)] for name in names]
    seconds = min(left - SHORTEST / 2, len(names) * (args.limit + GRACE))
    words = own_step(args, "peers", rows=rows, limit=args.limit, seconds=round(seconds, 1))
    return words, min(left, seconds + STARTING)


class Stopped(Exception):
    """A signal stopped this program."""


def last_object(text):
    """The last JSON object that starts at the beginning of a line; None if there is none."""
    text = "\n" + text
    while (start := text.rfind("\n{")) >= 0:
        with contextlib.suppress(ValueError):  # a kill may have truncated the last one
            return json.loads(text[start:])
        text = text[:start]
    return None


def run(words, limit):
    """The last JSON object that a command printed, and why it failed; None for either if there is none."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}

    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        try:
            process = subprocess.Popen(words, stdout=out, stderr=errors, env=environment, process_group=0)
        except OSError as error:
            return None, f"cannot be started: {error}"

        try:
            status = f"exit status {process.wait(limit)}"
        except subprocess.TimeoutExpired:
            status = f"stopped after {limit:.0f} s"
        except Stopped:
            status = "stopped by a signal"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # torch's compiler leaves workers behind

        failed = process.wait() != 0
        out.seek(0), errors.seek(0)
        found, lines = last_object(out.read()), errors.read().split("\n")

    if not failed:
        return found, None
    lines = [line.strip() for line in lines if line.strip()]
    telling = [line for line in lines if line.startswith("Timeout (") or "error" in line.lower()]

    # The last line of a killed process may be any warning, so it explains nothing.
    telling = telling or (lines[-1:] if process.returncode > 0 else [])
    return found, ": ".join([status, *[line[:300] for line in telling[-1:]]])


def said(*words):
    """The output of a quick command."""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{words[0]} does not answer ({type(error).__name__})"


def lacking(name):
    return ", ".join(module for module in PEERS[name][1] if not importlib.util.find_spec(module))


def version(module):
    try:
        return f"{module} {importlib.metadata.version(module)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{module} of unknown version"


def shortcomings(report, reason):
    """Why a row is incomplete, from its report and from how its process ended. Empty if it is complete."""
    found = [reason] if reason else []
    found += [f"{what}: {error}" for what, error in report.get("errors", {}).items()]
    if left_out := report.get("left_out"):
        found.append(f"{left_out} numbers left out: the row's time was over")
    return "; ".join(found)[:600]


def measure_together(args, found, names, model, left):
    """Measures rows in one process; returns those it started."""
    words, limit = command(args, names, model, left)
    started = time.monotonic()
    found["commands"] |= {name: shlex.join(words) for name in names}
    print("$", shlex.join(words), file=sys.stderr, flush=True)
    result, reason = run(words, limit)
    seconds = round(time.monotonic() - started, 1)

    if is_ours(names[0]):
        reports = {names[0]: result | {"wall_seconds": seconds} if result else {}}
        reason = reason or (None if result else "it printed no JSON")
    else:
        reports = {name: report for name, report in (result or {}).items() if name in names}
        reports = reports or {name: {} for name in names}  # none was started: all failed alike

    for name, report in reports.items():
        own = reason if "wall_seconds" not in report else None
        if set(report) - {"errors", "left_out", "wall_seconds"}:
            found["results"][name] = report
        if why := shortcomings(report, own):
            found["reasons"][name] = why
        print(f"{name}: {why or 'done'}, {report.get('wall_seconds', seconds)} s", file=sys.stderr, flush=True)

    return list(reports)


def write(path, text):
    """Replaces a file atomically: readers see the old text or the new one."""
    if path:
        partial = path.with_name(path.name + ".partial")
        partial.write_text(text)
        partial.rename(path)


def measure(args, found, model):
    """Runs process by process; adds results, reasons for missing ones, and commands to `found`."""
    reasons, end = found["reasons"], time.monotonic() + args.budget
    todo = [name for name in args.only if name not in found["results"] or name in reasons]
    reasons |= {name: f"left out, not installed: {lacking(name)}" for name in todo if lacking(name)}
    todo = [name for name in todo if not lacking(name)]
    for name in todo:
        reasons.pop(name, None)
    over = "not run: the time was over"

    try:
        needed = any("linear" not in name and name != "copy" for name in todo)
        if needed and not pathlib.Path(model, "config.json").exists():
            _, reason = run(own_step(args, "make-model", folder=model), min(MAKING, args.budget))
            print(f"making the model: {reason or 'done'}", file=sys.stderr)
        while todo and not args.stopped and (left := end - time.monotonic()) >= SHORTEST:
            begun = measure_together(args, found, together(todo), model, left)
            todo = [name for name in todo if name not in begun]
            write(args.json, json.dumps(found, indent=1) + "\n")
    except Stopped:
        pass

    if args.stopped:
        over = "not run: stopped by a signal"
    reasons |= {name: over for name in todo}
    write(args.json, json.dumps(found, indent=1) + "\n")


# Printing


def number(value):
    return f"{value:.{max(0, min(2, 2 - math.floor(math.log10(value))))}f}" if value else "–"


def table(titles, rows):
    return ["| " + " | ".join(map(str, cells)) + " |" for cells in (titles, ["---"] * len(titles), *rows)]


def columns(result):
    """The table columns of a model's report, ours or a peer's."""
    memory = result.get("memory", {}).get("model_bytes", 0) / (1 << 20)
    found = {"load, s": result["load"]["seconds"], "weights, MiB": memory}
    for kind, size, title in [("decode", "batch", "decode, batch"), ("prefill", "tokens", "prompt of")]:
        found |= {f"{title} {entry[size]}": entry["tokens_per_second"] for entry in result.get(kind, [])}
    return found


def model_tables(results):
    found = {PEERS[name][0]: columns(results[name]) for name in PEERS if "load" in results.get(name, {})}
    titles = list(dict.fromkeys(title for values in found.values() for title in values))
    rows = [[name, *[number(values.get(title)) for title in titles]] for name, values in found.items()]
    lines = table(["tokens/s", *titles], rows)

    if (ours := found.pop(PEERS["ours"][0], None)) and found:
        pairs = {name: [(ours.get(title), values.get(title)) for title in titles] for name, values in found.items()}
        ratios = [[name, *[f"{a / b:.2f}" if a and b else "–" for a, b in row]] for name, row in pairs.items()]
        lines += ["", *table(["llm-int8 ÷", *titles], ratios)]

    return lines if rows else []


def linear_table(results):
    times, rows, copied = {}, [], results.get("copy", {}).get("bytes_per_second")
    names = ["ours", "ours-no-overlap", "torch", "torch-int8", "bitsandbytes"]
    for name in names:
        for entry in results.get(f"linear-{name}", {}).get("linear", []):
            key = (entry["out_features"], entry["in_features"], entry["rows"])
            times.setdefault(key, {})[name, entry.get("outlier_columns")] = entry["microseconds"]

    order = list(dict.fromkeys(key[:2] for key in times))
    for key in sorted(times, key=lambda key: (order.index(key[:2]), key[2])):
        (out_features, in_features, count), found = key, times[key]
        # torch has no outliers: its single time is compared with both of ours.
        for outliers in sorted({columns for _, columns in found if columns is not None}) or [0]:
            ours, *others = [found.get((name, outliers), found.get((name, None))) for name in names]
            weights = out_features * in_features
            ratios = [f"{other / ours:.2f}" if other and ours else "–" for other in others]
            share = f"{weights / (ours * 1e-6) / copied:.0%}" if ours and copied and count == 1 else ""
            rate = number(2 * count * weights / (ours * 1e6)) if ours else "–"
            sizes = [f"{out_features} × {in_features}", count, outliers]
            rows.append([*sizes, *map(number, [ours, *others]), *ratios, share, rate])

    titles = ["out × in", "rows", "outlier columns", "llm-int8, µs", "no overlap, µs", "torch f16, µs"]
    titles += ["torch int8 matmul alone, µs", "bitsandbytes, µs", "no overlap ÷ ours", "torch ÷ ours"]
    titles += ["int8 matmul alone ÷ ours", "bitsandbytes ÷ ours", "ours, of the copy's bytes/s", "ours, TOPS"]
    return table(titles, rows) if rows else []


def circumstances(found):
    """What the numbers depend on: date, GPU, versions, commands, bandwidth, failures."""
    results, rate = found["results"], found["results"].get("copy", {}).get("bytes_per_second")
    runs = ", ".join(map(str, found["runs"]))
    lines = [f"{found['date']}; {found['card']}; medians of runs: {runs}.", *[f"`{call}`" for call in found["calls"]]]
    lines.append("")
    if rate:
        lines.append(f"- copying on the card: {rate / 1e9:.0f} GB/s, read and written")

    for entry in results.get("ours", {}).get("decode", []):
        if rate and entry["batch"] == 1:
            read = entry["tokens_per_second"] * entry["bytes_per_token"]
            lines.append(f"- llm-int8, decode at batch 1: reads {read / 1e9:.0f} GB/s, {read / rate:.0%} of that")

    lines.append(f"- {', '.join(found['versions'])}")
    for entry in results.get("torch-compiled", {}).get("decode", []):
        if skipped := entry["skipped_graphs"]:  # then the row measures something else than its title says
            lines.append(f"- torch f16, compiled, batch {entry['batch']}: {skipped} graphs not captured")

    return lines + [f"- {name}: {reason.replace('|', '/')}" for name, reason in found["reasons"].items()]


def tables(found):
    parts = [model_tables(found["results"]), linear_table(found["results"]), circumstances(found)]
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def numbers(text):
    values = [int(value) for value in text.split(",")]
    if min(values) < 1:
        raise ValueError(text)
    return values


def shapes(text):
    return [numbers(shape.replace("x", ",")) for shape in text.split(",")]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=pathlib.Path, default=SCRIPT.parent.parent / "target/release/llm-int8")
    parser.add_argument("--model", type=pathlib.Path, metavar="DIR", help="make the model there, or use the one that is there")
    parser.add_argument("--only", default=",".join(PEERS), metavar="LIST", help="rows, default: %(default)s")
    parser.add_argument("--runs", type=int, choices=range(1, 100), default=5, metavar="N")
    parser.add_argument("--quick", action="store_true", help="fewer sizes, tokens and runs, to see whether everything works")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal: two layers and tiny sizes")
    parser.add_argument("--device", default=DEVICE, metavar="NAME", help="%(default)s, or cpu for a rehearsal")
    for name, kind in [("batches", numbers), ("prompts", numbers), ("shapes", shapes), ("rows", numbers)]:
        what = {"shapes": "OUTxIN of linear layers", "rows": "rows of activations"}.get(name, f"{name} for the model")
        parser.add_argument(f"--{name}", type=kind, metavar="LIST", help=what)

    parser.add_argument("--limit", type=int, default=60, metavar="S", help="seconds for one row, default: %(default)s")
    parser.add_argument("--budget", type=float, default=math.inf, metavar="S", help="seconds for all rows")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write the raw results")
    parser.add_argument("--resume", action="store_true", help="measure only what the --json file lacks")
    parser.add_argument("--markdown", type=pathlib.Path, metavar="FILE", help="also write the tables there")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run none")
    args = parser.parse_args()
    args.only = list(dict.fromkeys(args.only.split(",")))
    if wrong := set(args.only) - set(PEERS):
        parser.error(f"unknown rows: {', '.join(sorted(wrong))}")
    given = [args.batches, args.prompts, args.shapes, args.rows]
    sizes, args.new_tokens = [BATCHES, PROMPTS, SHAPES, ROWS], NEW_TOKENS
    if args.quick or args.tiny:
        sizes, args.new_tokens, args.runs = [[1, 8], [128], SHAPES[3:5], [1, 64, 512]], 32, min(args.runs, 2)
    if args.tiny:
        sizes, args.new_tokens = [[1, 2], [16], [(96, 64), (64, 128)], [1, 32]], 4
    args.batches, args.prompts, args.shapes, args.rows = [a or b for a, b in zip(given, sizes)]

    return args


def print_commands(args, model):
    print(shlex.join(own_step(args, "make-model", folder=model)))
    todo = list(args.only)

    while todo:
        names = together(todo)
        todo = todo[len(names) :]
        missing = {name: lacking(name) for name in names if lacking(name)}
        lines = [f"\n# {name} is left out here, not installed: {modules}" for name, modules in missing.items()]
        words, _ = command(args, names, model, min(args.budget, 1e6))
        print(f"\n# {', '.join(names)}{''.join(lines)}\n{shlex.join(words)}")


def main():
    if sys.argv[1:2] == ["--step"]:
        return step(*sys.argv[2:4])
    args = arguments()
    use(args.device, args.tiny)
    args.stopped = False

    def stop(*_):
        if not args.stopped:  # only once, so that results are still written
            args.stopped = True
            raise Stopped

    with tempfile.TemporaryDirectory(prefix="llm-int8-gpu-") as scratch:
        model = str((args.model or pathlib.Path(scratch, "gpt2-large")).absolute())
        if args.dry_run:
            return print_commands(args, model)

        found = {"results": {}, "reasons": {}, "commands": {}, "calls": [], "runs": []}
        if args.resume and args.json and args.json.exists():
            found |= json.loads(args.json.read_text())
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm", "--format=csv,noheader"]
        found |= {"date": str(datetime.date.today()), "card": said(*query, "-i", "0")}
        modules = {module for name in args.only for module in PEERS[name][1] if importlib.util.find_spec(module)}
        versions = [said(str(args.binary.absolute()), "--version"), *map(version, sorted(modules))]
        found["versions"] = list(dict.fromkeys([*found.get("versions", []), *versions]))
        found["calls"].append(shlex.join(["python3", "scripts/bench_gpu.py", *sys.argv[1:]]))
        found["runs"] = sorted({*found["runs"], args.runs})
        signal.signal(signal.SIGTERM, stop)
        measure(args, found, model)

    text = tables(found)
    write(args.markdown, text)
    print(text, end="")
    if args.stopped:
        sys.exit(128 + signal.SIGTERM)
    if any(name in found["reasons"] for name in args.only):
        sys.exit(INCOMPLETE)


if __name__ == "__main__":
    main()
