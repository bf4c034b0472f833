#!/usr/bin/env python3
"""Compares llm-int8 on an NVIDIA GPU with torch, eager and compiled, and bitsandbytes: prints Markdown tables.

    python3 scripts/bench_gpu.py [--quick] [--json raw.json [--resume]] [--only ours,torch,…] [--dry-run]

Needs our program built with CUDA, torch, transformers, accelerate and numpy (Python 3.11); bitsandbytes is left out
where it is not installed, and a peer that fails does not stop the others. Each row is a process of its own; what it
measured is in the file of --json as soon as it ends, and --resume measures what such a file lacks.

The model is a random gpt2-large in float16 with outlier columns, made in a temporary folder or in --model. A number is
the median of --runs (as many as begin within 20 s) after one that is not counted:

- load: the model alone, from the page cache, without the start of Python or of the card;
- decode: greedy, 128 new tokens after 128 others, the first not counted; tokens of all texts of a batch. Peers leave
  their tokens on the card. Compiled: mode="reduce-overhead", a static cache of 256 positions, each batch by itself;
- prompt: one text to its first new token, with an empty cache, not compiled;
- linear: one layer without bias, activations without outliers, f16 in and out for the peers; 512 MiB of copies of its
  weights are taken in turn, so that they come from memory. torch: the lower of calls one by one and in a CUDA graph,
  which bitsandbytes cannot have, as it waits for the card. Ours quantises the activations in that time too;
- copy: a GiB to another, bytes read and bytes written.
"""

import argparse
import contextlib
import datetime
import functools
import importlib.metadata
import importlib.util
import inspect
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
CONTEXT, POSITIONS = 128, 1088  # a prompt of 1024 and a token after it fit
BATCHES, PROMPTS, NEW_TOKENS = [1, 8, 32], [128, 512, 1024], 128
SHAPES, ROWS = [(4096, 4096), (11008, 4096), (4096, 11008), (8192, 28672)], [1, 8, 64, 512, 4096]  # (N, K), M
THRESHOLD = 6.0  # of outliers, in bitsandbytes
ROTATED = 512 << 20  # bytes of weights: four times the largest last cache
SLOW = 20  # seconds after which a measurement takes no further run
SAMPLE = 100_000  # microseconds of work between two events
MODEL = ["torch", "transformers", "accelerate"]
PEERS = {  # of a row its title and what it needs
    "copy": ("copy on the card", ["torch"]),
    "ours": ("llm-int8", []),
    "ours-no-graph": ("llm-int8, no CUDA graph", []),
    "linear-ours": ("llm-int8", []),
    "torch": ("torch f16", MODEL),
    "linear-torch": ("torch f16", ["torch"]),
    "bitsandbytes": ("bitsandbytes", [*MODEL, "bitsandbytes"]),
    "linear-bitsandbytes": ("bitsandbytes", ["torch", "bitsandbytes"]),
    "torch-compiled": ("torch f16, compiled", MODEL),
}


# What runs in a process of its own: bench_gpu.py --step NAME JSON


def record(report, kind, sizes, work):
    """Adds what work() measures to a list of the report, or why it failed; prints all there is so far."""
    try:
        report.setdefault(kind, []).append(sizes | work())
    except Exception as error:  # too little memory for one size must not lose the others
        report.setdefault("errors", {})[f"{kind} {sizes}"] = f"{type(error).__name__}: {error}"[:300]
    print("\n" + json.dumps(report), flush=True)


def repeat(work, runs):
    """The median of what work() returns."""
    work()
    results, end = [], time.monotonic() + SLOW
    while not results or (len(results) < runs and time.monotonic() < end):
        results.append(work())
    return statistics.median(results)


def make_model(_, folder):
    import make_random_gpt2

    make_random_gpt2.POSITIONS = POSITIONS
    sys.argv = ["make_random_gpt2.py", "--size", "gpt2-large", "--dtype", "F16", "-o", folder]
    make_random_gpt2.main()


def run_model(name, model, batches, prompts, new_tokens, runs):
    import torch
    import transformers

    def now():
        torch.cuda.synchronize()
        return time.perf_counter()

    def ids(batch, length):
        return torch.randint(network.config.vocab_size, (batch, length), device=DEVICE)

    def advance(tokens, past, position):
        options = {"cache_position": position} if takes_position else {}
        output = network(input_ids=tokens, past_key_values=past, use_cache=True, logits_to_keep=1, **options)
        return output.logits[:, -1].argmax(-1, keepdim=True)

    def replay(tokens, past, position):
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(tokens, past, position).clone()  # the next step overwrites what the graph returns

    def decode(prompt, past, step):
        token = advance(prompt, past, torch.arange(CONTEXT, device=DEVICE))
        positions = [torch.tensor([CONTEXT + i], device=DEVICE) for i in range(new_tokens - 1)]
        started = now()
        for position in positions:
            token = step(token, past, position)
        return len(prompt) * len(positions) / (now() - started)

    def decode_rate(batch):
        prompt, new_cache = ids(batch, CONTEXT), lambda: transformers.DynamicCache(config=network.config)
        if not compiled:
            return {"tokens_per_second": repeat(lambda: decode(prompt, new_cache(), advance), runs)}
        # One cache for all runs: the graph holds its addresses.
        past = transformers.StaticCache(config=network.config, max_cache_len=CONTEXT + NEW_TOKENS)
        torch._dynamo.utils.counters.clear()
        rate = repeat(lambda: past.reset() or decode(prompt, past, replay), runs)
        skipped = torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
        return {"tokens_per_second": rate, "skipped_graphs": skipped}

    def prefill(tokens):
        prompt, position = ids(1, tokens), torch.arange(tokens, device=DEVICE)
        past, started = transformers.DynamicCache(config=network.config), now()
        advance(prompt, past, position)
        return tokens / (now() - started)

    torch.manual_seed(0)
    torch.zeros(1, device=DEVICE)
    options = {"dtype": torch.float16, "attn_implementation": "sdpa", "device_map": DEVICE}
    if name == "bitsandbytes":
        options["quantization_config"] = transformers.BitsAndBytesConfig(load_in_8bit=True)
    started = now()
    network = transformers.GPT2LMHeadModel.from_pretrained(model, **options).eval()
    report = {"load": {"seconds": now() - started}, "memory": {"model_bytes": network.get_memory_footprint()}}
    # Before its version 5 transformers had to be told where in a cache it is.
    takes_position = "cache_position" in inspect.signature(network.forward).parameters
    compiled = name == "torch-compiled" and torch.compile(advance, mode="reduce-overhead", dynamic=False)
    with torch.no_grad():
        for batch in batches:
            record(report, "decode", {"context": CONTEXT, "batch": batch}, lambda: decode_rate(batch))
        for tokens in [] if compiled else prompts:
            rate = lambda: {"tokens_per_second": repeat(lambda: prefill(tokens), runs)}
            record(report, "prefill", {"tokens": tokens}, rate)


def microseconds(calls, runs):
    """The time of one of these calls between events on the card; they are taken in turn."""
    import torch

    def sample(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(rounds):
            for call in calls:
                call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e3 / (rounds * len(calls))

    sample(1)
    rounds = min(1000, max(1, round(SAMPLE / (sample(1) * len(calls)))))
    return repeat(lambda: sample(rounds), runs)


def linear(name, shapes, rows, runs):
    import torch

    def bitsandbytes_layer(weight):
        import bitsandbytes

        options = {"bias": False, "has_fp16_weights": False, "threshold": THRESHOLD, "device": "meta"}
        layer = bitsandbytes.nn.Linear8bitLt(*reversed(weight.shape), **options)
        layer.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        return layer.to(DEVICE).eval()  # moving it quantises it

    @functools.lru_cache(maxsize=1)
    def layers(out_features, in_features):
        weight = torch.randn(out_features, in_features, device=DEVICE, dtype=torch.float16) * in_features**-0.5
        if name == "linear-bitsandbytes":
            weight = weight.cpu()
            return [bitsandbytes_layer(weight) for _ in range(max(2, math.ceil(ROTATED / weight.numel())))]
        product, copies = torch.nn.functional.linear, max(2, math.ceil(ROTATED / (2 * weight.numel())))
        return [functools.partial(product, weight=weight.clone()) for _ in range(copies)]

    def measure(out_features, in_features, count):
        x = torch.randn(count, in_features, device=DEVICE, dtype=torch.float16)
        calls = [functools.partial(layer, x) for layer in layers(out_features, in_features)]
        found = {"one_by_one": microseconds(calls, runs)}
        if name == "linear-torch":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for call in calls:
                    call()
            found["in_a_graph"] = microseconds([graph.replay], runs) / len(calls)
        return {"microseconds": min(found.values())} | found

    torch.manual_seed(0)
    report = {}
    with torch.no_grad():
        for out_features, in_features in shapes:
            for count in rows:
                sizes = {"out_features": out_features, "in_features": in_features, "rows": count}
                record(report, "linear", sizes, lambda: measure(out_features, in_features, count))


def copy(_, runs):
    import torch

    source = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE).random_()
    target = torch.empty_like(source)
    rate = 2e6 * source.numel() / microseconds([lambda: target.copy_(source)], runs)
    print(json.dumps({"bytes_per_second": rate}))


STEPS = {"make-model": make_model, "copy": copy, "linear-torch": linear, "linear-bitsandbytes": linear}


# Measuring


def own_step(name, **options):
    return [sys.executable, str(SCRIPT), "--step", name, json.dumps(options)]


def command(args, name, model):
    """The command that measures a row."""
    numbers = lambda values: ",".join(map(str, values))
    program, device = [str(args.binary.absolute()), "bench"], ["--device", DEVICE, "--json"]
    if name == "linear-ours":
        shapes = ",".join(f"{out_features}x{in_features}" for out_features, in_features in args.shapes)
        return [*program, "-", "--linear", shapes, "--rows", numbers(args.rows), *device]
    if name.startswith("ours"):
        device += ["--no-cuda-graph"] if name == "ours-no-graph" else []
        sizes = ["--contexts", CONTEXT, "--prompts", numbers(args.prompts), "--batch-sizes", numbers(args.batches)]
        sizes += ["--max-new-tokens", args.new_tokens, "--runs", args.runs]
        return [*program, model, *device, *map(str, sizes)]
    sizes = {"model": model, "batches": args.batches, "prompts": args.prompts, "new_tokens": args.new_tokens}
    sizes = {"shapes": args.shapes, "rows": args.rows} if name.startswith("linear") else sizes
    return own_step(name, **({} if name == "copy" else sizes), runs=args.runs)


def last_object(text):
    """The last JSON object of a text, which begins at the start of a line; None where there is none."""
    text = "\n" + text
    try:
        return json.loads(text[text.rindex("\n{") :])
    except ValueError:
        return None


def run(words, limit):
    """The JSON a command printed last (None: none), and why it failed (None: it did not)."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        try:
            process = subprocess.Popen(words, stdout=out, stderr=errors, env=environment, process_group=0)
        except OSError as error:
            return None, f"cannot be started: {error}"
        try:
            status = f"exit status {process.wait(limit)}"
        except subprocess.TimeoutExpired:
            status = f"stopped after {limit} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # torch's compiler leaves workers
        failed = process.wait() != 0
        out.seek(0), errors.seek(0)
        found, lines = last_object(out.read()), errors.read().split("\n")
    if not failed:
        return found, None
    lines = [line.strip() for line in lines if line.strip()] or ["no message"]
    line = ([line for line in lines if "error" in line.lower()] or lines)[-1]
    return found, f"{status}: {line[:300]}"


def said(*words):
    """What a short command prints."""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=60).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{words[0]} does not answer ({type(error).__name__})"


def lacking(name):
    return ", ".join(module for module in PEERS[name][1] if not importlib.util.find_spec(module))


def measure(args, found, model):
    """Fills found with results, reasons why there is none, and commands, row by row."""
    results, reasons = found["results"], found["reasons"]
    todo = [name for name in args.only if name not in results or name in reasons]
    config = pathlib.Path(model, "config.json")
    if not config.exists() and any("linear" not in name and name != "copy" for name in todo):
        _, reason = run(own_step("make-model", folder=model), args.limit)
        print(f"making the model: {reason or 'done'}", file=sys.stderr)
    for name in todo:
        reasons.pop(name, None)
        words, started = command(args, name, model), time.monotonic()
        if modules := lacking(name):
            reason = f"left out, not installed: {modules}"
        else:
            found["commands"][name] = shlex.join(words)
            print("$", found["commands"][name], file=sys.stderr, flush=True)
            result, reason = run(words, args.limit)
            if result:
                results[name] = result | {"wall_seconds": round(time.monotonic() - started, 1)}
                failed = [f"{what}: {error}" for what, error in result.get("errors", {}).items()]
                reason = "; ".join([reason, *failed] if reason else failed)[:600]
            else:
                reason = reason or "it printed no JSON"
        if reason:
            reasons[name] = reason
        print(f"{name}: {reason or 'done'}, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        if args.json:
            partial = args.json.with_name(args.json.name + ".partial")
            partial.write_text(json.dumps(found, indent=1) + "\n")
            partial.rename(args.json)


# Printing


def number(value):
    return f"{value:.{max(0, min(2, 2 - math.floor(math.log10(value))))}f}" if value else "–"


def table(titles, rows):
    return ["| " + " | ".join(map(str, cells)) + " |" for cells in (titles, ["---"] * len(titles), *rows)]


def columns(result):
    """The columns of a report on a model, ours or a peer's."""
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
    for name in ("ours", "torch", "bitsandbytes"):
        for entry in results.get(f"linear-{name}", {}).get("linear", []):
            key = (entry["out_features"], entry["in_features"], entry["rows"])
            times.setdefault(key, {})[name] = entry["microseconds"]
    for (out_features, in_features, count), found in times.items():
        ours, peers = found.get("ours"), [found.get("torch"), found.get("bitsandbytes")]
        weights = out_features * in_features
        ratios = [f"{theirs / ours:.2f}" if theirs and ours else "–" for theirs in peers]
        share = f"{weights / (ours * 1e-6) / copied:.0%}" if ours and copied and count == 1 else ""
        rate = number(count * weights / (ours * 1e6)) if ours else "–"
        numbers = map(number, [ours, *peers])
        rows.append([f"{out_features} × {in_features}", count, *numbers, *ratios, share, rate])
    titles = ["out × in", "rows", "llm-int8, µs", "torch f16, µs", "bitsandbytes, µs", "torch ÷ ours"]
    titles += ["bitsandbytes ÷ ours", "ours, of the copy's bytes/s", "ours, T multiply-adds/s"]
    return table(titles, rows) if rows else []


def circumstances(found):
    """What the numbers depend on."""
    results, rate = found["results"], found["results"].get("copy", {}).get("bytes_per_second")
    lines = [f"{found['date']}; {found['card']}; medians of runs: {found['runs']}.", f"`{found['command']}`", ""]
    if rate:
        lines.append(f"- copying on the card: {rate / 1e9:.0f} GB/s, read and written")
    for entry in results.get("ours", {}).get("decode", []):
        if rate and entry["batch"] == 1:
            read = entry["tokens_per_second"] * entry["bytes_per_token"]
            lines.append(f"- llm-int8, decode at batch 1: reads {read / 1e9:.0f} GB/s, {read / rate:.0%} of that")
    lines.append(f"- {', '.join(found['versions'])}")
    for entry in results.get("torch-compiled", {}).get("decode", []):
        if skipped := entry["skipped_graphs"]:  # then the row is not what its title says
            lines.append(f"- torch f16, compiled, batch {entry['batch']}: {skipped} graphs not captured")
    return lines + [f"- {name}: {reason.replace('|', '/')}" for name, reason in found["reasons"].items()]


def main():
    if sys.argv[1:2] == ["--step"]:
        name, options = sys.argv[2:4]
        return STEPS.get(name, run_model)(name, **json.loads(options))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=pathlib.Path, default=SCRIPT.parent.parent / "target/release/llm-int8")
    parser.add_argument("--model", type=pathlib.Path, metavar="DIR", help="keep the model there, or take this one")
    parser.add_argument("--only", default=",".join(PEERS), metavar="LIST", help="rows, default: %(default)s")
    parser.add_argument("--runs", type=int, choices=range(1, 100), default=5, metavar="N")
    parser.add_argument("--quick", action="store_true", help="fewer sizes, tokens and runs: does everything work?")
    parser.add_argument("--limit", type=int, default=600, metavar="S", help="seconds for one row")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write the raw results")
    parser.add_argument("--resume", action="store_true", help="measure only what the file of --json lacks")
    parser.add_argument("--markdown", type=pathlib.Path, metavar="FILE", help="also write the tables there")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run none")
    args = parser.parse_args()
    args.only = args.only.split(",")
    if wrong := set(args.only) - set(PEERS):
        parser.error(f"unknown rows: {', '.join(sorted(wrong))}")
    args.shapes, args.rows = (SHAPES[:2], [1, 64, 512]) if args.quick else (SHAPES, ROWS)
    args.batches, args.prompts = ([1, 8], [128]) if args.quick else (BATCHES, PROMPTS)
    args.new_tokens, args.runs = (32, min(args.runs, 2)) if args.quick else (NEW_TOKENS, args.runs)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # and with us what we started
    with tempfile.TemporaryDirectory(prefix="llm-int8-gpu-") as scratch:
        model = str((args.model or pathlib.Path(scratch, "gpt2-large")).absolute())
        if args.dry_run:
            print(shlex.join(own_step("make-model", folder=model)))
            for name in args.only:
                left_out = f" (left out here, not installed: {lacking(name)})" if lacking(name) else ""
                print(f"\n# {name}{left_out}\n{shlex.join(command(args, name, model))}")
            return
        found = {"results": {}, "reasons": {}, "commands": {}}
        if args.resume and args.json and args.json.exists():
            found = json.loads(args.json.read_text())
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm", "--format=csv,noheader"]
        found |= {"date": str(datetime.date.today()), "card": said(*query, "-i", "0")}
        peers = {peer for name in args.only for peer in PEERS[name][1] if importlib.util.find_spec(peer)}
        versions = [f"{peer} {importlib.metadata.version(peer)}" for peer in sorted(peers)]
        found |= {"runs": args.runs, "versions": [said(str(args.binary.absolute()), "--version"), *versions]}
        found["command"] = shlex.join(["python3", "scripts/bench_gpu.py", *sys.argv[1:]])
        measure(args, found, model)
    parts = [model_tables(found["results"]), linear_table(found["results"]), circumstances(found)]
    text = "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"
    if args.markdown:
        args.markdown.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
